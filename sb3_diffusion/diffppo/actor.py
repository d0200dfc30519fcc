"""The actor of DiffPPO: whole chains as sequences of decisions (docs/method.md, "DiffPPO")."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.actor import DiffusionActor, cheap_without_gradients
from sb3_diffusion.common.networks import PartlyFrozenMLP, StepConditionedMLP
from sb3_diffusion.common.scaling import BoxScalingMixin
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.diffusion import (
    KernelTables,
    gaussian_log_prob,
    log_det_tanh,
    noising_log_prob,
    read_out,
    reverse_mean,
    sample_latents,
)


class DecisionKernels(NamedTuple):
    """
    The kernels of κ reverse steps of each of B chains and, in the last column, of the first decision ``a^K``: ``mean`` and
    ``log_std`` (B, κ + 1, d) of the decision's Gaussian; its log-density ``log_prob`` (B, κ + 1), and
    ``noising_log_prob`` (B, κ + 1), ``log π(a^k | a^{k-1})``, which is 0 for ``a^K``. In nats.
    """

    mean: th.Tensor
    log_std: th.Tensor
    log_prob: th.Tensor
    noising_log_prob: th.Tensor


class Decisions(NamedTuple):
    """
    κ reverse steps of each of B chains ``a^0 … a^K`` and, in the last column, the first decision: ``before`` (B, κ + 1, d),
    the ``a^k`` that a decision starts from, zeros in the last column; ``taken`` (B, κ + 1, d), what was decided, ``a^{k-1}``,
    in the last column ``a^K``; ``steps`` k, (B, κ + 1) or (κ + 1,) for all chains, K + 1 in the last column.
    """

    before: th.Tensor
    taken: th.Tensor
    steps: th.Tensor


def decisions_of(chains: th.Tensor, steps: th.Tensor | None = None) -> Decisions:
    """
    :param chains: (B, K + 1, d), ``a^0 … a^K``
    :param steps: k, (B, κ) of the reverse steps 1 … K of each chain; None: all of them
    :return: these steps and the first decision
    """
    n = chains.shape[1]
    before, taken = F.pad(chains[:, 1:], (0, 0, 0, 1)), th.cat([chains[:, :-1], chains[:, -1:]], dim=1)
    if steps is None:
        return Decisions(before, taken, th.arange(1, n + 1, device=chains.device))
    steps = F.pad(steps, (0, 1), value=n)
    rows = th.arange(len(chains), device=chains.device).unsqueeze(1)
    return Decisions(before[rows, steps - 1], taken[rows, steps - 1], steps)


class LatentsAndHeads(NamedTuple):
    """Sampled ``x^0 … x^K`` (B, K + 1, d) and the heads ``f`` and ``g`` of the K steps, (B, K, d), in the order of k."""

    latents: th.Tensor
    drift: th.Tensor
    log_scale: th.Tensor


class DecidedChains(NamedTuple):
    """Sampled ``chains`` (B, K + 1, d), ``a^0 … a^K``, with the fields of :class:`DecisionKernels` for all their decisions."""

    chains: th.Tensor
    mean: th.Tensor
    log_std: th.Tensor
    log_prob: th.Tensor
    noising_log_prob: th.Tensor


class ChainActor(BoxScalingMixin, DiffusionActor):
    """
    :class:`~sb3_diffusion.common.actor.DiffusionActor` whose read-out's scale ``c`` is a parameter per action dimension, as
    PPO's standard deviation, and which evaluates given chains decision by decision. Parameters not listed are the same.

    :param finetune_steps: reinforcement learning trains the last so many reverse steps alone, ``finetune_steps … 1``; the
        earlier ones, the read-out and the features extractor stay what they were at first, or what ``pretrain`` has made of
        them (DPPO, arXiv 2409.00588). None: all learn
    """

    def __init__(self, *args: Any, finetune_steps: int | None = None, **kwargs: Any) -> None:
        self.finetune_steps = finetune_steps
        super().__init__(*args, **kwargs)
        self.diffusion_kwargs["finetune_steps"] = finetune_steps
        if self.state_dependent_readout:
            del self.log_std
            self.log_std = nn.Parameter(th.zeros(self.action_dim))  # type: ignore[assignment]

        self._train_all(finetune_steps is None)

    def _make_denoiser(self, *args: Any) -> StepConditionedMLP:
        if self.finetune_steps is None:
            return super()._make_denoiser(*args)
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

    def readout(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if not self.state_dependent_readout:
            return super().readout(features)
        location = self.mu(self.latent_pi(features))
        # Not clamped: at its bound, which keep_scale_in_range takes it to, it would have no gradient, and stay there.
        return location, self.log_std.expand_as(location)  # type: ignore[operator]

    @th.no_grad()
    def keep_scale_in_range(self) -> None:
        """Bring the read-out's scale back within SAC's bounds, where chains are finite."""
        if self.state_dependent_readout:
            self.log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX)  # type: ignore[operator]

    @cheap_without_gradients
    def _sampled_latents_and_heads(self, features: th.Tensor) -> LatentsAndHeads:
        heads: list[tuple[th.Tensor, th.Tensor]] = []
        denoiser = self._chain_denoiser(features)

        def remembering(latents: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
            heads.append(denoiser(latents, k))
            return heads[-1]

        latents = sample_latents(remembering, self.schedule(), self.prior_std, self._chain_noise(features))
        drifts, log_scales = zip(*heads[::-1], strict=True)
        return LatentsAndHeads(*(th.stack(parts, dim=1) for parts in (latents, drifts, log_scales)))

    def sample_decisions(self, features: th.Tensor) -> DecidedChains:
        """
        The chains of :meth:`sample` for the same random numbers, as sequences of decisions ``a^k = m + c x^k``, with the
        kernels by which they were decided. The ``a^k`` stay what was decided, whatever later read-outs make of ``x^k``. The
        first decision, ``a^K``, has the density ``N(m, (c ν)²)``; the last is the action before it is squashed.

        :param features: (B, features_dim)
        :return: chains and kernels
        """
        latents, drift, log_scale = self._sampled_latents_and_heads(features)
        location, readout_log_scale = (head.unsqueeze(1) for head in self.readout(features))
        chains = read_out(latents, location, readout_log_scale)
        kernels = self._decision_kernels(decisions_of(chains), location, readout_log_scale, lambda *_: (drift, log_scale))
        return DecidedChains(chains, *kernels)

    def evaluate_decisions(self, features: th.Tensor, decisions: Decisions) -> DecisionKernels:
        """
        The kernels of given decisions. All of them depend on the read-out: the networks and both kernels see
        ``x^k = (a^k - m) / c``.

        :param features: (B, features_dim)
        :param decisions: of (B, κ + 1)
        :return: their kernels
        """
        location, readout_log_scale = (head.unsqueeze(1) for head in self.readout(features))
        condition = self.denoiser.condition(features).unsqueeze(1)
        return self._decision_kernels(
            decisions, location, readout_log_scale, lambda latents, steps: self.denoise(condition, latents, steps)
        )

    def _decision_kernels(
        self,
        decisions: Decisions,
        location: th.Tensor,
        readout_log_scale: th.Tensor,
        heads: Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]],
    ) -> DecisionKernels:
        """
        :param heads: ``f`` and ``g`` (B, κ, d) of the latents ``x^k`` (B, κ, d) and their steps, which are all but the last
        """
        steps = decisions.steps
        tables = self._decision_tables().at(steps)
        before, taken = ((actions - location) * th.exp(-readout_log_scale) for actions in decisions[:2])
        drift, log_scale = (F.pad(head, (0, 0, 0, 1)) for head in heads(before[:, :-1], steps[..., :-1]))
        mean = reverse_mean(before, drift, tables)
        log_std = tables.noise_std.log() + log_scale
        residual = (taken - mean) * th.exp(-log_std)
        log_std = log_std + readout_log_scale
        noising = noising_log_prob(before, taken, tables) - readout_log_scale.sum(dim=-1)
        return DecisionKernels(
            read_out(mean, location, readout_log_scale),
            log_std,
            gaussian_log_prob(residual, log_std),
            F.pad(noising[:, :-1], (0, 1)),
        )

    def _decision_tables(self) -> KernelTables:
        """The schedule's K rows and that of the first decision, ``N(0, ν²)`` whatever came before."""
        retain, noise_std, drift_scale = self.schedule()
        last = (0, 0, 0, 1)
        return KernelTables(F.pad(retain, last), F.pad(noise_std, last, value=self.prior_std), F.pad(drift_scale, last))

    def path_log_prob(self, chains: th.Tensor, kernels: DecisionKernels) -> th.Tensor:
        """
        What the soft rewards from each decision of a chain on sum to, ``log p(a^k) + Σ_{j≤k} ℓ_j`` with ``p`` the density of
        the first decision: for k = K, and for that decision itself, the path log-probability of :meth:`sample`. For an
        untrained "vp" diffusion it is the same at every k, the log-probability of the action.

        :param chains: (B, K + 1, d), ``a^0 … a^K``
        :param kernels: of all their decisions
        :return: (B, K + 1) in nats
        """
        come = (kernels.log_prob - kernels.noising_log_prob)[:, :-1].cumsum(dim=1)
        if self.squash_output:
            come = come - log_det_tanh(chains[:, 0]).unsqueeze(1)
        mean, log_std = kernels.mean[:, -1:], kernels.log_std[:, -1:]
        come = come + gaussian_log_prob((chains[:, 1:] - mean) * th.exp(-log_std), log_std)
        return th.cat([come, come[:, -1:]], dim=1)
