"""Pictures of a comparison, at the width of a README; they need no display."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from sb3_diffusion.evaluation.style import COLORS, DPI, WIDTH, bare
from sb3_diffusion.experiments.comparison import Comparison, readable, words
from sb3_diffusion.experiments.reading import Run
from sb3_diffusion.experiments.statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    normalised,
    on_grid,
    performance_profile,
)

# Where the colours end, they begin again with other lines.
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PLACES = 200  # of a curve over wall-clock time, of a profile
INTERVAL = "95 % stratified bootstrap interval"
AXES = {"timesteps": ("environment steps", 1.0), "seconds": ("wall-clock hours", 1 / 3600)}
UNITS = {
    "deterministic_return": " of an episode",
    "sampled_return": " of an episode",
    "deterministic_length": " in steps",
    "sampled_length": " in steps",
    "path_entropy": " in nats",
}
# What ``metrics.mode_coverage`` measures; elsewhere a user's columns may have such names.
UNITS_HERE = {
    ("divergence", "TurningGMM-v0"): " in nats, 0 is right",
    ("smallest_share", "TurningDoubleWell-v0"): " of a turn, ½ is right",
    ("goals", "MultiGoal2D-v0"): " reached, of 4",
    ("entropy", "MultiGoal2D-v0"): " of shares, 1 is even",
}

Panel = tuple[str, str]
"""A metric and an environment; ``OVER_TASKS`` for all tasks with a normalisation."""
OVER_TASKS = ""


def style(index: int) -> dict[str, Any]:
    """:return: how a comparison's variant of this index is drawn, alike in all pictures"""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index // len(COLORS) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
    }


def label(comparison: Comparison, variant: str) -> str:
    """:return: the variant and its seeds"""
    most = max(len(comparison.select(variant, environment)) for environment in comparison.environments)
    return f"{readable(variant)} ({comparison.seeds(variant)}{', no interval' if most == 1 else ''})"


def quantity(metric: str, environment: str) -> str:
    """:return: the metric with its unit, which a normalised one does not have"""
    unit = UNITS_HERE.get((metric, environment), UNITS.get(metric, ""))
    return f"{words(metric)}{unit}" if environment else f"normalised {words(metric)}"


def panels_of(comparison: Comparison, over_tasks: bool = True) -> list[Panel]:
    """:return: all environments, then the mean over tasks where there is one; the metrics of each beside each other"""
    places = [*comparison.environments, *([OVER_TASKS] if over_tasks else [])]
    return [
        (metric, place)
        for place in places
        for metric in comparison.metrics
        if place or len(comparison.normalised_tasks(metric)) > 1
    ]


