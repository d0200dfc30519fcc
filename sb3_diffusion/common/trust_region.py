"""A bound on a Kullback-Leibler divergence, kept by a learned multiplier (arXiv 1806.06920)."""

import math

import torch as th

from sb3_diffusion.diffusion import gaussian_kl

# The multiplier must follow within one interval of the older policy: MPO's step size for it, and bounds from which it comes
# back.
KL_COEF_LEARNING_RATE = 1e-2
LARGE_DIVERGENCE = 1e4  # nats of one reverse step
MIN_LOG_KL_COEF, MAX_LOG_KL_COEF = math.log(1e-2), math.log(1e4)


def make_multiplier(device: th.device) -> tuple[th.Tensor, th.optim.Adam]:
    """
    :param device: where the policy lives
    :return: the logarithm of a multiplier that starts at 1, (1,), and its optimizer
    """
    log_kl_coef = th.zeros(1, device=device).requires_grad_(True)
    return log_kl_coef, th.optim.Adam([log_kl_coef], lr=KL_COEF_LEARNING_RATE, fused=True)


def bounded_gaussian_kl(mean: th.Tensor, log_std: th.Tensor, other_mean: th.Tensor, other_log_std: th.Tensor) -> th.Tensor:
    """
    :func:`~sb3_diffusion.diffusion.gaussian_kl`, and beyond a divergence that no trust region allows its logarithm: the
    direction of the gradient stays, and its size, which grows with the inverse variance of the kernels, does not overflow.
    The parameters are the same.

    :return: (…) in nats
    """
    kl = gaussian_kl(mean, log_std, other_mean, other_log_std)
    logarithm = (kl.clamp(min=LARGE_DIVERGENCE) / LARGE_DIVERGENCE).log()
    return th.where(kl > LARGE_DIVERGENCE, LARGE_DIVERGENCE * (1 + logarithm), kl)


def trust_region_losses(kl: th.Tensor, bound: float | th.Tensor, log_kl_coef: th.Tensor) -> dict[str, th.Tensor]:
    """
    Up goes the multiplier where the divergence exceeds its bound, down where it does not.

    :param kl: the divergence in nats, a scalar with a gradient
    :param bound: what it is not to exceed
    :param log_kl_coef: logarithm of the multiplier, (1,)
    :return: "kl" and "kl_coef" to log, and two losses: "kl_loss" of the policy, "kl_coef_loss" of the multiplier
    """
    kl_coef = log_kl_coef.exp().squeeze()
    return {
        "kl": kl.detach(),
        "kl_coef": kl_coef.detach(),
        "kl_loss": kl_coef.detach() * kl,
        "kl_coef_loss": -(log_kl_coef * (kl.detach() - bound)).squeeze(),
    }


def keep_in_range(log_kl_coef: th.Tensor) -> None:
    """Bring the multiplier back within its bounds after a step."""
    log_kl_coef.detach().clamp_(MIN_LOG_KL_COEF, MAX_LOG_KL_COEF)
