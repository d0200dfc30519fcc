"""The actor of DiffPPO: whole chains as sequences of decisions (docs/method.md, "DiffPPO")."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.actor import DiffusionActor, inference_is_possible
from sb3_diffusion.common.networks import PartlyFrozenMLP, StepConditionedMLP
from sb3_diffusion.common.scaling import BoxScalingMixin
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.diffusion import (
    Denoiser,
    KernelTables,
    gaussian_log_prob,
    log_det_tanh,
    noising_log_prob,
    read_out,
    reverse_mean,
    sample_latents,
    with_floor,
)


class DecisionKernels(NamedTuple):
    """
    The kernels of κ reverse steps of each of B chains and, in the last column, of the first decision ``a^K``: ``mean`` and
    ``log_std`` (B, κ + 1, d) of the decision's Gaussian, its log-density ``log_prob`` (B, κ + 1), and ``noising_log_prob``
    (B, κ + 1), ``log π(a^k | a^{k-1})``, which is 0 for ``a^K``. In nats.
    """

    mean: th.Tensor
    log_std: th.Tensor
    log_prob: th.Tensor
    noising_log_prob: th.Tensor


class Decisions(NamedTuple):
    """
    κ reverse steps of each of B chains ``a^0 … a^K`` and, in the last column, the first decision: ``before`` (B, κ + 1, d),
    the ``a^k`` that a decision starts from, zeros in the last column; ``taken`` (B, κ + 1, d), what was decided, ``a^{k-1}``,
    in the last column ``a^K``; ``steps`` k, (B, κ + 1), K + 1 in the last column, or None: all, in their order.
    """

    before: th.Tensor
    taken: th.Tensor
    steps: th.Tensor | None = None


def decisions_of(chains: th.Tensor, steps: th.Tensor | None = None) -> Decisions:
    """
    :param chains: (…, K + 1, d), ``a^0 … a^K``
    :param steps: k, (B, κ) of the reverse steps 1 … K of each chain (B, K + 1, d); None: all of them
    :return: these steps and the first decision
    """
    before = F.pad(chains[..., 1:, :], (0, 0, 0, 1))
    if steps is None:
        return Decisions(before, chains)
    steps = F.pad(steps, (0, 1), value=chains.shape[1])
    rows = th.arange(len(chains), device=chains.device).unsqueeze(1)
    return Decisions(before[rows, steps - 1], chains[rows, steps - 1], steps)


def standardised(actions: th.Tensor, location: th.Tensor, log_scale: th.Tensor) -> th.Tensor:
    """``x = (a - m) / c``, the way back from the read-out ``a = m + c x``; all broadcastable to (…, d)."""
    return (actions - location) * th.exp(-log_scale)


def decision_tables(tables: KernelTables, prior_std: float) -> KernelTables:
    """
    :param tables: (…, K, d) or (…, K, 1), of the K reverse steps
    :param prior_std: ν
    :return: with a last row for the first decision, ``N(0, ν²)`` whatever came before
    """
    last = (0, 0, 0, 1)
    retain, noise_std, drift_scale = tables
    return KernelTables(F.pad(retain, last), F.pad(noise_std, last, value=prior_std), F.pad(drift_scale, last))


def decision_kernels(
    before: th.Tensor,
    taken: th.Tensor,
    heads: tuple[th.Tensor, th.Tensor],
    tables: KernelTables,
    location: th.Tensor,
    readout_log_scale: th.Tensor,
) -> DecisionKernels:
    """
    The kernels of decisions in the coordinates of actions: those of ``x = (a - m) / c``, shifted and scaled.

    :param before: (…, κ + 1, d), ``x^k``, in the last column anything finite
    :param taken: (…, κ + 1, d), ``x^{k-1}``, in the last column ``x^K``
    :param heads: drift ``f`` and log-scale ``g`` of the κ steps, (…, κ, d) each
    :param tables: of κ + 1 decisions, as :func:`decision_tables` gives them
    :param location: broadcastable to (…, κ + 1, d), ``m``
    :param readout_log_scale: broadcastable to (…, κ + 1, d), ``log c``
    """
    drift, log_scale = (F.pad(head, (0, 0, 0, 1)) for head in heads)
    mean = reverse_mean(before, drift, tables)
    log_std = tables.noise_std.log() + log_scale
    residual = (taken - mean) * th.exp(-log_std)
    log_std = log_std + readout_log_scale
    noising = noising_log_prob(before, taken, tables) - readout_log_scale.sum(dim=-1)
    return DecisionKernels(
        read_out(mean, location, readout_log_scale),
        log_std,
        gaussian_log_prob(residual, log_std),
        F.pad(noising[..., :-1], (0, 1)),
    )


class ActedDecisions(NamedTuple):
    """
    B sampled ``chains`` (B, K + 1, d), ``a^0 … a^K``, and all by which they were decided: the heads ``drift`` and
    ``log_scale`` (B, K, d); the read-out's ``location`` (B, d) and ``readout_log_scale`` (d,); and the kernel tables
    ``retain``, ``noise_std`` and ``drift_scale``, (K, d) or (K, 1).
    """

    chains: th.Tensor
    drift: th.Tensor
    log_scale: th.Tensor
    location: th.Tensor
    readout_log_scale: th.Tensor
    retain: th.Tensor
    noise_std: th.Tensor
    drift_scale: th.Tensor


class ChainActor(BoxScalingMixin, DiffusionActor):
    """
    :class:`~sb3_diffusion.common.actor.DiffusionActor` whose read-out's scale ``c`` is a parameter per action dimension, as
    PPO's standard deviation, and which evaluates given chains decision by decision. The other parameters are the same.

    :param finetune_steps: reinforcement learning trains the last so many reverse steps alone, ``finetune_steps … 1``; the
        earlier ones, the read-out and the features extractor stay what they were at first, or what ``pretrain`` has made of
        them (DPPO, arXiv 2409.00588). None: all learn
    :param min_std: floor of the standard deviation of every decision: of the K reverse steps, in the coordinates of actions,
        and of ``c ν``; it joins as ``√(σ² + min_std²)``. Where actions go through tanh its unit is that of [-1, 1], before
        tanh; else it is half the width of the box. Chains are sampled with it and evaluated with it; the mode is found
        without the noise that it adds to the steps
    :raises ValueError: for a ``min_std`` that is negative
    """

    log_min_std: th.Tensor

    def __init__(self, *args: Any, finetune_steps: int | None = None, min_std: float = 0.0, **kwargs: Any) -> None:
        check_number("min_std", min_std, 0)
        self.finetune_steps = finetune_steps
        super().__init__(*args, **kwargs)
        self.min_std = min_std
        self.diffusion_kwargs.update(finetune_steps=finetune_steps, min_std=min_std)
        if min_std > 0:
            unit = th.ones(self.action_dim)
            if not self.squash_output:
                low, high = (bound.astype(np.float64).flatten() for bound in (self.action_space.low, self.action_space.high))
                unit = th.as_tensor(high / 2 - low / 2, dtype=th.float32)
            self.register_buffer("log_min_std", th.log(min_std * unit), persistent=False)
        if self.state_dependent_readout:
            del self.log_std
            self.log_std = nn.Parameter(th.zeros(self.action_dim))  # type: ignore[assignment]

        self._train_all(finetune_steps is None)

    def make_denoiser(self, *args: Any) -> StepConditionedMLP:
        if self.finetune_steps is None:
            return super().make_denoiser(*args)
        diffusion_steps = args[2]
        check_number("finetune_steps", self.finetune_steps, 1, diffusion_steps, integer=True)
        return PartlyFrozenMLP(*args, learned_steps=self.finetune_steps)

    def _train_all(self, mode: bool) -> None:
        """Whether read-out and features extractor learn too."""
        for name, parameter in self.named_parameters():
            if not name.startswith("denoiser."):
                parameter.requires_grad_(mode)

    @contextmanager
    def all_steps_learn(self) -> Iterator[None]:
        denoiser = self.denoiser
        if not isinstance(denoiser, PartlyFrozenMLP):
            yield
            return
        denoiser.thawed = True
        self._train_all(True)
        try:
            yield
            denoiser.freeze()
        finally:
            denoiser.thawed = False
            self._train_all(False)

    def _readout_log_scale(self) -> th.Tensor:
        """``log c`` (d,); not clamped: at its bound, which keep_scale_in_range takes it to, it would have no gradient."""
        if not self.state_dependent_readout:
            return self.min_heads.new_zeros(self.action_dim)
        log_std: th.Tensor = self.log_std  # type: ignore[assignment]
        return with_floor(log_std, self.log_min_std - math.log(self.prior_std)) if self.min_std > 0 else log_std

    def readout(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if not self.state_dependent_readout:
            return super().readout(features)
        location = self.mu(self.latent_pi(features))
        return location, self._readout_log_scale().expand_as(location)

    def _log_floors(self) -> th.Tensor:
        """``min_std`` as a floor of ``g``, (K, d)."""
        return self.log_min_std - self._readout_log_scale() - self.schedule().noise_std.log()

    def reverse_heads(
        self, condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int | None
    ) -> tuple[th.Tensor, th.Tensor]:
        drift, log_scale = self.denoise(condition, latents, steps)
        if self.min_std > 0:
            floors = self._log_floors()
            log_scale = with_floor(log_scale, floors if steps is None else floors[steps - 1])
        return drift, log_scale

    @th.no_grad()
    def keep_scale_in_range(self) -> None:
        """Bring the read-out's scale back within SAC's bounds, where chains are finite."""
        if self.state_dependent_readout:
            self.log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX)  # type: ignore[operator]

    def _chain_denoiser(self, features: th.Tensor) -> Denoiser:
        at_step, heads_of = self.denoiser.along_chains(features), self._heads_of
        if self.min_std == 0:
            return lambda latents, k: heads_of(at_step(latents, k))
        floors = self._log_floors().unbind()

        def floored(latents: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
            drift, log_scale = heads_of(at_step(latents, k))
            return drift, with_floor(log_scale, floors[k - 1])

        return floored

    def act(self, features: th.Tensor) -> ActedDecisions:
        """
        The chains of :meth:`sample` for the same random numbers, as sequences of decisions ``a^k = m + c x^k``, with all that
        :meth:`kernels_when_acting` needs. The ``a^k`` stay what was decided, whatever later read-outs make of ``x^k``. The
        first decision, ``a^K``, has the density ``N(m, (c ν)²)``; the last is the action before it is squashed.

        :param features: (B, features_dim)
        :return: chains, and what they were decided by
        """
        location, readout_log_scale = self.readout(features)
        heads: list[tuple[th.Tensor, th.Tensor]] = []
        with th.inference_mode(inference_is_possible()):
            denoiser = self._chain_denoiser(features)

            def remembering(latents: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
                heads.append(denoiser(latents, k))
                return heads[-1]

            latents = sample_latents(remembering, self.schedule, self.prior_std, self._chain_noise(features))
        drifts, log_scales = zip(*heads[::-1], strict=True)
        readout_log_scale = readout_log_scale[0].clone()  # a callback may change the parameter later
        return ActedDecisions(
            read_out(th.stack(latents, dim=1), location.unsqueeze(1), readout_log_scale),
            th.stack(drifts, dim=1),
            th.stack(log_scales, dim=1),
            location,
            readout_log_scale,
            *self.schedule(),
        )

    def kernels_when_acting(self, acted: ActedDecisions) -> DecisionKernels:
        """
        :param acted: of T environment steps, each field with that dimension in front of its own
        :return: the kernels by which all decisions were taken, (T, B, K + 1, …)
        """
        location, readout_log_scale = acted.location.unsqueeze(2), acted.readout_log_scale.unsqueeze(1).unsqueeze(1)
        before, taken, _ = decisions_of(standardised(acted.chains, location, readout_log_scale))
        tables = decision_tables(KernelTables(*(table.unsqueeze(1) for table in acted[-3:])), self.prior_std)
        return decision_kernels(before, taken, (acted.drift, acted.log_scale), tables, location, readout_log_scale)

    def evaluate_decisions(self, features: th.Tensor, decisions: Decisions) -> DecisionKernels:
        """
        The kernels of given decisions. All of them depend on the read-out: the networks and both kernels see
        ``x^k = (a^k - m) / c``.

        :param features: (B, features_dim)
        :param decisions: of (B, κ + 1)
        :return: their kernels
        """
        location, readout_log_scale = (head.unsqueeze(1) for head in self.readout(features))
        before, taken = (standardised(actions, location, readout_log_scale) for actions in decisions[:2])
        tables, steps = decision_tables(self.schedule(), self.prior_std), decisions.steps
        if steps is not None:
            tables, steps = tables.at(steps), steps[:, :-1]
        heads = self.reverse_heads(self.denoiser.condition(features).unsqueeze(1), before[:, :-1], steps)
        return decision_kernels(before, taken, heads, tables, location, readout_log_scale)

    def path_log_prob(self, chains: th.Tensor, kernels: DecisionKernels) -> th.Tensor:
        """
        What the soft rewards from each decision of a chain on sum to, ``log p(a^k) + Σ_{j≤k} ℓ_j`` with ``p`` the density of
        the first decision: for k = K, and for that decision itself, the path log-probability of :meth:`sample`. For an
        untrained "vp" diffusion it is the same at every k, the log-probability of the action.

        :param chains: (…, K + 1, d), ``a^0 … a^K``
        :param kernels: of all their decisions
        :return: (…, K + 1) in nats
        """
        come = (kernels.log_prob - kernels.noising_log_prob)[..., :-1].cumsum(dim=-1)
        if self.squash_output:
            come = come - log_det_tanh(chains[..., 0, :]).unsqueeze(-1)
        mean, log_std = kernels.mean[..., -1:, :], kernels.log_std[..., -1:, :]
        come = come + gaussian_log_prob(standardised(chains[..., 1:, :], mean, log_std), log_std)
        return th.cat([come, come[..., -1:]], dim=-1)
