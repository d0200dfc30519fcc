"""Does a policy keep several solutions, and does it hold them in the right proportion?"""

from sb3_diffusion.evaluation.bound_tightness import BoundTightness, bound_tightness
from sb3_diffusion.evaluation.callback import PolicyPicturesCallback
from sb3_diffusion.evaluation.chain_plots import animate_denoising, plot_denoising, plot_log_ratios
from sb3_diffusion.evaluation.critic_plots import plot_actions_and_critic
from sb3_diffusion.evaluation.density import (
    boltzmann_density,
    histogram_entropy,
    kl_divergence,
    log_partition,
    total_variation,
)
from sb3_diffusion.evaluation.episode_plots import EpisodeModes, modes_along_episode, plot_modes_along_episode
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
from sb3_diffusion.evaluation.modes import Modes, find_modes
from sb3_diffusion.evaluation.plots import plot_density, plot_fidelity, plot_goals, plot_turns
from sb3_diffusion.evaluation.policy_chains import EntropyBounds, PolicyChains, entropy_bounds, policy_chains
from sb3_diffusion.experiments.provenance import provenance

__all__ = [
    "BoundTightness",
    "EntropyBounds",
    "EpisodeModes",
    "Fidelity",
    "GoalCoverage",
    "MixtureDivergence",
    "Modes",
    "PolicyChains",
    "PolicyPicturesCallback",
    "TurnMass",
    "animate_denoising",
    "boltzmann_density",
    "bound_tightness",
    "entropy_bounds",
    "fidelity",
    "find_modes",
    "goal_coverage",
    "histogram_entropy",
    "kl_divergence",
    "log_partition",
    "mixture_divergence",
    "modes_along_episode",
    "normalised_entropy",
    "plot_actions_and_critic",
    "plot_denoising",
    "plot_density",
    "plot_fidelity",
    "plot_goals",
    "plot_log_ratios",
    "plot_modes_along_episode",
    "plot_turns",
    "policy_chains",
    "provenance",
    "sample_actions",
    "total_variation",
    "turn_mass",
]
