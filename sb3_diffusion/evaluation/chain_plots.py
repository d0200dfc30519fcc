"""
Pictures of chains: how noise becomes actions, step by step, and what the steps cost; they need matplotlib, but no display.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.chains import TensorOrDict
from sb3_diffusion.common.finite import Observation
from sb3_diffusion.common.saving import replacing
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.evaluation.modes import FEWEST_SAMPLES, Modes, find_modes
from sb3_diffusion.evaluation.policy_chains import PolicyChains, Sampler, number_of, observation_tensors
from sb3_diffusion.evaluation.style import BLUE, COLORS, DPI, GREY, VERMILLION, WIDTH, bare
from sb3_diffusion.evaluation.views import Dims, View, view_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STATES = 6
MOST_STEPS_SHOWN = 6
PARTICLES_SHOWN = 60
BINS = 60
# Of an animation: between two steps, and how long the ends stay
FRAMES_PER_STEP, FRAMES_AT_ENDS = 6, 8
FRAMES_PER_SECOND = 12


class Denoising(NamedTuple):
    """What a picture of denoising shows of one state: ``positions`` (K + 1, n, m) in the view, and the modes of their ends."""

    positions: np.ndarray
    modes: Modes


class Scene(NamedTuple):
    """All of a picture: the states, the view that they share, and others' actions in it, by name."""

    states: list[Denoising]
    view: View
    beside: dict[str, np.ndarray]


def check_states(observations: TensorOrDict) -> int:
    """
    :return: how many there are
    :raises ValueError: if they would not be legible
    """
    n_states = number_of(observations)
    if not 1 <= n_states <= MOST_STATES:
        raise ValueError(f"observations holds {n_states} of them; a picture has room for 1 to {MOST_STATES}")
    return n_states


def in_order(modes: Modes, positions: np.ndarray) -> Modes:
    """Modes from left to right instead of from large to small, so that neighbours in a picture have the same colours."""
    places = [positions[modes.labels == mode, 0].mean() for mode in range(len(modes.shares))]
    order = np.argsort(places, kind="stable")
    return Modes(np.argsort(order)[modes.labels], modes.centres[order], modes.shares[order])


def scene_of(chains: PolicyChains, space: Any, dims: Dims, beside: Mapping[str, npt.ArrayLike]) -> Scene:
    """
    :param chains: at S states
    :param space: of the actions
    :param dims: as :func:`plot_denoising` takes them
    :param beside: others' actions, by name
    """
    d = chains.actions.shape[-1]
    others = {name: np.asarray(actions, dtype=np.float64) for name, actions in beside.items()}
    for name, actions in others.items():
        if actions.size == 0 or actions.size % d or not np.isfinite(actions).all():
            raise ValueError(f"beside[{name!r}] of shape {actions.shape} must hold actions (n, {d}), finite and at least one")
        others[name] = actions.reshape(-1, d)
    shown = np.concatenate([chains.actions.reshape(-1, d), *others.values()])
    view = view_of(space, dims, chains.actions[:, 0].reshape(-1, d), shown)
    states = []
    for actions, latents in zip(chains.actions, chains.latents, strict=True):
        positions = view.project(actions)
        states.append(Denoising(positions, in_order(find_modes(latents[0]), positions[0])))
    return Scene(states, view, {name: view.project(actions) for name, actions in others.items()})


def latent_name(k: int, last: int) -> str:
    """:return: of the latent after the step k + 1, as a picture names it"""
    return f"$a^{{{k}}}$" + (": noise" if k == last else ": action" if k == 0 else "")


def color_of(mode: int) -> str:
    """:return: of the mode of this number, from left to right"""
    return COLORS[mode % (len(COLORS) - 1)]


def shares_text(modes: Modes) -> str:
    """:return: number of modes and their shares, in words"""
    if len(modes.shares) == 1:
        return "1 mode"
    return f"{len(modes.shares)} modes: " + " / ".join(f"{100 * share:.0f} %" for share in modes.shares)


