"""The chains of a gradient step: at which states they start, and which of their latents are kept for what."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch as th

from sb3_diffusion.common.actor import DiffusionActor

TensorOrDict = th.Tensor | dict[str, th.Tensor]


def map_observations(function: Callable[..., th.Tensor], *observations: TensorOrDict) -> TensorOrDict:
    """Apply a function to observations, entry by entry if they are dictionaries."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(observation[key] for observation in observations)) for key in first}  # type: ignore[index]
    return function(*observations)


class Transitions(NamedTuple):
    """
    A replayed batch of B transitions: observations, actions (B, d) in [-1, 1], and rewards, dones and discounts, (B, 1) each.
    The discounts are γ, with n-step returns to the power of the number of steps.
    """

    observations: TensorOrDict
    actions: th.Tensor
    next_observations: TensorOrDict
    rewards: th.Tensor
    dones: th.Tensor
    discounts: th.Tensor


class Levels(NamedTuple):
    """
    Which diffusion steps of which states a loss is evaluated on: ``steps`` k (N,), in ascending order, of the states ``rows``
    (N,); the first ``n_last`` have k = 1.
    """

    steps: th.Tensor
    rows: th.Tensor
    n_last: int


@lru_cache(maxsize=256)
def stratified_levels(batch_size: int, n_levels: int, per_state: int, offset: int, device: th.device) -> Levels:
    """
    Spread diffusion steps evenly over a batch: state b gets the steps ``(b + offset + i) mod n_levels + 1``, i < per_state.

    :param batch_size: B
    :param n_levels: steps 1 … n_levels
    :param per_state: how many different steps each state gets
    :param offset: shifts the assignment; only its remainder mod n_levels counts
    :param device: of the returned tensors
    :return: N = B · per_state levels
    """
    steps = (th.arange(batch_size).unsqueeze(1) + th.arange(per_state) + offset) % n_levels + 1
    steps, order = steps.flatten().sort(stable=True)
    n_last = int((steps == 1).sum())
    return Levels(steps.to(device), (order // per_state).to(device), n_last)


@lru_cache(maxsize=256)
def actor_levels(batch_size: int, diffusion_steps: int, per_state: int, offset: int, device: th.device) -> Levels:
    """
    The levels that the actor is trained on. Only at the step k = 1 the read-out learns, so every state gets it; with κ = 1
    every second one, so that the other steps have rows too. The rest are spread evenly over the other steps.

    :param batch_size: B
    :param diffusion_steps: K
    :param per_state: κ, how many different steps each state gets
    :param offset: shifts the assignment
    :param device: of the returned tensors
    :return: N = B · κ levels
    """
    if diffusion_steps == 1:
        return stratified_levels(batch_size, 1, 1, 0, device)
    turns = th.arange(batch_size) + offset
    steps = ((turns // 2).unsqueeze(1) + th.arange(per_state)) % (diffusion_steps - 1) + 2
    steps[(turns % 2 == 0) | (per_state > 1), 0] = 1
    steps, order = steps.flatten().sort(stable=True)
    return Levels(steps.to(device), (order // per_state).to(device), int((steps == 1).sum()))


class ChainLevels(NamedTuple):
    """Of which chains which latents are kept: for the actor, and for the diffusion value (None for K = 1)."""

    actor: Levels
    value: Levels | None


def chain_levels(n_chains: int, diffusion_steps: int, per_state: int, offset: int, device: th.device) -> ChainLevels:
    """
    :param n_chains: one for each state
    :param diffusion_steps: K
    :param per_state: κ, steps per state for the actor
    :param offset: rotates which chain gets which step; after 2 (K - 1) offsets every state has had every step
    :param device: of the returned tensors
    """
    others = max(1, diffusion_steps - 1)
    actor = actor_levels(n_chains, diffusion_steps, per_state, offset % (2 * others), device)
    value = stratified_levels(n_chains, others, 1, offset % others, device) if diffusion_steps > 1 else None
    return ChainLevels(actor, value)


class SampledChains(NamedTuple):
    """
    What a gradient step needs of its chains, one per state: the actions (B, d) and their path log-probability (B,); and where
    the actor learns from them, the :class:`KeptLatents`. The other latents are not kept.
    """

    actions: th.Tensor
    path_log_prob: th.Tensor
    kept: "KeptLatents | None"


class KeptLatents(NamedTuple):
    """
    The ends ``x^0`` (B, d), the read-out ``(m, log c)``, (B, d) each, κ latents a state for the actor, and for the diffusion
    value (if K > 1) one a state with the sum of the log-ratios from there on, each with its levels.
    """

    ends: th.Tensor
    readout: tuple[th.Tensor, th.Tensor]
    actor_levels: Levels
    actor_latents: th.Tensor
    value_levels: Levels | None
    value_latents: th.Tensor | None
    log_ratios_to_come: th.Tensor | None


@th.no_grad()
def sample_chains(
    actor: DiffusionActor, features: th.Tensor, levels: ChainLevels | None, bfloat16: bool = False
) -> SampledChains:
    """
    One chain per state, from which the latents at these levels are kept.

    :param features: (B, features_dim), the actor's
    :param levels: None: only the chains' ends are wanted
    :param bfloat16: as for :meth:`DiffusionActor.sample`
    """
    sample = actor.sample(features, bfloat16=bfloat16)
    if levels is None:
        return SampledChains(sample.actions, sample.path_log_prob, None)
    value_latents = log_ratios_to_come = None
    if levels.value is not None:
        at = levels.value.steps, levels.value.rows
        value_latents = sample.latents[at]
        log_ratios_to_come = sample.log_ratios.cumsum(dim=0)[at[0] - 1, at[1]]
    kept = KeptLatents(
        sample.latents[0].clone(),
        (sample.location, sample.log_scale),
        levels.actor,
        sample.latents[levels.actor.steps, levels.actor.rows],
        levels.value,
        value_latents,
        log_ratios_to_come,
    )
    return SampledChains(sample.actions, sample.path_log_prob, kept)


def chain_states(transitions: Transitions, n_own: int) -> TensorOrDict:
    """
    The states at which a gradient step samples chains: first the next states, which the critics' targets need. Where an
    episode terminates it needs no action, and the row lends its own state. Then the own states of some rows: the first
    state of an episode is nobody's next state and would never be trained.

    :param transitions: B of them
    :param n_own: how many rows add their own state, 0 … B
    :return: B + n_own states
    """

    def combine(observations: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        done = transitions.dones.reshape(-1, *[1] * (observations.dim() - 1)) > 0
        return th.cat([th.where(done, observations, next_observations), observations[:n_own]])

    return map_observations(combine, transitions.observations, transitions.next_observations)
