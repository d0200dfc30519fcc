"""A comparison as a Markdown table."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from sb3_diffusion.experiments.comparison import Comparison, ranges, words
from sb3_diffusion.experiments.statistics import Estimate

NOTHING = "–"
FEW_SEEDS = 5  # with fewer, percentile intervals are clearly too short (docs/report.md has figures)


def decimals_for(estimates: Iterable[Estimate | None]) -> int:
    """:return: how many decimals show the largest of the values with three digits, 0 … 4"""
    largest = max((abs(float(each.value)) for each in estimates if each), default=0.0)
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if 0 < largest < math.inf else 0


def number(value: float, decimals: int, sign: bool = False) -> str:
    """:return: the number, with its sign also if positive where ``sign`` is asked for, and no negative zero"""
    return f"{round(float(value), decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"


def cell(estimate: Estimate | None, decimals: int, neutral: float | None = None) -> str:
    """
    :param estimate: of one number
    :param neutral: the value that means "no difference"; bold if the interval excludes it
    :return: value and interval
    """
    if estimate is None:
        return NOTHING
    value, low, high = (number(part, decimals, sign=neutral == 0) for part in estimate)
    if np.isnan(estimate.low):
        return value
    bold = "**" if neutral is not None and excludes(estimate, neutral) else ""
    return f"{bold}{value}{bold} [{low}, {high}]"


def excludes(estimate: Estimate, value: float) -> bool:
    """:return: whether the interval excludes a value; False without an interval"""
    return bool(estimate.low > value or estimate.high < value)


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def blocks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """:return: for each block of rows its title and its tasks: every task, then all that have a normalisation"""
    found = [(environment, [environment]) for environment in comparison.environments]
    over_tasks = next((metric for metric in comparison.metrics if comparison.normalised_tasks(metric)), None)
    if over_tasks is not None:
        found.append((comparison.over_tasks(over_tasks), comparison.normalised_tasks(over_tasks)))
    return found


def run_cells(comparison: Comparison, variant: str, tasks: Sequence[str]) -> tuple[list[str], str]:
    """:return: the cells for seeds and steps, and that for hours"""
    runs = [run for task in tasks for run in comparison.select(variant, task)]
    unfinished = sum(len(comparison.select(variant, task, finished=False)) for task in tasks)
    counts = [len(comparison.select(variant, task)) for task in tasks]
    seeds = ranges(counts) + (f" (+{unfinished} unfinished)" if unfinished else "")
    if not runs:
        return [seeds, NOTHING], NOTHING
    steps = sorted({run.last_step for run in runs})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}–{steps[-1]:,}"
    hours = [run.final("seconds") / 3600 for run in runs]
    taken = f"{np.nanmedian(hours):.2g}" if np.isfinite(hours).any() else NOTHING
    return [seeds, span.replace(",", " ")], taken


def table(comparison: Comparison) -> str:
    """
    :param comparison: variants, tasks and metrics
    :return: a Markdown table, and what must be known to read it
    """
    compared = comparison.baseline is not None and len(comparison.variants) > 1
    header = ["environment", "variant", "seeds", "steps"]
    for metric in comparison.metrics:
        header.append(words(metric))
        if compared:
            header += [f"minus {comparison.baseline}", f"P(above {comparison.baseline})"]
    timed = any(np.isfinite(run.final("seconds")) for run in comparison.runs)
    header += ["hours"] if timed else []
    lines = [row(header), "|---" * len(header) + "|"]
    for title, tasks in blocks(comparison):
        columns: dict[str, list[str]] = {variant: [] for variant in comparison.variants}
        for metric in comparison.metrics:
            values = {variant: comparison.value(variant, tasks, metric) for variant in columns}
            if len(tasks) > 1 and tasks != comparison.normalised_tasks(metric):
                values = dict.fromkeys(columns)
            decimals = decimals_for(values.values())
            for variant, value in values.items():
                columns[variant].append(cell(value, decimals))
                if compared:
                    gap = comparison.difference(variant, tasks, metric) if value else None
                    chance = comparison.improvement(variant, tasks, metric) if value else None
                    columns[variant] += [cell(gap, decimals, neutral=0), cell(chance, 2, neutral=0.5)]
        for variant, cells in columns.items():
            if any(comparison.select(variant, task, state) for task in tasks for state in (True, False)):
                first, hours = run_cells(comparison, variant, tasks)
                lines.append(row([title, variant, *first, *cells, *([hours] if timed else [])]))
                title = ""
    return "\n".join([*lines, "", *notes(comparison, compared, timed)]) + "\n"


def notes(comparison: Comparison, compared: bool, timed: bool) -> list[str]:
    """:return: what stands below a table"""
    having: dict[str, list[str]] = {}
    for variant in comparison.variants:
        having.setdefault(comparison.seeds(variant), []).append(variant)
    seeds = "; ".join(f"{', '.join(variants)}: {seeds}" for seeds, variants in having.items())
    text = "Interquartile mean over seeds of the last evaluation [95 % stratified bootstrap interval]. "
    if compared:
        text += "**Bold**: the interval of the difference excludes 0, that of the probability 0.5. "
    if timed:
        text += "Hours: median over seeds. "
    counts = [len(comparison.select(v, e)) for v in comparison.variants for e in comparison.environments]
    if any(1 < count < FEW_SEEDS for count in counts):
        text += f"With fewer than {FEW_SEEDS} seeds such intervals are too short, and bold means little. "
    problems = [f"* {sentence}" for sentence in comparison.problems()]
    text += f"{seeds}." if len(having) > 1 else f"All: {next(iter(having))}."
    return [text, *([""] if problems else []), *problems]
