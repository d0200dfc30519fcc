"""Where the runs of a campaign happen: every one in a fresh process, each for itself."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from joblib.externals.loky.process_executor import ProcessPoolExecutor

from sb3_diffusion.experiments.folders import FAILURE, RESULT, LockedRun, write_json
from sb3_diffusion.experiments.plan import Run
from sb3_diffusion.experiments.training import execute

SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 0.5
# As long as a process may take to notice that its parent is gone
SECONDS_TO_WAIT_FOR_A_LOCK = 10 * SECONDS_BETWEEN_LOOKS_AT_THE_PARENT
# PyTorch, NumPy and MuJoCo read them once, when they are imported.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass(frozen=True)
class Outcome:
    """
    :param run: that has ended
    :param error: one line, empty for a finished run; the traceback is in its folder
    """

    run: Run
    error: str = ""


class Engine(Protocol):
    """Runs are given to it once, and it tells which have ended."""

    def start(self, runs: Sequence[Run]) -> None:
        """Begin with the runs, in this order."""

    def ended(self, seconds: float) -> list[Outcome]:
        """:return: those that ended since the last call; waits for the first one, at most ``seconds``"""

    def stop(self) -> None:
        """End all processes now; the runs can be continued."""


def end_with_parent(parent: int) -> None:
    """
    Let this process end when its parent does, however that ends: a run that goes on would hold its lock.

    :param parent: the parent's process id
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_PARENT)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def outcome_of(run: Run, error: BaseException | None) -> Outcome:
    """
    :param run: that has ended
    :param error: None if it is finished
    :return: the same in one line; of a process that died without a word, the run's folder gets it too
    """
    if error is None:
        return Outcome(run)
    lines = str(error).strip().splitlines() or [""]
    line = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, LockedRun):
        return Outcome(run, line)
    failure = Path(run.folder) / FAILURE
    if not failure.exists() and not (Path(run.folder) / RESULT).exists():
        write_json(
            failure, {"traceback": f"The process of the run ended without a traceback. {type(error).__name__}: {error}"}
        )
    return Outcome(run, line)


class LocalEngine:
    """
    This machine. loky starts and watches the processes, one executor of one worker per run: the others do not notice when one
    is killed for its memory.

    :param workers: runs at a time
    """

    def __init__(self, workers: int) -> None:
        self.threads = ThreadPoolExecutor(workers)
        self.executors: set[ProcessPoolExecutor] = set()
        self.futures: dict[Future[None], Run] = {}
        self.lock, self.stopped = threading.Lock(), False

    def in_fresh_process(self, run: Run) -> None:
        """Returns when the run has ended."""
        with self.lock:
            if self.stopped:
                return
            executor = ProcessPoolExecutor(1, env=ONE_THREAD, initializer=end_with_parent, initargs=(os.getpid(),))
            self.executors.add(executor)
            future = executor.submit(execute, run, SECONDS_TO_WAIT_FOR_A_LOCK)
        try:
            future.result()
        finally:
            with self.lock:
                self.executors.discard(executor)
            executor.shutdown(kill_workers=True)

    def start(self, runs: Sequence[Run]) -> None:
        self.futures = {self.threads.submit(self.in_fresh_process, run): run for run in runs}

    def ended(self, seconds: float) -> list[Outcome]:
        done, _ = wait(self.futures, seconds, FIRST_COMPLETED)
        return [outcome_of(self.futures.pop(future), future.exception()) for future in done]

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            executors = list(self.executors)
        self.threads.shutdown(wait=False, cancel_futures=True)
        for executor in executors:
            executor.shutdown(kill_workers=True)
        self.threads.shutdown()
