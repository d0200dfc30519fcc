"""The gradient step that the off-policy algorithms share: critics and actor objective are two choices of their own."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_diffusion.common.chains import (
    ChainLevels,
    SampledChains,
    TensorOrDict,
    Transitions,
    chain_levels,
    chain_states,
    sample_chains,
)
from sb3_diffusion.common.compiling import CompiledOrEager, begin_step
from sb3_diffusion.common.critics import CriticStates
from sb3_diffusion.common.diffusion_value import DiffusionValueMixin
from sb3_diffusion.common.finite import FiniteMixin
from sb3_diffusion.common.gradients import Gradients, assign, gradients_of, trainable
from sb3_diffusion.common.objectives import OBJECTIVES, Objective
from sb3_diffusion.common.saving import SafeOffPolicySaveMixin
from sb3_diffusion.common.temperature import follow_ent_coef
from sb3_diffusion.common.transfer import sample_in_one_transfer
from sb3_diffusion.common.validation import (
    check_action_span,
    check_choice,
    check_common_arguments,
    check_dict,
    check_number,
    check_policy_class,
    check_schedule,
)

Evaluation = tuple[SampledChains, th.Tensor, dict[str, th.Tensor], Gradients]
Improvement = tuple[dict[str, th.Tensor], Gradients]
# The smallest share of the rows that lend their own state besides the next one
SMALLEST_OWN_STATES = 1 / 16


class DiffusionOffPolicyAlgorithm(FiniteMixin, SafeOffPolicySaveMixin, DiffusionValueMixin):
    """
    The training loop of an off-policy algorithm with a diffusion policy (docs/method.md, "DiffSAC").

    A class names its critics (a kind of :class:`~sb3_diffusion.common.critics.Critics`), its actor objective
    (:meth:`_objective`) and the algorithm of SB3 or sb3-contrib that it extends. With ``(x'^K … x'^0, u')`` a sampled chain at
    each of the :func:`chain_states`, a gradient step minimises in turn the critics' loss and, every ``policy_delay``-th time,
    the losses of the diffusion value and of the temperature, and then the actor's.
    """

    ent_coef_tensor: th.Tensor
    log_ent_coef: th.Tensor | None
    ent_coef_optimizer: th.optim.Adam | None
    target_entropy: Any
    latents_per_state: int
    torch_compile: bool
    bfloat16_chains: bool
    policy_delay: int
    own_states: float | str
    objective: str
    uniform_proposals: float
    target_update_interval: int
    policy: Any

    def _objective(self) -> Objective:
        """How the actor learns from the critics."""
        return OBJECTIVES[self.objective]

    def _check_arguments(self) -> None:
        check_common_arguments(self)
        check_policy_class(self.policy_class, self.policy_aliases["MlpPolicy"])
        if isinstance(self.action_space, spaces.Box):  # others are the base's to refuse
            check_action_span(self.action_space)
        check_number("buffer_size", self.buffer_size, 1, integer=True)
        check_number("learning_starts", self.learning_starts, 0, integer=True)
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_number("tau", self.tau, 0, 1)
        check_number("gradient_steps", self.gradient_steps, -1, integer=True)
        check_number("n_steps", self.n_steps, 1, integer=True)
        if hasattr(self, "target_update_interval"):
            check_number("target_update_interval", self.target_update_interval, 1, integer=True)
        check_number("policy_delay", self.policy_delay, 1, integer=True)
        if self.own_states != "auto":
            check_number("own_states", self.own_states, 0, 1)
        if hasattr(self, "objective"):
            check_choice("objective", self.objective, OBJECTIVES)
            check_number("uniform_proposals", self.uniform_proposals, 0, 0.9)
            if self.uniform_proposals and self.objective != "forward_kl":
                raise ValueError(
                    f"uniform_proposals={self.uniform_proposals!r} needs objective='forward_kl', not {self.objective!r}"
                )
        check_choice("bfloat16_chains", self.bfloat16_chains, (False, True))
        self._check_ent_coef()
        if isinstance(self.target_entropy, str) and self.target_entropy != "auto":
            raise ValueError(f"target_entropy={self.target_entropy!r} is unknown; allowed: 'auto' or a number")
        if not isinstance(self.target_entropy, str):
            check_number("target_entropy", self.target_entropy, -math.inf)
        buffer_class = self.replay_buffer_class
        if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, ReplayBuffer)):
            raise ValueError(f"replay_buffer_class={buffer_class!r} must be a subclass of ReplayBuffer, or None")
        check_dict("replay_buffer_kwargs", self.replay_buffer_kwargs)
        # A copy: SB3 writes n_steps into a dictionary that others may share.
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs or {})
        if not isinstance(self.action_noise, (ActionNoise, type(None))):
            raise ValueError(f"action_noise={self.action_noise!r} must be an ActionNoise or None")
        if isinstance(self.train_freq, tuple) and len(self.train_freq) != 2:
            raise ValueError(
                f"train_freq={self.train_freq!r} must be an integer >= 1 or (an integer >= 1, 'step' or 'episode')"
            )
        frequency = self.train_freq[0] if isinstance(self.train_freq, tuple) else self.train_freq
        check_number("train_freq", frequency, 1, integer=True)
        if isinstance(self.train_freq, tuple) and str(getattr(self.train_freq[1], "value", self.train_freq[1])) == "episode":
            if self.n_envs > 1:
                raise ValueError(
                    f"train_freq={self.train_freq!r} counts episodes, which takes one environment, not {self.n_envs}"
                )

    def _check_ent_coef(self) -> None:
        exclusive = self._objective().needs_temperature
        if isinstance(self.ent_coef, str):
            prefix, _, initial = self.ent_coef.partition("_")
            try:
                valid = prefix == "auto" and 0 < float(initial or 1) < math.inf and not self.ent_coef.endswith("_")
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"ent_coef={self.ent_coef!r} is unknown; allowed: 'auto', 'auto_<number > 0>', a number >= 0, "
                    "or a function of the remaining progress"
                )
        elif callable(self.ent_coef):
            check_schedule("ent_coef", self.ent_coef, exclusive=exclusive)
        else:
            check_number("ent_coef", self.ent_coef, 0, exclusive=exclusive)

    def _setup_model(self) -> None:
        self._check_arguments()
        ent_coef = self.ent_coef
        if callable(ent_coef):
            # The base knows no schedule here: it gets the first value, train() sets the others.
            self.ent_coef = ent_coef(1.0)
        super()._setup_model()
        self.ent_coef = ent_coef
        self._check_critics()
        check_number("latents_per_state", self.latents_per_state, 1, self.actor.diffusion_steps, integer=True)
        if self.latents_per_state > 1 and not self._objective().uses_diffusion_value:
            warnings.warn(
                f"latents_per_state={self.latents_per_state!r} has no effect with objective={self.objective!r}, "
                "which trains on no stored latents",
                stacklevel=4,
            )
        self.target_entropy = float(self.target_entropy)
        if self.log_ent_coef is not None:
            # The base's, fused: this one number would take as long as a network.
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1), fused=True)
        # Functions of the model, not bound to it: a copy of the model must train its own networks.
        self._evaluate_step: Callable[..., Evaluation] = type(self)._evaluate
        self._improve_step: Callable[..., Improvement] = type(self)._improve
        self._sample_step: Callable[..., th.Tensor] = type(self.actor).sample_actions
        if self.torch_compile:
            self._evaluate_step = CompiledOrEager(self._evaluate_step)
            self._improve_step = CompiledOrEager(self._improve_step)
            self._sample_step = CompiledOrEager(self._sample_step, "the sampling of actions")

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The base's, with compiled chains. ``predict`` alone is not compiled: it would be again for every new batch size."""
        if not self.torch_compile:
            return super()._sample_action(learning_starts, action_noise, n_envs)  # type: ignore[misc]
        begin_step(self)
        with self.actor.sampling_by(self._sample_step):
            return super()._sample_action(learning_starts, action_noise, n_envs)  # type: ignore[misc]

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """The base's ``train`` with the losses of the class docstring."""
        self.policy.set_training_mode(True)
        follow_ent_coef(self, exclusive=self._objective().needs_temperature)
        critic_optimizers, others = [self.critic.optimizer], self._evaluation_optimizers()
        actor_optimizers = self._improvement_optimizers()
        self._update_learning_rate([*critic_optimizers, *others, self.actor.optimizer])
        critic_parameters, other_parameters = trainable(critic_optimizers), trainable(others)
        actor_parameters = trainable(actor_optimizers)
        logged: dict[str, list[th.Tensor]] = {}

        for gradient_step in range(gradient_steps):
            transitions = self._replayed(batch_size)
            n_actor_updates, remainder = divmod(self._n_updates + gradient_step + 1, self.policy_delay)
            improves = remainder == 0
            n_own = self._n_own_states(len(transitions.rewards)) if improves else 0
            states = chain_states(transitions, n_own)
            # Levels rotate with the actor's updates: with the gradient steps, a delay would leave some of them out.
            levels = self._levels(len(transitions.rewards) + n_own, n_actor_updates - 1) if improves else None
            parameters = critic_parameters + other_parameters if improves else critic_parameters

            begin_step(self)
            chains, ent_coef, losses, gradients = self._evaluate_step(self, transitions, states, levels, parameters)
            self._optimize([*critic_optimizers, *others] if improves else critic_optimizers, parameters, gradients)
            if improves:
                improvement, gradients = self._improve_step(self, states, chains, ent_coef, actor_parameters)
                self._optimize(actor_optimizers, actor_parameters, gradients)
                losses.update(improvement)
            self._update_targets(gradient_step)

            losses.update(ent_coef=ent_coef, path_entropy=-chains.path_log_prob.mean())
            for name, value in losses.items():
                logged.setdefault(name, []).append(value.detach().reshape(()).clone())

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not logged:
            return
        for name, mean in self.mean_losses(logged):
            self.logger.record(f"train/{name}", mean)

    def _replayed(self, batch_size: int) -> Transitions:
        """A batch from the replay buffer, whatever object with SB3's fields it returns."""
        data = sample_in_one_transfer(self.replay_buffer, batch_size, self._vec_normalize_env, self.device)
        discounts = getattr(data, "discounts", None)
        if discounts is None:
            # A tensor, as with n-step returns: a compiled function would be compiled again for every new number.
            discounts = th.full_like(data.rewards, self.gamma)
        return Transitions(data.observations, data.actions, data.next_observations, data.rewards, data.dones, discounts)

    def _n_own_states(self, batch_size: int) -> int:
        """
        How many rows of a batch lend their own state besides the next one. With "auto" one in as many as an episode has steps,
        rounded up to 1/2, 1/4 …, at least 1/16: first states are nobody's next state, and short episodes have many.
        """
        share = self.own_states
        if share == "auto":
            lengths = [info["l"] for info in self.ep_info_buffer or ()]
            share = SMALLEST_OWN_STATES
            if lengths:
                share = max(share, 0.5 ** math.floor(math.log2(max(1.0, sum(lengths) / len(lengths)))))
        assert not isinstance(share, str)
        return max(1, int(batch_size * share)) if share > 0 else 0

    def _evaluate(
        self,
        transitions: Transitions,
        states: TensorOrDict,
        levels: ChainLevels | None,
        parameters: list[th.Tensor],
    ) -> Evaluation:
        """
        All that judges the current policy: chains, and the losses of critics and, where the actor learns from the chains,
        diffusion value and entropy coefficient, which share no parameter.

        :param states: of the chains
        :param levels: None where the actor does not learn from them
        :param parameters: of the networks that these losses train
        :return: the chains, the entropy coefficient τ before its update, the losses, and the gradients of their sum
        """
        with th.no_grad():
            features = self.actor.extract_features(states, self.actor.features_extractor)  # type: ignore[arg-type]
        chains = self._sample_chains(features, levels)
        losses = {}
        if self.log_ent_coef is None:
            ent_coef = self.ent_coef_tensor
        else:
            ent_coef = th.exp(self.log_ent_coef.detach())
            if levels is not None:
                losses["ent_coef_loss"] = -(self.log_ent_coef * (chains.path_log_prob + self.target_entropy)).mean()
        critics = self._critic_evaluation(transitions, states, chains, ent_coef)
        losses["critic_loss"] = critics.loss
        uses_diffusion_value = self.diffusion_value is not None and self._objective().uses_diffusion_value
        if chains.kept is not None and uses_diffusion_value:
            assert critics.end_values is not None
            losses["diffusion_value_loss"] = self._diffusion_value_loss(
                features, chains.kept, critics.critic, critics.states, critics.end_values
            )
        gradients = gradients_of(losses.values(), parameters)
        return chains, ent_coef, {name: loss.detach() for name, loss in losses.items()}, gradients

    def _improve(
        self, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor, parameters: list[th.Tensor]
    ) -> Improvement:
        """
        :param states: of the chains
        :param parameters: the actor's
        :return: the actor's losses (with what else is logged, without a graph) and the gradients of their sum
        """
        losses = self._actor_losses(states, chains, ent_coef)
        gradients = gradients_of(losses.values(), parameters)
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def _actor_losses(self, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
        return self._objective().losses(self, states, chains, ent_coef)

    def _sample_chains(self, features: th.Tensor, levels: ChainLevels | None) -> SampledChains:
        return sample_chains(self.actor, features, levels, self.bfloat16_chains)

    def _levels(self, n_chains: int, offset: int) -> ChainLevels:
        """Levels for actor and diffusion value; ``offset`` rotates which chain gets which."""
        return chain_levels(n_chains, self.actor.diffusion_steps, self.latents_per_state, offset, self.device)

    def _improvement_states(self, states: TensorOrDict) -> tuple[th.Tensor, CriticStates]:
        """The actor's features (B, features_dim), and the states as the critics see them, without a gradient to either."""
        features = self.actor.extract_features(states, self.actor.features_extractor)  # type: ignore[arg-type]
        shared = features.detach() if self.policy.share_features_extractor else None
        return features, self._critic_states(self.critic, states, shared)

    def _evaluation_optimizers(self) -> list[th.optim.Optimizer]:
        """Of diffusion value and entropy coefficient."""
        optimizers: list[Any] = [] if self.diffusion_value is None else [self.diffusion_value.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        return optimizers

    def _improvement_optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer]

    @staticmethod
    def _optimize(optimizers: list[th.optim.Optimizer], parameters: list[th.Tensor], gradients: Gradients) -> None:
        assign(parameters, gradients)
        for optimizer in optimizers:
            optimizer.step()

    def _update_targets(self, gradient_step: int) -> None:
        self._update_critic_targets(gradient_step)

    def _create_aliases(self) -> None:
        super()._create_aliases()  # type: ignore[misc]
        self.diffusion_value = getattr(self.policy, "diffusion_value", None)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "diffusion_value", "_evaluate_step", "_improve_step", "_sample_step"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if self.diffusion_value is not None:
            state_dicts = [*state_dicts, "diffusion_value.optimizer"]
        return state_dicts, tensors
