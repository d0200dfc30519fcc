"""Many runs at once, one thread each."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def run_all(function: Callable[..., str], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """
    Call ``function(*job)`` for every job, each in a fresh process with one CPU thread, and print what it returns as it comes.

    :param function: of a module's top level
    :param jobs: arguments of the calls
    :param workers: how many processes run at a time
    :raises Exception: the first one that a call raises, once all others have ended
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            print(future.result(), flush=True)
