"""
What a handful of runs says about algorithms: the statistics of Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (arXiv 2108.13264), put together from scipy's ``trim_mean``, ``mannwhitneyu`` and ``bootstrap``.

Everywhere a task (an environment) is an array whose last axis counts its runs. scipy's bootstrap draws anew within each array
that it is given, so giving it one array for each task and algorithm is the stratified bootstrap. Seeds of two algorithms are
not paired: an equal seed makes their runs no more alike than any other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap, mannwhitneyu, trim_mean

CONFIDENCE = 0.95
RESAMPLES = 9999
RESAMPLED_NUMBERS = 10_000_000  # at a time: 80 MB

# Return of (a random policy, the reference): a score is 0 at the first and 1 at the second. Environments are named without
# their version.
REFERENCE_SCORES: dict[str, dict[str, tuple[float, float]]] = {
    # The means of TD3 (Fujimoto et al. 2018) on Gym MuJoCo v4 that SimbaV2's and FlashSAC's result files normalise with.
    # HalfCheetah is the same in v5; the others changed a little, which moves every algorithm's score alike.
    "TD3": {
        "HalfCheetah": (-289.415, 10574.0),
        "Hopper": (18.791, 3226.0),
        "Walker2d": (2.791, 3946.0),
        "Ant": (-70.288, 3942.0),
        "Humanoid": (120.423, 5165.0),
    },
    # rl_zoo3/plots/score_normalization.py, whose module needs packages that reports do not.
    "rl-zoo3": {"LunarLanderContinuous": (-200.0, 250.0), "BipedalWalker": (-100.0, 300.0)},
}


class Estimate(NamedTuple):
    """A statistic of runs; numbers, or arrays of one shape."""

    value: Any
    low: Any
    """Lower end of the interval; NaN where a task has only one run."""
    high: Any
    """Its upper end."""


def reference_score(environment: str) -> tuple[str, tuple[float, float]] | None:
    """
    :param environment: a Gymnasium id
    :return: the name of the normalisation and its two constants; None if there is none for this environment
    """
    name = environment.rpartition("-v")[0] or environment
    return next(((source, scores[name]) for source, scores in REFERENCE_SCORES.items() if name in scores), None)


def interquartile_mean(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Mean of the middle half of all tasks' runs. Where tasks have different numbers of runs, runs are repeated until all have
    equally many: each task counts alike.

    :param tasks: arrays of shapes (…, n_task)
    :param axis: the last one
    :return: shape (…)
    """
    n = math.lcm(*(task.shape[axis] for task in tasks))
    runs = [np.repeat(task, n // task.shape[axis], axis=axis) for task in tasks]
    return trim_mean(np.concatenate(runs, axis=axis), 0.25, axis=axis)


def difference(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    :param tasks: as for :func:`interquartile_mean`, first all of one algorithm, then as many of the other
    :return: the first algorithm's interquartile mean minus the second one's
    """
    half = len(tasks) // 2
    return interquartile_mean(*tasks[:half], axis=axis) - interquartile_mean(*tasks[half:], axis=axis)


def probability_of_improvement(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    The probability that a run of the first algorithm is above one of the second on the same task (ties count half), mean over
    the tasks: the Mann-Whitney statistic divided by the number of pairs.

    :param tasks: as for :func:`difference`
    :return: 0 … 1
    """
    half = len(tasks) // 2
    shares = [
        mannwhitneyu(first, second, axis=axis, method="asymptotic").statistic / (first.shape[axis] * second.shape[axis])
        for first, second in zip(tasks[:half], tasks[half:], strict=True)
    ]
    return np.mean(shares, axis=0)


def mean_share(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    :param tasks: what each run contributes to its task's share, shapes (…, n_task)
    :return: mean over the runs of each task, then over the tasks
    """
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)


def estimate(statistic: Callable[..., np.ndarray], tasks: Sequence[np.ndarray]) -> Estimate:
    """
    A statistic and its 95 % interval: the percentiles of 9999 stratified bootstrap samples, always the same ones.

    :param statistic: of the tasks as positional arguments and ``axis``
    :param tasks: arrays of shapes (…, n_task), without NaN
    :return: value and interval of shape (…); without an interval if a task has one run only
    :raises ValueError: if there is no task, or one without runs
    """
    tasks = [np.asarray(task, dtype=float) for task in tasks]
    if not tasks or any(task.shape[-1] == 0 for task in tasks):
        raise ValueError(f"tasks of {[task.shape[-1] for task in tasks]} runs; allowed: one task or more, each with a run")
    value = statistic(*tasks, axis=-1)
    if any(task.shape[-1] == 1 for task in tasks):
        missing = np.full(np.shape(value), np.nan)[()]
        return Estimate(value, missing, missing)
    numbers = sum(task.size for task in tasks)
    result = bootstrap(
        tasks,
        statistic,
        axis=-1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, min(RESAMPLES, RESAMPLED_NUMBERS // numbers)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Estimate(value, *result.confidence_interval)


def performance_profile(tasks: Sequence[np.ndarray], thresholds: np.ndarray) -> Estimate:
    """
    :param tasks: scores of shapes (n_task,)
    :param thresholds: shape (n,)
    :return: for each threshold the share of runs above it, mean over the tasks
    """
    return estimate(mean_share, [np.asarray(task) > thresholds[:, None] for task in tasks])


def on_grid(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """
    Curves with points at different places, on the places that any of them has and all of them cover; linear in between.

    :param runs: abscissa (rising) and ordinate of each curve, shapes (n_points,)
    :return: places of shape (n,) and ordinates of shape (n, n_runs)
    """
    first, last = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    grid = np.unique(np.concatenate([x for x, _ in runs]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.stack([np.interp(grid, x, y) for x, y in runs], axis=-1)


def normalised(values: np.ndarray, score: tuple[float, float]) -> np.ndarray:
    """
    :param values: returns
    :param score: those that count as 0 and as 1, of :data:`REFERENCE_SCORES`
    :return: scores, of the shape of ``values``
    """
    low, high = score
    return (values - low) / (high - low)
