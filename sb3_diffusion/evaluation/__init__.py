"""Does a policy keep several solutions, and does it hold them in the right proportion?"""

from sb3_diffusion.evaluation.bound_tightness import BoundTightness, bound_tightness
from sb3_diffusion.evaluation.density import (
    boltzmann_density,
    histogram_entropy,
    kl_divergence,
    log_partition,
    total_variation,
)
from sb3_diffusion.evaluation.fidelity import Fidelity, fidelity
from sb3_diffusion.evaluation.mode_coverage import (
    GoalCoverage,
    MixtureDivergence,
    TurnMass,
    goal_coverage,
    mixture_divergence,
    normalised_entropy,
    sample_actions,
    turn_mass,
)
from sb3_diffusion.evaluation.plots import plot_density, plot_fidelity, plot_goals, plot_turns
from sb3_diffusion.experiments.provenance import provenance

__all__ = [
    "BoundTightness",
    "Fidelity",
    "GoalCoverage",
    "MixtureDivergence",
    "TurnMass",
    "boltzmann_density",
    "bound_tightness",
    "fidelity",
    "goal_coverage",
    "histogram_entropy",
    "kl_divergence",
    "log_partition",
    "mixture_divergence",
    "normalised_entropy",
    "plot_density",
    "plot_fidelity",
    "plot_goals",
    "plot_turns",
    "provenance",
    "sample_actions",
    "total_variation",
    "turn_mass",
]
