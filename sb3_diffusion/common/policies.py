"""What the policies of the off-policy algorithms share: a diffusion actor and the diffusion value."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, get_actor_critic_arch
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.finite import FinitePredictionsMixin
from sb3_diffusion.common.networks import StepConditionedMLP
from sb3_diffusion.common.saving import DiffusionStateMixin, refuse_other_loaders


class DiffusionPolicyMixin(FinitePredictionsMixin, DiffusionStateMixin, BasePolicy):
    """
    Replaces the actor of an off-policy policy class (SAC's, TQC's, CrossQ's) and adds ``diffusion_value``. A class sets
    ``diffusion_kwargs``, its :class:`~sb3_diffusion.common.diffusion_arguments.DiffusionArguments`, before its base builds the
    networks.
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    actor: Any  # a DiffusionActor; each base names the class of its own
    critic: Any
    diffusion_value: StepConditionedMLP | None
    diffusion_kwargs: dict[str, Any]
    actor_kwargs: dict[str, Any]
    net_arch: Any
    activation_fn: type[th.nn.Module]
    share_features_extractor: bool

    def _build(self, lr_schedule: Schedule) -> None:
        refuse_other_loaders()
        super()._build(lr_schedule)  # type: ignore[misc]
        if hasattr(self, "critic_target"):
            # Nobody differentiates by the target's weights: autograd need not keep what that would take.
            self.critic_target.requires_grad_(False)
        self.diffusion_value = self.make_diffusion_value()
        if self.diffusion_value is not None:
            self.diffusion_value.optimizer = self.optimizer_class(  # type: ignore[assignment]
                self.diffusion_value.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs  # type: ignore[call-arg]
            )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """:return: a :class:`~sb3_diffusion.common.actor.DiffusionActor`"""
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return DiffusionActor(**actor_kwargs, **self.diffusion_kwargs).to(self.device)

    def diffusion_value_arch(self) -> list[int]:
        """:return: hidden sizes of the diffusion value network: the critics'"""
        return get_actor_critic_arch(self.net_arch)[1]

    def make_diffusion_value(self) -> StepConditionedMLP | None:
        """
        The learned part of the diffusion value ``V_k``, k = 1 … K - 1 (:class:`~sb3_diffusion.DiffSAC`), with the 2 + d heads
        ``R_k``, ``L_k`` and ``x̂⁰``. It sees the actor's features (without a gradient to them) and starts at zero.

        :return: the network, or None for K = 1, which has no such state
        """
        diffusion_steps = self.actor.diffusion_steps
        if diffusion_steps == 1:
            return None
        action_dim = self.actor.action_dim
        network = StepConditionedMLP(
            self.actor.features_dim,
            action_dim,
            diffusion_steps - 1,
            2 + action_dim,
            self.diffusion_value_arch(),
            self.activation_fn,
            self.actor.prior_std,
            self.actor.latent_frequencies,
        )
        network.zero_output()
        return network.to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # The base's own list leaves this one out.
        data.update(self.diffusion_kwargs, share_features_extractor=self.share_features_extractor)
        return data

    def set_training_mode(self, mode: bool) -> None:
        if all(network.training == mode for network in (self, self.actor, self.critic)):
            return  # Going through all modules takes a fifth of the time of predict.
        super().set_training_mode(mode)
        if self.diffusion_value is not None:
            self.diffusion_value.train(mode)
