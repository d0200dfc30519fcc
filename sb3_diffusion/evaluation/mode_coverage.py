"""
Which solutions a trained policy keeps: its sampled actions, its turns in TurningDoubleWell and TurningGMM, its goals in
MultiGoal2D. Any Stable-Baselines3 model will do; one trained behind ``VecNormalize`` sees raw observations here.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.multi_goal import MultiGoal2D
from sb3_diffusion.envs.turning import heading_vectors
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell
from sb3_diffusion.envs.turning_gmm import TurningGMM
from sb3_diffusion.evaluation.density import kl_divergence


def sample_actions(model: BaseAlgorithm, observation: np.ndarray, n_samples: int) -> np.ndarray:
    """
    Draw stochastic actions at one observation, in one batch of predictions. Randomness comes from PyTorch's generator.

    :param model: a model of any Stable-Baselines3 algorithm
    :param observation: one observation, without batch dimension
    :param n_samples: number of actions
    :return: actions in the units of the action space, shape (n_samples, *action shape)
    :raises ValueError: if ``n_samples`` is not a positive integer
    """
    check_number("n_samples", n_samples, 1, integer=True)
    return model.predict(np.repeat(np.asarray(observation)[None], n_samples, axis=0), deterministic=False)[0]


class TurnMass(NamedTuple):
    """What :func:`turn_mass` finds; headings are in the order of ``TurningDoubleWell.HEADINGS``."""

    positive: np.ndarray
    """Share of the sampled actions with a ≥ 0 in each heading, shape (8,); the others turn the other way."""
    mean_reward: float
    """Mean reward of all sampled actions: 1 if every one is ±45°."""
    actions: np.ndarray
    """The sampled actions, in units of 90°, shape (8, n_samples)."""


def turn_mass(model: BaseAlgorithm, n_samples: int = 2000) -> TurnMass:
    """
    How a policy divides its actions between the two equally good turns of TurningDoubleWell (arXiv 2512.02019).

    A broad Gaussian between the two turns also has half its mass on each side, so read the shares together with the mean
    reward. The standard error of a share is at most ``0.5 / sqrt(n_samples)``, 0.011 for the default.

    :param model: a model trained on ``TurningDoubleWell-v0``
    :param n_samples: actions drawn in each heading
    :return: shares, mean reward and the actions
    :raises ValueError: if ``n_samples`` is not a positive integer
    """
    actions = np.stack([sample_actions(model, heading, n_samples)[:, 0] for heading in TurningDoubleWell.HEADINGS])
    return TurnMass((actions >= 0).mean(axis=1), float(TurningDoubleWell.reward(actions).mean()), actions)


class MixtureDivergence(NamedTuple):
    """What :func:`mixture_divergence` finds, in nats."""

    mean: float
    """Mean over all headings; 0 is the exact mixture, log 5 = 1.61 one exact mode of five."""
    by_heading: np.ndarray
    """The divergence at each heading, shape (8 sectors, headings per sector)."""
    mean_reward: float
    """Mean reward of all sampled actions; for the exact mixtures it is minus their entropy."""
    actions: np.ndarray
    """The sampled actions, shape (8, headings per sector, n_samples)."""


def mixture_divergence(
    model: BaseAlgorithm, env: TurningGMM | None = None, n_samples: int = 5000, headings_per_sector: int = 4
) -> MixtureDivergence:
    """
    Kullback-Leibler divergence of a policy's actions from the exact mixture of TurningGMM, the optimal policy at temperature 1
    (arXiv 2512.02019), at headings spread evenly over each sector. It is estimated from histograms of samples, without the
    policy's density; :func:`~sb3_diffusion.evaluation.kl_divergence` tells the bias, with the defaults at most 0.01 nats
    upwards.

    :param model: a model trained on ``TurningGMM-v0``
    :param env: the environment whose mixtures count; ``TurningGMM()`` if not given
    :param n_samples: actions drawn at each heading
    :param headings_per_sector: how many headings in each of the eight sectors
    :return: divergences, mean reward and the actions
    :raises ValueError: if ``n_samples`` or ``headings_per_sector`` is not a positive integer
    """
    check_number("headings_per_sector", headings_per_sector, 1, integer=True)
    env = env or TurningGMM()
    n_headings = env.N_SECTORS * headings_per_sector
    observations = heading_vectors((np.arange(n_headings) + 0.5) * 360 / n_headings)
    actions = np.stack([sample_actions(model, observation, n_samples)[:, 0] for observation in observations])
    actions = actions.reshape(env.N_SECTORS, headings_per_sector, n_samples)
    divergences = [
        [kl_divergence(at_heading, partial(env.reward, sectors=sector), temperature=1.0) for at_heading in actions[sector]]
        for sector in range(env.N_SECTORS)
    ]
    rewards = env.reward(actions, np.arange(env.N_SECTORS)[:, None, None])
    return MixtureDivergence(float(np.mean(divergences)), np.array(divergences), float(rewards.mean()), actions)


def normalised_entropy(counts: npt.ArrayLike) -> float:
    """
    Entropy of a histogram over its largest possible value, the logarithm of the number of classes. With N counts it is low by
    about ``(classes - 1) / (2N log(classes))``: 0.005 for four classes and N = 200.

    :param counts: of two classes or more, shape (n,)
    :return: between 0 (one class, or no counts at all) and 1 (equal counts)
    :raises ValueError: for counts of fewer than two classes, or below 0
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or counts.size < 2 or not (counts >= 0).all():
        raise ValueError(f"counts={counts.tolist()} must be two or more numbers >= 0")
    shares = counts[counts > 0] / max(counts.sum(), 1.0)
    return float(-np.sum(shares * np.log(shares)) / np.log(counts.size) + 0.0)


