from sb3_diffusion.common.critics.base import CriticEvaluation, Critics, CriticStates, soft_bellman_targets
from sb3_diffusion.common.critics.batch_renorm import BatchRenormCritics, without_branches
from sb3_diffusion.common.critics.quantiles import QuantileCritics
from sb3_diffusion.common.critics.twin import TwinCritics

__all__ = [
    "BatchRenormCritics",
    "CriticEvaluation",
    "CriticStates",
    "Critics",
    "QuantileCritics",
    "TwinCritics",
    "soft_bellman_targets",
    "without_branches",
]
