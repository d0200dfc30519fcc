from sb3_diffusion.difftqc.difftqc import DiffTQC
from sb3_diffusion.difftqc.policies import CnnPolicy, DiffusionTQCPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffTQC", "DiffusionTQCPolicy", "MlpPolicy", "MultiInputPolicy"]
