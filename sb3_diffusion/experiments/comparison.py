"""Variants side by side: which runs count, and what they say."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sb3_diffusion.common.validation import check_choice
from sb3_diffusion.experiments.reading import Run, unique
from sb3_diffusion.experiments.statistics import (
    Estimate,
    difference,
    estimate,
    interquartile_mean,
    normalised,
    probability_of_improvement,
    reference_score,
)

RETURNS = ("deterministic_return", "sampled_return")
MOST_LISTED = 5  # runs in a sentence
LONGEST_SEEDS = 40  # letters


def words(column: str) -> str:
    """:return: a column's name for people"""
    return column.replace("_", " ")


ALGORITHMS = "A2C CrossQ DDPG DiffCrossQ DiffPPO DiffSAC DiffTQC DiffWPO PPO SAC TD3 TQC TRPO".split()


def readable(variant: str) -> str:
    """:return: a variant's name for people: ``"DiffSAC, early start"`` for ``diffsac-early-start``"""
    algorithm, *rest = variant.split("-", 1)
    known = {name.lower(): name for name in ALGORITHMS}
    if algorithm not in known:
        return variant
    # A number keeps its strokes, as in 1e-3.
    described = re.sub(r"(?<!\de)-", " ", "".join(rest)).replace("fullchain", "full chain")
    return f"{known[algorithm]}, {described}" if described else known[algorithm]


