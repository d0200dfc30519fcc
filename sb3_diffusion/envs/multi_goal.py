"""MultiGoal2D, the point among four goals of soft Q-learning."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_diffusion.envs.rendering import BLUE, FAINT, GREEN, GREY, Picture, RenderedEnv, faded


def _goals() -> np.ndarray:
    goals = np.array([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])
    goals.setflags(write=False)
    return goals


class MultiGoal2D(RenderedEnv):
    """
    A point in [-7, 7]² that starts near the origin, as far from each of four goals as from the others (Haarnoja et al., soft
    Q-learning, arXiv 1702.08165).

    The action in [-1, 1]² is added to the position p. The reward is ``-30 |a|² - min_g |p' - g|²``, and 10 more for coming
    closer than 1 to a goal, which terminates the episode. A policy that keeps one solution goes to one goal; one that keeps
    all of them spreads over all four.

    The observation is the position, float32 of shape (2,). It starts at N(0, 0.1² I), or at ``options["position"]`` of
    ``reset``. ``MultiGoal2D-v0`` truncates after 30 steps. ``info`` holds, after a step, ``goal``: the row of ``GOALS`` that
    was reached, or -1.

    The picture shows the goals, circles of equal distance to the nearest of them, and the path of the episode.

    :param render_mode: "rgb_array", "human" or None
    """

    #: The four goals, shape (4, 2), counterclockwise from (5, 0).
    GOALS: ClassVar[np.ndarray] = _goals()
    HORIZON: ClassVar[int] = 30
    BOUND: ClassVar[float] = 7.0
    GOAL_RADIUS: ClassVar[float] = 1.0
    GOAL_REWARD: ClassVar[float] = 10.0
    ACTION_COST: ClassVar[float] = 30.0
    START_STD: ClassVar[float] = 0.1

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = spaces.Box(-1.0, 1.0, (2,))
        self.observation_space = spaces.Box(-self.BOUND, self.BOUND, (2,))
        self._position = np.zeros(2)
        self._path = [self._position]
        self._return, self._goal = 0.0, -1

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
        self._path, self._return, self._goal = [self._position], 0.0, -1
        self._show()
        return self._position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._position, reward, goal = self.transition(self._position, action)
        self._goal, self._return = int(goal), self._return + float(reward)
        self._path.append(self._position)
        self._show()
        return self._position.astype(np.float32), float(reward), self._goal >= 0, False, {"goal": self._goal}

    def _picture(self) -> Picture:
        side, bound = 480, self.BOUND
        picture = Picture(side, side + 40)
        # So that the walls' line is not cut off
        field = picture.panel(10, 10, side - 20, side - 20, (-bound, bound), (-bound, bound))
        angles = np.linspace(0, 2 * np.pi, 91)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        for radius in np.arange(2.0, bound, 1.0):
            for i, goal in enumerate(self.GOALS):
                points = goal + radius * circle
                nearest = self.squared_distances(points).argmin(axis=-1) == i
                shown = nearest & (np.abs(points) <= bound).all(axis=-1)
                for start in np.flatnonzero(shown[:-1] & shown[1:]):
                    field.line(points[start : start + 2], FAINT)
        for i, goal in enumerate(self.GOALS):
            field.polygon(goal + self.GOAL_RADIUS * circle, faded(GREEN, 0.9 if i == self._goal else 0.3))
            field.line(goal + self.GOAL_RADIUS * circle, GREEN)
        field.line(bound * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]), GREY)
        field.line(self._path, BLUE, 2.5)
        for position in self._path[:-1]:
            field.disc(position, 3.5, BLUE)
        field.marker(self._position)
        below = picture.panel(0, side, side, 40, (0, 1), (0, 1))
        below.text(f"step {len(self._path) - 1}", (0.03, 0.6), anchor="midleft")
        below.text(f"goal {self._goal} reached" if self._goal >= 0 else "", (0.5, 0.6), colour=GREEN)
        below.text(f"return {self._return:.1f}", (0.97, 0.6), anchor="midright")
        return picture
