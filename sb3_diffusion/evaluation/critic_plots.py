"""Pictures of a policy's actions over the landscape of its critic; they need matplotlib, but no display."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.chains import TensorOrDict, map_observations
from sb3_diffusion.common.critics.twin import smallest
from sb3_diffusion.common.finite import Observation
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.evaluation.chain_plots import color_of, draw_density, in_order, shares_text
from sb3_diffusion.evaluation.modes import FEWEST_SAMPLES, Modes, find_modes
from sb3_diffusion.evaluation.policy_chains import Sampler, diffusion_actor, evaluation_mode, number_of, observation_tensors
from sb3_diffusion.evaluation.style import BLACK, BLUE, DPI, WIDTH, bare
from sb3_diffusion.evaluation.views import Dims, View, along_dimensions, check_dims, through_modes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS_OF_LINE, POINTS_OF_PLANE = 401, 61
ROWS = 1000  # for a critic at a time
MODES = "modes"


class Landscape(NamedTuple):
    """What a picture of a critic shows of one state; actions (n, d) in the units of the action space."""

    actions: np.ndarray
    modes: Modes
    mode: np.ndarray
    """The deterministic action, (d,)."""
    view: View


def check_critic(model: BaseAlgorithm) -> Any:
    """
    :return: the critic
    :raises ValueError: if it is none of actions
    """
    critic = getattr(model, "critic", None)
    if not hasattr(critic, "q_networks"):
        raise ValueError(
            f"model={type(model).__name__} has no critic Q(s, u) of actions; allowed: DiffSAC, DiffTQC, DiffCrossQ, "
            "DiffWPO, or a base of theirs with a diffusion policy"
        )
    return critic


def repeated(one: th.Tensor, times: int) -> th.Tensor:
    """:return: a batch of one, so many times"""
    return one.expand(times, *one.shape[1:])


def critic_values(model: BaseAlgorithm, observation: TensorOrDict, actions: np.ndarray) -> np.ndarray:
    """
    ``Q(s, u)`` as the actor sees it: the smallest of the critics' values, the mean of TQC's quantiles.

    :param model: with a critic of actions
    :param observation: a batch of one
    :param actions: (n, d) in the units of the action space, within its box
    :return: (n,)
    """
    critic, policy = check_critic(model), model.policy
    scaled = policy.scale_action(actions.reshape(len(actions), *(model.action_space.shape or ())))
    values = []
    with evaluation_mode(policy):
        for rows in th.as_tensor(scaled.reshape(actions.shape), dtype=th.float32, device=model.device).split(ROWS):
            states = map_observations(partial(repeated, times=len(rows)), observation)
            outputs = critic(states, rows)
            values.append(outputs.mean(dim=(1, 2)) if isinstance(outputs, th.Tensor) else smallest(list(outputs)))
    return th.cat(values).cpu().numpy()


def temperature_of(model: Any) -> float | None:
    """:return: τ of a model as it is now; None if it has none above 0"""
    log_ent_coef, ent_coef = getattr(model, "log_ent_coef", None), getattr(model, "ent_coef_tensor", None)
    tau = float(log_ent_coef.detach().exp()) if log_ent_coef is not None else float(0 if ent_coef is None else ent_coef)
    return tau if tau > 0 else None


def landscape(model: BaseAlgorithm, sampler: Sampler, observation: TensorOrDict, n_chains: int, dims: Dims) -> Landscape:
    """What :func:`plot_actions_and_critic` draws, with its parameters."""
    chosen = check_dims(dims, diffusion_actor(model).action_dim, [MODES])
    chains = sampler.chains(observation, n_chains)
    actions, modes = chains.actions[0, 0].astype(np.float64), find_modes(chains.latents[0, 0])
    centres = np.stack([actions[modes.labels == mode].mean(axis=0) for mode in range(len(modes.shares))])
    with evaluation_mode(model.policy):
        mode = model.policy._predict(observation, deterministic=True)  # type: ignore[arg-type]
    unscaled = model.policy.unscale_action(mode.cpu().numpy().reshape(-1, *(model.action_space.shape or ())))
    space: Any = model.action_space
    if isinstance(chosen, str):
        view = through_modes(actions, modes._replace(centres=centres))
    else:
        view = along_dimensions(space, chosen, actions)
        if len(chosen) < actions.shape[1]:  # the other dimensions at the largest mode's centre
            origin = centres[0].copy()
            origin[list(chosen)] = 0
            view = view._replace(origin=origin)
    return Landscape(actions, in_order(modes, view.project(actions)), unscaled.reshape(-1).astype(np.float64), view)


def grid_values(model: BaseAlgorithm, observation: TensorOrDict, view: View) -> tuple[list[np.ndarray], np.ndarray]:
    """:return: the places along each direction, and the critic's values on the grid, nan outside the box"""
    n = POINTS_OF_LINE if len(view.directions) == 1 else POINTS_OF_PLANE
    places = [np.linspace(*limits, n) for limits in view.limits]
    grid = np.stack(np.meshgrid(*places, indexing="xy"), axis=-1)
    actions = (view.origin + grid @ view.directions).reshape(-1, len(view.origin))
    space: Any = model.action_space
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    inside = ((actions >= low - 1e-6 * (high - low)) & (actions <= high + 1e-6 * (high - low))).all(axis=1)
    values = np.full(len(actions), np.nan)
    values[inside] = critic_values(model, observation, np.clip(actions[inside], low, high))
    return places, values.reshape(grid.shape[:-1])


