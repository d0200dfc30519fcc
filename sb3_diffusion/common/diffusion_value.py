"""The diffusion value ``V_k``, anchored in the critics (docs/method.md, "The diffusion value")."""

from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_diffusion.common.chains import KeptLatents
from sb3_diffusion.common.critics.base import Critics, CriticStates
from sb3_diffusion.common.networks import StepConditionedMLP
from sb3_diffusion.diffusion import remaining_signal, squashed_readout, telescoped_log_ratio


class ChainForecast(NamedTuple):
    """Heads of the diffusion value network: ``R_k`` (N,), ``L_k`` (N,) without the read-out's term, and ``x̂⁰`` (N, d)."""

    residual: th.Tensor
    log_ratio: th.Tensor
    end: th.Tensor


class DiffusionValueMixin(Critics):
    """
    ``V_k = Q_i(s, tanh(m + c x̂⁰)) + R_k - τ L_k`` for 1 ≤ k < K: a network predicts the end ``x̂⁰`` of the chain, the
    log-ratios ``L_k`` still to come, and what the critics' value there leaves out, ``R_k``.
    """

    actor: Any  # a DiffusionActor; each base names the class of its own
    diffusion_value: StepConditionedMLP | None

    def _forecast(self, features: th.Tensor, latents: th.Tensor, steps: th.Tensor) -> ChainForecast:
        """
        What is to come from ``x^k`` on, 1 ≤ k < K. Heads at zero are right for an untrained chain: ``x̂⁰ = ρ_k x^k``, and the
        log-ratios telescope.
        """
        assert self.diffusion_value is not None
        prior_std = self.actor.prior_std
        signal = remaining_signal(self.actor.schedule())[steps].detach()
        heads = self.diffusion_value(self.diffusion_value.condition(features), latents, steps)
        log_ratio = telescoped_log_ratio(latents, signal, prior_std) + heads[:, 1]
        return ChainForecast(heads[:, 0], log_ratio, signal * latents + prior_std * heads[:, 2:])

    def _diffusion_value_loss(
        self, features: th.Tensor, kept: KeptLatents, critic: th.nn.Module, states: CriticStates, end_values: th.Tensor
    ) -> th.Tensor:
        """
        Each head against what the chain came to.

        :param features: (B, features_dim), the actor's; no gradient reaches them
        :param kept: of the chains
        :param critic: anchors the value at ``states``
        :param end_values: (B,), what the critics say of the chains' ends
        """
        assert kept.value_levels is not None and kept.value_latents is not None and kept.log_ratios_to_come is not None
        steps, rows, _ = kept.value_levels
        forecast = self._forecast(features[rows].detach(), kept.value_latents, steps)
        # Only the end itself teaches where the chain ends; the other two heads learn what that prediction leaves out.
        location, log_scale = kept.readout
        actions, readout_log_ratio = squashed_readout(forecast.end.detach(), location[rows], log_scale[rows])
        anchor = self._anchor_values(critic, states.rows(rows), actions)
        prior_std = self.actor.prior_std
        return (
            F.mse_loss(anchor + forecast.residual, end_values[rows])
            + F.mse_loss(forecast.log_ratio + readout_log_ratio, kept.log_ratios_to_come)
            + F.mse_loss(forecast.end / prior_std, kept.ends[rows] / prior_std)
        )

    def _decision_values(
        self,
        features: th.Tensor,
        states: CriticStates,
        decisions: th.Tensor,
        kept: KeptLatents,
        ent_coef: th.Tensor,
    ) -> th.Tensor:
        """
        ``Q_k`` (N,) of decisions at the actor's levels: ``Q_1(s, u)`` for k = 1, ``V_{k-1}(s, x^{k-1})`` for k > 1.

        :param decisions: (N, d), ``x^{k-1}``; for k = 1 the action before it is squashed, ``a^0``
        """
        steps, rows, n_last = kept.actor_levels
        last, earlier = rows[:n_last], rows[n_last:]
        action_values = self._action_values(self.critic, states.rows(last), th.tanh(decisions[:n_last]))
        if not len(earlier):
            return action_values
        forecast = self._forecast(features[earlier].detach(), decisions[n_last:], steps[n_last:] - 1)
        location, log_scale = kept.readout
        actions, readout_log_ratio = squashed_readout(forecast.end, location[earlier], log_scale[earlier])
        anchor = self._anchor_values(self.critic, states.rows(earlier), actions)
        values = anchor + forecast.residual - ent_coef * (forecast.log_ratio + readout_log_ratio)
        return th.cat([action_values, values])
