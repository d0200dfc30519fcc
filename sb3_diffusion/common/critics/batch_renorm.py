"""CrossQ's critics: batch renormalisation instead of target networks."""

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQCritic
from stable_baselines3.common.policies import BaseModel

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, Transitions, map_observations
from sb3_diffusion.common.critics.base import CriticEvaluation, Critics, CriticStates, soft_bellman_targets
from sb3_diffusion.common.critics.twin import mean_squared_errors, smallest


class BranchlessBatchRenorm1d(BatchRenorm1d):
    """
    sb3-contrib's layer without a Python branch on the value of a tensor, which ``torch.compile`` cannot follow: the same
    numbers and the same state.
    """

    ra_mean: th.Tensor
    ra_var: th.Tensor
    steps: th.Tensor

    def forward(self, x: th.Tensor) -> th.Tensor:
        if not self.training:
            return super().forward(x)
        batch_mean, batch_var = x.mean(dim=0), x.var(dim=0)
        running_std = (self.ra_var + self.eps).sqrt()
        ratio = ((batch_var + self.eps).sqrt() / running_std).detach().clamp(1 / self.rmax, self.rmax)
        shift = ((batch_mean - self.ra_mean) / running_std).detach().clamp(-self.dmax, self.dmax)
        warm = self.steps > self.warmup_steps
        # The square root of a dead unit's variance, 0, has an infinite slope, which a factor of 0 would turn into NaN.
        batch_std = batch_var.clamp_min(1e-12).sqrt()
        mean = th.where(warm, batch_mean - shift * batch_std / ratio, batch_mean)
        var = th.where(warm, batch_var / ratio.square(), batch_var)
        with th.no_grad():
            self.ra_mean.lerp_(batch_mean, self.momentum)
            self.ra_var.lerp_(batch_var, self.momentum)
            self.steps.add_(1)
        normalised = (x - mean) / (var + self.eps).sqrt()
        return self.scale * normalised + self.bias if self.affine else normalised


def without_branches(critic: CrossQCritic) -> CrossQCritic:
    """The critic with :class:`BranchlessBatchRenorm1d` in the place of sb3-contrib's layers."""
    for module in critic.modules():
        if type(module) is BatchRenorm1d:
            module.__class__ = BranchlessBatchRenorm1d  # the same attributes, only another forward
            # SB3's tools fill every tensor of a model with noise, which integers do not take.
            module.steps = module.steps.float()  # type: ignore[operator]
    return critic


class BatchRenormCritics(Critics):
    """
    CrossQ's (arXiv 1902.05605): SAC's loss, the targets being the second half of one joint pass over ``(s, a)`` and the
    chains' ``(s', u')`` in training mode, without a gradient, since the two differ in distribution. Wherever the actor or the
    diffusion value looks, the critics are in evaluation mode.
    """

    critic_class = CrossQCritic

    def _critic_evaluation(
        self, transitions: Transitions, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor
    ) -> CriticEvaluation:
        n_rows = len(transitions.rewards)

        def joined(observations: th.Tensor, chain_states: th.Tensor) -> th.Tensor:
            return th.cat([observations, chain_states[:n_rows]])

        observations = map_observations(joined, transitions.observations, states)
        actions = th.cat([transitions.actions, chains.actions[:n_rows]])
        self.critic.set_bn_training_mode(True)
        outputs = self.critic(observations, actions)
        self.critic.set_bn_training_mode(False)
        with th.no_grad():
            next_values = smallest([output[n_rows:] for output in outputs]).unsqueeze(1)
            targets = soft_bellman_targets(transitions, next_values, chains.path_log_prob[:n_rows], ent_coef)
        loss = mean_squared_errors([output[:n_rows] for output in outputs], targets)
        critic_states = self._critic_states(self.critic, states)
        end_values = None
        if chains.kept is not None:
            with th.no_grad():
                end_values = self._action_values(self.critic, critic_states, chains.actions)
        return CriticEvaluation(loss, end_values, self.critic, critic_states)

    def _action_values(self, critic: BaseModel, states: CriticStates, actions: th.Tensor) -> th.Tensor:
        return smallest(self._critic_outputs(critic, states, actions))

    def _update_critic_targets(self, gradient_step: int) -> None:
        """There are none."""