def plot_actions_and_critic(
    model: BaseAlgorithm, observation: Observation, n_chains: int = 2000, dims: Dims = None, seed: int = 0
) -> Figure:
    """
    The sampled actions of one state over its critic's landscape ``Q(s, u)``. In one dimension also the density that the critic
    asks for at the model's temperature, ``exp(Q(s, u) / τ) / Z`` (docs/method.md, "The augmented decision process").

    :param model: with a diffusion policy and a critic of actions: all but ``DiffPPO``
    :param observation: one, as the policy sees it (behind ``VecNormalize`` the normalised one)
    :param n_chains: actions, at least 128
    :param dims: one or two dimensions of the action, the others at the centre of the largest mode; or "modes" for the plane
        through the centres of the largest modes. None: all of one or two, of more "modes"
    :param seed: of a generator of its own
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: for a model without a diffusion policy or without such a critic, an observation that is not of its
        space, not finite or not one, or an argument out of range
    """
    from matplotlib.figure import Figure

    check_number("n_chains", n_chains, FEWEST_SAMPLES, integer=True)
    sampler = Sampler(model, seed)
    check_critic(model)
    tensors = observation_tensors(model, observation)
    if number_of(tensors) != 1:
        raise ValueError(f"observation holds {number_of(tensors)} of them; allowed: one")
    scene = landscape(model, sampler, tensors, n_chains, dims)
    places, values = grid_values(model, tensors, scene.view)
    if len(places) == 2:
        return draw_plane(scene, places, values)
    whole = len(scene.view.origin) == 1
    figure = Figure(figsize=(0.72 * WIDTH, 4.2), dpi=DPI, layout="constrained")
    return draw_line(figure, scene, places[0], values, temperature_of(model) if whole else None)


def draw_line(figure: Figure, scene: Landscape, places: np.ndarray, values: np.ndarray, tau: float | None) -> Figure:
    """One dimension: the critic above, the actions below."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(places, values, color=BLUE, linewidth=2)
    upper.set_ylabel("critic $Q(s, u)$")
    draw_density(lower, scene.view.project(scene.actions)[:, 0], scene.modes, scene.view.limits[0])
    if tau is not None:
        density = np.exp((values - np.nanmax(values)) / tau)
        density /= density.mean() * (places[-1] - places[0])
        lower.plot(places, density, color=BLACK, linewidth=1.5, label=f"asked for by the critic at τ = {tau:.2g}")
    deterministic = float(scene.view.project(scene.mode)[0])
    for axes in (upper, lower):
        axes.axvline(deterministic, color="0.3", linestyle="--", linewidth=1, label="deterministic action")
        bare(axes)
    lower.set_ylabel("density of the actions")
    lower.set_xlabel(scene.view.labels[0])
    lower.set_ylim(top=1.45 * lower.get_ylim()[1])
    lower.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)
    upper.set_title(shares_text(scene.modes), fontsize="medium")
    return figure


def draw_plane(scene: Landscape, places: list[np.ndarray], values: np.ndarray) -> Figure:
    """Two dimensions: the critic as shades, the actions as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.68 * WIDTH, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shades = axes.contourf(*places, values, levels=16, cmap="Greys", alpha=0.6)
    axes.contour(*places, values, levels=16, colors="white", linewidths=0.4)
    figure.colorbar(shades, ax=axes, label="critic $Q(s, u)$", shrink=0.9)
    positions, labels = scene.view.project(scene.actions), scene.modes.labels
    colors = np.array([color_of(mode) for mode in range(len(scene.modes.shares))])
    axes.scatter(positions[:, 0], positions[:, 1], s=7, c=colors[labels], alpha=0.55, linewidths=0)
    deterministic = scene.view.project(scene.mode)
    star: dict[str, Any] = dict(marker="*", s=170, color="white", edgecolor="black", zorder=4, label="deterministic action")
    axes.scatter(*deterministic, **star)
    axes.set_xlim(*scene.view.limits[0])
    axes.set_ylim(*scene.view.limits[1])
    axes.set_xlabel(scene.view.labels[0])
    axes.set_ylabel(scene.view.labels[1])
    axes.set_title(shares_text(scene.modes), fontsize="medium")
    axes.legend(frameon=True, framealpha=0.8, fontsize="small", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
