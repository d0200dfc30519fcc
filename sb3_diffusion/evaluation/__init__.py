"""Does a policy keep several solutions, and does it hold them in the right proportion?"""

from sb3_diffusion.evaluation.density import boltzmann_density, histogram_entropy, total_variation
from sb3_diffusion.evaluation.mode_coverage import TurnMass, sample_actions, turn_mass
from sb3_diffusion.evaluation.plots import plot_density, plot_turns

__all__ = [
    "TurnMass",
    "boltzmann_density",
    "histogram_entropy",
    "plot_density",
    "plot_turns",
    "sample_actions",
    "total_variation",
    "turn_mass",
]
