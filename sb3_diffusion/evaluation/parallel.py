"""Many runs at once, one thread each, and the results of those that are done."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sb3_diffusion.common.saving import replacing
from sb3_diffusion.experiments.provenance import provenance


def end_with_parent() -> None:
    """Let this process end when its parent does, however that ends: a run that goes on would write beside its successor."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_all(function: Callable[..., str], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """
    Call ``function(*job)`` for every job, each in a fresh process with one CPU thread, and print what it returns as it comes.
    The processes end with this one, also if it is killed.

    :param function: of a module's top level
    :param jobs: arguments of the calls
    :param workers: how many processes run at a time
    :raises Exception: the first one that a call raises, once all others have ended
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            print(future.result(), flush=True)


def remembered(path: Path, settings: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """
    What ``compute`` returned the first time, so that an interrupted campaign goes on where it stopped.

    :param path: the JSON file that holds settings, result and :func:`provenance`
    :param settings: what the result depends on
    :param compute: called if there is no such file; its result must be what JSON can hold
    :raises ValueError: if the file was made with other settings
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        content = json.loads(path.read_text())
        if content["settings"] != settings:
            raise ValueError(f"{path} was made with {content['settings']}, not {settings}; delete it or choose another folder")
        return content["result"]
    result = compute()
    with replacing(path, ".json") as temporary:
        temporary.write_text(json.dumps({"settings": settings, **provenance(), "result": result}, indent=1) + "\n")
    return result
