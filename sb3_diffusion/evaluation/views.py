"""Which one or two directions of the action space a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_diffusion.evaluation.modes import Modes

Dims = int | Sequence[int] | str | None


class View(NamedTuple):
    """A line or a plane in the space of actions (d,)."""

    origin: np.ndarray
    """A point of it, shape (d,); zeros where the directions are dimensions of the action."""
    directions: np.ndarray
    """Orthonormal, shape (1, d) or (2, d)."""
    labels: tuple[str, ...]
    """What the directions are called."""
    limits: tuple[tuple[float, float], ...]
    """What is shown of each direction."""

    def project(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: (…, d)
        :return: (…, 1) or (…, 2)
        """
        return (actions - self.origin) @ self.directions.T


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    """
    :param vectors: (n, d), the first of which count first
    :return: of the space that they span, shape (m, d), m ≤ n
    """
    found: list[np.ndarray] = []
    scale = np.linalg.norm(vectors, axis=1).max(initial=0.0)
    for vector in vectors:
        for _ in range(2):  # twice is enough (Kahan)
            for direction in found:
                vector = vector - (vector @ direction) * direction
        length = np.linalg.norm(vector)
        if length > 1e-6 * scale:
            found.append(vector / length)
    return np.array(found).reshape(-1, vectors.shape[1])


def principal_axes(actions: np.ndarray) -> np.ndarray:
    """
    :param actions: (n, d)
    :return: (d, d), the directions of largest variance first, each with its largest entry positive
    """
    centred = actions - actions.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1].T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.sign(largest)


def limits_of(projected: np.ndarray) -> tuple[tuple[float, float], ...]:
    """
    :param projected: (…, m)
    :return: for each direction where nearly all of them are, with a margin
    """
    low, high = np.percentile(projected.reshape(-1, projected.shape[-1]), [0.5, 99.5], axis=0)
    margin = np.maximum(0.15 * (high - low), 1e-6)
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def along_dimensions(space: spaces.Box, dims: Sequence[int], actions: np.ndarray) -> View:
    """:return: these dimensions of the action, within the box where it is finite"""
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    limits = limits_of(actions[..., list(dims)])
    for place, dim in enumerate(dims):
        if np.isfinite([low[dim], high[dim]]).all():
            limits = (*limits[:place], (float(low[dim]), float(high[dim])), *limits[place + 1 :])
    d = len(low)
    labels = tuple("action" if d == 1 else f"action[{dim}]" for dim in dims)
    return View(np.zeros(d), np.eye(d)[list(dims)], labels, limits)


def check_dims(dims: Dims, d: int, names: Sequence[str]) -> tuple[int, ...] | str:
    """
    :param dims: one or two dimensions, or a name; None: all of one or two, of more ``names[0]``
    :param d: how many there are
    :param names: that are allowed
    :raises ValueError: naming what is allowed
    """
    if dims is None:
        return tuple(range(d)) if d <= 2 else names[0]
    if isinstance(dims, str):
        if dims in names:
            return dims
    else:
        given: tuple[Any, ...] = tuple(dims) if isinstance(dims, Sequence) else (dims,)
        numbers = all(isinstance(dim, Integral) and not isinstance(dim, bool) for dim in given)
        if numbers and len(given) in (1, 2) and len(set(given)) == len(given) and all(0 <= dim < d for dim in given):
            return tuple(int(dim) for dim in given)
    raise ValueError(
        f"dims={dims!r} must be one or two different dimensions from 0 to {d - 1}, {' or '.join(map(repr, names))}, or None"
    )


def view_of(space: spaces.Box, dims: Dims, ends: np.ndarray, shown: np.ndarray) -> View:
    """
    :param space: of the actions
    :param dims: one or two dimensions, "principal", or None: all of one or two, of more the principal axes
    :param ends: (n, d), the actions whose principal axes count
    :param shown: (…, d), what must find room
    :raises ValueError: for other ``dims``
    """
    chosen = check_dims(dims, ends.shape[1], ["principal"])
    if not isinstance(chosen, str):
        return along_dimensions(space, chosen, shown)
    axes = principal_axes(ends)[: min(2, ends.shape[1])]
    view = View(ends.mean(axis=0), axes, tuple(f"principal axis {i + 1}" for i in range(len(axes))), ())
    return view._replace(limits=limits_of(view.project(shown)))


def through_modes(ends: np.ndarray, modes: Modes) -> View:
    """
    The plane through the centres of the three largest modes; with two, the second direction, and with one, both are the
    principal axes of what is left.

    :param ends: (n, d), d ≥ 2, actions
    :param modes: theirs
    """
    origin = modes.centres[0]
    centres = modes.centres[1:3] - origin
    directions = orthonormal(np.concatenate([centres, principal_axes(ends)]))[:2]
    names = ["through modes 1 and 2", "towards mode 3"][: len(centres)]
    names += [f"principal axis {i + 1}" for i in range(2 - len(names))]
    view = View(origin, directions, tuple(names), ())
    return view._replace(limits=limits_of(view.project(ends)))
