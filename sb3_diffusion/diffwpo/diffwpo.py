"""DiffWPO: Wasserstein policy optimisation of a diffusion policy, one reverse step at a time."""

import math
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.validation import check_choice, check_number, with_hints
from sb3_diffusion.diffsac.diffsac import DiffSAC, Levels, SampledChains, TensorOrDict
from sb3_diffusion.diffusion import gaussian_kl, gaussian_log_prob, log_det_tanh, noising_log_prob, read_out
from sb3_diffusion.diffwpo.policies import CnnPolicy, DiffusionWPOPolicy, MlpPolicy, MultiInputPolicy

SelfDiffWPO = TypeVar("SelfDiffWPO", bound="DiffWPO")

ACTION_GRADIENTS = ("identity", "cube_root")
# The multiplier of the trust region must follow within one interval of the older actor: MPO's step size for it
# (arXiv 1806.06920), and bounds from which it comes back.
KL_COEF_LEARNING_RATE = 1e-2
MIN_LOG_KL_COEF, MAX_LOG_KL_COEF = math.log(1e-2), math.log(1e4)


class DecisionKernel:
    """
    The reverse kernels at an actor's levels, as Gaussians of the decisions: of ``x^{k-1}`` for k > 1 and of the action before
    it is squashed, ``a^0 = m + c x^0``, for k = 1. ``mean`` and ``log_std`` (N, d); read-out of the N_1 rows with k = 1.
    """

    def __init__(self, actor: DiffusionActor, features: th.Tensor, latents: th.Tensor, levels: Levels) -> None:
        steps, rows, self.n_last = levels
        mean, log_std = actor.reverse_kernel(features[rows], latents, steps)
        self.location, self.log_scale = actor.readout(features[rows[: self.n_last]])
        last = read_out(mean[: self.n_last], self.location, self.log_scale)
        self.mean = th.cat([last, mean[self.n_last :]])
        self.log_std = th.cat([log_std[: self.n_last] + self.log_scale, log_std[self.n_last :]])

    def latents(self, decisions: th.Tensor) -> th.Tensor:
        """``x^{k-1}`` (N, d) of decisions (N, d)."""
        last = (decisions[: self.n_last] - self.location) * th.exp(-self.log_scale)
        return th.cat([last, decisions[self.n_last :]])


