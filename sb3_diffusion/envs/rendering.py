"""Pictures of the environments, drawn with pygame as Gymnasium's own classic ones are: rgb arrays, or a window."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from sb3_diffusion.common.validation import check_choice

Colour = tuple[int, int, int]
# Okabe and Ito's colours, which colour-blind people can tell apart, and greys
BLUE: Colour = (0, 114, 178)
ORANGE: Colour = (213, 94, 0)
SKY: Colour = (86, 180, 233)
GREEN: Colour = (0, 158, 115)
INK: Colour = (60, 60, 60)
GREY: Colour = (190, 190, 190)
FAINT: Colour = (232, 232, 232)
PAPER: Colour = (255, 255, 255)
# Drawn so much larger and then shrunk, for smooth edges
OVERSAMPLING = 2


def faded(colour: Colour, share: float) -> Colour:
    """
    :param colour: of full strength
    :param share: 1 leaves it, 0 is white
    :return: the mixture with white
    """
    red, green, blue = (round(255 + share * (part - 255)) for part in colour)
    return red, green, blue


def import_pygame() -> ModuleType:
    """
    :return: pygame, imported when the first picture is drawn
    :raises gymnasium.error.DependencyNotInstalled: without pygame
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
        import pygame.gfxdraw
    except ImportError as error:
        raise gym.error.DependencyNotInstalled(
            'Rendering needs pygame; install it with `pip install "gymnasium[classic-control]"`'
        ) from error
    return pygame


class Panel(NamedTuple):
    """
    A rectangle of a picture with its own coordinates: x to the right, y upwards. Lengths in pixels are those of the finished
    picture.
    """

    surface: Any
    """The pygame surface, ``OVERSAMPLING`` times larger than the picture."""
    left: float
    top: float
    width: float
    height: float
    """Left and upper edge, width and height in pixels."""
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def pixels(self, points: npt.ArrayLike) -> np.ndarray:
        """
        :param points: (..., 2), in the panel's coordinates
        :return: their places on the surface, float64 of the same shape
        """
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        share = (np.asarray(points, dtype=np.float64) - [x_low, y_high]) / [x_high - x_low, y_low - y_high]
        return OVERSAMPLING * (np.array([self.left, self.top]) + share * [self.width, self.height])

    def polygon(self, corners: npt.ArrayLike, colour: Colour) -> None:
        """:param corners: (n, 2), n ≥ 3"""
        import_pygame().draw.polygon(self.surface, colour, self.pixels(corners).tolist())

    def line(self, points: npt.ArrayLike, colour: Colour, width: float = 1.5) -> None:
        """:param points: (n, 2); fewer than two are no line"""
        pygame, places = import_pygame(), self.pixels(points)
        thickness = OVERSAMPLING * width
        for first, second in pairwise(places):
            length = np.hypot(*(second - first))
            if length > 0:
                # pygame's own thick lines get thinner where they are oblique.
                normal = np.array([first[1] - second[1], second[0] - first[0]]) / length * thickness / 2
                pygame.draw.polygon(self.surface, colour, [first + normal, second + normal, second - normal, first - normal])
        if thickness > 2:
            for place in places[1:-1]:
                pygame.draw.circle(self.surface, colour, place, thickness / 2)

    def disc(self, centre: npt.ArrayLike, radius: float, colour: Colour) -> None:
        """
        :param centre: (2,), in the panel's coordinates
        :param radius: in pixels
        """
        import_pygame().draw.circle(self.surface, colour, self.pixels(centre).tolist(), OVERSAMPLING * radius)

    def arrow(self, start: npt.ArrayLike, end: npt.ArrayLike, colour: Colour, width: float = 2.5) -> None:
        """From ``start`` to ``end``, (2,) each, in the panel's coordinates; the head is 5 widths long."""
        start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        first, last = self.pixels(start), self.pixels(end)
        length = np.hypot(*(last - first))
        if length == 0:
            return
        head = min(5 * width * OVERSAMPLING, length)
        along, across = (last - first) / length * head, np.array([first[1] - last[1], last[0] - first[0]]) / length * head
        self.line([start, end - (end - start) * 0.8 * head / length], colour, width)
        corners = [last, last - along + 0.45 * across, last - along - 0.45 * across]
        import_pygame().draw.polygon(self.surface, colour, [corner.tolist() for corner in corners])

    def text(self, words: str, place: npt.ArrayLike, size: int = 15, colour: Colour = INK, anchor: str = "center") -> None:
        """
        :param place: (2,), in the panel's coordinates
        :param size: of the font, in pixels
        :param anchor: which point of the text's box lies there, pygame's name of it
        """
        pygame = import_pygame()
        pygame.font.init()
        written = pygame.font.Font(None, round(1.4 * OVERSAMPLING * size)).render(words, True, colour)
        box = written.get_rect()
        setattr(box, anchor, tuple(np.rint(self.pixels(place)).astype(int).tolist()))
        self.surface.blit(written, box)

    def axis(self, ticks: Mapping[float, str]) -> None:
        """:param ticks: the labels below the lower edge, by their x"""
        y, pixel = self.y_range[0], (self.y_range[1] - self.y_range[0]) / self.height
        self.line([(x, y) for x in self.x_range], GREY)
        for tick, label in ticks.items():
            self.line([(tick, y), (tick, y - 6 * pixel)], GREY)
            self.text(label, (tick, y - 17 * pixel), size=12)

    def marker(self, place: npt.ArrayLike, colour: Colour = ORANGE) -> None:
        """A disc that stands out, at ``place`` (2,) in the panel's coordinates."""
        self.disc(place, 8, PAPER)
        self.disc(place, 6.5, colour)


