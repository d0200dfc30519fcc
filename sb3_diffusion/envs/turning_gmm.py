"""TurningGMM, whose optimal maximum-entropy policy at temperature 1 is a known mixture with five modes in every state."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.turning import TurningEnv


class TurningGMM(TurningEnv):
    """
    A walker in the plane that sees its heading and is paid the log-density of a Gaussian mixture at its action
    (arXiv 2512.02019).

    The action a in [-1, 1] turns it by 120°·a, counterclockwise, and a move of length 1 follows. The circle of headings has
    eight sectors of 45°, sector i from 45°·i on, each with a mixture p_i of five equal Gaussians of standard deviation 0.05
    over the action. The reward is ``log p_i(a)``, not below ``log 1e-12`` (:meth:`reward`). So at temperature 1 the optimal
    maximum-entropy policy is the mixture itself, wherever it leads, and every soft value is 0: the distance to it is known
    (:func:`sb3_diffusion.evaluation.mixture_divergence`).

    The observation is the heading as a unit vector, float32 of shape (2,). The first heading is random; an episode never
    terminates (``TurningGMM-v0`` truncates it after 200 steps). ``info`` holds ``heading`` in degrees, ``position`` of shape
    (2,) and, after a step, ``turn``, the executed turn in degrees.

    :param mixture_seed: which mixtures: the 8 x 5 means are uniform in [-0.75, 0.75], five standard deviations from the ends
    :param render_mode: "rgb_array", "human" or None
    :raises ValueError: unless ``mixture_seed`` is an integer from 0 on
    """

    N_SECTORS: ClassVar[int] = 8
    N_MODES: ClassVar[int] = 5
    STD: ClassVar[float] = 0.05
    DENSITY_FLOOR: ClassVar[float] = 1e-12
    TURN_RANGE: ClassVar[float] = 120.0
    PAYOFF: ClassVar[str] = "exp(reward)"

    def __init__(self, mixture_seed: int = 0, render_mode: str | None = None) -> None:
        check_number("mixture_seed", mixture_seed, 0, integer=True)
        super().__init__(render_mode)
        largest = 1 - 5 * self.STD
        #: Means of the mixtures in ascending order, shape (8, 5).
        self.means = np.sort(np.random.default_rng(mixture_seed).uniform(-largest, largest, (self.N_SECTORS, self.N_MODES)))

    @classmethod
    def sector(cls, headings: npt.ArrayLike) -> np.ndarray:
        """
        :param headings: degrees in [0, 360], any shape
        :return: the sector of each, integers in 0 … 7 of the same shape
        """
        # 360 itself is what floating point makes of a heading just below 0.
        return (np.asarray(headings) * cls.N_SECTORS // 360).astype(np.int64) % cls.N_SECTORS

    def reward(self, actions: npt.ArrayLike, sectors: npt.ArrayLike) -> np.ndarray:
        """
        :param actions: actions of any shape
        :param sectors: integers in 0 … 7, broadcastable to the actions' shape
        :return: ``log p(a)``, not below ``log 1e-12``, of each, float64
        """
        distances = (np.asarray(actions, dtype=np.float64)[..., None] - self.means[np.asarray(sectors)]) / self.STD
        density = np.exp(-0.5 * distances**2).mean(axis=-1) / (self.STD * np.sqrt(2 * np.pi))
        return np.log(np.maximum(density, self.DENSITY_FLOOR))

    def _first_heading(self) -> float:
        return float(self.np_random.uniform(0, 360))

    def _turn(self, action: float) -> tuple[float, float]:
        return self.TURN_RANGE * action, float(self.reward(action, self.sector(self._heading)))

    def _payoff(self, actions: np.ndarray, heading: float) -> np.ndarray:
        return np.exp(self.reward(actions, self.sector(heading)))
