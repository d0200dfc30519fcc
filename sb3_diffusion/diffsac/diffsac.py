"""DiffSAC: soft actor-critic with a diffusion policy, one reverse step of gradient at a time."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.compiling import CompiledOrEager
from sb3_diffusion.common.gradients import Gradients, assign, trainable
from sb3_diffusion.common.networks import StepConditionedMLP
from sb3_diffusion.common.saving import SafeOffPolicySaveMixin
from sb3_diffusion.common.validation import (
    check_choice,
    check_common_arguments,
    check_dict,
    check_number,
    check_policy_class,
    check_schedule,
    scheduled,
    wants_sde,
    without_sde,
)
from sb3_diffusion.demonstrations.pretraining import PretrainingMixin
from sb3_diffusion.diffsac.policies import CnnPolicy, DiffusionSACPolicy, MlpPolicy, MultiInputPolicy
from sb3_diffusion.diffusion import log_det_tanh, read_out, remaining_signal, squashed_readout, telescoped_log_ratio

SelfDiffSAC = TypeVar("SelfDiffSAC", bound="DiffSAC")
OBJECTIVES = ("reverse_kl", "forward_kl")
# Of each state, for the weights of the forward KL divergence
N_PROPOSALS = 16
TensorOrDict = th.Tensor | dict[str, th.Tensor]


def map_observations(function: Callable[..., th.Tensor], *observations: TensorOrDict) -> TensorOrDict:
    """Apply a function to observations, entry by entry if they are dictionaries."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(observation[key] for observation in observations)) for key in first}  # type: ignore[index]
    return function(*observations)


class Levels(NamedTuple):
    """
    Which diffusion steps of which states a loss is evaluated on: ``steps`` k (N,), in ascending order, of the states ``rows``
    (N,); the first ``n_last`` have k = 1.
    """

    steps: th.Tensor
    rows: th.Tensor
    n_last: int


