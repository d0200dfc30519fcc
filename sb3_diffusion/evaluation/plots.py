"""Pictures of what a policy samples; they need matplotlib, but no display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_diffusion.envs.boltzmann_bandit import BoltzmannBandit
from sb3_diffusion.envs.multi_goal import MultiGoal2D
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell
from sb3_diffusion.evaluation.density import RewardFunction, boltzmann_density, total_variation
from sb3_diffusion.evaluation.fidelity import Fidelity
from sb3_diffusion.evaluation.style import BLACK, BLUE, DPI, VERMILLION, WIDTH, bare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How many rows of plot_turns a histogram may cover before it is cut
MOST_ROWS = 3.0


def plot_density(samples: Mapping[str, np.ndarray], reward_fn: RewardFunction, temperature: float) -> Figure:
    """
    Histograms of sampled actions against the exact optimal density, one panel for each policy.

    :param samples: by the name of the policy, its sampled actions in [-1, 1], any shape
    :param reward_fn: reward of an array of actions, of the same shape
    :param temperature: τ, in units of reward per nat, above 0
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: for samples outside [-1, 1] or none, or a temperature out of range
    """
    from matplotlib.figure import Figure

    n_columns = min(4, len(samples))
    n_rows = -(-len(samples) // n_columns)
    grid = np.linspace(-1.0, 1.0, 501)
    exact = boltzmann_density(reward_fn, temperature, grid)
    figure = Figure(figsize=(max(4.5, WIDTH * n_columns / 4), 2.6 * n_rows + 0.3), dpi=DPI, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(samples) :]:
        panel.axis("off")
    for panel, (name, actions) in zip(panels.flat, samples.items(), strict=False):
        panel.hist(np.ravel(actions), bins=60, range=(-1, 1), density=True, color=BLUE, alpha=0.6, label="sampled actions")
        panel.plot(grid, exact, color=BLACK, linewidth=1.3, label=f"exact, exp(r / {temperature:g}) / Z")
        distance = total_variation(actions, reward_fn, temperature)
        panel.set_title(f"{name}\ntotal variation {distance:.2f}", fontsize="medium")
        panel.set_xlabel("action")
        panel.set_xlim(-1, 1)
        panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
        bare(panel)
    for panel in panels[:, 0]:
        panel.set_ylabel("density")
    panels[0, 0].set_ylim(top=1.08 * max(panels[0, 0].get_ylim()[1] / 1.05, exact.max()))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_turns(actions: Mapping[str, np.ndarray], temperature: float | Mapping[str, float]) -> Figure:
    """
    What policies sample in each heading of TurningDoubleWell, a column for each policy and a row for each heading, against
    the exact optimal density: no turn makes the future better or worse, so it is that of the reward alone. Peaks higher than
    three rows are cut there, and the legend says so.

    :param actions: by the name of the policy, its actions in units of 90° as :func:`turn_mass` draws them, shape (8, n)
    :param temperature: τ of the optimal density, in units of reward per nat, above 0; or by the name of the policy, each its
        own: one that has none there is drawn without a density
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: if an array does not have eight rows, for a temperature out of range or of no policy
    """
    from matplotlib.figure import Figure

    for name, array in actions.items():
        if np.ndim(array) != 2 or len(array) != 8:
            raise ValueError(f"actions[{name!r}] has shape {np.shape(array)}; allowed: (8, n), one row for each heading")
    temperatures = temperature if isinstance(temperature, Mapping) else dict.fromkeys(actions, temperature)
    if unknown := sorted(set(temperatures) - set(actions)):
        raise ValueError(f"temperature has {', '.join(map(repr, unknown))}, which actions lacks; it has {list(actions)}")
    n_headings = len(TurningDoubleWell.HEADINGS)
    grid = np.linspace(-1.0, 1.0, 401)
    exact = {
        name: boltzmann_density(TurningDoubleWell.reward, temperatures[name], grid) / 90
        for name in actions
        if name in temperatures
    }
    row_height = 0.9 / max((density.max() for density in exact.values()), default=0.1)  # a heading's row is 1 high
    edges = np.linspace(-90, 90, 61)
    figure = Figure(figsize=(max(3.2, WIDTH / 4 * len(actions) + 0.2), 5.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(actions), sharex=True, sharey=True, squeeze=False)[0]
    heights = {
        name: [row_height * np.histogram(90 * turns, bins=edges, density=True)[0] for turns in array]
        for name, array in actions.items()
    }
    sampled = "sampled turns" + (", peaks cut" if np.max(list(heights.values())) > MOST_ROWS else "")
    for panel, (name, rows) in zip(panels, heights.items(), strict=True):
        for heading, row in enumerate(rows):
            options: dict[str, Any] = dict(baseline=heading, fill=True, color=BLUE, alpha=0.6)
            tops = heading + np.minimum(row, MOST_ROWS)
            panel.stairs(tops, edges, **options, label=sampled if heading == 0 else None)
            if name in exact:
                legend = "exact, exp(r / τ) / Z" if heading == 0 else None
                panel.plot(90 * grid, heading + row_height * exact[name], color=BLACK, linewidth=1, label=legend)
        panel.set_title(
            f"{name}\n" + (f"τ = {temperatures[name]:.2g}" if name in exact else "no temperature"), fontsize="medium"
        )
        panel.set_xlabel("turn in degrees")
        panel.set_xticks([-90, -45, 0, 45, 90])
        panel.set_xlim(-90, 90)
        panel.set_yticks(range(n_headings), [f"{45 * heading}°" for heading in range(n_headings)])
        bare(panel)
    panels[0].set_ylabel("heading, and density of the turns there")
    legends = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(legends.values(), legends.keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_goals(trajectories: Mapping[str, np.ndarray], n_shown: int = 60) -> Figure:
    """
    Rollouts in MultiGoal2D over its reward landscape ``- min_g |p - g|²``, one panel for each policy.

    :param trajectories: by the name of the policy, positions as :func:`goal_coverage` returns them, shape (n, steps, 2)
    :param n_shown: how many of them to draw
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: if an array does not hold trajectories in the plane
    """
    from matplotlib.figure import Figure

    for name, array in trajectories.items():
        if np.ndim(array) != 3 or np.shape(array)[2] != 2:
            raise ValueError(f"trajectories[{name!r}] has shape {np.shape(array)}; allowed: (n, steps, 2)")
    grid = np.linspace(-MultiGoal2D.BOUND, MultiGoal2D.BOUND, 141)
    landscape = -MultiGoal2D.squared_distances(np.stack(np.meshgrid(grid, grid), axis=-1)).min(axis=-1)
    n_columns = min(4, len(trajectories))
    n_rows = -(-len(trajectories) // n_columns)
    figure = Figure(figsize=(2.2 * n_columns + 0.7, 2.4 * n_rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(trajectories) :]:
        panel.axis("off")
    used = list(panels.flat[: len(trajectories)])
    for panel, (name, array) in zip(used, trajectories.items(), strict=True):
        contours = panel.contourf(grid, grid, landscape, levels=16, cmap="Greys_r", vmin=-90)
        for trajectory in array[:n_shown]:
            panel.plot(*trajectory.T, color=BLUE, linewidth=0.6, alpha=0.4)
        panel.scatter(*MultiGoal2D.GOALS.T, marker="*", s=60, color=VERMILLION, zorder=3)
        panel.set_title(name, fontsize="medium")
        panel.set_aspect("equal")
        panel.set_xticks([-5, 0, 5])
        panel.set_yticks([-5, 0, 5])
    figure.colorbar(contours, ax=used, label="reward of a position", shrink=0.8)
    return figure


def plot_fidelity(samples: Mapping[str, tuple[BoltzmannBandit, Fidelity]]) -> Figure:
    """
    Sampled actions against the exact optimal densities of BoltzmannBandit: of each policy its contexts side by side.

    :param samples: by the name of the policy, a problem with one action dimension and what :func:`fidelity` found there
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: for no policy at all, or actions of several dimensions
    """
    from matplotlib.figure import Figure

    if not samples:
        raise ValueError("samples is empty; it must hold one policy or more")
    for name, (env, _) in samples.items():
        if env.action_dim != 1:
            raise ValueError(f"samples[{name!r}] has {env.action_dim}-dimensional actions; allowed: one-dimensional ones")
    # A policy's contexts lie side by side; small problems share a row.
    n_columns = max(4, *(len(env.contexts) for env, _ in samples.values()))
    places: dict[str, tuple[int, int]] = {}
    row, column = 0, 0
    for name, (env, _) in samples.items():
        if column + len(env.contexts) > n_columns:
            row, column = row + 1, 0
        places[name] = row, column
        column += len(env.contexts)
    if not row:
        n_columns = column
    figure = Figure(figsize=(2.4 * n_columns + 0.3, 2.2 * (row + 1) + 0.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(row + 1, n_columns, sharex=True, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    grid = np.linspace(-1.0, 1.0, 801)
    for name, (env, found) in samples.items():
        row, column = places[name]
        for context, panel in enumerate(panels[row, column : column + len(env.contexts)]):
            panel.axis("on")
            log_density = env.reward(grid[:, None], context) / env.temperature - env.exact_masses(context).log_partition
            sampled = np.ravel(found.actions[context])
            panel.hist(sampled, bins=100, range=(-1, 1), density=True, color=BLUE, alpha=0.6, label="sampled actions")
            panel.plot(grid, np.exp(log_density), color=BLACK, linewidth=1, label="exact, exp(r / τ) / Z")
            shares = found.mode_shares[context]
            figures = f"total variation {found.total_variation[context]:.2f}\nleast mode {shares.min():.2f}"
            panel.set_title(figures, fontsize="small")
            panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
            bare(panel)
        panels[row, column].set_ylabel(f"{name}\ndensity")
    for column_panels in panels.T:
        lowest = [panel for panel in column_panels if panel.axison][-1]
        lowest.set_xlabel("action")
        lowest.tick_params(labelbottom=True)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
