"""Environments with several equally good actions, registered with Gymnasium when this module is imported."""

import gymnasium as gym

from sb3_diffusion.envs.bimodal_bandit import BimodalBandit
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell

__all__ = ["BimodalBandit", "TurningDoubleWell"]

# Gymnasium warns when a name is registered twice, as a reload of this module would.
if "BimodalBandit-v0" not in gym.registry:
    gym.register("BimodalBandit-v0", entry_point="sb3_diffusion.envs:BimodalBandit")
if "TurningDoubleWell-v0" not in gym.registry:
    gym.register("TurningDoubleWell-v0", entry_point="sb3_diffusion.envs:TurningDoubleWell", max_episode_steps=200)
