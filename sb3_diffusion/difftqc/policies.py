"""Policies of DiffTQC: TQC's quantile critics, a diffusion actor, and the diffusion value function."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_diffusion.common.networks import fused_by_default
from sb3_diffusion.common.policies import DIFFUSION_ARGUMENTS, DiffusionPolicyMixin
from sb3_diffusion.common.validation import check_network_arguments, check_number, warn_without_effect, with_hints


class DiffusionTQCPolicy(DiffusionPolicyMixin, TQCPolicy):
    """
    SAC's policy class with a diffusion actor. Works in :class:`~sb3_diffusion.DiffSAC` (one reverse step of gradient) and in
    SB3's own ``SAC(DiffusionTQCPolicy, env)`` (gradient through the whole chain).

    Parameters not listed are those of :class:`sb3_contrib.tqc.policies.TQCPolicy`; the diffusion's own are explained in
    :class:`~sb3_diffusion.common.actor.DiffusionActor`. Adam and AdamW run fused unless ``optimizer_kwargs`` says otherwise.

    :param log_std_init: only for gSDE, without effect
    :param use_expln: only for gSDE, without effect
    :param clip_mean: only for gSDE, without effect
    :param features_extractor_class: None: ``FlattenExtractor``, or what a subclass names as its default
    :raises ValueError: for an argument out of range, and for ``use_sde=True``
    """

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
        n_quantiles: int = 25,
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
        latent_frequencies: int = 0,
    ) -> None:
        self.diffusion_kwargs = {name: value for name, value in locals().items() if name in DIFFUSION_ARGUMENTS}
        check_number("n_quantiles", n_quantiles, 1, integer=True)
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
            n_quantiles,
            n_critics,
            share_features_extractor,
        )


MlpPolicy = DiffusionTQCPolicy


class CnnPolicy(DiffusionTQCPolicy):
    """:class:`DiffusionTQCPolicy` with ``NatureCNN`` as the default features extractor, for images."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(DiffusionTQCPolicy):
    """:class:`DiffusionTQCPolicy` with ``CombinedExtractor`` as the default features extractor, for Dict observations."""

    default_features_extractor_class = CombinedExtractor
