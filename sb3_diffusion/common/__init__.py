"""What several algorithms share on the Stable-Baselines3 side."""

from sb3_diffusion.common.actor import DiffusionActor, PolicySample
from sb3_diffusion.common.networks import StepConditionedMLP

__all__ = ["DiffusionActor", "PolicySample", "StepConditionedMLP"]
