"""Wasserstein policy optimisation (arXiv 2505.00663), one reverse step at a time."""

import math
from typing import Any

import torch as th

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.chains import KeptLatents, SampledChains, TensorOrDict
from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.common.objectives.reverse_kl import mean_over_steps
from sb3_diffusion.common.trust_region import bounded_gaussian_kl, trust_region_losses
from sb3_diffusion.diffusion import gaussian_log_prob, log_det_tanh, noising_log_prob, read_out

# Of a decision, in the gradient without the Fisher factor, which would otherwise leave float32 where a policy is very sharp
LARGEST_LOG_PRECISION = math.log(1e6)
ACTION_GRADIENTS = ("identity", "cube_root")


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
    tables = model.actor.schedule().at(levels.steps)
    if not decisions.requires_grad:  # a frozen actor
        decisions.requires_grad_()

    # Slopes at the decisions: what lies before them in the graph plays no part.
    q_values = model._decision_values(features, critic_states, decisions, kept, ent_coef)
    residual = (decisions - kernel.mean.detach()) / std.detach()
    log_ratios = gaussian_log_prob(residual, kernel.log_std.detach())
    log_ratios = log_ratios - noising_log_prob(latents, kernel.latents(decisions), tables)
    log_det = log_det_tanh(decisions[: levels.n_last])
    log_ratios = log_ratios - th.cat([log_det, log_det.new_zeros(len(decisions) - levels.n_last)])
    (entropy_slope,) = th.autograd.grad(log_ratios.sum(), decisions, retain_graph=True)
    (value_slope,) = th.autograd.grad(q_values.sum(), decisions, retain_graph=True)
    if model.action_gradient == "cube_root":
        value_slope = value_slope.sign() * value_slope.abs().pow(1 / 3)
    slope = ent_coef * entropy_slope - value_slope

    if model.fisher_rescale:
        # By mean and standard deviation, that is the gradient through the sampled decision.
        policy_loss = slope * decisions
    else:
        precision = (-2 * kernel.log_std).clamp(max=LARGEST_LOG_PRECISION).exp()
        policy_loss = slope * (kernel.mean - decisions.detach()) * precision
    # Where the noising kernel of fixed decisions depends on θ: by the read-out and by a learned schedule
    noising = noising_log_prob(latents, kernel.latents(decisions.detach()), tables)
    loss = policy_loss.sum(dim=1) - ent_coef * noising
    value = (ent_coef * log_ratios - q_values).detach()
    losses = {"actor_loss": mean_over_steps(loss - loss.detach() + value, levels.n_last, model.actor.diffusion_steps)}
    if model.target_kl is not None:
        losses.update(distance_to_older_actor(model, states, kernel, kept))
    return losses


def chain_kl(other: DiffusionActor, states: TensorOrDict, kernel: DecisionKernel, kept: KeptLatents) -> th.Tensor:
    """
    ``Σ_k KL(q_other(· | x^k, s) ‖ q_θ)`` at latents of the present policy, in closed form, its mean over the states.

    :param other: another actor, which gets no gradient
    :param states: of the chains
    :param kernel: of the present actor
    :param kept: the latents
    :return: a scalar in nats
    """
    with th.no_grad():
        others = DecisionKernel(other, other.extract_features(states, other.features_extractor), kept)  # type: ignore[arg-type]
    divergences = bounded_gaussian_kl(others.mean, others.log_std, kernel.mean, kernel.log_std)
    return other.diffusion_steps * mean_over_steps(divergences, kernel.n_last, other.diffusion_steps)


def distance_to_older_actor(
    model: Any, states: TensorOrDict, kernel: DecisionKernel, kept: KeptLatents
) -> dict[str, th.Tensor]:
    """The divergence from the older actor times its multiplier, and the multiplier's own loss."""
    return trust_region_losses(chain_kl(model.actor_target, states, kernel, kept), model.target_kl, model.log_kl_coef)


WASSERSTEIN = Objective(wasserstein_losses, uses_diffusion_value=True)