def draw_beside(
    axes: Axes, values: list[np.ndarray], limits: tuple[float, float], place: float, scale: float, colors: list[str]
) -> None:
    """
    Histograms that lie on their side, one upon the other, from a vertical line on.

    :param values: of each colour, an array
    :param place: of the line
    :param scale: length of a density of 1
    """
    edges = np.linspace(*limits, BINS + 1)
    total = sum(len(part) for part in values)
    base = np.full(BINS, float(place))
    for part, color in zip(values, colors, strict=True):
        heights = scale * np.histogram(part, bins=edges)[0] / total / np.diff(edges)
        axes.stairs(base + heights, edges, baseline=base, orientation="horizontal", fill=True, color=color, alpha=0.85)
        base = base + heights
    axes.stairs(base, edges, baseline=None, orientation="horizontal", color="black", linewidth=0.8)


def draw_density(axes: Axes, values: np.ndarray, modes: Modes, limits: tuple[float, float]) -> None:
    """A histogram (n,), upright, the modes one upon the other."""
    numbers = range(len(modes.shares))
    edges = np.linspace(*limits, BINS + 1)
    parts = [values[modes.labels == mode] for mode in numbers]
    weights = [np.full(len(part), 1 / len(values) / (edges[1] - edges[0])) for part in parts]
    axes.hist(parts, edges, weights=weights, stacked=True, color=[color_of(mode) for mode in numbers], alpha=0.8)  # type: ignore[arg-type]
    axes.set_xlim(*limits)


def highest_density(values: np.ndarray, limits: tuple[float, float]) -> float:
    """:return: of a histogram with the pictures' bins"""
    counts, edges = np.histogram(values, bins=BINS, range=limits)
    return float(counts.max() / len(values) / (edges[1] - edges[0]))


def draw_line(axes: Axes, state: Denoising, view: View, shown: Sequence[int], highest: float) -> None:
    """
    One dimension: time goes to the right, particles and at the chosen steps their density.

    :param highest: density of the picture
    """
    positions, modes = state.positions[..., 0], state.modes
    last, limits = len(positions) - 1, view.limits[0]
    numbers = range(len(modes.shares))
    times = last - np.arange(last + 1)
    for mode in numbers:
        some = np.flatnonzero(modes.labels == mode)[: max(1, round(PARTICLES_SHOWN * modes.shares[mode]))]
        axes.plot(times, positions[:, some], color=color_of(mode), linewidth=0.6, alpha=0.45, zorder=1)
    room = 0.8 * min(-np.diff(sorted(shown, reverse=True))) if len(shown) > 1 else 0.8
    scale = room / highest
    for k in shown:
        parts = [positions[k, modes.labels == mode] for mode in numbers]
        axes.axvline(last - k, color="0.6", linewidth=0.6, zorder=0)
        draw_beside(axes, parts, limits, last - k, scale, [color_of(mode) for mode in numbers])
    axes.set_xticks([last - k for k in shown], [latent_name(k, last) for k in shown])
    axes.set_xlim(-0.15, last + 1.15 * room)
    axes.set_ylim(*limits)
    axes.set_ylabel(view.labels[0])
    axes.set_title(shares_text(modes), fontsize="medium")
    bare(axes, grid=False)


def steps_shown(last: int) -> list[int]:
    """:return: k of at most six latents, K … 0"""
    return np.unique(np.linspace(0, last, min(last + 1, MOST_STEPS_SHOWN)).round().astype(int))[::-1].tolist()


