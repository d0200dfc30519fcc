"""Wasserstein policy optimisation (arXiv 2505.00663), one reverse step at a time."""

import math
from typing import Any

import torch as th

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.chains import KeptLatents, SampledChains, TensorOrDict
from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.common.objectives.reverse_kl import mean_over_steps
from sb3_diffusion.diffusion import gaussian_kl, gaussian_log_prob, log_det_tanh, noising_log_prob, read_out

LARGE_DIVERGENCE = 1e4  # nats of one reverse step
ACTION_GRADIENTS = ("identity", "cube_root")
# The multiplier of the trust region must follow within one interval of the older actor: MPO's step size for it
# (arXiv 1806.06920), and bounds from which it comes back.
KL_COEF_LEARNING_RATE = 1e-2
MIN_LOG_KL_COEF, MAX_LOG_KL_COEF = math.log(1e-2), math.log(1e4)


class DecisionKernel:
    """
    The reverse kernels at an actor's levels, as Gaussians of the decisions: of ``x^{k-1}`` for k > 1 and of the action before
    it is squashed, ``a^0 = m + c x^0``, for k = 1. ``mean`` and ``log_std`` (N, d); read-out of the N_1 rows with k = 1.
    """

    def __init__(self, actor: DiffusionActor, features: th.Tensor, kept: KeptLatents) -> None:
        steps, rows, self.n_last = kept.actor_levels
        mean, log_std = actor.reverse_kernel(features[rows], kept.actor_latents, steps)
        self.location, self.log_scale = actor.readout(features[rows[: self.n_last]])
        last = read_out(mean[: self.n_last], self.location, self.log_scale)
        self.mean = th.cat([last, mean[self.n_last :]])
        self.log_std = th.cat([log_std[: self.n_last] + self.log_scale, log_std[self.n_last :]])

    def latents(self, decisions: th.Tensor) -> th.Tensor:
        """``x^{k-1}`` (N, d) of decisions (N, d)."""
        last = (decisions[: self.n_last] - self.location) * th.exp(-self.log_scale)
        return th.cat([last, decisions[self.n_last :]])


def wasserstein_losses(model: Any, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
    """Losses with the gradients of :class:`~sb3_diffusion.DiffWPO`; the value of the actor's is DiffSAC's, ``τ ℓ_k - Q_k``."""
    kept = chains.kept
    assert kept is not None
    features, critic_states = model._improvement_states(states)
    levels, latents = kept.actor_levels, kept.actor_latents
    kernel = DecisionKernel(model.actor, features, kept)
    std = kernel.log_std.exp()
    decisions = th.addcmul(kernel.mean, std, th.randn_like(latents))
    fixed = decisions.detach().requires_grad_()

    q_values = model._decision_values(features, critic_states, fixed, kept, ent_coef)
    residual = (fixed - kernel.mean.detach()) / std.detach()
    noising = noising_log_prob(latents, kernel.latents(fixed), model.actor.schedule().at(levels.steps))
    log_ratios = gaussian_log_prob(residual, kernel.log_std.detach()) - noising
    log_det = log_det_tanh(fixed[: levels.n_last])
    log_ratios = log_ratios - th.cat([log_det, log_det.new_zeros(len(fixed) - levels.n_last)])
    (entropy_slope,) = th.autograd.grad(log_ratios.sum(), fixed, retain_graph=True)
    (value_slope,) = th.autograd.grad(q_values.sum(), fixed)
    if model.action_gradient == "cube_root":
        value_slope = value_slope.sign() * value_slope.abs().pow(1 / 3)
    slope = ent_coef * entropy_slope - value_slope

    if model.fisher_rescale:
        # By mean and standard deviation, that is the gradient through the sampled decision.
        policy_loss = slope * decisions
    else:
        policy_loss = slope * (kernel.mean - fixed.detach()) * (-2 * kernel.log_std).exp()
    # Where the noising kernel depends on θ: by the read-out and by a learned schedule
    loss = policy_loss.sum(dim=1) - ent_coef * noising
    value = (ent_coef * log_ratios - q_values).detach()
    losses = {"actor_loss": mean_over_steps(loss - loss.detach() + value, levels.n_last, model.actor.diffusion_steps)}
    if model.target_kl is not None:
        losses.update(trust_region_losses(model, states, kernel, kept))
    return losses


def with_bounded_slope(divergences: th.Tensor) -> th.Tensor:
    """
    Beyond a divergence that no trust region allows, its logarithm: the direction of the gradient stays, and its size, which
    grows with the inverse variance of the kernels, no longer overflows.

    :param divergences: (N,) in nats
    :return: (N,)
    """
    logarithm = (divergences.clamp(min=LARGE_DIVERGENCE) / LARGE_DIVERGENCE).log()
    return th.where(divergences > LARGE_DIVERGENCE, LARGE_DIVERGENCE * (1 + logarithm), divergences)


def trust_region_losses(model: Any, states: TensorOrDict, kernel: DecisionKernel, kept: KeptLatents) -> dict[str, th.Tensor]:
    """The divergence from the older actor times its multiplier, and the multiplier's own loss."""
    target = model.actor_target
    with th.no_grad():
        old = DecisionKernel(target, target.extract_features(states, target.features_extractor), kept)
    divergences = with_bounded_slope(gaussian_kl(old.mean, old.log_std, kernel.mean, kernel.log_std))
    kl = model.actor.diffusion_steps * mean_over_steps(divergences, kernel.n_last, model.actor.diffusion_steps)
    kl_coef = model.log_kl_coef.exp().squeeze()
    return {
        "kl": kl.detach(),
        "kl_coef": kl_coef.detach(),
        "kl_loss": kl_coef.detach() * kl,
        "kl_coef_loss": -(model.log_kl_coef * (kl.detach() - model.target_kl)).squeeze(),
    }


WASSERSTEIN = Objective(wasserstein_losses, uses_diffusion_value=True)
