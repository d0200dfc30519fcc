from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.common.objectives.forward_kl import FORWARD_KL
from sb3_diffusion.common.objectives.reverse_kl import REVERSE_KL, WHOLE_CHAIN
from sb3_diffusion.common.objectives.wasserstein import WASSERSTEIN

# Those that a user chooses from by name
OBJECTIVES: dict[str, Objective] = {"reverse_kl": REVERSE_KL, "forward_kl": FORWARD_KL, "whole_chain": WHOLE_CHAIN}

__all__ = ["FORWARD_KL", "OBJECTIVES", "REVERSE_KL", "WASSERSTEIN", "WHOLE_CHAIN", "Objective"]
