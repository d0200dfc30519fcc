"""
Environments with several equally good actions, registered with Gymnasium on import, and wrappers: the augmented MDP and action
chunks. Where nothing imports the library, ``gym.make("sb3_diffusion:MultiGoal2D-v0")`` does; Gymnasium 1 has no plug-ins.
"""

import gymnasium as gym

from sb3_diffusion.envs.action_chunk import ActionChunk
from sb3_diffusion.envs.augmented_mdp import AugmentedMDP
from sb3_diffusion.envs.bimodal_bandit import BimodalBandit
from sb3_diffusion.envs.boltzmann_bandit import BoltzmannBandit, Bumps, ExactMasses, generated_bumps
from sb3_diffusion.envs.multi_goal import MultiGoal2D
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell
from sb3_diffusion.envs.turning_gmm import TurningGMM

__all__ = [
    "ActionChunk",
    "AugmentedMDP",
    "BimodalBandit",
    "BoltzmannBandit",
    "Bumps",
    "ExactMasses",
    "MultiGoal2D",
    "TurningDoubleWell",
    "TurningGMM",
    "generated_bumps",
]

# By name, the number of steps after which an episode is truncated
HORIZONS = {
    "BimodalBandit": None,
    "BoltzmannBandit": None,
    "MultiGoal2D": MultiGoal2D.HORIZON,
    "TurningDoubleWell": 200,
    "TurningGMM": 200,
}
ENTRY_POINTS = {name: (f"sb3_diffusion.envs:{name}", horizon) for name, horizon in HORIZONS.items()}
# Its module needs gymnasium-robotics and is imported when one is made.
ENTRY_POINTS["TwoWaysRound"] = ("sb3_diffusion.envs.two_ways_round:TwoWaysRound", 150)
for name, (entry_point, horizon) in ENTRY_POINTS.items():
    # Gymnasium warns when a name is registered twice, as a reload of this module would.
    if f"{name}-v0" not in gym.registry:
        gym.register(f"{name}-v0", entry_point=entry_point, max_episode_steps=horizon)