def plot_line(scene: Scene) -> Figure:
    """The picture of one dimension: a row for each state, and a column for each of the others."""
    from matplotlib.figure import Figure

    n_states, names = len(scene.states), list(scene.beside)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.6 * n_states), dpi=DPI, layout="constrained")
    shape = dict(squeeze=False, sharey=True, width_ratios=[4.5, *[1.1] * len(names)])
    panels = figure.subplots(n_states, 1 + len(names), **shape)  # type: ignore[call-overload]
    shown = steps_shown(len(scene.states[0].positions) - 1)
    limits = scene.view.limits[0]
    drawn = [state.positions[k] for state in scene.states for k in shown] + list(scene.beside.values())
    highest = max(highest_density(values[:, 0], limits) for values in drawn)
    for row, state in zip(panels, scene.states, strict=True):
        draw_line(row[0], state, scene.view, shown, highest)
        for axes, name in zip(row[1:], names, strict=True):
            draw_beside(axes, [scene.beside[name][:, 0]], limits, 0.0, 0.9 / highest, [GREY])
            axes.set_title(name, fontsize="medium")
            axes.set_xlim(-0.03, 1.1)
            axes.set_xticks([])
            axes.set_xlabel("action")
            bare(axes, grid=False)
    return figure


def draw_plane(axes: Axes, positions: np.ndarray, modes: Modes | None, view: View, size: float = 5.0) -> None:
    """Two dimensions: particles as points, coloured by the mode in which they end."""
    labels = np.zeros(len(positions), dtype=int) if modes is None else modes.labels
    colors = np.array([color_of(mode) if modes is not None else GREY for mode in range(labels.max() + 1)])
    axes.scatter(positions[:, 0], positions[:, 1], s=size, c=colors[labels], alpha=0.5, linewidths=0)
    axes.set_xlim(*view.limits[0])
    axes.set_ylim(*view.limits[1])
    bare(axes)


