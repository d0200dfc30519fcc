"""Policies of DiffSAC: SAC's critics, a diffusion actor, and the diffusion value function."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.finite import FinitePredictionsMixin
from sb3_diffusion.common.networks import StepConditionedMLP, fused_by_default
from sb3_diffusion.common.saving import DiffusionStateMixin, refuse_other_loaders
from sb3_diffusion.common.validation import check_network_arguments, check_number, warn_without_effect, with_hints


class DiffusionSACPolicy(FinitePredictionsMixin, DiffusionStateMixin, SACPolicy):
    """
    SAC's policy class with a diffusion actor. Works in :class:`~sb3_diffusion.DiffSAC` (one reverse step of gradient) and in
    SB3's own ``SAC(DiffusionSACPolicy, env)`` (gradient through the whole chain).

    Parameters not listed are those of :class:`stable_baselines3.sac.policies.SACPolicy`; the diffusion's own are explained in
    :class:`~sb3_diffusion.common.actor.DiffusionActor`. Adam and AdamW run fused unless ``optimizer_kwargs`` says otherwise.

    :param log_std_init: only for gSDE, without effect
    :param use_expln: only for gSDE, without effect
    :param clip_mean: only for gSDE, without effect
    :param features_extractor_class: None: ``FlattenExtractor``, or what a subclass names as its default
    :raises ValueError: for an argument out of range, and for ``use_sde=True``
    """

    actor: DiffusionActor
    diffusion_value: StepConditionedMLP | None

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    @with_hints
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        diffusion_steps: int = 4,
        prior_std: float = 1.0,
        kernel: str = "vp",
        noise_schedule: str | Sequence[float] = "linear",
        beta_min: float = 0.05,
        beta_max: float = 0.2,
        learn_schedule: bool = False,
        learn_variance: bool = True,
        state_dependent_readout: bool = True,
    ) -> None:
        refuse_other_loaders()
        self.diffusion_kwargs: dict[str, Any] = dict(
            diffusion_steps=diffusion_steps,
            prior_std=prior_std,
            kernel=kernel,
            noise_schedule=noise_schedule,
            beta_min=beta_min,
            beta_max=beta_max,
            learn_schedule=learn_schedule,
            learn_variance=learn_variance,
            state_dependent_readout=state_dependent_readout,
        )
        warn_without_effect(log_std_init=(log_std_init, -3), use_expln=(use_expln, False), clip_mean=(clip_mean, 2.0))
        check_number("n_critics", n_critics, 1, integer=True)
        if features_extractor_class is None:
            features_extractor_class = self.default_features_extractor_class
        check_network_arguments(
            net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            share_features_extractor,
        )
        optimizer_kwargs = fused_by_default(optimizer_class, optimizer_kwargs)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            use_sde,
            log_std_init,
            use_expln,
            clip_mean,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            n_critics,
            share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # Nobody differentiates by the target's weights: autograd need not keep what that would take.
        self.critic_target.requires_grad_(False)
        self.diffusion_value = self.make_diffusion_value()
        if self.diffusion_value is not None:
            self.diffusion_value.optimizer = self.optimizer_class(  # type: ignore[assignment]
                self.diffusion_value.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs  # type: ignore[call-arg]
            )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> DiffusionActor:
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return DiffusionActor(**actor_kwargs, **self.diffusion_kwargs).to(self.device)

    def make_diffusion_value(self) -> StepConditionedMLP | None:
        """
        The learned part of the diffusion value ``V_k``, k = 1 … K - 1 (:class:`~sb3_diffusion.DiffSAC`), with the critics'
        architecture and the 2 + d heads ``R_k``, ``L_k`` and ``x̂⁰``. It sees the actor's features (without a gradient to them)
        and starts at zero.

        :return: the network, or None for K = 1, which has no such state
        """
        diffusion_steps = self.actor.diffusion_steps
        if diffusion_steps == 1:
            return None
        _, critic_arch = get_actor_critic_arch(self.net_arch)  # type: ignore[arg-type]
        action_dim = self.actor.action_dim
        network = StepConditionedMLP(
            self.actor.features_dim,
            action_dim,
            diffusion_steps - 1,
            2 + action_dim,
            critic_arch,
            self.activation_fn,
            self.actor.prior_std,
        )
        network.zero_output()
        return network.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3's own list leaves this one out.
        data.update(self.diffusion_kwargs, share_features_extractor=self.share_features_extractor)
        return data

    def set_training_mode(self, mode: bool) -> None:
        if all(network.training == mode for network in (self, self.actor, self.critic)):
            return  # Going through all modules takes a fifth of the time of predict.
        super().set_training_mode(mode)
        if self.diffusion_value is not None:
            self.diffusion_value.train(mode)


MlpPolicy = DiffusionSACPolicy


class CnnPolicy(DiffusionSACPolicy):
    """:class:`DiffusionSACPolicy` with ``NatureCNN`` as the default features extractor, for images."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(DiffusionSACPolicy):
    """:class:`DiffusionSACPolicy` with ``CombinedExtractor`` as the default features extractor, for Dict observations."""

    default_features_extractor_class = CombinedExtractor