@lru_cache(maxsize=256)
def stratified_levels(batch_size: int, n_levels: int, per_state: int, offset: int, device: th.device) -> Levels:
    """
    Spread diffusion steps evenly over a batch: state b gets the steps ``(b + offset + i) mod n_levels + 1``, i < per_state.

    :param batch_size: B
    :param n_levels: steps 1 … n_levels
    :param per_state: how many different steps each state gets
    :param offset: shifts the assignment; only its remainder mod n_levels counts
    :param device: of the returned tensors
    :return: N = B · per_state levels
    """
    steps = (th.arange(batch_size).unsqueeze(1) + th.arange(per_state) + offset) % n_levels + 1
    steps, order = steps.flatten().sort(stable=True)
    n_last = int((steps == 1).sum())
    return Levels(steps.to(device), (order // per_state).to(device), n_last)


@lru_cache(maxsize=256)
def actor_levels(batch_size: int, diffusion_steps: int, per_state: int, offset: int, device: th.device) -> Levels:
    """
    The levels that the actor is trained on. Only at the step k = 1 the read-out learns, so every state gets it; with κ = 1
    every second one, so that the other steps have rows too. The rest are spread evenly over the other steps.

    :param batch_size: B
    :param diffusion_steps: K
    :param per_state: κ, how many different steps each state gets
    :param offset: shifts the assignment
    :param device: of the returned tensors
    :return: N = B · κ levels
    """
    if diffusion_steps == 1:
        return stratified_levels(batch_size, 1, 1, 0, device)
    turns = th.arange(batch_size) + offset
    steps = ((turns // 2).unsqueeze(1) + th.arange(per_state)) % (diffusion_steps - 1) + 2
    steps[(turns % 2 == 0) | (per_state > 1), 0] = 1
    steps, order = steps.flatten().sort(stable=True)
    return Levels(steps.to(device), (order // per_state).to(device), int((steps == 1).sum()))


def n_own_states(batch_size: int) -> int:
    """How many of a batch's states get a chain besides the next states."""
    return max(1, batch_size // 16)


def chain_states(replay_data: ReplayBufferSamples | DictReplayBufferSamples) -> TensorOrDict:
    """
    The states at which a gradient step samples chains: first the next states, which the critics' targets need. Where an
    episode terminates it needs no action, and the row lends its own state. Then the states of a sixteenth of the rows: the
    first state of an episode is nobody's next state and would never be trained.

    :param replay_data: B transitions
    :return: B + max(1, B / 16) states
    """
    extra = n_own_states(len(replay_data.rewards))

    def combine(observations: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        done = replay_data.dones.reshape(-1, *[1] * (observations.dim() - 1)) > 0
        return th.cat([th.where(done, observations, next_observations), observations[:extra]])

    return map_observations(combine, replay_data.observations, replay_data.next_observations)


class SampledChains(NamedTuple):
    """
    What a gradient step needs of its chains, one per state: the actions (B, d) and their path log-probability (B,), the ends
    ``x^0`` (B, d), the read-out ``(m, log c)``, κ latents a state for the actor, and for the diffusion value (if K > 1) one a
    state with the sum of the log-ratios from there on, each with its levels. The other latents are not kept.
    """

    actions: th.Tensor
    path_log_prob: th.Tensor
    ends: th.Tensor
    readout: tuple[th.Tensor, th.Tensor]
    actor_levels: Levels
    actor_latents: th.Tensor
    value_levels: Levels | None
    value_latents: th.Tensor | None
    log_ratios_to_come: th.Tensor | None


class ChainForecast(NamedTuple):
    """Heads of the diffusion value network: ``R_k`` (N,), ``L_k`` (N,) without the read-out's term, and ``x̂⁰`` (N, d)."""

    residual: th.Tensor
    log_ratio: th.Tensor
    end: th.Tensor


Evaluation = tuple[SampledChains, th.Tensor, dict[str, th.Tensor], Gradients]
Improvement = tuple[dict[str, th.Tensor], Gradients]


class DiffSAC(PretrainingMixin, SafeOffPolicySaveMixin, SAC):
    """
    Soft actor-critic with a diffusion policy (arXiv 2512.02019; docs/method.md, "DiffSAC").

    With ``ℓ_k`` the log-ratio of reverse and noising kernel, ``(x'^K … x'^0, u')`` a sampled chain at the next state ``s'``
    and τ the entropy coefficient, each gradient step minimises in turn

    * critics: ``½ Σ_i (Q_i(s, a) - y)²``, ``y = r + γ (1 - done) (min_i Q̄_i(s', u') - τ (log p(x'^K) + Σ_k ℓ'_k))``
    * diffusion value: ``V_k(s', x'^k)``, k = 1 … K - 1, regressed on ``min_i Q̄_i(s', u') - τ Σ_{j≤k} ℓ'_j``
    * actor: ``τ ℓ_k - Q_k(s', x^{k-1})`` with a fresh reparametrised ``x^{k-1}`` from the stored ``x'^k``, where
      ``Q_1 = min_i Q_i(s', u)`` and ``Q_k = V_{k-1}``

    so that no gradient passes through more than one reverse step and activation memory does not grow with K. Chains are also
    sampled at ``s``: of terminal transitions instead of ``s'``, and of a sixteenth of the rows besides (:func:`chain_states`).

    The diffusion value is anchored in the critics, ``V_k = Q_i(s, tanh(m + c x̂⁰)) + R_k - τ L_k``: its network predicts
    the end ``x̂⁰`` of the chain, the log-ratios ``L_k`` still to come, and what the prediction leaves out, ``R_k``. So it
    follows the critics and τ at once; a network for all of ``V_k`` lags behind them (docs/method.md, "The diffusion value").

    Parameters not listed are those of :class:`stable_baselines3.SAC`, in the same order.

    :param ent_coef: "auto", "auto_<initial value>", a number, or a function of the remaining progress (1 … 0)
    :param target_entropy: for ``ent_coef="auto"``: target of the path entropy in nats; "auto" is minus the action dimension
    :param latents_per_state: κ, diffusion steps per replayed state that the actor is trained on, 1 … K
    :param torch_compile: compile the gradient step with ``torch.compile`` when training starts: the same losses in fewer
        operations, for about a minute at the start. Takes a C++ compiler; without one, a warning says so and training goes on
    :param bfloat16_chains: sample the chains of a gradient step, through which no gradient passes, with bfloat16 products:
        faster on CPUs that have instructions for them (measured with AVX512-BF16), the more so the larger K; slower on others
    :param objective: "reverse_kl": the loss above; "forward_kl": the actor is fitted by maximum likelihood to actions that are
        weighted with ``exp(Q / τ)``, denoising score matching (docs/method.md, "Forward KL"). Needs a temperature above 0
    :raises ValueError: for an argument out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionSACPolicy
    actor: DiffusionActor
    diffusion_value: StepConditionedMLP | None

    def __init__(
        self,
        policy: str | type[DiffusionSACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float | Schedule = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        latents_per_state: int = 1,
        torch_compile: bool = False,
        bfloat16_chains: bool = False,
        objective: str = "reverse_kl",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,  # type: ignore[arg-type]  # _setup_model takes a schedule too
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=wants_sde(use_sde, policy_kwargs),
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=without_sde(policy_kwargs),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.latents_per_state = latents_per_state
        self.objective = objective
        self.torch_compile = torch_compile
        self.bfloat16_chains = bfloat16_chains
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        check_common_arguments(self)
        check_policy_class(self.policy_class, self.policy_aliases["MlpPolicy"])
        check_number("buffer_size", self.buffer_size, 1, integer=True)
        check_number("learning_starts", self.learning_starts, 0, integer=True)
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_number("tau", self.tau, 0, 1)
        check_number("gradient_steps", self.gradient_steps, -1, integer=True)
        check_number("n_steps", self.n_steps, 1, integer=True)
        check_number("target_update_interval", self.target_update_interval, 1, integer=True)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("bfloat16_chains", self.bfloat16_chains, (False, True))
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
            check_schedule("ent_coef", self.ent_coef, exclusive=self.objective == "forward_kl")
        else:
            check_number("ent_coef", self.ent_coef, 0, exclusive=self.objective == "forward_kl")
        if isinstance(self.target_entropy, str) and self.target_entropy != "auto":
            raise ValueError(f"target_entropy={self.target_entropy!r} is unknown; allowed: 'auto' or a number")
        if not isinstance(self.target_entropy, str):
            check_number("target_entropy", self.target_entropy, -math.inf)
        buffer_class = self.replay_buffer_class
        if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, ReplayBuffer)):
            raise ValueError(f"replay_buffer_class={buffer_class!r} must be a subclass of ReplayBuffer, or None")
        check_dict("replay_buffer_kwargs", self.replay_buffer_kwargs)
        if not isinstance(self.action_noise, (ActionNoise, type(None))):
            raise ValueError(f"action_noise={self.action_noise!r} must be an ActionNoise or None")
        if isinstance(self.train_freq, tuple) and len(self.train_freq) != 2:
            raise ValueError(
                f"train_freq={self.train_freq!r} must be an integer >= 1 or (an integer >= 1, 'step' or 'episode')"
            )
        frequency = self.train_freq[0] if isinstance(self.train_freq, tuple) else self.train_freq
        check_number("train_freq", frequency, 1, integer=True)

    def _setup_model(self) -> None:
        self._check_arguments()
        ent_coef = self.ent_coef
        if callable(ent_coef):
            # SAC knows no schedule here: it gets the first value, train() sets the others.
            self.ent_coef = ent_coef(1.0)
        super()._setup_model()
        self.ent_coef = ent_coef
        check_number("latents_per_state", self.latents_per_state, 1, self.actor.diffusion_steps, integer=True)
        if self.log_ent_coef is not None:
            # SAC's, fused: this one number would take as long as a network.
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1), fused=True)
        # Functions of the model, not bound to it: a copy of the model must train its own networks.
        self._evaluate_step: Callable[..., Evaluation] = type(self)._evaluate
        self._improve_step: Callable[..., Improvement] = type(self)._improve
        if self.torch_compile:
            self._evaluate_step = CompiledOrEager(self._evaluate_step)
            self._improve_step = CompiledOrEager(self._improve_step)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """SAC's ``train`` with the three losses of the class docstring."""
        self.policy.set_training_mode(True)
        if callable(self.ent_coef):
            exclusive = self.objective == "forward_kl"
            self.ent_coef_tensor.fill_(scheduled("ent_coef", self.ent_coef, self._current_progress_remaining, exclusive))
        evaluation_optimizers, improvement_optimizers = self._evaluation_optimizers(), self._improvement_optimizers()
        evaluation_parameters, improvement_parameters = trainable(evaluation_optimizers), trainable(improvement_optimizers)
        self._update_learning_rate([*evaluation_optimizers, self.actor.optimizer])
        logged = []

        for gradient_step in range(gradient_steps):
            replay_data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)  # type: ignore[union-attr]
            if replay_data.discounts is None:
                # A tensor, as with n-step returns: a compiled function would be compiled again for every new number.
                replay_data = replay_data._replace(discounts=th.full_like(replay_data.rewards, self.gamma))
            states = chain_states(replay_data)
            levels = self._levels(batch_size + n_own_states(batch_size), self._n_updates + gradient_step)

            chains, ent_coef, losses, gradients = self._evaluate_step(self, replay_data, states, levels, evaluation_parameters)
            self._optimize(evaluation_optimizers, evaluation_parameters, gradients)
            improvement, gradients = self._improve_step(self, states, chains, ent_coef, improvement_parameters)
            self._optimize(improvement_optimizers, improvement_parameters, gradients)
            self._update_targets(gradient_step)

            losses.update(improvement, ent_coef=ent_coef, path_entropy=-chains.path_log_prob.mean())
            logged.append(th.stack([value.detach().squeeze() for value in losses.values()]))

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not logged:
            return
        for name, value in zip(losses, th.stack(logged).mean(dim=0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)

    def _evaluate(
        self,
        replay_data: ReplayBufferSamples | DictReplayBufferSamples,
        states: TensorOrDict,
        levels: tuple[Levels, Levels | None],
        parameters: list[th.Tensor],
    ) -> Evaluation:
        """
        All that judges the current policy: chains, and the losses of critics, diffusion value and entropy coefficient, which
        share no parameter.

        :param states: of the chains
        :param parameters: of critics, diffusion value and entropy coefficient
        :return: the chains, the entropy coefficient τ before its update, the losses, and the gradients of their sum
        """
        with th.no_grad():
            features = self.actor.extract_features(states, self.actor.features_extractor)  # type: ignore[arg-type]
            target_features = self.critic_target.extract_features(states, self.critic_target.features_extractor)
        chains = self._sample_chains(features, levels)
        losses = {}
        if self.log_ent_coef is None:
            ent_coef = self.ent_coef_tensor
        else:
            ent_coef = th.exp(self.log_ent_coef.detach())
            assert isinstance(self.target_entropy, float)
            losses["ent_coef_loss"] = -(self.log_ent_coef * (chains.path_log_prob + self.target_entropy)).mean()
        with th.no_grad():
            q_values = self._min_q_value(self.critic_target, target_features, chains.actions)
            soft_values = (q_values - ent_coef * chains.path_log_prob)[: len(replay_data.rewards)].unsqueeze(1)
            assert replay_data.discounts is not None
            # The discounts are γ, with n-step returns to the power of the number of steps.
            target_q_values = replay_data.rewards + (1 - replay_data.dones) * replay_data.discounts * soft_values
        current_q_values = self.critic(replay_data.observations, replay_data.actions)
        losses["critic_loss"] = (
            0.5 * th.stack([F.mse_loss(current_q, target_q_values) for current_q in current_q_values]).sum()
        )
        if self.diffusion_value is not None and self.objective == "reverse_kl":
            losses["diffusion_value_loss"] = self._diffusion_value_loss(features, target_features, chains, q_values)
        gradients = th.autograd.grad(list(losses.values()), parameters, allow_unused=True)
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
        gradients = th.autograd.grad(sum(losses.values()), parameters, allow_unused=True)  # type: ignore[arg-type]
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def _min_q_value(self, critic: ContinuousCritic, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """``min_i Q_i(s, u)`` (B,), from the critic's own features."""
        rows = th.cat([features, actions], dim=1)
        return th.cat([q_network(rows) for q_network in critic.q_networks], dim=1).min(dim=1).values

    def _anchor_q_value(self, critic: ContinuousCritic, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        ``Q_i(s, u)`` (B,), the critics taking turns over the rows: of a forecast only the slope is wanted, and the mean of the
        critics' slopes serves as well as the smallest critic's, for half the work.
        """
        rows = th.cat([features, actions], dim=1)
        q_values, n_critics = rows.new_empty(len(rows)), len(critic.q_networks)
        for i, q_network in enumerate(critic.q_networks):
            q_values[i::n_critics] = q_network(rows[i::n_critics]).squeeze(1)
        return q_values

    def _levels(self, n_chains: int, offset: int) -> tuple[Levels, Levels | None]:
        """Levels for actor and diffusion value; ``offset`` rotates which chain gets which."""
        steps = self.actor.diffusion_steps
        # After so many offsets, every state has had every step.
        period = 2 * max(1, steps - 1)
        actor = actor_levels(n_chains, steps, self.latents_per_state, offset % period, self.device)
        value = stratified_levels(n_chains, steps - 1, 1, offset % (steps - 1), self.device) if steps > 1 else None
        return actor, value

    @th.no_grad()
    def _sample_chains(self, features: th.Tensor, levels: tuple[Levels, Levels | None]) -> SampledChains:
        """One chain per state, from which the latents at these levels are kept."""
        sample = self.actor.sample(features, bfloat16=self.bfloat16_chains)
        actor, value = levels
        value_latents = log_ratios_to_come = None
        if value is not None:
            value_latents = sample.latents[value.steps, value.rows]
            log_ratios_to_come = sample.log_ratios.cumsum(dim=0)[value.steps - 1, value.rows]
        return SampledChains(
            sample.actions,
            sample.path_log_prob,
            sample.latents[0].clone(),
            (sample.location, sample.log_scale),
            actor,
            sample.latents[actor.steps, actor.rows],
            value,
            value_latents,
            log_ratios_to_come,
        )

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
        self, features: th.Tensor, target_features: th.Tensor, chains: SampledChains, q_values: th.Tensor
    ) -> th.Tensor:
        """
        Regression of the three heads on what the chains through the latents came to.

        :param q_values: (B,), ``min_i Q̄_i(s, u)`` at the chains' actions
        """
        assert chains.value_levels is not None and chains.value_latents is not None and chains.log_ratios_to_come is not None
        steps, rows, _ = chains.value_levels
        forecast = self._forecast(features[rows].detach(), chains.value_latents, steps)
        # Only the end itself teaches where the chain ends; the other two heads learn what that prediction leaves out.
        location, log_scale = chains.readout
        actions, readout_log_ratio = squashed_readout(forecast.end.detach(), location[rows], log_scale[rows])
        anchor = self._anchor_q_value(self.critic_target, target_features[rows], actions)
        prior_std = self.actor.prior_std
        return (
            F.mse_loss(anchor + forecast.residual, q_values[rows])
            + F.mse_loss(forecast.log_ratio + readout_log_ratio, chains.log_ratios_to_come)
            + F.mse_loss(forecast.end / prior_std, chains.ends[rows] / prior_std)
        )

    def _actor_losses(self, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
        """``τ ℓ_k - Q_k`` after one fresh reverse step from κ stored latents a state; or the forward KL divergence."""
        if self.objective == "forward_kl":
            return {"actor_loss": self._forward_kl_loss(states, ent_coef)}
        features, critic_features = self._improvement_features(states)
        steps, rows, n_last = chains.actor_levels
        latents, log_ratios = self.actor.reverse_step(features[rows], chains.actor_latents, steps)
        # The rows with k = 1 come first: there the step's own x^0 is read out, and the read-out learns.
        location, log_scale = self.actor.readout(features[rows[:n_last]])
        actions = read_out(latents[:n_last], location, log_scale)
        q_values = self._decision_values(features, critic_features, th.cat([actions, latents[n_last:]]), chains, ent_coef)
        readout_log_ratio = th.cat([-log_scale.sum(dim=-1) - log_det_tanh(actions), log_ratios.new_zeros(len(rows) - n_last)])
        return {"actor_loss": self._mean_over_steps(ent_coef * (log_ratios + readout_log_ratio) - q_values, n_last)}

    def _mean_over_steps(self, values: th.Tensor, n_last: int) -> th.Tensor:
        """Mean of values at the actor's levels (N,), in which each diffusion step counts as much as any other."""
        share = 1 / self.actor.diffusion_steps
        parts = ((share, values[:n_last]), (1 - share, values[n_last:]))
        return th.stack([weight * part.mean() for weight, part in parts if len(part)]).sum()

    def _forward_kl_loss(self, states: TensorOrDict, ent_coef: th.Tensor) -> th.Tensor:
        """
        For some of the states, as many proposals of the current policy each as keep the number of rows, weighted by
        ``exp(Q / τ)`` over their path probability: exact on whole chains, for the target ``exp(Q / τ) Π_k π(x^k | x^{k-1})``.
        """
        features, critic_features = self._improvement_features(map_observations(lambda rows: rows[::N_PROPOSALS], states))
        features, critic_features = (rows.repeat_interleave(N_PROPOSALS, dim=0) for rows in (features, critic_features))
        with th.no_grad():
            proposals = self.actor.sample(features, bfloat16=self.bfloat16_chains)
            q_values = self._min_q_value(self.critic, critic_features, proposals.actions)
            log_weights = q_values / ent_coef - proposals.path_log_prob
            weights = log_weights.unflatten(0, (-1, N_PROPOSALS)).softmax(dim=1).flatten()
            actions = read_out(proposals.latents[0], proposals.location, proposals.log_scale)
        # Every step equally often, in the long run also where there are fewer rows than steps
        offset = th.randint(self.actor.diffusion_steps, (1,), device=self.device)
        steps = (th.randperm(len(features), device=self.device) + offset) % self.actor.diffusion_steps + 1
        log_likelihood = self.actor.log_likelihood_bound(features, actions, steps)
        return -(weights * log_likelihood).sum() * N_PROPOSALS / len(features)

    def _improvement_features(self, states: TensorOrDict) -> tuple[th.Tensor, th.Tensor]:
        """The actor's features, and the critics' without a gradient, (B, features_dim) each."""
        features = self.actor.extract_features(states, self.actor.features_extractor)  # type: ignore[arg-type]
        if self.policy.share_features_extractor:
            return features, features.detach()
        with th.no_grad():
            return features, self.critic.extract_features(states, self.critic.features_extractor)  # type: ignore[arg-type]

    def _decision_values(
        self,
        features: th.Tensor,
        critic_features: th.Tensor,
        decisions: th.Tensor,
        chains: SampledChains,
        ent_coef: th.Tensor,
    ) -> th.Tensor:
        """
        ``Q_k`` (N,) of decisions at the actor's levels: ``min_i Q_i(s, u)`` for k = 1, ``V_{k-1}(s, x^{k-1})`` for k > 1.

        :param decisions: (N, d), ``x^{k-1}``; for k = 1 the action before it is squashed, ``a^0``
        """
        steps, rows, n_last = chains.actor_levels
        last, earlier = rows[:n_last], rows[n_last:]
        q_values = self._min_q_value(self.critic, critic_features[last], th.tanh(decisions[:n_last]))
        if not len(earlier):
            return q_values
        forecast = self._forecast(features[earlier].detach(), decisions[n_last:], steps[n_last:] - 1)
        location, log_scale = chains.readout
        actions, readout_log_ratio = squashed_readout(forecast.end, location[earlier], log_scale[earlier])
        anchor = self._anchor_q_value(self.critic, critic_features[earlier], actions)
        values = anchor + forecast.residual - ent_coef * (forecast.log_ratio + readout_log_ratio)
        return th.cat([q_values, values])

    def _evaluation_optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = [self.critic.optimizer]
        if self.diffusion_value is not None:
            optimizers.append(self.diffusion_value.optimizer)  # type: ignore[arg-type]
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
        if gradient_step % self.target_update_interval == 0:
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def learn(
        self: SelfDiffSAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DiffSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffSAC:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self.diffusion_value = getattr(self.policy, "diffusion_value", None)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "diffusion_value", "_evaluate_step", "_improve_step"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if self.diffusion_value is not None:
            state_dicts = [*state_dicts, "diffusion_value.optimizer"]
        return state_dicts, tensors
