"""DiffCrossQ: CrossQ with a diffusion policy, one reverse step of gradient at a time."""

from typing import Any, ClassVar, TypeVar

import torch as th
from sb3_contrib import CrossQ
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_diffusion.common.critics import BatchRenormCritics
from sb3_diffusion.common.validation import wants_sde, with_hints, without_sde
from sb3_diffusion.demonstrations.off_policy import OffPolicyPretrainingMixin
from sb3_diffusion.diffcrossq.policies import CnnPolicy, DiffusionCrossQPolicy, MlpPolicy, MultiInputPolicy

SelfDiffCrossQ = TypeVar("SelfDiffCrossQ", bound="DiffCrossQ")


class DiffCrossQ(OffPolicyPretrainingMixin, BatchRenormCritics, CrossQ):
    """
    CrossQ (arXiv 1902.05605) with a diffusion policy (arXiv 2512.02019; docs/method.md, "Critics"):
    :class:`~sb3_diffusion.DiffSAC` with batch-renormalised critics, without target networks, and with the gradient through the
    whole chain.

    * critics: ``½ Σ_i (Q_i(s, a) - y)²``, ``y = r + γ (1 - done) (min_i Q_i(s', u') - τ (log p(x'^K) + Σ_k ℓ'_k))`` without a
      gradient, both from one pass over ``(s, a)`` and ``(s', u')`` together, whose statistics normalise it
    * actor, every ``policy_delay``-th step: ``τ (log p(x^K) + Σ_k ℓ_k) - min_i Q_i(s, u)``, with the critics in evaluation
      mode and the gradient through all K steps. DiffSAC's gradient of one step, ``objective="reverse_kl"``, learned more
      slowly on the one seed that was tried (docs/experiments.md); its memory does not grow with K

    The parameters are those of :class:`sb3_contrib.CrossQ`, in the same order, and then those that
    :class:`~sb3_diffusion.DiffSAC` adds; ``ent_coef`` may be a schedule and ``target_entropy`` is one of the path entropy.

    :raises ValueError: for an argument out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionCrossQPolicy

    @with_hints
    def __init__(
        self,
        policy: str | type[DiffusionCrossQPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float | Schedule = "auto",
        target_entropy: str | float = "auto",
        policy_delay: int = 3,
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
        objective: str = "whole_chain",
        own_states: float | str = "auto",
        uniform_proposals: float = 0.0,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,  # type: ignore[arg-type]  # _setup_model takes a schedule too
            target_entropy=target_entropy,
            policy_delay=policy_delay,
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
        self.own_states = own_states
        self.uniform_proposals = uniform_proposals
        if _init_setup_model:
            self._setup_model()

    def learn(
        self: SelfDiffCrossQ,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DiffCrossQ",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffCrossQ:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
