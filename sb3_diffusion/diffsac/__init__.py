from sb3_diffusion.diffsac.diffsac import DiffSAC
from sb3_diffusion.diffsac.policies import CnnPolicy, DiffusionSACPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffSAC", "DiffusionSACPolicy", "MlpPolicy", "MultiInputPolicy"]
