"""DiffPPO: proximal policy optimisation of a diffusion policy, one reverse step as one decision."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from sb3_diffusion.common.compiling import CompiledOrEager, begin_step
from sb3_diffusion.common.finite import FiniteMixin
from sb3_diffusion.common.gradients import Gradients, assign, trainable
from sb3_diffusion.common.saving import SafeSaveMixin
from sb3_diffusion.common.trust_region import bounded_gaussian_kl, keep_in_range, make_multiplier, trust_region_losses
from sb3_diffusion.common.validation import (
    check_choice,
    check_common_arguments,
    check_dict,
    check_number,
    check_policy_class,
    check_schedule,
    scheduled,
    wants_sde,
    with_hints,
    without_sde,
)
from sb3_diffusion.demonstrations.pretraining import PretrainingMixin
from sb3_diffusion.diffppo.actor import DecisionKernels
from sb3_diffusion.diffppo.buffers import ChainRolloutBuffer, ChainRollouts, ChainRolloutSamples, DictChainRolloutBuffer
from sb3_diffusion.diffppo.policies import CnnPolicy, DiffusionActorCriticPolicy, MlpPolicy, MultiInputPolicy

SelfDiffPPO = TypeVar("SelfDiffPPO", bound="DiffPPO")


# What "auto" starts from, and the step size of its logarithm, one step per update
INITIAL_ENT_COEF = 0.01
ENT_COEF_LEARNING_RATE = 0.05
TRUST_REGIONS = (None, "penalty", "learning_rate")
# How far, and by how much at once, a trust region changes the learning rate
MIN_RATE_FACTOR, MAX_RATE_FACTOR, RATE_STEP = 0.01, 10.0, 1.5


class MinibatchLosses(NamedTuple):
    """
    The loss and its parts, scalars; closed-form KL divergence and share of clipped ratios of each decision, (K + 1,); and the
    divergence of the whole chain from the reference, a scalar, 0 without one.
    """

    loss: th.Tensor
    policy_gradient_loss: th.Tensor
    value_loss: th.Tensor
    kl: th.Tensor
    clip_fraction: th.Tensor
    reference_kl: th.Tensor


class Coefficients(NamedTuple):
    """
    Scalars of the losses that may change from update to update; without ``ent_coef`` the temperature is 0, without
    ``kl_bound`` there is no penalty.
    """

    clip_range: th.Tensor
    vf_coef: th.Tensor
    clip_range_vf: th.Tensor | None = None
    ent_coef: th.Tensor | None = None
    reference_kl_coef: th.Tensor | None = None
    kl_bound: th.Tensor | None = None


class DiffPPO(PretrainingMixin, FiniteMixin, SafeSaveMixin, PPO):
    """
    Proximal policy optimisation of a diffusion policy (arXiv 2512.02019; docs/method.md, "DiffPPO"). Every reverse step is a
    decision of its own: with ``ρ_k = q_θ(x^{k-1} | x^k, s) / q_old``, advantages ``A_k`` of the augmented decision process
    with the soft rewards ``r 1[k=1] - τ ℓ_k``, and τ the entropy coefficient, the policy loss is the mean over decisions of

        - min(ρ_k Â_k, clip(ρ_k, 1 - ε, 1 + ε) Â_k),      Â_k = A_k + τ (ℓ_k^old - ℓ_k(θ)) without a gradient,

    and ``-τ ρ_k log π_θ(x^k | x^{k-1})`` where the clip is inactive (ρ_k without a gradient). With the state-dependent
    read-out, latents are ``a^k = m + c x^k``, and the first one, ``a^K`` from ``N(m, (c ν)²)``, is a decision like the others.
    τ = 0 is DPPO (arXiv 2409.00588). One row of a minibatch is an environment step with κ of its K reverse steps and the first
    decision, so there are as many optimizer steps as in PPO.

    Parameters not listed are those of :class:`stable_baselines3.PPO`, in the same order.

    :param ent_coef: τ: a number, a function of the remaining progress (1 … 0), "lin_<initial value>" (falls to 0), "auto"
        (from 0.01 on) or "auto_<initial value>" (learned, one step of 0.05 in ``log τ`` per update). Read for every update
    :param target_kl: stop an update where the closed-form KL divergence of the chains exceeds 1.5 times this
    :param latents_per_state: κ, reverse steps of an environment step in each minibatch, 1 … K; None: all K
    :param target_entropy: for ``ent_coef="auto"``: target of the path entropy in nats; "auto" is minus the action dimension
    :param torch_compile: compile the losses and their gradients with ``torch.compile`` at the first update: the same numbers
        in fewer operations, for about a minute at the start. Takes a C++ compiler; without one, a warning says so and training
        goes on
    :param value_warmup: rollouts, at the start of training and after :meth:`pretrain`, on which only the value function is
        trained: the policy moves when the advantages mean something
    :param trust_region: bound the closed-form KL divergence of the whole chain in every update, beside the clip, which bounds
        each decision alone. "penalty": it joins the loss with a learned multiplier (:mod:`sb3_diffusion.common.trust_region`);
        "learning_rate": a factor of the learning rate, from 0.01 to 10, falls by 1.5 after an update that went more than twice
        as far, and rises by 1.5 after one that went less than half as far (rsl_rl's rule); None: no bound
    :param trust_region_kl: the bound, in nats
    :raises ValueError: for an argument out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionActorCriticPolicy
    rollout_buffer: ChainRollouts
    _ent_coef_schedule: FloatSchedule

    @with_hints
    def __init__(
        self,
        policy: str | type[DiffusionActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: str | float | Schedule = 0.01,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        latents_per_state: int | None = None,
        target_entropy: str | float = "auto",
        torch_compile: bool = False,
        value_warmup: int = 0,
        trust_region: str | None = None,
        trust_region_kl: float = 0.02,
        _init_setup_model: bool = True,
    ):
        # PPO computes with these before anything is checked.
        check_number("n_steps", n_steps, 1, integer=True)
        check_number("batch_size", batch_size, 1, integer=True)
        super().__init__(
            policy,
            env,
            learning_rate,
            n_steps,
            batch_size,
            n_epochs,
            gamma,
            gae_lambda,
            clip_range,
            clip_range_vf,
            normalize_advantage,
            ent_coef,  # type: ignore[arg-type]  # _setup_model makes a schedule of it
            vf_coef,
            max_grad_norm,
            wants_sde(use_sde, policy_kwargs),
            sde_sample_freq,
            rollout_buffer_class,
            rollout_buffer_kwargs,
            target_kl,
            stats_window_size,
            tensorboard_log,
            without_sde(policy_kwargs),
            verbose,
            seed,
            device,
            _init_setup_model=False,
        )
        self.latents_per_state = latents_per_state
        self.target_entropy = target_entropy
        self.torch_compile = torch_compile
        self.value_warmup = value_warmup
        self._n_trained_rollouts = 0
        self.trust_region = trust_region
        self.trust_region_kl = trust_region_kl
        self.learning_rate_factor = 1.0
        self.log_kl_coef: th.Tensor | None = None
        self.kl_coef_optimizer: th.optim.Adam | None = None
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Adam | None = None
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        check_common_arguments(self)
        check_policy_class(self.policy_class, DiffusionActorCriticPolicy)
        assert isinstance(
            self.action_space, spaces.Box
        ), f"The algorithm only supports {spaces.Box} as action spaces but {self.action_space} was provided"
        check_number("n_steps", self.n_steps, 1, integer=True)
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_number("n_epochs", self.n_epochs, 1, integer=True)
        check_number("gae_lambda", self.gae_lambda, 0, 1)
        check_number("vf_coef", self.vf_coef, 0)
        check_number("value_warmup", self.value_warmup, 0, integer=True)
        if self.max_grad_norm != math.inf:
            check_number("max_grad_norm", self.max_grad_norm, 0, exclusive=True)
        for name, clip_range in (("clip_range", self.clip_range), ("clip_range_vf", self.clip_range_vf)):
            if callable(clip_range):
                check_schedule(name, clip_range)
            elif name == "clip_range" or clip_range is not None:
                check_number(name, clip_range, 0, exclusive=True)
        self._check_trust_region()
        check_choice("normalize_advantage", self.normalize_advantage, (False, True))
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, 0, exclusive=True)
        if isinstance(self.target_entropy, str):
            if self.target_entropy != "auto":
                raise ValueError(f"target_entropy={self.target_entropy!r} is unknown; allowed: 'auto' or a number")
        else:
            check_number("target_entropy", self.target_entropy, -math.inf)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        allowed: type[RolloutBuffer] = DictChainRolloutBuffer if is_dict else ChainRolloutBuffer
        buffer_class = self.rollout_buffer_class = self.rollout_buffer_class or allowed
        if not (isinstance(buffer_class, type) and issubclass(buffer_class, allowed)):
            raise ValueError(
                f"rollout_buffer_class={buffer_class!r} cannot store the chains of these observations; allowed: subclasses of "
                "ChainRolloutBuffer, for Dict observations of DictChainRolloutBuffer"
            )
        check_dict("rollout_buffer_kwargs", self.rollout_buffer_kwargs)

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()
        actor = self.policy.actor
        if self.latents_per_state is not None:
            check_number("latents_per_state", self.latents_per_state, 1, actor.diffusion_steps, integer=True)
        # A function of the model, not bound to it: a copy of the model must train its own networks.
        self._minibatch_step: Callable[..., tuple[MinibatchLosses, Gradients]] = type(self)._losses_and_gradients
        if self.torch_compile:
            self._minibatch_step = CompiledOrEager(self._minibatch_step)
        self._rollout_progress = 1.0
        self._setup_temperature()
        self._setup_trust_region()

    def _check_ent_coef(self) -> None:
        if isinstance(self.ent_coef, str):
            kind, _, initial = self.ent_coef.partition("_")
            try:
                valid = 0 < float(initial or 1) < math.inf and not self.ent_coef.endswith("_")
            except ValueError:
                valid = False
            if not (valid and (kind == "auto" or (kind == "lin" and initial))):
                raise ValueError(
                    f"ent_coef={self.ent_coef!r} is unknown; allowed: 'auto', 'auto_<number > 0>', 'lin_<number > 0>', "
                    "a number >= 0, or a function of the remaining progress"
                )
        elif callable(self.ent_coef):
            check_schedule("ent_coef", self.ent_coef)
        else:
            check_number("ent_coef", self.ent_coef, 0)

    def _setup_temperature(self) -> None:
        """Whatever gives τ, made of ``ent_coef``: at the start, and again when a callback has changed the argument."""
        self._check_ent_coef()
        self._ent_coef_in_use = self.ent_coef
        self.log_ent_coef = self.ent_coef_optimizer = None
        kind, _, initial = self.ent_coef.partition("_") if isinstance(self.ent_coef, str) else ("", "", "")
        if kind == "auto":
            start = math.log(float(initial or INITIAL_ENT_COEF))
            self.log_ent_coef = th.tensor([start], device=self.device).requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=ENT_COEF_LEARNING_RATE)
        elif kind == "lin":
            self._ent_coef_schedule = FloatSchedule(LinearSchedule(float(initial), 0.0, 1.0))
        else:
            self._ent_coef_schedule = FloatSchedule(self.ent_coef if callable(self.ent_coef) else float(self.ent_coef))

    def _check_trust_region(self) -> None:
        check_choice("trust_region", self.trust_region, TRUST_REGIONS)
        check_number("trust_region_kl", self.trust_region_kl, 0, exclusive=True)

    def _setup_trust_region(self) -> None:
        """The multiplier of a penalty; again when a callback has changed the argument."""
        self._check_trust_region()
        self._trust_region_in_use = self.trust_region
        self.log_kl_coef = self.kl_coef_optimizer = None
        if self.trust_region == "penalty":
            self.log_kl_coef, self.kl_coef_optimizer = make_multiplier(self.device)

    def _current_ent_coef(self) -> float:
        """τ of this rollout: a schedule's value is that of its start."""
        if self.ent_coef != self._ent_coef_in_use:
            self._setup_temperature()
        if self.log_ent_coef is not None:
            return math.exp(self.log_ent_coef.item())
        return scheduled("ent_coef", self._ent_coef_schedule, self._rollout_progress)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        assert isinstance(rollout_buffer, ChainRollouts)
        # SB3 does so only after the rollout: the first one would have the last progress of an earlier ``learn``.
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._rollout_progress = self._current_progress_remaining
        # At the end of SB3's method the buffer computes soft advantages.
        rollout_buffer.policy, rollout_buffer.ent_coef = self.policy, self._current_ent_coef()
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def train(self) -> None:
        """PPO's ``train`` with the losses of the class docstring; entropies are those of the path."""
        self.policy.set_training_mode(True)
        if self.trust_region != self._trust_region_in_use:
            self._setup_trust_region()
        self._update_learning_rate(self.policy.optimizer)
        # A callback may have changed it since the rollout began.
        self.rollout_buffer.change_ent_coef(self._current_ent_coef())
        coefficients = self._current_coefficients()
        optimizers: list[th.optim.Optimizer] = [self.policy.optimizer]
        if self.kl_coef_optimizer is not None and not self._warming_up():
            optimizers.append(self.kl_coef_optimizer)
        policy_parameters = self._parameters_to_train()
        parameters = [*policy_parameters, *trainable(optimizers[1:])]
        logged: list[MinibatchLosses] = []
        continue_training = True

        for epoch in range(self.n_epochs):
            first_of_epoch = len(logged)
            for data in self.rollout_buffer.get(self.batch_size):
                begin_step(self)
                losses, gradients = self._minibatch_step(self, data, coefficients, parameters)
                logged.append(MinibatchLosses(*(value.clone() for value in losses)))
                # Of the whole chain: the decisions' divergences add up.
                if self.target_kl is not None and (kl := losses.kl.nanmean() * len(losses.kl)) > 1.5 * self.target_kl:
                    continue_training = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                    break

                assign(parameters, gradients)
                th.nn.utils.clip_grad_norm_(policy_parameters, self.max_grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                self.policy.actor.keep_scale_in_range()
                if self.log_kl_coef is not None:
                    keep_in_range(self.log_kl_coef)

            self._n_updates += 1
            if not continue_training:
                break

        warming_up = self._warming_up()
        if not warming_up:
            self._update_temperature()
        self._n_trained_rollouts += 1
        self.mean_losses({name: [getattr(losses, name) for losses in logged] for name in MinibatchLosses._fields[:3]})
        means = MinibatchLosses(*(th.stack(values).nanmean(dim=0) for values in zip(*logged, strict=True)))
        # As in PPO, the divergence is that of the last epoch.
        last_kl = th.stack([losses.kl for losses in logged[first_of_epoch:]]).nanmean(dim=0)
        self._log(means._replace(kl=last_kl))
        if self.trust_region == "learning_rate" and not warming_up:
            self._follow_divergence(last_kl.nanmean().item() * len(last_kl))
        for name in ("clip_range", "clip_range_vf"):
            if (value := getattr(coefficients, name)) is not None:
                self.logger.record(f"train/{name}", value.item())

    def _warming_up(self) -> bool:
        """Whether only the value function learns from this rollout: the policy stays, and whatever follows its divergence."""
        return self._n_trained_rollouts < self.value_warmup

    def _parameters_to_train(self) -> list[th.Tensor]:
        """The policy's parameters; during the value warm-up those of the critic alone, and the others lose their gradients."""
        parameters = trainable([self.policy.optimizer])
        if not self._warming_up():
            return parameters
        critic = {id(parameter) for parameter in self.policy.critic.parameters()}
        if not self.policy.share_features_extractor:
            critic |= {id(parameter) for parameter in self.policy.vf_features_extractor.parameters()}
        for parameter in parameters:
            parameter.grad = None
        return [parameter for parameter in parameters if id(parameter) in critic]

    def _follow_actor(self) -> None:
        super()._follow_actor()
        self._n_trained_rollouts = 0

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.trust_region == "learning_rate":
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                for group in optimizer.param_groups:
                    group["lr"] *= self.learning_rate_factor
            self.logger.record("train/learning_rate", group["lr"])

    def _follow_divergence(self, kl: float) -> None:
        """rsl_rl's rule, once per update: the divergence at its end from the policy that collected the rollout."""
        if kl > 2 * self.trust_region_kl:
            self.learning_rate_factor = max(MIN_RATE_FACTOR, self.learning_rate_factor / RATE_STEP)
        elif kl < self.trust_region_kl / 2:
            self.learning_rate_factor = min(MAX_RATE_FACTOR, self.learning_rate_factor * RATE_STEP)

    def _current_coefficients(self) -> Coefficients:
        """As tensors: a compiled function would be compiled again for every new number."""
        values = {"vf_coef": self.vf_coef}
        for name, schedule in (("clip_range", self.clip_range), ("clip_range_vf", self.clip_range_vf)):
            if schedule is not None:
                values[name] = scheduled(name, schedule, self._current_progress_remaining)  # type: ignore[arg-type]
        if self.rollout_buffer.ent_coef > 0:
            values["ent_coef"] = self.rollout_buffer.ent_coef
        if self.reference_actor is not None:
            values["reference_kl_coef"] = self._current_reference_kl_coef()
        if self.trust_region == "penalty":
            values["kl_bound"] = self.trust_region_kl
        return Coefficients(**{name: th.tensor(value, device=self.device) for name, value in values.items()})

    def _update_temperature(self) -> None:
        """SAC's rule for a learned τ, once per update: the rollout tells the path entropy of one policy, and no more."""
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            return
        target = -self.policy.actor.action_dim if self.target_entropy == "auto" else float(self.target_entropy)
        path_entropy = -float(self.rollout_buffer.path_log_probs[..., -1].mean())
        self.ent_coef_optimizer.zero_grad()
        (self.log_ent_coef * (path_entropy - target)).sum().backward()
        self.ent_coef_optimizer.step()

    def _losses_and_gradients(
        self, data: ChainRolloutSamples, coefficients: Coefficients, parameters: list[th.Tensor]
    ) -> tuple[MinibatchLosses, Gradients]:
        """
        :param parameters: the policy's, and the multiplier of a trust region
        :return: the losses without a graph, and the gradients of ``loss``
        """
        losses = self._losses(data, coefficients)
        gradients = th.autograd.grad(losses.loss, parameters, allow_unused=True)
        return MinibatchLosses(*(value.detach() for value in losses)), gradients

    def _losses(self, data: ChainRolloutSamples, coefficients: Coefficients) -> MinibatchLosses:
        clip_range, vf_coef, clip_range_vf, ent_coef, reference_kl_coef, kl_bound = coefficients
        steps = self._choose_steps(len(data.packed))
        if steps is not None:
            data = data.at(steps)
        values, kernels = self.policy.evaluate_decisions(data.observations, data.decisions)
        log_prob_change = kernels.log_prob - data.old_log_prob
        advantages = data.advantages
        if ent_coef is not None:
            # The entropy of the current decision under the current policy
            noising_change = kernels.noising_log_prob - data.old_noising_log_prob
            advantages = advantages - ent_coef * (log_prob_change - noising_change).detach()
        scale: th.Tensor | float = 1.0
        if self.normalize_advantage and len(advantages) > 1:
            scale = advantages.std() + 1e-8
            advantages = (advantages - advantages.mean()) / scale

        ratio = th.exp(log_prob_change)
        unclipped = advantages * ratio
        clipped = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
        policy_loss = loss = -self._mean_over_decisions(th.min(unclipped, clipped))
        if ent_coef is not None:
            # The noising kernel moves with the read-out and a learned schedule: the part of the reward that depends on θ
            weight = (unclipped <= clipped) * ratio.detach() / scale
            loss = loss - ent_coef * self._mean_over_decisions(weight * kernels.noising_log_prob)
        if clip_range_vf is not None:
            values = data.old_values + th.clamp(values - data.old_values, -clip_range_vf, clip_range_vf)
        value_loss = self._mean_over_decisions((values - data.returns).square())
        loss = loss + vf_coef * value_loss
        reference_kl = value_loss.new_zeros(())
        if reference_kl_coef is not None:
            divergence = self._reference_divergence(data, kernels)
            # In units of the reward, as the entropy
            loss = loss + reference_kl_coef * divergence / scale
            reference_kl = (self.policy.actor.diffusion_steps + 1) * divergence

        divergences = bounded_gaussian_kl(data.old_means, data.old_log_stds, kernels.mean, kernels.log_std)
        if kl_bound is not None:
            # Of the whole chain: the decisions' divergences add up.
            chain_kl = self._mean_over_decisions(divergences) * (self.policy.actor.diffusion_steps + 1)
            penalty = trust_region_losses(chain_kl, kl_bound, self.log_kl_coef)  # type: ignore[arg-type]
            loss = loss + penalty["kl_loss"] + penalty["kl_coef_loss"] - penalty["kl_coef_loss"].detach()
        with th.no_grad():
            outside = ((ratio - 1).abs() > clip_range).float()
            kl, clip_fraction = self._per_decision(th.stack([divergences, outside]), steps)
        return MinibatchLosses(loss, policy_loss, value_loss, kl, clip_fraction, reference_kl)

    def _reference_divergence(self, data: ChainRolloutSamples, kernels: DecisionKernels) -> th.Tensor:
        """``KL(q_ref ‖ q_θ)`` in closed form, its mean over the decisions."""
        reference: Any = self.reference_actor
        with th.no_grad():
            features = reference.extract_features(data.observations, reference.features_extractor)
            fixed = reference.evaluate_decisions(features, data.decisions)
        return self._mean_over_decisions(bounded_gaussian_kl(fixed.mean, fixed.log_std, kernels.mean, kernels.log_std))

    def _log(self, means: MinibatchLosses) -> None:
        self.logger.record("train/loss", means.loss.item())
        self.logger.record("train/policy_gradient_loss", means.policy_gradient_loss.item())
        self.logger.record("train/value_loss", means.value_loss.item())
        self.logger.record("train/approx_kl", means.kl.nanmean().item() * len(means.kl))
        self.logger.record("train/clip_fraction", means.clip_fraction.nanmean().item())
        names = [*range(1, len(means.kl)), "prior"]  # the last is the first decision
        for name, kl, clip_fraction in zip(names, means.kl.tolist(), means.clip_fraction.tolist(), strict=True):
            self.logger.record(f"train/approx_kl_{name}", kl)
            self.logger.record(f"train/clip_fraction_{name}", clip_fraction)
        if self.reference_actor is not None:
            self.logger.record("train/reference_kl", means.reference_kl.item())
        buffer = self.rollout_buffer
        # Of the policy that collected the rollout
        path_entropy = -float(buffer.path_log_probs[..., -1].mean())
        self.logger.record("train/path_entropy", path_entropy)
        self.logger.record("train/entropy_loss", -path_entropy)  # PPO's name
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/ent_coef", buffer.ent_coef)
        self.logger.record("train/smallest_std", buffer.recorded.log_std.min().exp().item())
        self.logger.record("train/saturated_actions", self._saturated_share(buffer.recorded.chains[..., 0, :]))
        if self.log_kl_coef is not None:
            self.logger.record("train/kl_coef", self.log_kl_coef.exp().item())
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _saturated_share(self, actions: th.Tensor) -> float:
        """Share of components of ``a^0`` within a hundredth of the box's bound, or, where nothing squashes them, beyond it."""
        if self.policy.squash_output:
            return (th.tanh(actions).abs() > 0.99).float().mean().item()
        assert isinstance(self.action_space, spaces.Box)
        low, high = (
            th.as_tensor(bound.flatten(), device=actions.device) for bound in (self.action_space.low, self.action_space.high)
        )
        return ((actions < low) | (actions > high)).float().mean().item()

    def _choose_steps(self, batch_size: int) -> th.Tensor | None:
        """(B, κ) diffusion steps, κ different ones for each row; None for all."""
        diffusion_steps = self.policy.actor.diffusion_steps
        if self.latents_per_state in (None, diffusion_steps):
            return None
        return th.rand(batch_size, diffusion_steps, device=self.device).argsort(dim=1)[:, : self.latents_per_state] + 1

    def _mean_over_decisions(self, values: th.Tensor) -> th.Tensor:
        """Mean of (B, κ + 1) in which the κ reverse steps stand for all K."""
        diffusion_steps, n_chosen = self.policy.actor.diffusion_steps, values.shape[1] - 1
        if n_chosen == diffusion_steps:
            return values.mean()
        return (values[:, :-1].mean() * diffusion_steps + values[:, -1].mean()) / (diffusion_steps + 1)

    def _per_decision(self, values: th.Tensor, steps: th.Tensor | None) -> th.Tensor:
        """Means (n, K + 1) of (n, B, κ + 1) by decision; nan where a minibatch has none of it."""
        if steps is None:
            return values.mean(dim=1)
        diffusion_steps = self.policy.actor.diffusion_steps
        sums = th.zeros(len(values), diffusion_steps + 1, device=values.device)
        chosen = F.pad(steps - 1, (0, 1), value=diffusion_steps).flatten()
        counts = sums.index_add(1, chosen, th.ones_like(values).flatten(1))
        return sums.index_add(1, chosen, values.flatten(1)) / counts

    def learn(
        self: SelfDiffPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DiffPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffPPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _maybe_recommend_cpu(self, mlp_class_name: str = "DiffusionActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        for name in ("ent_coef", "kl_coef"):
            if getattr(self, f"{name}_optimizer") is not None:
                state_dicts, tensors = [*state_dicts, f"{name}_optimizer"], [*tensors, f"log_{name}"]
        return state_dicts, tensors

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "ent_coef_optimizer", "kl_coef_optimizer", "_minibatch_step"]
