"""Diffusion policies for Stable-Baselines3."""

from pathlib import Path

from sb3_diffusion import envs as envs  # registers the environments
from sb3_diffusion.diffcrossq import DiffCrossQ, DiffusionCrossQPolicy
from sb3_diffusion.diffppo import DiffPPO, DiffusionActorCriticPolicy
from sb3_diffusion.diffsac import DiffSAC, DiffusionSACPolicy
from sb3_diffusion.difftqc import DiffTQC, DiffusionTQCPolicy
from sb3_diffusion.diffwpo import DiffusionWPOPolicy, DiffWPO

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = [
    "DiffCrossQ",
    "DiffPPO",
    "DiffSAC",
    "DiffTQC",
    "DiffWPO",
    "DiffusionActorCriticPolicy",
    "DiffusionCrossQPolicy",
    "DiffusionSACPolicy",
    "DiffusionTQCPolicy",
    "DiffusionWPOPolicy",
    "__version__",
]
