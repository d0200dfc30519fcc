"""Pre-training of off-policy algorithms: critics that know the demonstrations, and an actor that stays near the imitator."""

from typing import Any

import torch as th
from stable_baselines3.common.utils import update_learning_rate

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, chain_states
from sb3_diffusion.common.compiling import begin_step
from sb3_diffusion.common.gradients import trainable
from sb3_diffusion.common.objectives.wasserstein import DecisionKernel, chain_kl
from sb3_diffusion.common.off_policy import DiffusionOffPolicyAlgorithm
from sb3_diffusion.demonstrations.demonstrations import Demonstrations
from sb3_diffusion.demonstrations.pretraining import PretrainingMixin
from sb3_diffusion.demonstrations.replay_buffer import DemonstrationReplayBuffer

# Updates of the critics between two log entries
WARMUP_LOG_INTERVAL = 1000


class OffPolicyPretrainingMixin(PretrainingMixin, DiffusionOffPolicyAlgorithm):
    """:class:`PretrainingMixin` with a critic warm-up, and with the pull to the reference in the actor's loss."""

    _reference_coefficient: th.Tensor

    def _demonstration_buffer(self, demonstrations: Demonstrations) -> DemonstrationReplayBuffer:
        """
        Demonstrations only, with the returns and time limits of the training's own buffer.

        :raises ValueError: without rewards or next observations
        """
        own = self.replay_buffer
        return DemonstrationReplayBuffer(
            1,
            self.observation_space,
            self.action_space,
            self.device,
            handle_timeout_termination=getattr(own, "handle_timeout_termination", True),
            demonstrations=demonstrations,
            share=1.0,
            n_steps=getattr(own, "n_steps", 1),
            gamma=getattr(own, "gamma", self.gamma),
        )

    def _check_critic_warmup(self, demonstrations: Demonstrations) -> None:
        self._demonstration_buffer(demonstrations)

    def _warm_up_critics(self, demonstrations: Demonstrations, n_steps: int) -> None:
        """The evaluation part of a gradient step, without actor and temperature, on demonstrations only."""
        own_buffer, self.replay_buffer = self.replay_buffer, self._demonstration_buffer(demonstrations)
        self.policy.set_training_mode(True)
        self.actor.set_training_mode(False)
        optimizers: list[Any] = [self.critic.optimizer]
        if self.diffusion_value is not None:
            optimizers.append(self.diffusion_value.optimizer)
        for optimizer in optimizers:
            update_learning_rate(optimizer, self.lr_schedule(1.0))
        parameters = trainable(optimizers)
        logged: dict[str, list[th.Tensor]] = {}
        try:
            for step in range(n_steps):
                transitions = self._replayed(self.batch_size)
                n_own = self._n_own_states(self.batch_size)
                states = chain_states(transitions, n_own)
                levels = self._levels(self.batch_size + n_own, step)
                begin_step(self)
                _, _, losses, gradients = self._evaluate_step(self, transitions, states, levels, parameters)
                self._optimize(optimizers, parameters, gradients)
                self._update_targets(step)
                for name in ("critic_loss", "diffusion_value_loss"):
                    if name in losses:
                        logged.setdefault(name, []).append(losses[name].detach().reshape(()).clone())
                if (step + 1) % WARMUP_LOG_INTERVAL == 0 or step + 1 == n_steps:
                    for name, value in self.mean_losses(logged):
                        self.logger.record(f"pretrain/{name}", value)
                    self.logger.record("pretrain/n_critic_updates", step + 1, exclude="tensorboard")
                    self.logger.dump(step=step + 1)
                    logged = {}
        finally:
            self.replay_buffer = own_buffer

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        # A tensor: a compiled function would be compiled again for every new number.
        self._reference_coefficient = th.tensor(self._current_reference_kl_coef(), device=self.device)
        super().train(gradient_steps, batch_size)

    def _actor_losses(self, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
        losses = super()._actor_losses(states, chains, ent_coef)
        if self.reference_actor is None:
            return losses
        assert chains.kept is not None
        features = self.actor.extract_features(states, self.actor.features_extractor)  # type: ignore[arg-type]
        kl = chain_kl(self.reference_actor, states, DecisionKernel(self.actor, features, chains.kept), chains.kept)
        return losses | {"reference_kl": kl.detach(), "reference_kl_loss": self._reference_coefficient * kl}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_reference_coefficient"]