def plot_plane(scene: Scene) -> Figure:
    """The picture of two dimensions: a row for each state, a column for each of the chosen steps and of the others."""
    from matplotlib.figure import Figure

    last = len(scene.states[0].positions) - 1
    shown, names = steps_shown(last), list(scene.beside)
    columns = len(shown) + len(names)
    figure = Figure(figsize=(WIDTH, 0.5 + (WIDTH / columns + 0.25) * len(scene.states)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(scene.states), columns, squeeze=False, sharex=True, sharey=True)
    for row, state in zip(panels, scene.states, strict=True):
        for axes, k in zip(row, shown, strict=False):
            draw_plane(axes, state.positions[k], state.modes, scene.view)
            axes.set_title(latent_name(k, last), fontsize="medium")
        for axes, name in zip(row[len(shown) :], names, strict=True):
            draw_plane(axes, scene.beside[name], None, scene.view)
            axes.set_title(name, fontsize="medium")
        modes = "" if len(scene.states) == 1 else f"{shares_text(state.modes).partition(':')[0]}\n"
        row[0].set_ylabel(modes + scene.view.labels[1])
    if len(scene.states) == 1:
        figure.suptitle(shares_text(scene.states[0].modes), fontsize="medium")
    for axes in panels[-1]:
        axes.set_xlabel(scene.view.labels[0])
    return figure


def draw_denoising(scene: Scene) -> Figure:
    """:return: the picture of a scene in one or two dimensions"""
    return plot_line(scene) if len(scene.view.directions) == 1 else plot_plane(scene)


def plot_denoising(
    model: BaseAlgorithm,
    observations: Observation,
    n_chains: int = 2000,
    dims: Dims = None,
    beside: Mapping[str, npt.ArrayLike] | None = None,
    seed: int = 0,
) -> Figure:
    """
    How the noise ``a^K`` becomes the action ``a^0`` (docs/method.md, "The policy"): in one dimension particles and their
    density from step to step, in two a strip of panels. A latent is drawn as the action that it would be, so the noise is the
    Gaussian that the same read-out has without diffusion; colours tell in which mode a particle ends (:func:`find_modes`).

    :param model: with a diffusion policy
    :param observations: one, or up to six, as the policy sees them (behind ``VecNormalize`` the normalised ones)
    :param n_chains: particles at each state, at least 128
    :param dims: one or two dimensions of the action, or "principal" for the first two principal axes of the actions; None: all
        of one or two, of more the principal axes
    :param beside: by name, actions (n, d) of other policies in the units of the action space, for panels beside
    :param seed: of a generator of its own
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: for a model without a diffusion policy, observations that are not of its space, not finite or too many,
        or an argument out of range
    """
    return draw_denoising(make_scene(model, observations, n_chains, dims, beside or {}, seed))


def make_scene(
    model: BaseAlgorithm,
    observations: Observation,
    n_chains: int,
    dims: Dims,
    beside: Mapping[str, npt.ArrayLike],
    seed: int,
) -> Scene:
    """What :func:`plot_denoising` draws, with its parameters."""
    check_number("n_chains", n_chains, FEWEST_SAMPLES, integer=True)
    sampler = Sampler(model, seed)
    tensors = observation_tensors(model, observations)
    check_states(tensors)
    return scene_of(sampler.chains(tensors, n_chains), model.action_space, dims, beside)


def times_of(last: int) -> list[float]:
    """:return: the times of an animation's frames, from 0 for ``a^K`` to K for ``a^0``"""
    between = [frame / FRAMES_PER_STEP for frame in range(1, last * FRAMES_PER_STEP + 1)]
    return [0.0] * FRAMES_AT_ENDS + between + [float(last)] * (2 * FRAMES_AT_ENDS)


def frame_drawer(scene: Scene) -> tuple[Figure, Callable[[float], None]]:
    """:return: a figure, and what draws the moment of a time into it"""
    from matplotlib.figure import Figure

    n_states, view = len(scene.states), scene.view
    last, line = len(scene.states[0].positions) - 1, len(view.directions) == 1
    size = (min(WIDTH, 3.2 * n_states + 0.6), 2.9 if line else 3.4)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, n_states, squeeze=False, sharey=True)[0]
    highest = max(highest_density(state.positions[k, :, 0], view.limits[0]) for state in scene.states for k in range(last + 1))

    def draw(time: float) -> None:
        before = min(int(time), last - 1)
        share = time - before
        for axes, state in zip(panels, scene.states, strict=True):
            axes.clear()
            first, second = state.positions[last - before], state.positions[last - before - 1]
            positions = (1 - share) * first + share * second
            if line:
                draw_density(axes, positions[:, 0], state.modes, view.limits[0])
                axes.set_ylim(0, 1.05 * highest)
                bare(axes)
            else:
                draw_plane(axes, positions, state.modes, view, size=8.0)
            axes.set_xlabel(view.labels[0])
        panels[0].set_ylabel("density" if line else view.labels[1])
        figure.suptitle(latent_name(last - round(time), last), fontsize="medium")

    return figure, draw


