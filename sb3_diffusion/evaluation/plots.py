"""Pictures of what a policy samples; they need matplotlib, but no display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sb3_diffusion.envs.boltzmann_bandit import BoltzmannBandit
from sb3_diffusion.envs.multi_goal import MultiGoal2D
from sb3_diffusion.envs.turning_double_well import TurningDoubleWell
from sb3_diffusion.evaluation.density import RewardFunction, boltzmann_density, total_variation
from sb3_diffusion.evaluation.fidelity import Fidelity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    grid = np.linspace(-1.0, 1.0, 501)
    exact = boltzmann_density(reward_fn, temperature, grid)
    figure = Figure(figsize=(4.5 * len(samples), 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(samples), sharey=True, squeeze=False)[0]
    for panel, (name, actions) in zip(panels, samples.items(), strict=True):
        panel.hist(
            np.ravel(actions), bins=80, range=(-1, 1), density=True, color="tab:blue", alpha=0.6, label="sampled actions"
        )
        panel.plot(grid, exact, color="black", label=f"exact, exp(r / {temperature:g}) / Z")
        distance = total_variation(actions, reward_fn, temperature)
        panel.set_title(f"{name}\ntotal variation of these {np.size(actions)} samples: {distance:.2f}")
        panel.set_xlabel("action")
        panel.set_xlim(-1, 1)
        panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
    panels[0].set_ylabel("density")
    panels[0].legend(loc="upper center", fontsize="small")
    panels[0].set_ylim(top=1.25 * max(panels[0].get_ylim()[1], exact.max()))
    return figure


def plot_turns(actions: Mapping[str, np.ndarray], temperature: float) -> Figure:
    """
    What policies sample in each heading of TurningDoubleWell, beside each other, against the exact optimal density: no turn
    makes the future better or worse, so it is that of the reward alone.

    :param actions: by the name of the policy, its actions in units of 90° as :func:`turn_mass` draws them, shape (8, n)
    :param temperature: τ of the optimal density, in units of reward per nat, above 0
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: if an array does not have eight rows, or for a temperature out of range
    """
    from matplotlib.figure import Figure

    for name, array in actions.items():
        if np.ndim(array) != 2 or len(array) != 8:
            raise ValueError(f"actions[{name!r}] has shape {np.shape(array)}; allowed: (8, n), one row for each heading")
    grid = np.linspace(-1.0, 1.0, 401)
    exact = boltzmann_density(TurningDoubleWell.reward, temperature, grid)
    figure = Figure(figsize=(13, 5.6), dpi=120, layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for heading, panel in enumerate(panels.flat):
        for name, array in actions.items():
            panel.hist(90 * array[heading], bins=45, range=(-90, 90), density=True, alpha=0.55, label=name)
        panel.set_title(f"heading {45 * heading}°")
        panel.set_xticks([-90, -45, 0, 45, 90])
        panel.set_xlim(-90, 90)
        panel.plot(90 * grid, exact / 90, color="black", linewidth=1, label=f"exact, exp(r / {temperature:.3g}) / Z")
    for panel in panels[:, 0]:
        panel.set_ylabel("density per degree")
    for panel in panels[1]:
        panel.set_xlabel("turn in degrees")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
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
    figure = Figure(figsize=(3.4 * n_columns + 0.8, 3.5 * n_rows), dpi=120, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(trajectories) :]:
        panel.axis("off")
    used = list(panels.flat[: len(trajectories)])
    for panel, (name, array) in zip(used, trajectories.items(), strict=True):
        contours = panel.contourf(grid, grid, landscape, levels=16, cmap="Greys_r", vmin=-60)
        for trajectory in array[:n_shown]:
            panel.plot(*trajectory.T, color="tab:blue", linewidth=0.8, alpha=0.5, marker=".", markersize=2)
        panel.scatter(*MultiGoal2D.GOALS.T, marker="*", s=90, color="tab:red", zorder=3)
        panel.set_title(name)
        panel.set_aspect("equal")
        panel.set_xticks([-5, 0, 5])
        panel.set_yticks([-5, 0, 5])
    figure.colorbar(contours, ax=used, label="reward of a position", shrink=0.8)
    return figure


def plot_fidelity(samples: Mapping[str, tuple[BoltzmannBandit, Fidelity]]) -> Figure:
    """
    Sampled actions against the exact optimal densities of BoltzmannBandit: a row for each policy, a column for each context.

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
    n_columns = max(len(env.contexts) for env, _ in samples.values())
    figure = Figure(figsize=(3.4 * n_columns, 2.5 * len(samples)), dpi=110, layout="constrained")
    panels = figure.subplots(len(samples), n_columns, sharex=True, squeeze=False)
    grid = np.linspace(-1.0, 1.0, 801)
    for row, (name, (env, found)) in zip(panels, samples.items(), strict=True):
        for panel in row[len(env.contexts) :]:
            panel.axis("off")
        for context, panel in enumerate(row[: len(env.contexts)]):
            log_density = env.reward(grid[:, None], context) / env.temperature - env.exact_masses(context).log_partition
            panel.hist(
                np.ravel(found.actions[context]),
                bins=100,
                range=(-1, 1),
                density=True,
                color="tab:blue",
                alpha=0.6,
                label="sampled",
            )
            panel.plot(grid, np.exp(log_density), color="black", linewidth=1, label="exact")
            shares = found.mode_shares[context]
            panel.set_title(
                f"total variation {found.total_variation[context]:.2f}, least mode {shares.min():.2f}", fontsize="small"
            )
            panel.set_xticks([-1, -0.5, 0, 0.5, 1])
        row[0].set_ylabel(name, fontsize="small")
    panels[0, 0].legend(fontsize="x-small", loc="upper center")
    return figure
