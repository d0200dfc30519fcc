"""DiffSAC: soft actor-critic with a diffusion policy, one reverse step of gradient at a time."""

from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_diffusion.common.critics import TwinCritics
from sb3_diffusion.common.validation import wants_sde, with_hints, without_sde
from sb3_diffusion.demonstrations.off_policy import OffPolicyPretrainingMixin
from sb3_diffusion.diffsac.policies import CnnPolicy, DiffusionSACPolicy, MlpPolicy, MultiInputPolicy

SelfDiffSAC = TypeVar("SelfDiffSAC", bound="DiffSAC")


class DiffSAC(OffPolicyPretrainingMixin, TwinCritics, SAC):
    """
    Soft actor-critic with a diffusion policy (arXiv 2512.02019; docs/method.md, "DiffSAC").

    With ``ℓ_k`` the log-ratio of reverse and noising kernel, ``(x'^K … x'^0, u')`` a sampled chain at the next state ``s'``
    and τ the entropy coefficient, each gradient step minimises in turn

    * critics: ``½ Σ_i (Q_i(s, a) - y)²``, ``y = r + γ (1 - done) (min_i Q̄_i(s', u') - τ (log p(x'^K) + Σ_k ℓ'_k))``
    * diffusion value: ``V_k(s', x'^k)``, k = 1 … K - 1, regressed on ``min_i Q̄_i(s', u') - τ Σ_{j≤k} ℓ'_j``
    * actor: ``τ ℓ_k - Q_k(s', x^{k-1})`` with a fresh reparametrised ``x^{k-1}`` from the stored ``x'^k``, where
      ``Q_1 = min_i Q_i(s', u)`` and ``Q_k = V_{k-1}``

    so that no gradient passes through more than one reverse step and activation memory does not grow with K. Chains are also
    sampled at ``s``: of terminal transitions instead of ``s'``, and of some rows besides (``own_states``).

    The diffusion value is anchored in the critics, ``V_k = Q_i(s, tanh(m + c x̂⁰)) + R_k - τ L_k``: its network predicts
    the end ``x̂⁰`` of the chain, the log-ratios ``L_k`` still to come, and what the prediction leaves out, ``R_k``. So it
    follows the critics and τ at once; a network for all of ``V_k`` lags behind them (docs/method.md, "The diffusion value").

    Parameters not listed are those of :class:`stable_baselines3.SAC`, in the same order.

    :param ent_coef: "auto", "auto_<initial value>", a number, or a function of the remaining progress (1 … 0)
    :param target_entropy: for ``ent_coef="auto"``: target of the path entropy in nats; "auto" is minus the action dimension
    :param latents_per_state: κ, diffusion steps per replayed state that the actor is trained on, 1 … K
    :param torch_compile: compile the gradient step, and the sampling of actions while training, with ``torch.compile`` when
        training starts: the same numbers in fewer operations, for about a minute at the start; on a GPU as CUDA graphs. Takes
        a C++ compiler; without one, a warning says so and training goes on
    :param bfloat16_chains: sample the chains of a gradient step, through which no gradient passes, with bfloat16 products:
        faster on CPUs that have instructions for them (measured with AVX512-BF16), the more so the larger K; slower on others
    :param objective: "reverse_kl": the loss above; "forward_kl": the actor is fitted by maximum likelihood to actions that are
        weighted with ``exp(Q / τ)``, denoising score matching (docs/method.md, "Forward KL"), at a temperature above 0;
        "whole_chain": SAC's own loss, with the gradient through all K steps
    :param policy_delay: actor, diffusion value and temperature are updated every so many gradient steps
    :param own_states: share of the replayed rows (0 … 1) whose own state gets a chain besides the next one: the first state of
        an episode is nobody's next state and would not be trained. "auto": 1/16, more where episodes are shorter than 16
        steps, all rows where they have one
    :param uniform_proposals: with ``objective="forward_kl"``: the share (0 … 0.9) of the weighted actions that are drawn
        uniformly instead of from the policy, so that modes which the policy has lost are found again; for few action
        dimensions
    :raises ValueError: for an argument out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionSACPolicy

    @with_hints
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
        policy_delay: int = 1,
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
        self.policy_delay = policy_delay
        self.own_states = own_states
        self.uniform_proposals = uniform_proposals
        if _init_setup_model:
            self._setup_model()

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