class DiffWPO(DiffSAC):
    """
    Wasserstein policy optimisation (arXiv 2505.00663) of a diffusion policy (arXiv 2512.02019; docs/method.md, "DiffWPO"):
    :class:`DiffSAC` with another actor loss. From a stored latent ``x^k`` a decision ``a = x^{k-1}`` (for k = 1 the action
    before it is squashed) is sampled and kept fixed. With ``g = ∇_a Q_k`` and ``D = ∇_a ℓ_k``, its policy gradient is that of

        Σ_dims (τ D - g) · ∇_a log q_θ(a | x^k)      (first factor without a gradient)

    multiplied, by default, by the inverse Fisher information of the Gaussian ``q_θ``: σ² for its mean, σ²/2 for its standard
    deviation. Where the noising kernel depends on θ (read-out, learned schedule), ``-τ log π_θ(x^k | a)`` joins. A trust
    region keeps the policy near an older copy: a learned multiplier bounds ``Σ_k KL(q_old ‖ q_θ)``, in closed form.

    Parameters not listed are those of :class:`DiffSAC`, without ``objective``.

    :param fisher_rescale: whether the gradient is multiplied by the inverse Fisher information; without it rows weigh 1/σ²
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
            replay_buffer_class,
            replay_buffer_kwargs,
            optimize_memory_usage,
            n_steps,
            ent_coef,
            target_update_interval,
            target_entropy,
            use_sde,
            sde_sample_freq,
            use_sde_at_warmup,
            stats_window_size,
            tensorboard_log,
            policy_kwargs,
            verbose,
            seed,
            device,
            latents_per_state,
            torch_compile,
            bfloat16_chains,
            _init_setup_model=False,
        )
        self.fisher_rescale = fisher_rescale
        self.action_gradient = action_gradient
        self.target_kl = target_kl
        self.target_actor_interval = target_actor_interval
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        # Not an argument, but a file or a keyword of load could set it.
        check_choice("objective", self.objective, ("reverse_kl",))
        check_choice("fisher_rescale", self.fisher_rescale, (False, True))
        check_choice("action_gradient", self.action_gradient, ACTION_GRADIENTS)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, 0, exclusive=True)
        check_number("target_actor_interval", self.target_actor_interval, 1, integer=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        # Also without a trust region, so that a model that has one loads into one that has none.
        self.log_kl_coef = th.zeros(1, device=self.device).requires_grad_(True)
        self.kl_coef_optimizer = th.optim.Adam([self.log_kl_coef], lr=KL_COEF_LEARNING_RATE, fused=True)

    def _actor_losses(self, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
        """Losses with the gradients of the class docstring; the value of the actor's is DiffSAC's, ``τ ℓ_k - Q_k``."""
        features, critic_features = self._improvement_features(states)
        levels, latents = chains.actor_levels, chains.actor_latents
        kernel = DecisionKernel(self.actor, features, latents, levels)
        std = kernel.log_std.exp()
        decisions = th.addcmul(kernel.mean, std, th.randn_like(latents))
        fixed = decisions.detach().requires_grad_()

        q_values = self._decision_values(features, critic_features, fixed, chains, ent_coef)
        residual = (fixed - kernel.mean.detach()) / std.detach()
        noising = noising_log_prob(latents, kernel.latents(fixed), self.actor.schedule().at(levels.steps))
        log_ratios = gaussian_log_prob(residual, kernel.log_std.detach()) - noising
        log_det = log_det_tanh(fixed[: levels.n_last])
        log_ratios = log_ratios - th.cat([log_det, log_det.new_zeros(len(fixed) - levels.n_last)])
        (entropy_slope,) = th.autograd.grad(log_ratios.sum(), fixed, retain_graph=True)
        (value_slope,) = th.autograd.grad(q_values.sum(), fixed)
        if self.action_gradient == "cube_root":
            value_slope = value_slope.sign() * value_slope.abs().pow(1 / 3)
        slope = ent_coef * entropy_slope - value_slope

        if self.fisher_rescale:
            # By mean and standard deviation, that is the gradient through the sampled decision.
            policy_loss = slope * decisions
        else:
            policy_loss = slope * (kernel.mean - fixed.detach()) * (-2 * kernel.log_std).exp()
        # Where the noising kernel depends on θ: by the read-out and by a learned schedule
        loss = policy_loss.sum(dim=1) - ent_coef * noising
        value = (ent_coef * log_ratios - q_values).detach()
        losses = {"actor_loss": self._mean_over_steps(loss - loss.detach() + value, levels.n_last)}
        if self.target_kl is not None:
            losses.update(self._trust_region_losses(states, kernel, chains))
        return losses

    def _trust_region_losses(
        self, states: TensorOrDict, kernel: DecisionKernel, chains: SampledChains
    ) -> dict[str, th.Tensor]:
        """The divergence from the older actor times its multiplier, and the multiplier's own loss."""
        assert self.target_kl is not None
        with th.no_grad():
            features = self.actor_target.extract_features(states, self.actor_target.features_extractor)  # type: ignore[arg-type]
            old = DecisionKernel(self.actor_target, features, chains.actor_latents, chains.actor_levels)
        divergences = gaussian_kl(old.mean, old.log_std, kernel.mean, kernel.log_std)
        kl = self.actor.diffusion_steps * self._mean_over_steps(divergences, chains.actor_levels.n_last)
        kl_coef = self.log_kl_coef.exp().squeeze()
        return {
            "kl": kl.detach(),
            "kl_coef": kl_coef.detach(),
            "kl_loss": kl_coef.detach() * kl,
            "kl_coef_loss": -(self.log_kl_coef * (kl.detach() - self.target_kl)).squeeze(),
        }

    def _improvement_optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = super()._improvement_optimizers()
        return optimizers if self.target_kl is None else [*optimizers, self.kl_coef_optimizer]

    def _update_targets(self, gradient_step: int) -> None:
        super()._update_targets(gradient_step)
        if self.target_kl is not None:
            self.log_kl_coef.detach().clamp_(MIN_LOG_KL_COEF, MAX_LOG_KL_COEF)
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
