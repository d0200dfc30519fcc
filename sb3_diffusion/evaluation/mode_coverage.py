"""Which solutions a trained policy keeps: its sampled actions, and its turns in TurningDoubleWell."""

from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell


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