def ranges(numbers: Iterable[int]) -> str:
    """:return: ``"0–2, 5"`` for 0, 1, 2, 5"""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def listed(names: Iterable[str]) -> str:
    """:return: the first names, and how many more there are"""
    names = list(names)
    rest = len(names) - MOST_LISTED
    return "; ".join(names[:MOST_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def progress(run: Run) -> str:
    """:return: which run, and how far it is"""
    steps = f"{run.last_step:,} of {run.planned_steps:,.0f} steps".replace(",", " ")
    return f"{run.name} ({steps}{', failed' if run.status == 'failed' else ''})"


@dataclass(frozen=True)
class Comparison:
    """
    Finished runs of several variants, on one task or more.

    :param runs: all of them
    :param metrics: columns to compare
    :param baseline: the variant that the others are compared with; None if there is only one
    :param scores: by environment, which returns count as 0 and as 1, beside
        :data:`sb3_diffusion.experiments.statistics.REFERENCE_SCORES`
    :raises ValueError: for a metric or a baseline that no run has
    """

    runs: Sequence[Run]
    metrics: Sequence[str]
    baseline: str | None
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = unique(name for run in self.runs for name in run.evaluations if name != "timesteps")
        for metric in self.metrics:
            check_choice("metric", metric, columns)
        if self.baseline is not None:
            check_choice("baseline", self.baseline, self.variants)
        for environment in self.scores:
            check_choice("score", environment, self.environments)

    @cached_property
    def variants(self) -> list[str]:
        return unique(run.variant for run in self.runs)

    @cached_property
    def environments(self) -> list[str]:
        return unique(run.environment for run in self.runs)

    def select(self, variant: str, environment: str, finished: bool = True) -> list[Run]:
        """:return: the runs of a variant on a task that are finished, or those that are not, by seed"""
        runs = [run for run in self.runs if (run.variant, run.environment) == (variant, environment)]
        return sorted((run for run in runs if run.finished == finished), key=lambda run: run.seed)

    def finals(self, variant: str, environment: str, metric: str) -> np.ndarray:
        """:return: the metric at the last evaluation of each finished run that measured it there, shape (n,)"""
        values = np.array([run.final(metric) for run in self.select(variant, environment)])
        return values[np.isfinite(values)]

    def score(self, environment: str, metric: str) -> tuple[str, tuple[float, float]] | None:
        """:return: name and constants of the normalisation of a metric, None if there is none"""
        if environment in self.scores:
            return "own", self.scores[environment]
        return reference_score(environment) if metric in RETURNS else None

    def normalised_tasks(self, metric: str) -> list[str]:
        """:return: the tasks that means over tasks are taken of: all with a normalisation, if there are two or more"""
        tasks = [environment for environment in self.environments if self.score(environment, metric)]
        return tasks if len(tasks) > 1 else []

    def over_tasks(self, metric: str) -> str:
        """:return: how many tasks :meth:`normalised_tasks` are, and whose normalisation is taken"""
        tasks = self.normalised_tasks(metric)
        names = unique(score[0] for task in tasks if (score := self.score(task, metric)))
        return f"{len(tasks)} tasks, {' and '.join(names)}-normalised"

    def tasks(self, variant: str, environments: Sequence[str], metric: str) -> list[np.ndarray] | None:
        """
        :param environments: one, whose values stay as they are, or several, whose values are normalised
        :return: the finals on each; None if some are missing
        """
        finals = [self.finals(variant, environment, metric) for environment in environments]
        if not finals or not all(len(values) for values in finals):
            return None
        if len(environments) == 1:
            return finals
        known = [self.score(environment, metric) for environment in environments]
        return [normalised(v, score[1]) if score else v for v, score in zip(finals, known, strict=True)]

    def value(self, variant: str, environments: Sequence[str], metric: str) -> Estimate | None:
        """:return: interquartile mean of the finals; None if there are none"""
        tasks = self.tasks(variant, environments, metric)
        return estimate(interquartile_mean, tasks) if tasks else None

    def against_baseline(
        self, statistic: Callable[..., np.ndarray], variant: str, environments: Sequence[str], metric: str
    ) -> Estimate | None:
        """:return: a statistic of a variant and the baseline; None for the baseline itself, and if either has no finals"""
        if self.baseline in (None, variant):
            return None
        tasks = self.tasks(variant, environments, metric), self.tasks(str(self.baseline), environments, metric)
        return estimate(statistic, [*tasks[0], *tasks[1]]) if tasks[0] and tasks[1] else None

    def difference(self, variant: str, environments: Sequence[str], metric: str) -> Estimate | None:
        """:return: :func:`sb3_diffusion.experiments.statistics.difference` to the baseline"""
        return self.against_baseline(difference, variant, environments, metric)

    def improvement(self, variant: str, environments: Sequence[str], metric: str) -> Estimate | None:
        """:return: :func:`sb3_diffusion.experiments.statistics.probability_of_improvement` on the baseline"""
        return self.against_baseline(probability_of_improvement, variant, environments, metric)

    def seeds(self, variant: str) -> str:
        """:return: the seeds of a variant's finished runs, with strokes between those of different tasks; if long, how many"""
        seeds = [[run.seed for run in self.select(variant, environment)] for environment in self.environments]
        different = unique(ranges(numbers) for numbers in seeds if numbers)
        if not different:
            return "no finished run"
        named = " / ".join(different)
        if len(named) > LONGEST_SEEDS:  # rl-zoo3 draws seeds of ten digits
            return f"{ranges(map(len, filter(None, seeds)))} seeds"
        return f"{'seed' if max(map(len, seeds)) == 1 and len(different) == 1 else 'seeds'} {named}"

    def problems(self) -> list[str]:
        """:return: a sentence for everything that a reader of the numbers must know"""
        places = [(variant, environment) for environment in self.environments for variant in self.variants]
        unfinished = [run for place in places for run in self.select(*place, finished=False)]
        alone: dict[str, list[str]] = {}
        for variant, environment in places:
            if len(self.select(variant, environment)) == 1:
                alone.setdefault(environment, []).append(variant)
        sentences = []
        if unfinished:
            sentences.append(f"Unfinished and left out: {listed(map(progress, unfinished))}.")
        for metric in self.metrics:
            measured = {run.environment for run in self.runs if len(run.curve(metric)[0])}
            if missing := [environment for environment in self.environments if environment not in measured]:
                sentences.append(f"No {words(metric)} on {', '.join(missing)}.")
            without = [
                run.name
                for variant, environment in places
                for run in self.select(variant, environment)
                if environment in measured and not np.isfinite(run.final(metric))
            ]
            if without:
                sentences.append(f"No {words(metric)} at the last evaluation, left out: {listed(without)}.")
        if alone:
            where = "; ".join(f"{environment}: {', '.join(variants)}" for environment, variants in alone.items())
            sentences.append(f"One seed, so no interval: {where}.")
        machines = unique(machine for run in self.runs for machine in run.machines)
        if len(machines) > 1:
            sentences.append(f"Hours are those of different machines: {'; '.join(machines)}.")
        for environment in self.environments:
            sentences += self.unequal_steps(environment)
        for metric in self.metrics:
            sentences += self.without_means_over_tasks(metric)
        return sentences

    def unequal_steps(self, environment: str) -> list[str]:
        """:return: a sentence if some runs ended so early that another evaluation could have followed"""
        runs = [run for variant in self.variants for run in self.select(variant, environment)]
        longest = max((run.last_step for run in runs), default=0)
        short = unique(run.variant for run in runs if run.last_step + run.interval <= longest)
        most = f"{longest:,}".replace(",", " ")
        return [f"{environment}: runs of {', '.join(short)} are shorter than {most} steps; --steps compares alike."] * bool(
            short
        )

    def without_means_over_tasks(self, metric: str) -> list[str]:
        """:return: sentences on tasks and variants that are not in the means over tasks"""
        if len(self.environments) == 1:
            return []
        tasks = self.normalised_tasks(metric)
        if not tasks:
            return [f"{words(metric)}: no mean over tasks, for lack of a normalisation (--score gives one)."]
        sentences = []
        if others := [environment for environment in self.environments if environment not in tasks]:
            sentences.append(
                f"{words(metric)} over tasks is without {', '.join(others)}: no normalisation (--score gives one)."
            )
        for variant in self.variants:
            if lacking := [task for task in tasks if not len(self.finals(variant, task, metric))]:
                sentences.append(f"{words(metric)} over tasks is without {variant}: no finished run on {', '.join(lacking)}.")
        return sentences
