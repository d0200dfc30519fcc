"""MultiGoal2D, the point among four goals of soft Q-learning."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces


def _goals() -> np.ndarray:
    goals = np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])
    goals.setflags(write=False)
    return goals


class MultiGoal2D(gym.Env[np.ndarray, np.ndarray]):
    """
    A point in [-7, 7]² that starts near the origin, as far from each of four goals as from the others (Haarnoja et al., soft
    Q-learning, arXiv 1702.08165).

    The action in [-1, 1]² is added to the position p. The reward is ``-30 |a|² - min_g |p' - g|²``, and 10 more for coming
    closer than 1 to a goal, which terminates the episode. A policy that keeps one solution goes to one goal; one that keeps
    all of them spreads over all four.

    The observation is the position, float32 of shape (2,). It starts at N(0, 0.1² I), or at ``options["position"]`` of
    ``reset``. ``MultiGoal2D-v0`` truncates after 30 steps. ``info`` holds, after a step, ``goal``: the row of ``GOALS`` that
    was reached, or -1.
    """

    #: The four goals, shape (4, 2), counterclockwise from (5, 0).
    GOALS: ClassVar[np.ndarray] = _goals()
    HORIZON: ClassVar[int] = 30
    BOUND: ClassVar[float] = 7.0
    GOAL_RADIUS: ClassVar[float] = 1.0
    GOAL_REWARD: ClassVar[float] = 10.0
    ACTION_COST: ClassVar[float] = 30.0
    START_STD: ClassVar[float] = 0.1

    def __init__(self) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (2,))
        self.observation_space = spaces.Box(-self.BOUND, self.BOUND, (2,))
        self._position = np.zeros(2)

    @classmethod
    def transition(cls, positions: npt.ArrayLike, actions: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        One step of any number of points.

        :param positions: (..., 2)
        :param actions: (..., 2), in [-1, 1]
        :return: next positions (..., 2), rewards (...) and the goals that they reach (...), integers, -1 for none
        """
        actions = np.asarray(actions, dtype=np.float64)
        following = np.clip(np.asarray(positions, dtype=np.float64) + actions, -cls.BOUND, cls.BOUND)
        squared_distances = cls.squared_distances(following)
        nearest, smallest = squared_distances.argmin(axis=-1), squared_distances.min(axis=-1)
        reached = smallest < cls.GOAL_RADIUS**2
        rewards = -cls.ACTION_COST * np.square(actions).sum(axis=-1) - smallest + cls.GOAL_REWARD * reached
        return following, rewards, np.where(reached, nearest, -1)

    @classmethod
    def squared_distances(cls, positions: npt.ArrayLike) -> np.ndarray:
        """
        :param positions: (..., 2)
        :return: the squared distance to each goal, (..., 4)
        """
        return np.square(np.asarray(positions)[..., None, :] - cls.GOALS).sum(axis=-1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """:raises ValueError: for an ``options["position"]`` that is not a point in [-7, 7]²"""
        super().reset(seed=seed)
        position = (options or {}).get("position")
        if position is None:
            self._position = self.START_STD * self.np_random.standard_normal(2)
        else:
            self._position = np.array(position, dtype=np.float64)
            if self._position.shape != (2,) or not (np.abs(self._position) <= self.BOUND).all():
                raise ValueError(f"options['position']={position!r} must be two numbers in [-{self.BOUND}, {self.BOUND}]")
        return self._position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._position, reward, goal = self.transition(self._position, action)
        return self._position.astype(np.float32), float(reward), bool(goal >= 0), False, {"goal": int(goal)}