def new_figure(comparison: Comparison, panels: Sequence[Panel], height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """:return: a figure with one axes for each panel; a column for each metric, or three columns for one"""
    columns = len(comparison.metrics) if len(comparison.metrics) > 1 else {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 6.5, height * rows + 0.6), dpi=DPI, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flat
    for unused in every[len(panels) :]:
        unused.axis("off")
    for axes in (used := list(every[: len(panels)])):
        bare(axes)
    return figure, used


def finish(figure: Figure, comparison: Comparison, caption: str, without: str | None = None, dotted: bool = False) -> Figure:
    """
    Add the legend, with the seeds of each variant, and the caption.

    :param without: a variant that is not drawn
    :param dotted: whether unfinished runs are
    """
    handles = [
        Line2D([], [], **style(index), label=label(comparison, variant))
        for index, variant in enumerate(comparison.variants)
        if variant != without
    ]
    if dotted and any(not run.finished for run in comparison.runs):
        handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=1, label="unfinished run"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(12 * figure.get_figwidth() // (longest + 8))))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    figure.suptitle(caption, fontsize="small", color="0.25")
    return figure


def is_leftmost(axes: Axes) -> bool:
    """:return: whether a panel is the first of its row"""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def draw_band(axes: Axes, x: np.ndarray, found: Estimate, index: int, **options: Any) -> None:
    """A line with its interval."""
    axes.plot(x, found.value, **(style(index) | {"linewidth": 1.8} | options))
    axes.fill_between(x, found.low, found.high, color=style(index)["color"], alpha=0.16, linewidth=0)


def curve_of(runs: Sequence[Run], metric: str, against: str) -> tuple[np.ndarray, np.ndarray] | None:
    """:return: the runs on common places, None if there are none"""
    curves = [curve for run in runs if len((curve := run.curve(metric, against))[0])]
    if not curves:
        return None
    places, values = on_grid(curves)
    return (places, values) if len(places) else None


def curves_over_tasks(
    comparison: Comparison, variant: str, metric: str, against: str
) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """:return: places that the variant's curves on all tasks cover, and the normalised values of each task there"""
    tasks = comparison.normalised_tasks(metric)
    curves = [curve_of(comparison.select(variant, task), metric, against) for task in tasks]
    found = [curve for curve in curves if curve is not None]
    if len(found) < len(tasks):
        return None
    grid, _ = on_grid([(places, values[:, 0]) for places, values in found])
    scores = [score for task in tasks if (score := comparison.score(task, metric))]
    at_grid = [np.stack([np.interp(grid, places, run) for run in values.T], axis=-1) for places, values in found]
    return grid, [normalised(values, score[1]) for values, score in zip(at_grid, scores, strict=True)]


def thinned(x: np.ndarray, values: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """:return: no more than PLACES of the places, spread evenly"""
    kept = np.unique(np.linspace(0, len(x) - 1, min(PLACES, len(x))).round().astype(int))
    return x[kept], [value[kept] for value in values]


def draw_curves(axes: Axes, comparison: Comparison, panel: Panel, against: str, labelled: bool) -> None:
    """One panel of :func:`curves`; ``labelled`` if the ordinate is to be named."""
    metric, environment = panel
    name, unit = AXES[against]
    for index, variant in enumerate(comparison.variants):
        if environment:
            one = curve_of(comparison.select(variant, environment), metric, against)
            curve = None if one is None else (one[0], [one[1]])
            for run in comparison.select(variant, environment, finished=False):
                x, y = run.curve(metric, against)
                axes.plot(x * unit, y, color=style(index)["color"], linestyle=":", linewidth=1)
        else:
            curve = curves_over_tasks(comparison, variant, metric, against)
        if curve is not None:
            x, values = thinned(*curve)
            marked = {} if len(x) <= 30 else {"markevery": len(x) // 12}
            draw_band(axes, x * unit, estimate(interquartile_mean, values), index, **marked)
    axes.set_title(environment or comparison.over_tasks(metric), fontsize="medium")
    axes.set_xlabel(name)
    if labelled:
        axes.set_ylabel(quantity(metric, environment))
    axes.set_xlim(left=0)
    if against == "timesteps":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def curves(comparison: Comparison, against: str = "timesteps") -> Figure | None:
    """
    Sample-efficiency curves: interquartile mean over seeds with its interval, unfinished runs dotted.

    :param comparison: variants, tasks and metrics
    :param against: ``"timesteps"``, or ``"seconds"`` for wall-clock time
    :return: a panel for each task and metric, and the mean over tasks; None if no run has two evaluations
    """
    panels = panels_of(comparison)
    if not any(len(run.curve(metric, against)[0]) > 1 for run in comparison.runs for metric in comparison.metrics):
        return None
    figure, every = new_figure(comparison, panels)
    for axes, panel in zip(every, panels, strict=True):
        named_before = len(comparison.metrics) == 1 and panel[1] and not is_leftmost(axes)
        draw_curves(axes, comparison, panel, against, labelled=not named_before)
    ends = "; a curve ends with its quickest run" if against == "seconds" else ""
    return finish(figure, comparison, f"Interquartile mean over seeds; band: {INTERVAL}{ends}", dotted=True)


def wall_clock(comparison: Comparison) -> Figure | None:
    """:return: :func:`curves` against wall-clock time"""
    return curves(comparison, "seconds")


def improvement(comparison: Comparison) -> Figure | None:
    """
    :param comparison: variants, tasks and metrics
    :return: the probability that a run is above one of the baseline, a panel for each metric; None without a baseline
    """
    others = [variant for variant in comparison.variants if variant != comparison.baseline]
    if comparison.baseline is None or not others:
        return None
    panels = [(metric, OVER_TASKS) for metric in comparison.metrics]
    places = [[environment] for environment in comparison.environments]
    if len(places) > 1:
        places.append(list(comparison.environments))
    names = [*comparison.environments, f"{len(comparison.environments)} tasks"][: len(places)]
    figure, every = new_figure(comparison, panels, height=0.5 + 0.22 * len(places) * (len(others) + 0.6))
    for axes, (metric, _) in zip(every, panels, strict=True):
        for row, tasks in enumerate(places):
            for offset, variant in enumerate(others):
                found = comparison.improvement(variant, tasks, metric)
                if found is None:
                    continue
                y = row + 0.7 * ((offset + 0.5) / len(others) - 0.5)
                look = style(comparison.variants.index(variant))
                axes.plot(
                    [found.low, found.high], [y, y], color=look["color"], linewidth=2.5, alpha=0.5, solid_capstyle="butt"
                )
                axes.plot(found.value, y, **(look | {"linestyle": "", "markersize": 6}))
        axes.axvline(0.5, color="0.3", linewidth=1)
        axes.set_xlim(-0.03, 1.03)
        axes.set_yticks(range(len(places)), names if axes is every[0] else [""] * len(names))
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"probability of a {words(metric)} above {readable(str(comparison.baseline))}'s")
    caption = f"Final evaluations, compared with those of {label(comparison, comparison.baseline)}; bar: {INTERVAL}"
    return finish(figure, comparison, caption, without=comparison.baseline)


def profile(comparison: Comparison) -> Figure | None:
    """
    :param comparison: variants, tasks and metrics
    :return: which share of runs ends above a score: over all tasks with a normalisation where there are two or more, else a
        panel for each task; None if nothing has finished
    """
    panels = [panel for panel in panels_of(comparison) if not panel[1] or not comparison.normalised_tasks(panel[0])]
    drawn = False
    figure, every = new_figure(comparison, panels)
    for axes, (metric, environment) in zip(every, panels, strict=True):
        tasks = [environment] if environment else comparison.normalised_tasks(metric)
        finals = {variant: comparison.tasks(variant, tasks, metric) for variant in comparison.variants}
        pooled = [values for arrays in finals.values() for values in arrays or []]
        axes.set_title(environment or comparison.over_tasks(metric), fontsize="medium")
        axes.set_xlabel(quantity(metric, environment))
        axes.set_ylabel("share of runs above it")
        axes.set_ylim(-0.03, 1.03)
        if not pooled:
            continue
        drawn = True
        low, high = np.min(np.concatenate(pooled)), np.max(np.concatenate(pooled))
        margin = 0.05 * (high - low) or 1.0
        thresholds = np.linspace(low - margin, high + margin, PLACES)
        for index, variant in enumerate(comparison.variants):
            if arrays := finals[variant]:
                found = performance_profile(arrays, thresholds)
                draw_band(axes, thresholds, found, index, markevery=(7 * index % 25, 25))
    return finish(figure, comparison, f"Performance profile of the final evaluations; band: {INTERVAL}") if drawn else None


def runs(comparison: Comparison) -> Figure | None:
    """
    :param comparison: variants, tasks and metrics
    :return: every run's last evaluation as a point, with interquartile mean and interval, a panel for each task and metric
        that was measured there; None if nothing has finished
    """
    variants = comparison.variants
    panels = [
        (metric, environment)
        for environment in comparison.environments
        for metric in comparison.metrics
        if any(len(comparison.finals(variant, environment, metric)) for variant in variants)
    ]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, (0.75 + 0.26 * len(variants)) * rows + 0.3), dpi=DPI, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, (metric, environment) in zip(every, panels, strict=False):
        for index, variant in enumerate(variants):
            finals = comparison.finals(variant, environment, metric)
            color = style(index)["color"]
            if len(finals):
                found = estimate(interquartile_mean, [finals])
                axes.plot([found.low, found.high], [index, index], color=color, linewidth=6, alpha=0.25, solid_capstyle="butt")
                axes.plot(found.value, index, "|", color=color, markersize=11, markeredgewidth=2)
                axes.plot(finals, [index] * len(finals), "o", color=color, markersize=4, alpha=0.7, markeredgewidth=0)
        axes.set_title(environment, fontsize="medium")
        axes.set_xlabel(quantity(metric, environment))
        axes.set_yticks(range(len(variants)), [readable(variant) for variant in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.margins(x=0.08)
        bare(axes)
    for unused in every[len(panels) :]:
        unused.axis("off")
    caption = f"Last evaluation: every run, interquartile mean over seeds; bar: {INTERVAL}"
    figure.suptitle(caption, fontsize="small", color="0.25")
    return figure


PICTURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "curves": curves,
    "wall_clock": wall_clock,
    "improvement": improvement,
    "profile": profile,
    "runs": runs,
}


def draw(comparison: Comparison, names: Iterable[str] = tuple(PICTURES)) -> dict[str, Figure]:
    """
    :param comparison: variants, tasks and metrics
    :param names: keys of ``PICTURES``
    :return: by name the pictures that there is something to draw for
    """
    return {name: figure for name in names if (figure := PICTURES[name](comparison)) is not None}
