"""What a run's folder holds, and whose it is."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sb3_diffusion.common.saving import replacing
from sb3_diffusion.experiments.checkpoints import timesteps_kept
from sb3_diffusion.experiments.plan import CampaignError, Run

SETTINGS, PROGRESS, RESULT, FAILURE = "settings.json", "progress.json", "result.json", "failure.json"
LOG, LOCK, HOLDER = "log.txt", "lock", "holder.json"


class LockedRun(CampaignError):
    """Another process writes the run."""


@dataclass(frozen=True)
class RunState:
    """
    How far a run is.

    :param status: "finished", "failed", "partial" or "new"
    :param timesteps: environment steps so far; of a run that is not finished, in the latest checkpoint
    :param seconds: of training so far
    :param rows: of its evaluations
    :param traceback: of a failed run
    :param parts: what each stretch of the training was made with
    """

    status: str
    timesteps: int = 0
    seconds: float = 0.0
    rows: tuple[dict[str, Any], ...] = ()
    traceback: str = ""
    parts: tuple[dict[str, Any], ...] = ()


def write_json(path: Path, content: Any) -> None:
    """At once or not at all."""
    with replacing(path, ".json") as temporary:
        temporary.write_text(json.dumps(content) + "\n")


def read_json(path: Path) -> Any:
    """:return: its content, None if there is no such file"""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def state_of(run: Run) -> RunState:
    """:return: what its folder tells"""
    folder = Path(run.folder)
    result = read_json(folder / RESULT)
    if result is not None:
        return RunState(
            "finished", result["timesteps"], result["seconds"], tuple(result["rows"]), parts=tuple(result["parts"])
        )
    progress = read_json(folder / PROGRESS)
    failure = read_json(folder / FAILURE)
    status = "failed" if failure else "partial" if progress else "new"
    progress = {"seconds": 0.0, "rows": [], "parts": []} | (progress or {})
    text = failure["traceback"] if failure else ""
    kept = timesteps_kept(folder)
    return RunState(status, kept, progress["seconds"], tuple(progress["rows"]), text, tuple(progress["parts"]))


@contextmanager
def locked(run: Run, seconds_to_wait: float = 0.0) -> Iterator[None]:
    """
    No other process can write the run in the block. The lock ends with the process, however that ends.

    :param run: the run
    :param seconds_to_wait: until it is given up
    :raises LockedRun: if another process has it
    """
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=seconds_to_wait)
    except Timeout:
        holder = read_json(folder / HOLDER) or {}
        raise LockedRun(
            f"{run.name} is being written by process {holder.get('process', '?')} on {holder.get('host', '?')} ({folder})"
        ) from None
    try:
        write_json(folder / HOLDER, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        lock.release()


def difference(before: Any, now: Any, path: str = "") -> list[str]:
    """:return: where two settings differ, a line each"""
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for key in {**before, **now}:
            where = f"{path}.{key}" if path else str(key)
            lines += difference(before.get(key, "not given"), now.get(key, "not given"), where)
        return lines
    return [] if before == now else [f"{path} was {before!r} and is {now!r}"]


def check_settings(run: Run) -> None:
    """:raises CampaignError: if the run's folder was made with other settings, with the difference"""
    before = read_json(Path(run.folder) / SETTINGS)
    lines = difference(before, run.identity) if before is not None else []
    if lines:
        raise CampaignError(
            f"{run.name} was made with other settings: {'; '.join(lines)}. Give the variant another name, "
            f"choose another --out, or remove {run.folder}"
        )
