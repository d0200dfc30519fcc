"""The two files that remain of a campaign: a tidy table, and what it was made with."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_diffusion.common.saving import replacing
from sb3_diffusion.experiments.evaluating import MEASURED
from sb3_diffusion.experiments.folders import RunState, state_of
from sb3_diffusion.experiments.plan import Campaign, Run

TABLE, REPORT = "results.csv", "results.json"
COLUMNS = ("variant", "environment", "seed", *MEASURED)


def cell(value: Any) -> str:
    """:return: a value as the table has it: six digits of what was measured, nothing for what is not known"""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_table(path: Path, states: Sequence[tuple[Run, RunState]]) -> None:
    """
    :param path: of the CSV file, a row per evaluation
    :param states: the runs and how far they are
    """
    more: dict[str, None] = {}
    for _, state in states:
        for row in state.rows:
            more |= dict.fromkeys(name for name in row if name not in MEASURED)
    columns = (*COLUMNS, *more)
    with replacing(path, ".csv") as temporary:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for run, state in states:
                for row in state.rows:
                    full = {"variant": run.variant, "environment": run.environment, "seed": run.seed, **row}
                    writer.writerow([cell(full.get(name)) for name in columns])


def report_of(campaign: Campaign, states: Sequence[tuple[Run, RunState]]) -> dict[str, Any]:
    """:return: settings of every variant, what the runs were made with, and the table of runs"""
    made_with: list[dict[str, Any]] = []
    runs = []
    for run, state in states:
        numbers = []
        for part in state.parts:
            made = {key: value for key, value in part.items() if key != "from"}
            if made not in made_with:
                made_with.append(made)
            numbers.append(made_with.index(made))
        entry = {
            "variant": run.variant,
            "environment": run.environment,
            "seed": run.seed,
            "status": state.status,
            "timesteps": state.timesteps,
            "seconds": round(state.seconds, 1),
            "made_with": sorted(set(numbers)),
        }
        if len(state.parts) > 1:
            entry["continued_at"] = [part["from"] for part in state.parts[1:]]
        if state.traceback:
            entry["traceback"] = state.traceback
        runs.append(entry)
    variants: dict[str, dict[str, Any]] = {}
    for run in campaign.runs:
        identity = run.identity
        settings = {"algo": identity["algo"], "settings": identity["settings"]}
        variants.setdefault(run.variant, {})[run.environment] = settings
    common = {key: value for key, value in campaign.runs[0].identity.items() if key not in ("algo", "settings")}
    return {"campaign": campaign.file.stem, **common, "variants": variants, "made_with": made_with, "runs": runs}


def write_results(campaign: Campaign, out: Path) -> list[tuple[Run, RunState]]:
    """
    Write both files from what the folders of all runs tell.

    :param campaign: all of it, whichever part this process runs
    :param out: the folder
    :return: the runs and how far they are
    """
    states = [(run, state_of(run)) for run in sorted(campaign.runs, key=lambda run: order(campaign, run))]
    write_table(out / TABLE, states)
    with replacing(out / REPORT, ".json") as temporary:
        temporary.write_text(json.dumps(report_of(campaign, states), indent=1) + "\n")
    return states


def order(campaign: Campaign, run: Run) -> tuple[int, int, int]:
    """:return: a key that sorts runs by environment, variant (both as in the file) and seed"""
    environments = list(dict.fromkeys(other.environment for other in campaign.runs))
    variants = list(dict.fromkeys(other.variant for other in campaign.runs))
    return environments.index(run.environment), variants.index(run.variant), run.seed
