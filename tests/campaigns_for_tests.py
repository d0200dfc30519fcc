"""Small campaigns, and processes that are killed while they run one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sb3_diffusion.experiments.folders import RESULT, read_json
from sb3_diffusion.experiments.plan import Campaign, Run, read_campaign
from sb3_diffusion.experiments.training import execute

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}}
OFF_POLICY = SMALL | {"batch_size": 8, "learning_starts": 20}


def campaign(folder: Path, variants: dict[str, Any], **more: Any) -> Campaign:
    """A campaign in ``folder`` whose file says so."""
    content = {"environments": ["Pendulum-v1"], "seeds": [0], "steps": 120, "variants": variants}
    content |= {"evaluation": {"every": 50, "episodes": 2}, "device": "cpu"} | more
    file = folder / "small.yml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_campaign(file, folder / "out")


# A copy of this process starts at once, one from nothing imports PyTorch for seconds.
forked = multiprocessing.get_context("fork")


def start(run: Run) -> multiprocessing.process.BaseProcess:
    """The run in a process of its own."""
    process = forked.Process(target=execute, args=(run,))
    process.start()
    return process


def finish(run: Run) -> dict[str, Any]:
    """Its result."""
    process = start(run)
    process.join()
    result = read_json(Path(run.folder) / RESULT)
    assert result is not None, (Path(run.folder) / "log.txt").read_text()
    return result


def kill(process: multiprocessing.process.BaseProcess, seconds: float) -> bool:
    """Kill it after so long; whether it was still running."""
    process.join(seconds)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return alive


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result without the time they took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result["rows"]]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look every few milliseconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.005)
