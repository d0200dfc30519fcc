"""A one-step problem whose optimal maximum-entropy policy is known and has two modes."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.rendering import BLUE, ORANGE, SKY, Picture, RenderedEnv, faded

# How many of the last actions are drawn
REMEMBERED_ACTIONS = 1000


class BimodalBandit(RenderedEnv):
    """
    One action in [-1, 1], then the episode terminates. The reward is a sum of two Gaussian bumps,

    ``r(a) = Σ_i h_i exp(-(a - c_i)² / (2 w²))``,

    so at temperature τ the optimal maximum-entropy policy is ``exp(r(a) / τ) / Z``
    (:func:`sb3_diffusion.evaluation.boltzmann_density`). There is nothing to observe: the observation is always 0.

    The picture shows the reward over the action, the last action and a histogram of the last thousand.

    :param centres: the two centres ``c_i``, each in [-1, 1]
    :param width: standard deviation ``w`` of both bumps, in units of the action, above 0
    :param heights: the reward ``h_i`` of each bump, above 0
    :param render_mode: "rgb_array", "human" or None
    :raises ValueError: for an argument out of range
    """

    def __init__(
        self,
        centres: Sequence[float] = (-0.5, 0.5),
        width: float = 0.2,
        heights: Sequence[float] = (1.0, 1.0),
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
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
        self._actions: deque[float] = deque(maxlen=REMEMBERED_ACTIONS)

    def reward(self, actions: npt.ArrayLike) -> np.ndarray:
        """
        :param actions: actions of any shape
        :return: the reward of each, float64 of the same shape
        """
        distances = np.asarray(actions, dtype=np.float64)[..., None] - self.centres
        return np.exp(-0.5 * (distances / self.width) ** 2) @ self.heights

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._show()
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._actions.append(float(action[0]))
        self._show()
        return np.zeros(1, dtype=np.float32), float(self.reward(action[0])), True, False, {}

    def _picture(self) -> Picture:
        grid = np.linspace(-1, 1, 201)
        rewards = self.reward(grid)
        picture = Picture(560, 380)
        upper = picture.panel(30, 45, 500, 185, (-1, 1), (0, 1.1 * rewards.max()))
        lower = picture.panel(30, 250, 500, 85, (-1, 1), (0, 1))
        whole = picture.panel(0, 0, 560, 380, (0, 560), (380, 0))
        whole.text("reward", (30, 25), colour=BLUE, anchor="midleft")
        whole.text(f"{len(self._actions)} actions", (530, 25), colour=ORANGE, anchor="midright")
        upper.polygon([(-1, 0), *zip(grid, rewards, strict=True), (1, 0)], faded(SKY, 0.25))
        upper.line(np.stack([grid, rewards], axis=-1), BLUE, 2.5)
        counts, edges = np.histogram(self._actions, bins=50, range=(-1, 1))
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
            if count:
                top = count / counts.max()
                lower.polygon([(left, 0), (right, 0), (right, top), (left, top)], faded(ORANGE, 0.55))
        upper.axis({})
        lower.axis({tick: f"{tick:g}" for tick in (-1.0, -0.5, 0.0, 0.5, 1.0)})
        whole.text("action", (280, 368), size=13)
        if self._actions:
            last = self._actions[-1]
            reward = float(self.reward(last))
            upper.line([(last, 0), (last, reward)], ORANGE, 2)
            upper.marker((last, reward))
        return picture
