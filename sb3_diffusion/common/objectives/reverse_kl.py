"""Reverse KL divergence, one reverse step at a time, or through the whole chain."""

from typing import Any

import torch as th

from sb3_diffusion.common.chains import SampledChains, TensorOrDict
from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.diffusion import read_out, readout_log_ratio


def mean_over_steps(values: th.Tensor, n_last: int, diffusion_steps: int) -> th.Tensor:
    """
    Mean of values at the actor's levels (N,), in which each diffusion step counts as much as any other.

    :param n_last: how many rows, the first ones, have k = 1
    :param diffusion_steps: K
    """
    share = 1 / diffusion_steps
    parts = ((share, values[:n_last]), (1 - share, values[n_last:]))
    return th.stack([weight * part.mean() for weight, part in parts if len(part)]).sum()


def per_step_losses(model: Any, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
    """``τ ℓ_k - Q_k`` after one fresh reverse step from κ stored latents a state."""
    kept = chains.kept
    assert kept is not None
    features, critic_states = model._improvement_states(states)
    steps, rows, n_last = kept.actor_levels
    latents, log_ratios = model.actor.reverse_step(features[rows], kept.actor_latents, steps)
    # The rows with k = 1 come first: there the step's own x^0 is read out, and the read-out learns.
    location, log_scale = model.actor.readout(features[rows[:n_last]])
    actions = read_out(latents[:n_last], location, log_scale)
    q_values = model._decision_values(features, critic_states, th.cat([actions, latents[n_last:]]), kept, ent_coef)
    of_readout = th.cat([readout_log_ratio(actions, log_scale), log_ratios.new_zeros(len(rows) - n_last)])
    losses = ent_coef * (log_ratios + of_readout) - q_values
    return {"actor_loss": mean_over_steps(losses, n_last, model.actor.diffusion_steps)}


def whole_chain_losses(model: Any, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
    """``τ (log p(x^K) + Σ_k ℓ_k) - Q_1(s, u)`` of fresh chains, with the gradient through all K steps: SAC's own loss."""
    features, critic_states = model._improvement_states(states)
    sample = model.actor.sample(features)
    q_values = model._action_values(model.critic, critic_states, sample.actions)
    return {"actor_loss": (ent_coef * sample.path_log_prob - q_values).mean()}


REVERSE_KL = Objective(per_step_losses, uses_diffusion_value=True)
WHOLE_CHAIN = Objective(whole_chain_losses)
