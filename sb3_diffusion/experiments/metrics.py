"""
Functions for ``evaluation: {metrics: […]}`` of a campaign on this library's multimodal environments. They draw actions from
the policy alone; a policy that was trained behind ``VecNormalize`` sees raw observations.
"""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.evaluation import goal_coverage, mixture_divergence, turn_mass


def turns(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    :func:`~sb3_diffusion.evaluation.turn_mass` on TurningDoubleWell.

    :return: "positive_share_min" and "positive_share_max" over the headings, "turn_reward"
    """
    found = turn_mass(model)
    shares = found.positive
    return {
        "positive_share_min": float(shares.min()),
        "positive_share_max": float(shares.max()),
        "turn_reward": found.mean_reward,
    }


def mixture(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    :func:`~sb3_diffusion.evaluation.mixture_divergence` on TurningGMM.

    :return: "mixture_divergence" in nats, "mixture_divergence_max" over the headings, "mixture_reward"
    """
    found = mixture_divergence(model)
    return {
        "mixture_divergence": found.mean,
        "mixture_divergence_max": float(found.by_heading.max()),
        "mixture_reward": found.mean_reward,
    }


def goals(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    :func:`~sb3_diffusion.evaluation.goal_coverage` on MultiGoal2D.

    :return: "goals", of four, "goal_entropy" between 0 and 1, "origin_return"
    """
    found = goal_coverage(model)
    return {"goals": float(found.n_goals), "goal_entropy": found.entropy, "origin_return": found.mean_return}
