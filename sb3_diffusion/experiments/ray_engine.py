"""Runs on a Ray cluster (extra ``cluster``)."""

import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from sb3_diffusion.command_line import missing
from sb3_diffusion.experiments.engines import SECONDS_TO_WAIT_FOR_A_LOCK, Outcome, outcome_of
from sb3_diffusion.experiments.plan import CampaignError, Resources, Run
from sb3_diffusion.experiments.training import execute

LOCAL = "local"
SECONDS_TO_ANSWER = 5.0
# Each goes on from the run's last checkpoint.
RETRIES = 10
# Nothing of a run passes through Ray's object store; by default it would take a third of the memory.
OBJECT_STORE_BYTES = 100 * 1024**2


def check_address(address: str) -> None:
    """:raises CampaignError: if nothing answers at ``address``, "host:port" or "ray://host:port", within seconds"""
    split = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise CampaignError(f"--ray: {address!r} is no address (allowed: local, auto, host:port, ray://host:port)")
    try:
        socket.create_connection((host, port), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise CampaignError(f"--ray: no cluster answers at {address} ({error})") from error


class RayEngine:
    """
    Every run is a task in a process of its own, which Ray starts anew if its worker or node dies.

    :param address: of a cluster; "auto" for the one that this machine belongs to, "local" for one of this process
    :param resources: set aside for each run
    :param workers: cores of the local one
    :raises CampaignError: if Ray is not installed, or the cluster does not answer
    """

    def __init__(self, address: str, resources: Resources, workers: int) -> None:
        # Without it the driver reports to Ray's makers which libraries it uses.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise CampaignError(missing("--ray", error, "cluster")) from error
        self.ray, self.resources = ray, resources
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            ray.init(address=LOCAL, num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            if address != "auto":
                check_address(address)
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, TimeoutError) as error:
                raise CampaignError(f"--ray: no cluster answers at {address} ({error})") from error
        available = ray.cluster_resources()
        for name, wanted in (("CPU", resources.cpus), ("GPU", resources.gpus)):
            if wanted > available.get(name, 0):
                ray.shutdown()
                raise CampaignError(f"resources: a run wants {wanted} {name}, the cluster has {available.get(name, 0):g}")
        self.references: dict[Any, Run] = {}

    def start(self, runs: Sequence[Run]) -> None:
        task: Any = self.ray.remote(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_retries=RETRIES,
            retry_exceptions=False,
            max_calls=1,  # a fresh process for each
        )(execute)
        self.references = {task.remote(run, SECONDS_TO_WAIT_FOR_A_LOCK): run for run in runs}

    def ended(self, seconds: float) -> list[Outcome]:
        done, _ = self.ray.wait(list(self.references), num_returns=1, timeout=seconds)
        outcomes = []
        for reference in done:
            error: BaseException | None = None
            try:
                self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as failure:
                error = failure.cause
            except self.ray.exceptions.RayError as failure:
                error = failure
            outcomes.append(outcome_of(self.references.pop(reference), error))
        return outcomes

    def stop(self) -> None:
        for reference in self.references:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()
