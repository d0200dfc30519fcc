"""Policies of DiffCrossQ: CrossQ's batch-renormalised critics, a diffusion actor, and the diffusion value function."""

from dataclasses import asdict
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.crossq.policies import Actor, CrossQCritic, CrossQPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from typing_extensions import Unpack

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.critics import without_branches
from sb3_diffusion.common.diffusion_arguments import DiffusionArguments, DiffusionKeywords, with_diffusion_arguments
from sb3_diffusion.common.networks import fused_by_default
from sb3_diffusion.common.policies import DiffusionPolicyMixin
from sb3_diffusion.common.validation import (
    check_choice,
    check_network_arguments,
    check_number,
    warn_without_effect,
    with_hints,
)


class DiffusionCrossQActor(DiffusionActor):
    """:class:`DiffusionActor` with the method that sb3-contrib's CrossQ calls around each pass of its actor."""

    set_bn_training_mode = Actor.set_bn_training_mode


class DiffusionCrossQPolicy(DiffusionPolicyMixin, CrossQPolicy):
    """
    CrossQ's policy class with a diffusion actor. Works in :class:`~sb3_diffusion.DiffCrossQ` and in sb3-contrib's own
    ``CrossQ(DiffusionCrossQPolicy, env)`` (gradient through the whole chain). Batch renormalisation is the critics' alone.

    Parameters not listed are those of :class:`sb3_contrib.crossq.policies.CrossQPolicy`; the diffusion's own are
    :class:`~sb3_diffusion.common.diffusion_arguments.DiffusionArguments`. Adam and AdamW run fused unless ``optimizer_kwargs``
    says otherwise.

    :param log_std_init: only for gSDE, without effect
    :param use_expln: only for gSDE, without effect
    :param clip_mean: only for gSDE, without effect
    :param features_extractor_class: None: ``FlattenExtractor``, or what a subclass names as its default
    :raises ValueError: for an argument out of range, and for ``use_sde=True``
    """

    @with_hints
    @with_diffusion_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        batch_norm: bool = True,
        batch_norm_momentum: float = 0.01,
        batch_norm_eps: float = 0.001,
        renorm_warmup_steps: int = 100_000,
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
        **diffusion: Unpack[DiffusionKeywords],
    ) -> None:
        self.diffusion_kwargs = asdict(DiffusionArguments(**diffusion))
        check_choice("batch_norm", batch_norm, (False, True))
        check_number("batch_norm_momentum", batch_norm_momentum, 0, 1, exclusive=True)
        check_number("batch_norm_eps", batch_norm_eps, 0, exclusive=True)
        check_number("renorm_warmup_steps", renorm_warmup_steps, 0, integer=True)
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
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(betas=(0.5, 0.999))  # sb3-contrib's
        optimizer_kwargs = fused_by_default(optimizer_class, optimizer_kwargs)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            batch_norm,
            batch_norm_momentum,
            batch_norm_eps,
            renorm_warmup_steps,
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

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """:return: a :class:`DiffusionCrossQActor`"""
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        actor_kwargs = {name: value for name, value in actor_kwargs.items() if name not in self.batch_norm_params}
        return DiffusionCrossQActor(**actor_kwargs, **self.diffusion_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> CrossQCritic:
        return without_branches(super().make_critic(features_extractor))

    def diffusion_value_arch(self) -> list[int]:
        """:return: hidden sizes of the diffusion value network: the actor's, since CrossQ's critics are wide"""
        return get_actor_critic_arch(self.net_arch)[0]


MlpPolicy = DiffusionCrossQPolicy


class CnnPolicy(DiffusionCrossQPolicy):
    """:class:`DiffusionCrossQPolicy` with ``NatureCNN`` as the default features extractor, for images."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(DiffusionCrossQPolicy):
    """:class:`DiffusionCrossQPolicy` with ``CombinedExtractor`` as the default features extractor, for Dict observations."""

    default_features_extractor_class = CombinedExtractor
