"""What an off-policy algorithm asks of its critics, whatever kind they are (docs/method.md, "Critics")."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BaseModel

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, Transitions, map_observations


class CriticStates(NamedTuple):
    """
    States as a critic sees them: its ``features`` (B, features_dim); or, for a critic whose ``forward`` a user has overridden,
    only the observations, because such a critic must do all of its own work.
    """

    observations: TensorOrDict
    features: th.Tensor | None

    def rows(self, index: Any) -> "CriticStates":
        """Some of the states, by whatever indexes a tensor."""
        if self.features is not None:
            return CriticStates(self.observations, self.features[index])
        return CriticStates(map_observations(lambda rows: rows[index], self.observations), None)

    def repeat(self, times: int) -> "CriticStates":
        """Each state so many times in a row."""
        if self.features is not None:
            return CriticStates(self.observations, self.features.repeat_interleave(times, dim=0))
        return CriticStates(map_observations(lambda rows: rows.repeat_interleave(times, dim=0), self.observations), None)


class CriticEvaluation(NamedTuple):
    """
    The critics' ``loss``; and, where the actor learns from the chains, the ``end_values`` (N,) that the diffusion value
    regresses on, with the ``critic`` that anchors it at these ``states``.
    """

    loss: th.Tensor
    end_values: th.Tensor | None
    critic: BaseModel
    states: CriticStates


def soft_bellman_targets(
    transitions: Transitions, next_values: th.Tensor, path_log_prob: th.Tensor, ent_coef: th.Tensor
) -> th.Tensor:
    """
    ``y = r + γ (1 - done) (z - τ (log p(x'^K) + Σ_k ℓ'_k))``.

    :param transitions: B of them
    :param next_values: (B, m), ``z``: values, or quantiles of the return, at the end of a chain at the next state
    :param path_log_prob: (B,) of the chain
    :param ent_coef: τ
    :return: (B, m)
    """
    soft_values = next_values - ent_coef * path_log_prob.unsqueeze(1)
    return transitions.rewards + (1 - transitions.dones) * transitions.discounts * soft_values


class Critics(OffPolicyAlgorithm):
    """
    The critics of an off-policy algorithm. A kind supplies three methods: the critics' loss with the value of the chains'
    ends, the value that the actor climbs, and the update of the target networks.
    """

    # The class of SB3 or sb3-contrib that the policy builds; its ``forward`` is known
    critic_class: ClassVar[type[BaseModel]]
    critic: Any

    def _check_critics(self) -> None:
        """
        :raises ValueError: for a critic of another kind, built by the policy's ``make_critic``, and for arguments of this kind
            that are out of range
        """
        if not isinstance(self.critic, self.critic_class):
            raise ValueError(
                f"policy={self.policy_class.__name__}: its make_critic builds {type(self.critic).__name__}, which "
                f"{type(self).__name__} cannot train; allowed: subclasses of {self.critic_class.__name__}"
            )

    def _critic_states(self, critic: BaseModel, observations: TensorOrDict, features: th.Tensor | None = None) -> CriticStates:
        """
        :param critic: one of the networks of this model
        :param observations: N of them
        :param features: the critic's, (N, features_dim), if they are known; extracted without a gradient if not
        """
        if type(critic).forward is not self.critic_class.forward:
            return CriticStates(observations, None)
        if features is None:
            with th.no_grad():
                features = critic.extract_features(observations, critic.features_extractor)  # type: ignore[arg-type]
        return CriticStates(observations, features)

    def _critic_outputs(self, critic: Any, states: CriticStates, actions: th.Tensor) -> list[th.Tensor]:
        """Of each of the critics, its outputs (N, m) for actions (N, d) in [-1, 1]."""
        if states.features is not None:
            rows = th.cat([states.features, actions], dim=1)
            return [q_network(rows) for q_network in critic.q_networks]
        outputs = critic(states.observations, actions)
        return list(outputs.unbind(dim=1) if isinstance(outputs, th.Tensor) else outputs)

    def _anchor_values(self, critic: Any, states: CriticStates, actions: th.Tensor) -> th.Tensor:
        """
        ``Q_i(s, u)`` (N,), the critics taking turns over the rows: of a forecast only the slope is wanted, and the mean of the
        critics' slopes serves as well as the smallest critic's, for half the work.
        """
        if states.features is not None:
            rows = th.cat([states.features, actions], dim=1)
            n_critics = len(critic.q_networks)
            outputs = [q_network(rows[i::n_critics]) for i, q_network in enumerate(critic.q_networks)]
        else:
            outputs = self._critic_outputs(critic, states, actions)
            n_critics = len(outputs)
            outputs = [output[i::n_critics] for i, output in enumerate(outputs)]
        values = actions.new_empty(len(actions))
        for i, output in enumerate(outputs):
            values[i::n_critics] = output.mean(dim=1)
        return values

    @abstractmethod
    def _critic_evaluation(
        self, transitions: Transitions, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor
    ) -> CriticEvaluation:
        """
        :param transitions: B of them
        :param states: of the chains; the first B are those of the targets
        :param chains: of the current actor, without a gradient
        :param ent_coef: τ
        """

    @abstractmethod
    def _action_values(self, critic: BaseModel, states: CriticStates, actions: th.Tensor) -> th.Tensor:
        """``Q_1(s, u)`` (N,), what the actor climbs."""

    @abstractmethod
    def _update_critic_targets(self, gradient_step: int) -> None:
        """After every gradient step."""
