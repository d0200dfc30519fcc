"""What the environments of a walker that sees its heading and chooses a turn have in common."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces


def heading_vectors(degrees: npt.ArrayLike) -> np.ndarray:
    """
    :param degrees: headings, counterclockwise from the x-axis, any shape
    :return: their unit vectors, the observations of these headings, float32 of shape (*shape, 2)
    """
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


class TurningEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A walker in the plane: each step it turns and then moves by 1. It observes its heading as a unit vector, float32 of shape
    (2,); the action is one number in [-1, 1]. ``info`` holds ``heading`` in degrees, ``position`` of shape (2,) and, after a
    step, ``turn``, the executed turn in degrees. Nothing terminates. Subclasses say where it starts, how an action turns it
    and what that pays.
    """

    def __init__(self) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self._heading = 0.0
        self._position = np.zeros(2)

    def _first_heading(self) -> float:
        """:return: a random heading in degrees, in [0, 360)"""
        raise NotImplementedError

    def _turn(self, action: float) -> tuple[float, float]:
        """:return: the turn that an action executes, in degrees, and its reward"""
        raise NotImplementedError

    def _info(self) -> dict[str, Any]:
        return {"heading": self._heading, "position": self._position.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._heading = self._first_heading()
        self._position = np.zeros(2)
        return heading_vectors(self._heading), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        turn, reward = self._turn(float(action[0]))
        self._heading = (self._heading + turn) % 360
        observation = heading_vectors(self._heading)
        self._position += observation
        return observation, reward, False, False, self._info() | {"turn": turn}
