"""DiffWPO: Wasserstein policy optimisation of a diffusion policy, one reverse step at a time."""

from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.critics import TwinCritics
from sb3_diffusion.common.objectives import WASSERSTEIN, Objective
from sb3_diffusion.common.objectives.wasserstein import ACTION_GRADIENTS
from sb3_diffusion.common.trust_region import keep_in_range, make_multiplier
from sb3_diffusion.common.validation import check_choice, check_number, wants_sde, with_hints, without_sde
from sb3_diffusion.demonstrations.off_policy import OffPolicyPretrainingMixin
from sb3_diffusion.diffwpo.policies import CnnPolicy, DiffusionWPOPolicy, MlpPolicy, MultiInputPolicy

SelfDiffWPO = TypeVar("SelfDiffWPO", bound="DiffWPO")


class DiffWPO(OffPolicyPretrainingMixin, TwinCritics, SAC):
    """
    Wasserstein policy optimisation (arXiv 2505.00663) of a diffusion policy (arXiv 2512.02019; docs/method.md, "DiffWPO"):
    :class:`~sb3_diffusion.DiffSAC` with another actor loss. From a stored latent ``x^k`` a decision ``a = x^{k-1}`` (for k = 1
    the action before it is squashed) is sampled and kept fixed. With ``g = ∇_a Q_k`` and ``D = ∇_a ℓ_k``, its policy gradient
    is that of

        Σ_dims (τ D - g) · ∇_a log q_θ(a | x^k)      (first factor without a gradient)

    multiplied, by default, by the inverse Fisher information of the Gaussian ``q_θ``: σ² for its mean, σ²/2 for its standard
    deviation. Where the noising kernel depends on θ (read-out, learned schedule), ``-τ log π_θ(x^k | a)`` joins. A trust
    region keeps the policy near an older copy: a learned multiplier bounds ``Σ_k KL(q_old ‖ q_θ)``, in closed form.

    Parameters not listed are those of :class:`~sb3_diffusion.DiffSAC`, without ``objective``.

    :param fisher_rescale: whether the gradient is multiplied by the inverse Fisher information; without it rows weigh
        1/σ², at most 10⁶
    :param action_gradient: "identity", or "cube_root" of each component of ``g``
    :param target_kl: bound of the trust region in nats for a whole chain; None: no trust region. Dropout in the networks
        looks like a divergence; batch normalisation does not
    :param target_actor_interval: gradient steps between two copies of the actor
    :raises ValueError: for an argument out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DiffusionWPOPolicy
    actor_target: DiffusionActor
    log_kl_coef: th.Tensor
    kl_coef_optimizer: th.optim.Adam

    @with_hints
    def __init__(
        self,
        policy: str | type[DiffusionWPOPolicy],
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
        fisher_rescale: bool = True,
        action_gradient: str = "identity",
        target_kl: float | None = 0.1,
        target_actor_interval: int = 100,
        policy_delay: int = 1,
        own_states: float | str = "auto",
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
        self.torch_compile = torch_compile
        self.bfloat16_chains = bfloat16_chains
        self.policy_delay = policy_delay
        self.own_states = own_states
        self.fisher_rescale = fisher_rescale
        self.action_gradient = action_gradient
        self.target_kl = target_kl
        self.target_actor_interval = target_actor_interval
        if _init_setup_model:
            self._setup_model()

    def _objective(self) -> Objective:
        return WASSERSTEIN

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_choice("fisher_rescale", self.fisher_rescale, (False, True))
        check_choice("action_gradient", self.action_gradient, ACTION_GRADIENTS)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, 0, exclusive=True)
        check_number("target_actor_interval", self.target_actor_interval, 1, integer=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        # Also without a trust region, so that a model that has one loads into one that has none.
        self.log_kl_coef, self.kl_coef_optimizer = make_multiplier(self.device)

    def _improvement_optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = super()._improvement_optimizers()
        return optimizers if self.target_kl is None else [*optimizers, self.kl_coef_optimizer]

    def _update_targets(self, gradient_step: int) -> None:
        super()._update_targets(gradient_step)
        if self.target_kl is not None:
            keep_in_range(self.log_kl_coef)
        if (self._n_updates + gradient_step + 1) % self.target_actor_interval == 0:
            self.actor_target.load_state_dict(self.actor.state_dict())

    def learn(
        self: SelfDiffWPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DiffWPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffWPO:
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
        if isinstance(self.policy, DiffusionWPOPolicy):
            self.actor_target = self.policy.actor_target

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_target", "kl_coef_optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "kl_coef_optimizer"], [*tensors, "log_kl_coef"]
