"""Runs out of what campaigns, rl-zoo3 and SB3's ``EvalCallback`` leave."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

RUN_COLUMNS = ("variant", "environment", "seed", "timesteps")


@dataclass(frozen=True)
class Run:
    """One training and its evaluations."""

    variant: str
    environment: str
    seed: int
    evaluations: pd.DataFrame
    """A row for each evaluation, by rising ``timesteps``; every other column is a metric."""
    planned_steps: float
    """Environment steps of the whole run; NaN if nobody says."""
    source: str
    """Where it was read."""
    status: str = ""
    """What its campaign says: "finished", "partial", "failed" or "new"; empty if nobody says."""
    machines: tuple[str, ...] = ()
    """On which it ran; empty if nobody says."""

    @property
    def name(self) -> str:
        return f"{self.variant}, {self.environment}, seed {self.seed}"

    @property
    def last_step(self) -> int:
        """Environment steps at the last evaluation, 0 before the first."""
        return int(self.evaluations["timesteps"].max()) if len(self.evaluations) else 0

    @property
    def interval(self) -> float:
        """The longest stretch without an evaluation, in environment steps."""
        return float(np.diff(self.evaluations["timesteps"], prepend=0).max(initial=0))

    @property
    def finished(self) -> bool:
        """What its campaign says; if nobody says, whether no further evaluation was due."""
        if self.status:
            return self.status == "finished"
        return self.last_step > 0 and not self.last_step + self.interval <= self.planned_steps

    def curve(self, metric: str, against: str = "timesteps") -> tuple[np.ndarray, np.ndarray]:
        """
        :param metric: a column
        :param against: ``"timesteps"`` or ``"seconds"``
        :return: both at the evaluations that have both, shapes (n,)
        """
        if not {metric, against} <= set(self.evaluations):
            return np.empty(0), np.empty(0)
        rows = self.evaluations[np.isfinite(self.evaluations[[metric, against]]).all(axis="columns")]
        return rows[against].to_numpy(float), rows[metric].to_numpy(float)

    def final(self, metric: str) -> float:
        """:return: the metric at the last evaluation; NaN if it was not measured there"""
        return float(self.evaluations[metric].iloc[-1]) if metric in self.evaluations else np.nan

    def until(self, steps: int) -> "Run | None":
        """:return: the run as if it had ended at this step; None if there was no evaluation by then"""
        evaluations = self.evaluations[self.evaluations["timesteps"] <= steps]
        if evaluations.empty:
            return None
        status = "finished" if self.finished else ""
        return replace(self, evaluations=evaluations, planned_steps=min(self.planned_steps, steps), status=status)


class PlainLoader(yaml.SafeLoader):
    """rl-zoo3 saves arguments as Python objects. This reads the plain ones and calls nothing."""


def unique(items: Iterable[Any]) -> list[Any]:
    """:return: the items without repetitions, in the order of their first appearance"""
    return list(dict.fromkeys(items))


def plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    """:return: what an ``OrderedDict`` or a tuple is made of, None for other objects"""
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", plain)


def saved_arguments(path: Path) -> dict[str, Any]:
    """
    :param path: rl-zoo3's ``args.yml`` or ``config.yml``
    :return: what it holds; empty if there is no such file
    """
    content = yaml.load(path.read_text(), Loader=PlainLoader) if path.is_file() else None
    return dict(content[0]) if content else {}


def wall_clock(folder: Path, timesteps: np.ndarray) -> np.ndarray:
    """
    :param folder: with SB3's ``monitor.csv`` files
    :param timesteps: of the evaluations
    :return: seconds since the start, evaluations included; NaN if there are no such files
    """
    try:
        episodes = load_results(str(folder))
    except LoadMonitorResultsError:
        return np.full(len(timesteps), np.nan)
    return np.interp(timesteps, episodes["l"].cumsum(), episodes["t"]) if len(episodes) else np.full(len(timesteps), np.nan)


def read_evaluations(path: Path, label: str | None) -> Run:
    """
    :param path: an ``evaluations.npz`` in a folder ``<algorithm>/<environment>_<number>``
    :param label: the variant's name; the algorithm's if None
    :raises ValueError: for files that ``EvalCallback`` did not write
    """
    folder = path.parent
    try:
        with np.load(path) as content:
            columns = {name: content[name] for name in ("timesteps", "results", "ep_lengths")}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not what EvalCallback writes: {error}") from error
    if not len(columns["timesteps"]):
        raise ValueError(f"{path} holds no evaluation")
    arguments = next((saved_arguments(file) for file in sorted(folder.glob("*/args.yml"))), {})
    settings = next((saved_arguments(file) for file in sorted(folder.glob("*/config.yml"))), {})
    name = re.fullmatch(r"(.*?)(?:_(\d+))?(?:_[0-9a-f-]{36})?", folder.name)
    assert name is not None  # everything matches
    planned = arguments.get("n_timesteps", -1)
    evaluations = pd.DataFrame(
        {
            "timesteps": columns["timesteps"],
            "deterministic_return": columns["results"].mean(axis=1),
            "deterministic_return_std": columns["results"].std(axis=1),
            "deterministic_length": columns["ep_lengths"].mean(axis=1),
            "seconds": wall_clock(folder, columns["timesteps"]),
        }
    )
    return Run(
        variant=label or folder.parent.name,
        environment=str(arguments.get("env", name[1])),
        seed=int(str(arguments.get("seed", name[2] or 0))),
        evaluations=evaluations,
        planned_steps=float(planned if planned > 0 else settings.get("n_timesteps", np.nan)),
        source=str(path),
    )


def read_table(path: Path, label: str | None) -> list[Run]:
    """
    :param path: a campaign's CSV; its JSON lies beside it
    :param label: in front of the variants' names; instead of the name where there is only one variant
    :raises ValueError: for a table without runs, without a needed column, or with text in place of numbers
    """
    try:
        table = pd.read_csv(path, dtype={"variant": str, "environment": str})
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} is not a table: {error}") from error
    if missing := [name for name in RUN_COLUMNS if name not in table]:
        raise ValueError(f"{path} has no column {missing}; a table of runs has {list(RUN_COLUMNS)} and metrics")
    if table.empty:
        raise ValueError(f"{path} holds no evaluation")
    for name in table.columns.difference(["variant", "environment"]):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name].notna() & numbers.isna() if name not in RUN_COLUMNS else numbers.isna()
        if wrong.any():
            row = wrong.idxmax()
            raise ValueError(f"{path}, line {row + 2}: {name}={table[name][row]} is not a number")
        table[name] = numbers
    for name in ("variant", "environment"):
        if table[name].isna().any():
            raise ValueError(f"{path}, line {table[name].isna().idxmax() + 2}: {name} is empty")
    known = read_report(path.with_suffix(".json"))
    rows_of = dict(list(table.groupby(["variant", "environment", "seed"], sort=False)))
    alone = table["variant"].nunique() == 1
    runs = []
    for key in unique([*rows_of, *known]):
        variant, environment, seed = key
        rows = rows_of.get(key, table.iloc[:0]).drop(columns=["variant", "environment", "seed"])
        evaluations = rows.sort_values("timesteps", ignore_index=True)
        name = variant if label is None else label if alone else f"{label} {variant}"
        told: dict[str, Any] = known.get(key, {"planned_steps": np.nan})
        runs.append(Run(name, environment, int(seed), evaluations, source=str(path), **told))
        if evaluations["timesteps"].duplicated().any():
            raise ValueError(f"{path} has two evaluations of {runs[-1].name} at the same step")
    return runs


def read_report(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """
    :param path: a campaign's JSON
    :return: by variant, environment and seed ``planned_steps``, ``status`` and ``machines``; nothing if there is no such file
    :raises ValueError: if it is not a campaign's
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return {
            (run["variant"], run["environment"], int(run["seed"])): {
                "planned_steps": float(run.get("steps", content.get("steps", np.nan))),
                "status": run["status"],
                "machines": tuple(content["made_with"][number]["machine"] for number in run["made_with"]),
            }
            for run in content["runs"]
        }
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is not a campaign's JSON: {error!r}") from error


