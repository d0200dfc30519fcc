from sb3_diffusion.diffcrossq.diffcrossq import DiffCrossQ
from sb3_diffusion.diffcrossq.policies import CnnPolicy, DiffusionCrossQPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffCrossQ", "DiffusionCrossQPolicy", "MlpPolicy", "MultiInputPolicy"]
