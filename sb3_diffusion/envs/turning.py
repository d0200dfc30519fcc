"""What the environments of a walker that sees its heading and chooses a turn have in common."""

from collections import deque
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_diffusion.envs.rendering import BLUE, FAINT, ORANGE, PAPER, SKY, Picture, RenderedEnv, faded

# How many of the last places are drawn, and how far one sees
REMEMBERED_PLACES, SIGHT = 60, 6.5


def heading_vectors(degrees: npt.ArrayLike) -> np.ndarray:
    """
    :param degrees: headings, counterclockwise from the x-axis, any shape
    :return: their unit vectors, the observations of these headings, float32 of shape (*shape, 2)
    """
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


class TurningEnv(RenderedEnv):
    """
    A walker in the plane: each step it turns and then moves by 1. It observes its heading as a unit vector, float32 of shape
    (2,); the action is one number in [-1, 1]. ``info`` holds ``heading`` in degrees, ``position`` of shape (2,) and, after a
    step, ``turn``, the executed turn in degrees. Nothing terminates. Subclasses say where it starts, how an action turns it
    and what that pays.

    The picture shows the walker's last steps and, beside them, what each turn would have paid where it last chose one.

    :param render_mode: "rgb_array", "human" or None
    """

    #: The turn that the actions -1 and 1 ask for, in degrees.
    TURN_RANGE: ClassVar[float]
    #: What :meth:`_payoff` gives.
    PAYOFF: ClassVar[str]

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self._heading = 0.0
        self._position = np.zeros(2)
        self._places: deque[np.ndarray] = deque([self._position.copy()], maxlen=REMEMBERED_PLACES)
        self._choice: tuple[float, float] | None = None

    def _first_heading(self) -> float:
        """:return: a random heading in degrees, in [0, 360)"""
        raise NotImplementedError

    def _turn(self, action: float) -> tuple[float, float]:
        """:return: the turn that an action executes, in degrees, and its reward"""
        raise NotImplementedError

    def _payoff(self, actions: np.ndarray, heading: float) -> np.ndarray:
        """:return: what is drawn over the actions (n,) of a heading in degrees, at least 0, (n,)"""
        raise NotImplementedError

    def _info(self) -> dict[str, Any]:
        return {"heading": self._heading, "position": self._position.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._heading = self._first_heading()
        self._position = np.zeros(2)
        self._places.clear()
        self._places.append(self._position.copy())
        self._choice = None
        self._show()
        return heading_vectors(self._heading), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        turn, reward = self._turn(float(action[0]))
        self._choice = (self._heading, float(action[0]))
        self._heading = (self._heading + turn) % 360
        observation = heading_vectors(self._heading)
        self._position += observation
        self._places.append(self._position.copy())
        self._show()
        return observation, reward, False, False, self._info() | {"turn": turn}

    def _picture(self) -> Picture:
        picture = Picture(800, 400)
        place = self._position
        (left, lower), (right, upper) = place - SIGHT, place + SIGHT
        field = picture.panel(0, 0, 400, 400, (left, right), (lower, upper))
        for x in np.arange(np.ceil(left), right):
            field.line([(x, lower), (x, upper)], FAINT, 1)
        for y in np.arange(np.ceil(lower), upper):
            field.line([(left, y), (right, y)], FAINT, 1)
        places = np.array(self._places)
        for i in range(1, len(places)):
            colour = faded(BLUE, 0.15 + 0.85 * i / len(places))
            field.line(places[i - 1 : i + 1], colour, 3)
            field.disc(places[i - 1], 3, colour)
        field.arrow(place, place + 1.3 * heading_vectors(self._heading), ORANGE, 3)
        field.marker(place)

        # What a turn to the left pays stands on the left.
        heading, action = self._choice or (self._heading, None)
        grid = np.linspace(-1, 1, 401)
        heights = self._payoff(grid, heading)
        chart = picture.panel(430, 60, 345, 270, (1, -1), (0, 1.08 * heights.max()))
        whole = picture.panel(400, 0, 400, 400, (400, 800), (400, 0))
        whole.polygon([(400, 0), (800, 0), (800, 400), (400, 400)], PAPER)
        whole.text(f"{self.PAYOFF} at heading {heading:.0f}°", (602, 32), size=14)
        chart.polygon([(-1, 0), *zip(grid, heights, strict=True), (1, 0)], faded(SKY, 0.25))
        chart.line(np.stack([grid, heights], axis=-1), BLUE, 2.5)
        chart.axis({tick: f"{self.TURN_RANGE * tick:+.0f}°" if tick else "0°" for tick in (-1.0, -0.5, 0.0, 0.5, 1.0)})
        whole.text("left          turn          right", (602, 372), size=13)
        if action is not None:
            height = float(self._payoff(np.array([action]), heading)[0])
            chart.line([(action, 0), (action, height)], ORANGE, 2)
            chart.marker((action, height))
        return picture