def with_planned_steps(runs: Sequence[Run]) -> list[Run]:
    """:return: the same, where nobody says how long a run should be, as long as the longest of its variant and environment"""
    longest: dict[tuple[str, str], int] = {}
    for run in runs:
        key = run.variant, run.environment
        longest[key] = max(longest.get(key, 0), run.last_step)
    return [
        replace(run, planned_steps=longest[run.variant, run.environment]) if np.isnan(run.planned_steps) else run
        for run in runs
    ]


def read_source(source: str) -> list[Run]:
    """
    :param source: a campaign's table or its folder, or a folder under which ``evaluations.npz`` files lie; ``LABEL=`` in front
        names what is found there
    :raises ValueError: if nothing is found
    """
    label, _, rest = source.rpartition("=")
    path = Path(source)
    if label and not path.exists():
        path = Path(rest)
    else:
        label = ""
    if path.is_dir() and (path / "results.csv").is_file():
        path /= "results.csv"
    if path.is_file():
        return [read_evaluations(path, label or None)] if path.suffix == ".npz" else read_table(path, label or None)
    files = sorted(path.rglob("evaluations.npz"))
    if not files:
        problem = "holds neither results.csv nor any evaluations.npz" if path.is_dir() else "does not exist"
        raise ValueError(f"{source}: {path} {problem}")
    return [read_evaluations(file, label or None) for file in files]


def read(sources: Iterable[str]) -> list[Run]:
    """
    :param sources: each as for :func:`read_source`
    :return: all runs
    :raises ValueError: naming the file, and if a run is there twice
    """
    runs = [run for source in sources for run in read_source(source)]
    seen: dict[str, str] = {}
    for run in runs:
        if run.name in seen:
            raise ValueError(
                f"{run.name} is in {seen[run.name]} and in {run.source}; LABEL=PATH gives what a path holds another name"
            )
        seen[run.name] = run.source
    return with_planned_steps(runs)