class Picture:
    """
    A white sheet with panels on it.

    :param width: in pixels
    :param height: in pixels
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._surface = import_pygame().Surface((OVERSAMPLING * width, OVERSAMPLING * height))
        self._surface.fill(PAPER)

    def panel(
        self, left: float, top: float, width: float, height: float, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> Panel:
        """
        :param left: of the rectangle, in pixels, as the next three
        :param x_range: what the left and the right edge mean
        :param y_range: what the lower and the upper edge mean
        """
        return Panel(self._surface, left, top, width, height, x_range, y_range)

    def pixels(self) -> np.ndarray:
        """:return: the picture, uint8 of shape (height, width, 3)"""
        pygame = import_pygame()
        return pygame.surfarray.array3d(pygame.transform.smoothscale(self._surface, self.size)).swapaxes(0, 1).copy()


class RenderedEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    An environment that draws itself: a subclass says what (:meth:`_picture`) and calls :meth:`_show` at the end of ``reset``
    and ``step``.

    :param render_mode: "rgb_array": ``render`` returns the picture; "human": a window shows it after each step; or None
    :raises ValueError: for another ``render_mode``
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None) -> None:
        check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.render_mode = render_mode
        self._window: Any = None

    def _picture(self) -> Picture:
        """The current state."""
        raise NotImplementedError

    def _show(self) -> None:
        """Bring the window, where there is to be one, up to date; takes as long as a frame is to be seen."""
        if self.render_mode != "human":
            return
        pygame, pixels = import_pygame(), self._picture().pixels()
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode((pixels.shape[1], pixels.shape[0]))
            pygame.display.set_caption(type(self).__name__)
        pygame.surfarray.blit_array(self._window, pixels.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        pygame.time.wait(1000 // self.metadata["render_fps"])

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """
        :return: with "rgb_array" the picture, uint8 of shape (height, width, 3); otherwise None
        :raises gymnasium.error.DependencyNotInstalled: without pygame
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() was called without a render mode; pass one to gym.make, for example "
                'gym.make(..., render_mode="rgb_array")'
            )
        return self._picture().pixels() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._window is not None:
            import_pygame().display.quit()
            self._window = None
