"""TQC's critics: quantiles of the return, of which the largest are dropped."""

import torch as th
from sb3_contrib.common.utils import quantile_huber_loss
from sb3_contrib.tqc.policies import Critic
from stable_baselines3.common.policies import BaseModel

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, Transitions
from sb3_diffusion.common.critics.base import CriticEvaluation, CriticStates, soft_bellman_targets
from sb3_diffusion.common.critics.twin import TargetNetworks
from sb3_diffusion.common.validation import check_number


class QuantileCritics(TargetNetworks):
    """
    TQC's (arXiv 2005.04269): the quantile Huber loss of all quantiles on the targets
    ``r + γ (1 - done) (z - τ path_log_prob)``, ``z`` the smallest of the pooled quantiles of the target critics at the chain's
    end. The actor climbs the mean of all quantiles, the diffusion value regresses on the mean of the kept ones.
    """

    critic_class = Critic
    top_quantiles_to_drop_per_net: int

    def _check_critics(self) -> None:
        super()._check_critics()
        n_dropped, most = self.top_quantiles_to_drop_per_net, self.critic.n_quantiles - 1
        check_number("top_quantiles_to_drop_per_net", n_dropped, 0, most, integer=True)

    def _critic_evaluation(
        self, transitions: Transitions, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor
    ) -> CriticEvaluation:
        target_states = self._critic_states(self.critic_target, states)
        n_rows = len(transitions.rewards)
        with th.no_grad():
            quantiles = th.cat(self._critic_outputs(self.critic_target, target_states, chains.actions), dim=1)
            n_kept = quantiles.shape[1] - self.top_quantiles_to_drop_per_net * self.critic.n_critics
            kept = quantiles.sort(dim=1).values[:, :n_kept]
            targets = soft_bellman_targets(transitions, kept[:n_rows], chains.path_log_prob[:n_rows], ent_coef)
        current = self.critic(transitions.observations, transitions.actions)
        loss = quantile_huber_loss(current, targets.unsqueeze(1), sum_over_quantiles=False)
        return CriticEvaluation(loss, kept.mean(dim=1), self.critic_target, target_states)

    def _action_values(self, critic: BaseModel, states: CriticStates, actions: th.Tensor) -> th.Tensor:
        return th.cat(self._critic_outputs(critic, states, actions), dim=1).mean(dim=1)