class GoalCoverage(NamedTuple):
    """What :func:`goal_coverage` finds; goals are in the order of ``MultiGoal2D.GOALS``."""

    counts: np.ndarray
    """How many rollouts reached each goal, shape (4,); the others reached none within the horizon."""
    n_goals: int
    """Goals that at least one rollout in fifty reached, 0 … 4."""
    entropy: float
    """:func:`normalised_entropy` of the counts: 1 if the goals are reached equally often."""
    mean_return: float
    """Mean undiscounted return of the rollouts."""
    trajectories: np.ndarray
    """The positions, shape (n_rollouts, 31, 2); NaN after the end of a rollout."""


def goal_coverage(model: BaseAlgorithm, n_rollouts: int = 200) -> GoalCoverage:
    """
    Which of the four equally good goals of MultiGoal2D a policy reaches from exactly the origin, where only its own randomness
    can tell the rollouts apart (a start beside the origin would favour a goal). Actions are sampled.

    :param model: a model trained on ``MultiGoal2D-v0``
    :param n_rollouts: number of rollouts
    :return: goals reached, entropy of their histogram, mean return and the trajectories
    :raises ValueError: if ``n_rollouts`` is not a positive integer
    """
    check_number("n_rollouts", n_rollouts, 1, integer=True)
    trajectories = np.full((n_rollouts, MultiGoal2D.HORIZON + 1, 2), np.nan)
    trajectories[:, 0] = 0
    goals, returns = np.full(n_rollouts, -1), np.zeros(n_rollouts)
    for step in range(MultiGoal2D.HORIZON):
        running = np.flatnonzero(goals < 0)
        if not len(running):
            break
        positions = trajectories[running, step]
        actions, _ = model.predict(positions.astype(np.float32), deterministic=False)
        trajectories[running, step + 1], rewards, goals[running] = MultiGoal2D.transition(positions, actions)
        returns[running] += rewards
    counts = np.bincount(goals[goals >= 0], minlength=len(MultiGoal2D.GOALS))
    n_goals = int((counts >= n_rollouts / 50).sum())
    return GoalCoverage(counts, n_goals, normalised_entropy(counts), float(returns.mean()), trajectories)
