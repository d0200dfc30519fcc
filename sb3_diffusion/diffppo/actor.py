"""The actor of DiffPPO: whole chains as sequences of decisions (docs/method.md, "DiffPPO")."""

import math
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.common.actor import DiffusionActor, cheap_without_gradients
from sb3_diffusion.diffusion import (
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
    ``log_std`` (B, κ + 1, d) of the decision's Gaussian, without a gradient; its log-density ``log_prob`` (B, κ + 1), and
    ``noising_log_prob`` (B, κ + 1), ``log π(a^k | a^{k-1})``, which is 0 for ``a^K``. In nats.
    """

    mean: th.Tensor
    log_std: th.Tensor
    log_prob: th.Tensor
    noising_log_prob: th.Tensor


class ChainActor(DiffusionActor):
    """
    :class:`~sb3_diffusion.common.actor.DiffusionActor` whose read-out's scale ``c`` is a parameter per action dimension, as
    PPO's standard deviation, and which evaluates given chains decision by decision. The parameters are the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.state_dependent_readout:
            del self.log_std
            self.log_std = nn.Parameter(th.zeros(self.action_dim))  # type: ignore[assignment]

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
    def sample_chains(self, features: th.Tensor) -> th.Tensor:
        """
        The chains of :meth:`sample` for the same random numbers, as sequences of decisions ``a^k = m + c x^k``. They stay what
        was decided, whatever later read-outs make of ``x^k``. The first decision, ``a^K``, has the density
        ``N(m, (c ν)²)``; the last is the action before it is squashed.

        :param features: (B, features_dim)
        :return: (B, K + 1, d), ``a^0 … a^K``
        """
        noise = self._chain_noise(features)
        latents = sample_latents(self._chain_denoiser(features), self.schedule(), self.prior_std, noise)
        location, log_scale = self.readout(features)
        return read_out(th.stack(latents, dim=1), location.unsqueeze(1), log_scale.unsqueeze(1))

    def evaluate_decisions(self, features: th.Tensor, chains: th.Tensor, steps: th.Tensor) -> DecisionKernels:
        """
        The kernels of given decisions. All of them depend on the read-out: the networks and both kernels see
        ``x^k = (a^k - m) / c``.

        :param features: (B, features_dim)
        :param chains: (B, K + 1, d), as :meth:`sample_chains` gives them
        :param steps: k, (B, κ), or (κ,) for all chains
        :return: the kernels of these κ reverse steps and of the first decision
        """
        tables = self.schedule().at(steps)
        location, readout_log_scale = (head.unsqueeze(1) for head in self.readout(features))
        chains = (chains - location) * th.exp(-readout_log_scale)
        rows = th.arange(len(chains), device=chains.device).unsqueeze(1)
        first, latents, previous = chains[:, -1:], chains[rows, steps], chains[rows, steps - 1]
        drift, log_scale = self.denoise(self.denoiser.condition(features).unsqueeze(1), latents, steps)
        mean = th.cat([reverse_mean(latents, drift, tables), th.zeros_like(first)], dim=1)
        log_std = th.cat([tables.noise_std.log() + log_scale, th.full_like(first, math.log(self.prior_std))], dim=1)
        residual = (th.cat([previous, first], dim=1) - mean) * th.exp(-log_std)
        log_std = log_std + readout_log_scale
        noising = noising_log_prob(latents, previous, tables) - readout_log_scale.sum(dim=-1)
        return DecisionKernels(
            read_out(mean.detach(), location.detach(), readout_log_scale.detach()),
            log_std.detach(),
            gaussian_log_prob(residual, log_std),
            F.pad(noising, (0, 1)),
        )

    def path_log_prob(self, chains: th.Tensor, kernels: DecisionKernels) -> th.Tensor:
        """
        What the soft rewards from each decision of a chain on sum to, ``log p(a^k) + Σ_{j≤k} ℓ_j`` with ``p`` the density of
        the first decision: for k = K, and for that decision itself, the path log-probability of :meth:`sample`. For an
        untrained "vp" diffusion it is the same at every k, the log-probability of the action.

        :param chains: (B, K + 1, d), as :meth:`sample_chains` gives them
        :param kernels: of all K steps, as :meth:`evaluate_decisions` gives them
        :return: (B, K + 1) in nats
        """
        come = (kernels.log_prob - kernels.noising_log_prob)[:, :-1].cumsum(dim=1)
        if self.squash_output:
            come = come - log_det_tanh(chains[:, 0]).unsqueeze(1)
        mean, log_std = kernels.mean[:, -1:], kernels.log_std[:, -1:]
        come = come + gaussian_log_prob((chains[:, 1:] - mean) * th.exp(-log_std), log_std)
        return th.cat([come, come[:, -1:]], dim=1)
