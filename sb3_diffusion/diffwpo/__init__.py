"""DiffWPO: Wasserstein policy optimisation of a diffusion policy."""

from sb3_diffusion.diffwpo.diffwpo import DiffWPO
from sb3_diffusion.diffwpo.policies import CnnPolicy, DiffusionWPOPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffWPO", "DiffusionWPOPolicy", "MlpPolicy", "MultiInputPolicy"]
