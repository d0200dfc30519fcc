"""The command ``python -m sb3_diffusion.campaign``."""

import argparse
import contextlib
import io
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
from rich.console import Console
from rich.table import Table

from sb3_diffusion.command_line import program
from sb3_diffusion.experiments.building import RunManager
from sb3_diffusion.experiments.engines import Engine, LocalEngine
from sb3_diffusion.experiments.folders import RunState, check_settings, locked, state_of
from sb3_diffusion.experiments.live import Display, duration
from sb3_diffusion.experiments.plan import Campaign, CampaignError, Run, named, read_campaign
from sb3_diffusion.experiments.ray_engine import LOCAL, RayEngine
from sb3_diffusion.experiments.results import TABLE, write_results

DESCRIPTION = """
Train every variant of FILE on every environment with every seed, and write one table, results.csv, and one description,
results.json, of the whole. Killed at any moment, the same command goes on where it stopped. docs/campaigns.md is the guide.
"""
FAILED, WRONG, INTERRUPTED = 1, 2, 130
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_TABLES = 10.0


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program("campaign"), description=DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="the campaign, YAML")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: logs/campaigns/<name of FILE>")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: one per core)")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="run no others (all)")
    parser.add_argument("--part", metavar="I/N", help="for job arrays: run the I-th of N equal parts, I = 1 … N (1/1)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: host:port, auto, or local for one of its own (none)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how much of it is done")
    return parser


def selected(campaign: Campaign, only: Sequence[str] | None, part: str | None) -> list[Run]:
    """
    :param campaign: all of it
    :param only: names of variants; None for all
    :param part: "I/N"; None for the whole
    :return: its runs that were asked for
    """
    variants = list(dict.fromkeys(run.variant for run in campaign.runs))
    for name in only or ():
        if name not in variants:
            raise named("--only", name, variants)
    runs = [run for run in campaign.runs if not only or run.variant in only]
    if part is None:
        return runs
    number, _, total = part.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise CampaignError(f"--part: {part!r} (allowed: I/N with 1 <= I <= N, for example 3/20)")
    return runs[int(number) - 1 :: int(total)]


def check_writable(folder: Path) -> None:
    """:raises CampaignError: if nothing can be written into the folder, which need not exist yet"""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise CampaignError(f"--out: {folder} cannot be a folder, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CampaignError(f"--out: {folder} cannot be written, there is no permission for {existing}")


def check_buildable(runs: Sequence[Run]) -> None:
    """:raises CampaignError: if a variant's environment or model cannot be built, with the reason"""
    for run in {(run.variant, run.environment): run for run in runs}.values():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model = RunManager(run, device="cpu").create_model()
        except Exception as error:
            raise CampaignError(f"variant {run.variant!r} on {run.environment}: {type(error).__name__}: {error}") from error
        assert model.env is not None
        model.env.close()


def show_plan(states: Sequence[tuple[Run, RunState]], out: Path) -> None:
    """A line for each variant and environment: how many runs are done, and how far the others are."""
    table = Table("variant", "environment", "runs", "finished", "partial", "failed", "steps done", title=str(out))
    groups: dict[tuple[str, str], list[tuple[Run, RunState]]] = {}
    for run, state in states:
        groups.setdefault((run.variant, run.environment), []).append((run, state))
    for (variant, environment), members in groups.items():
        count = Counter(state.status for _, state in members)
        share = sum(min(state.timesteps, run.steps) for run, state in members) / sum(run.steps for run, _ in members)
        counts = [str(count[status] or "") for status in ("finished", "partial", "failed")]
        table.add_row(variant, environment, str(len(members)), *counts, f"{share:.0%}")
    console = Console()
    console.print(table)
    missing = sum(max(run.steps - state.timesteps, 0) for run, state in states if state.status != "finished")
    console.print(f"{len(states)} runs, {missing:,} environment steps to do", highlight=False)


def terminate(*_: Any) -> None:
    """Let SIGTERM do what Ctrl-C does."""
    raise KeyboardInterrupt


def carry_out(campaign: Campaign, out: Path, runs: Sequence[Run], done: int, engine: Engine) -> int:
    """
    :param campaign: all of it
    :param out: its folder
    :param runs: to do now
    :param done: how many were done before
    :param engine: does them
    :return: how many failed
    """
    failures = 0
    began = tabled = time.monotonic()
    display = Display(runs, done)
    signal.signal(signal.SIGTERM, terminate)
    try:
        engine.start(runs)
        waiting = len(runs)
        while waiting:
            outcomes = engine.ended(SECONDS_BETWEEN_LOOKS)
            new_rows = display.refresh()
            for outcome in outcomes:
                display.ended(outcome)
                failures += bool(outcome.error)
            waiting -= len(outcomes)
            if outcomes or (new_rows and time.monotonic() - tabled > SECONDS_BETWEEN_TABLES):
                tabled = time.monotonic()
                write_results(campaign, out)
    finally:
        display.close()
        engine.stop()
        write_results(campaign, out)
    print(f"{len(runs) - failures} of {len(runs)} runs finished in {duration(time.monotonic() - began)}: {out / TABLE}")
    return failures


def engine_for(ray: str | None, campaign: Campaign, workers: int | None) -> Engine:
    """
    :param ray: an address; None for this machine without Ray
    :param campaign: says which resources a run needs
    :param workers: runs at a time; None for one per core
    :return: where the runs will happen
    """
    cores = joblib.cpu_count()
    if ray is None:
        return LocalEngine(workers or cores)
    if ray != LOCAL and workers is not None:
        raise CampaignError("--workers is for this machine; on a cluster, the file's resources decide how many runs fit")
    return RayEngine(ray, campaign.resources, workers or cores)


def campaign_command(arguments: Sequence[str]) -> int:
    """
    :param arguments: the command line after the program's name
    :return: the exit status: 0, or 1 if a run failed
    :raises CampaignError: if something is wrong that could be seen beforehand
    """
    given = arguments_parser().parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise CampaignError(f"--workers must be at least 1, not {given.workers}")
    out = given.out or Path("logs") / "campaigns" / given.file.stem
    campaign = read_campaign(given.file, out)
    runs = selected(campaign, given.only, given.part)
    check_writable(out)
    for run in runs:
        check_settings(run)
    states = [(run, state_of(run)) for run in runs]
    if given.dry_run:
        show_plan(states, out)
        return 0
    to_do = [run for run, state in states if state.status != "finished"]
    for run in to_do:
        with locked(run, 1.0):
            pass
    check_buildable(to_do)
    engine = engine_for(given.ray, campaign, given.workers)
    return FAILED if carry_out(campaign, out, to_do, len(runs) - len(to_do), engine) else 0


def main() -> None:
    """Run the command on ``sys.argv``."""
    try:
        sys.exit(campaign_command(sys.argv[1:]))
    except CampaignError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
