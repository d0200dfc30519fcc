"""SAC's critics: the smallest of several values, with target networks."""

from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from torch.nn import functional as F

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, Transitions
from sb3_diffusion.common.critics.base import CriticEvaluation, Critics, CriticStates, soft_bellman_targets


def smallest(outputs: list[th.Tensor]) -> th.Tensor:
    """``min_i Q_i`` (N,) of outputs (N, 1) each."""
    return th.cat(outputs, dim=1).min(dim=1).values


def mean_squared_errors(outputs: list[th.Tensor], targets: th.Tensor) -> th.Tensor:
    """``½ Σ_i (Q_i - y)²``, the mean over rows, of outputs (B, 1) each and targets (B, 1)."""
    return 0.5 * th.stack([F.mse_loss(output, targets) for output in outputs]).sum()


@th.no_grad()
def follow(targets: Iterable[th.Tensor], parameters: Iterable[th.Tensor], tau: float) -> None:
    """SB3's ``polyak_update``, ``(1 - τ) target + τ parameter``, with two kernels for all of them instead of two for each."""
    kept = list(targets)
    if kept:
        th._foreach_mul_(kept, 1 - tau)
        th._foreach_add_(kept, list(parameters), alpha=tau)


class TargetNetworks(Critics):
    """Critics with target networks that follow them, ``critic_target``."""

    critic_target: Any
    target_update_interval: int
    batch_norm_stats: list[th.Tensor]
    batch_norm_stats_target: list[th.Tensor]

    def _update_critic_targets(self, gradient_step: int) -> None:
        if gradient_step % self.target_update_interval == 0:
            follow(self.critic_target.parameters(), self.critic.parameters(), self.tau)
            follow(self.batch_norm_stats_target, self.batch_norm_stats, 1.0)


class TwinCritics(TargetNetworks):
    """
    SAC's: ``½ Σ_i (Q_i(s, a) - y)²`` with ``y = r + γ (1 - done) (min_i Q̄_i(s', u') - τ path_log_prob)``; the actor climbs
    ``min_i Q_i``.
    """

    critic_class = ContinuousCritic

    def _critic_evaluation(
        self, transitions: Transitions, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor
    ) -> CriticEvaluation:
        target_states = self._critic_states(self.critic_target, states)
        n_rows = len(transitions.rewards)
        with th.no_grad():
            end_values = self._action_values(self.critic_target, target_states, chains.actions)
            targets = soft_bellman_targets(
                transitions, end_values[:n_rows].unsqueeze(1), chains.path_log_prob[:n_rows], ent_coef
            )
        loss = mean_squared_errors(self.critic(transitions.observations, transitions.actions), targets)
        return CriticEvaluation(loss, end_values, self.critic_target, target_states)

    def _action_values(self, critic: BaseModel, states: CriticStates, actions: th.Tensor) -> th.Tensor:
        return smallest(self._critic_outputs(critic, states, actions))
