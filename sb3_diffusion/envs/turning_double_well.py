"""TurningDoubleWell, the paper's environment in which left and right are equally good everywhere."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sb3_diffusion.envs.turning import TurningEnv, heading_vectors


def _eight_headings() -> np.ndarray:
    vectors = heading_vectors(45.0 * np.arange(8))
    vectors.setflags(write=False)
    return vectors


class TurningDoubleWell(TurningEnv):
    """
    A walker in the plane that sees its heading and chooses a turn (arXiv 2512.02019).

    The action a in [-1, 1] asks for a turn of 90°·a and is paid for how close it is to the better of ±45°
    (:meth:`reward`). The turn that is executed then is +45° (counterclockwise) for a ≥ 0 and -45° for a < 0, followed by
    a move of length 1. So there are eight headings, and in each of them both turns are equally good: a policy shows
    whether it keeps both solutions by its actions, not by its return.

    The observation is the heading as a unit vector, float32 of shape (2,). The first heading is random; an episode never
    terminates (``TurningDoubleWell-v0`` truncates it after 200 steps). ``info`` holds ``heading`` in degrees, ``position``
    of shape (2,) and, after a step, ``turn``, the executed turn in degrees.

    :param render_mode: "rgb_array", "human" or None
    """

    #: Unit vectors of the eight headings 0°, 45° … 315°, shape (8, 2): every observation there is.
    HEADINGS: ClassVar[np.ndarray] = _eight_headings()
    TURN_RANGE: ClassVar[float] = 90.0
    PAYOFF: ClassVar[str] = "reward"

    @staticmethod
    def reward(actions: npt.ArrayLike) -> np.ndarray:
        """
        With ``x = a²``, its optimum ``x* = 1/4`` and ``h = 0.85``: ``h + (1 - h) (1 - (1 - x / x*)²)`` up to the optimum and
        ``1 - ((x - x*) / (1 - x*))²`` beyond, that is 0.85 straight ahead, 1 at ±45° and 0 at ±90°.

        :param actions: actions of any shape
        :return: the reward of each, float64 of the same shape
        """
        x, optimum, straight = np.square(np.asarray(actions, dtype=np.float64)), 0.25, 0.85
        inside = straight + (1 - straight) * (1 - (1 - x / optimum) ** 2)
        return np.where(x <= optimum, inside, 1 - ((x - optimum) / (1 - optimum)) ** 2)

    def _first_heading(self) -> float:
        return 45.0 * int(self.np_random.integers(8))

    def _turn(self, action: float) -> tuple[float, float]:
        return 45.0 if action >= 0 else -45.0, float(self.reward(action))

    def _payoff(self, actions: np.ndarray, heading: float) -> np.ndarray:
        return self.reward(actions)
