"""Policies of DiffWPO: those of DiffSAC with a copy of the actor for the trust region."""

from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.diffsac import policies as diffsac


class DiffusionWPOPolicy(diffsac.DiffusionSACPolicy):
    """
    :class:`~sb3_diffusion.DiffusionSACPolicy` with ``actor_target``, an older copy of the actor, which the trust region of
    :class:`~sb3_diffusion.DiffWPO` keeps the policy close to. The parameters are the same.
    """

    actor_target: DiffusionActor

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.actor_target = self.make_actor()
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.actor_target.requires_grad_(False)

    def set_training_mode(self, mode: bool) -> None:
        super().set_training_mode(mode)
        # The divergence compares two actors in the same mode.
        if self.actor_target.training != mode:
            self.actor_target.set_training_mode(mode)


MlpPolicy = DiffusionWPOPolicy


class CnnPolicy(DiffusionWPOPolicy, diffsac.CnnPolicy):
    """:class:`DiffusionWPOPolicy` with ``NatureCNN`` as the default features extractor, for images."""


class MultiInputPolicy(DiffusionWPOPolicy, diffsac.MultiInputPolicy):
    """:class:`DiffusionWPOPolicy` with ``CombinedExtractor`` as the default features extractor, for Dict observations."""
