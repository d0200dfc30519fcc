from sb3_diffusion.diffppo.diffppo import DiffPPO
from sb3_diffusion.diffppo.policies import CnnPolicy, DiffusionActorCriticPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffPPO", "DiffusionActorCriticPolicy", "MlpPolicy", "MultiInputPolicy"]