def animate_denoising(
    model: BaseAlgorithm,
    observations: Observation,
    path: str | os.PathLike[str],
    n_chains: int = 2000,
    dims: Dims = None,
    seed: int = 0,
) -> None:
    """
    :func:`plot_denoising` as a GIF, with a panel for each state. Between two steps of the chain, which has no times between
    them, particles move in a straight line.

    :param model: with a diffusion policy
    :param observations: one, or up to six, as the policy sees them
    :param path: of the file; ".gif" is added where it has no suffix. An earlier file stays if something fails
    :param n_chains: particles at each state, at least 128
    :param dims: as for :func:`plot_denoising`
    :param seed: of a generator of its own
    :raises ValueError: as :func:`plot_denoising`, and for a path with another suffix
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    suffix = os.path.splitext(os.fspath(path))[1]
    if suffix not in ("", ".gif"):
        raise ValueError(f"path={os.fspath(path)!r} must end in .gif")
    scene = make_scene(model, observations, n_chains, dims, {}, seed)
    figure, draw = frame_drawer(scene)
    canvas = FigureCanvasAgg(figure)
    frames, drawn = [], {}
    for time in times_of(len(scene.states[0].positions) - 1):
        if time not in drawn:
            draw(time)
            canvas.draw()
            figure.set_layout_engine("none")  # the first frame's place for the axes, which do not move
            drawn[time] = (
                Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64, dither=Image.Dither.NONE)
            )
        frames.append(drawn[time])
    with replacing(os.fspath(path), ".gif") as temporary:
        options = dict(append_images=frames[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)
        frames[0].save(temporary, save_all=True, **options)  # type: ignore[arg-type]


def plot_log_ratios(
    model: BaseAlgorithm, observations: Observation, n_chains: int = 500, n_noisings: int = 64, seed: int = 0
) -> Figure:
    """
    What the steps of a chain cost, and how tight the bound on the likelihood is (docs/method.md, "The policy"). Left: the
    log-ratio ``ℓ_k`` of each diffusion step, its mean and the middle 90 % of the chains; an untrained "vp" diffusion has 0 on
    average. Right: the path entropy, which the algorithms use, and the bounds between which the entropy of the actions lies
    (:func:`entropy_bounds`).

    :param model: with a diffusion policy
    :param observations: one, or up to six, as the policy sees them
    :param n_chains: at each state
    :param n_noisings: of each chain's end, see :func:`entropy_bounds`
    :param seed: of a generator of its own
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: as :func:`plot_denoising`
    """
    from matplotlib.figure import Figure

    check_number("n_chains", n_chains, 2, integer=True)
    check_number("n_noisings", n_noisings, 1, integer=True)
    sampler = Sampler(model, seed)
    tensors = observation_tensors(model, observations)
    n_states = check_states(tensors)
    log_ratios = sampler.chains(tensors, n_chains).log_ratios
    bounds = sampler.entropies(tensors, n_chains, n_noisings)
    figure = Figure(figsize=(WIDTH, 3.3), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    steps = np.arange(1, log_ratios.shape[1] + 1)
    for state, ratios in enumerate(log_ratios):
        places = steps - 0.6 * ((state + 0.5) / n_states - 0.5)
        low, high = np.percentile(ratios, [5, 95], axis=1)
        mean = ratios.mean(axis=1)
        left.vlines(places, low, high, color=COLORS[state], linewidth=2.5, alpha=0.5)
        left.plot(places, mean, "o", color=COLORS[state], markersize=5, label=f"state {state + 1}")
    left.axhline(0, color="0.3", linewidth=1)
    left.set_xticks(steps)
    left.invert_xaxis()
    left.set_xlabel("diffusion step k, from noise (left) to action (right)")
    left.set_ylabel(r"log-ratio $\ell_k$ in nats")
    left.set_title("mean over the chains, bar: 90 % of them", fontsize="medium")
    if n_states > 1:
        left.legend(frameon=False, fontsize="small", ncols=3, loc="upper center")
        left.margins(y=0.2)
    numbers = np.arange(1, n_states + 1)
    right.vlines(numbers, bounds.low, bounds.high, color=BLUE, linewidth=8, alpha=0.6, label="entropy of the actions: between")
    middle = (bounds.low + bounds.high) / 2
    right.plot(numbers, middle, "_", color=BLUE, markersize=12)
    right.plot(numbers, bounds.path, "D", color=VERMILLION, markersize=5, label="path entropy: the bound used")
    for place, path, low, high in zip(numbers, *bounds, strict=True):
        gaps = dict.fromkeys(f"{bound - path:.2f}" for bound in (low, high))
        where: dict[str, Any] = dict(xytext=(0, -14), textcoords="offset points", ha="center", fontsize="small")
        right.annotate(f"gap {'–'.join(gaps)}", (place, path), **where)
    right.set_xticks(numbers, ["" if n_states == 1 else f"state {i}" for i in numbers])
    right.set_xlim(0.4, n_states + 0.6)
    right.set_ylabel("nats")
    right.margins(y=0.45)
    right.legend(frameon=False, fontsize="small", loc="upper center")
    for axes in (left, right):
        bare(axes)
    return figure
