"""A one-step problem whose optimal maximum-entropy policy is known and has two modes."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_diffusion.common.validation import check_number


class BimodalBandit(gym.Env[np.ndarray, np.ndarray]):
    """
    One action in [-1, 1], then the episode terminates. The reward is a sum of two Gaussian bumps,

    ``r(a) = Σ_i h_i exp(-(a - c_i)² / (2 w²))``,

    so at temperature τ the optimal maximum-entropy policy is ``exp(r(a) / τ) / Z``
    (:func:`sb3_diffusion.evaluation.boltzmann_density`). There is nothing to observe: the observation is always 0.

    :param centres: the two centres ``c_i``, each in [-1, 1]
    :param width: standard deviation ``w`` of both bumps, in units of the action, above 0
    :param heights: the reward ``h_i`` of each bump, above 0
    :raises ValueError: for an argument out of range
    """

    def __init__(
        self, centres: Sequence[float] = (-0.5, 0.5), width: float = 0.2, heights: Sequence[float] = (1.0, 1.0)
    ) -> None:
        for name, values in {"centres": centres, "heights": heights}.items():
            if np.shape(values) != (2,):
                raise ValueError(f"{name}={values!r} must be two numbers, one for each bump")
        for i in range(2):
            check_number(f"centres[{i}]", centres[i], -1, 1)
            check_number(f"heights[{i}]", heights[i], 0, exclusive=True)
        check_number("width", width, 0, exclusive=True)
        self.centres = np.asarray(centres, dtype=np.float64)
        self.width = float(width)
        self.heights = np.asarray(heights, dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Box(-1.0, 1.0, (1,))

    def reward(self, actions: npt.ArrayLike) -> np.ndarray:
        """
        :param actions: actions of any shape
        :return: the reward of each, float64 of the same shape
        """
        distances = np.asarray(actions, dtype=np.float64)[..., None] - self.centres
        return np.exp(-0.5 * (distances / self.width) ** 2) @ self.heights

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), float(self.reward(action[0])), True, False, {}
