"""Campaigns on a Ray cluster of two nodes, both on this machine."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import campaigns_for_tests as small
import pytest

from sb3_diffusion.experiments.engines import Outcome
from sb3_diffusion.experiments.folders import HOLDER, PROGRESS, read_json, state_of
from sb3_diffusion.experiments.plan import Campaign, CampaignError, Resources, Run
from sb3_diffusion.experiments.ray_engine import RayEngine

ray = pytest.importorskip("ray")

# A process from nothing takes seconds, and there are a dozen.
pytestmark = pytest.mark.slow

PPO = {"algo": "ppo", "n_steps": 16, "batch_size": 16, "n_epochs": 1, **small.SMALL}
WAITS = {"callback": {"campaigns_for_tests.WaitsForFile": {"calls": 40}}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, so that runs are on the other nodes, which tests add."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The nodes' processes import what the tests define.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    memory = {"object_store_memory": 80 * 1024**2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)


def waiting_campaign(folder: Path) -> Campaign:
    """Two runs that wait in the middle for a file."""
    return small.campaign(
        folder,
        {"ppo": PPO | WAITS},
        seeds=[0, 1],
        steps=64,
        checkpoints={"every": 16},
        evaluation={"every": 16, "episodes": 2},
        gym_packages=["campaigns_for_tests"],
    )


def wait_until_all_wait(runs: tuple[Run, ...]) -> None:
    small.wait_until(lambda: all(Path(run.folder, "waits").exists() for run in runs), 120.0)


def outcomes_of(engine: RayEngine, runs: tuple[Run, ...]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < len(runs):
        outcomes += engine.ended(120.0)
    return outcomes


@pytest.mark.parametrize("accident", ["a worker is killed", "a node is removed"])
def test_the_tables_are_those_of_this_machine_alone_whatever_happens_to_the_cluster(
    accident: str, cluster: Any, tmp_path: Path
) -> None:
    campaign, expected = waiting_campaign(tmp_path / "ray"), waiting_campaign(tmp_path / "expected")
    nodes = [add_node(cluster), add_node(cluster)]
    engine = RayEngine(cluster.address, Resources(), workers=1)
    try:
        engine.start(campaign.runs)
        wait_until_all_wait(campaign.runs)
        assert all(state_of(run).timesteps == 32 for run in campaign.runs), "both are after their second checkpoint"
        if accident == "a worker is killed":
            os.kill(read_json(Path(campaign.runs[0].folder) / HOLDER)["process"], signal.SIGKILL)
        else:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        (tmp_path / "ray" / "go on").touch()
        assert [outcome.error for outcome in outcomes_of(engine, campaign.runs)] == ["", ""]
    finally:
        engine.stop()
        for node in nodes:
            cluster.remove_node(node)
    (tmp_path / "expected" / "go on").touch()
    for run, twin in zip(campaign.runs, expected.runs, strict=True):
        small.finish(twin)
        assert small.measured(small.result(run)) == small.measured(small.result(twin))
    began = [[part["from"] for part in small.result(run)["parts"]] for run in campaign.runs]
    assert sorted(began) == [[0], [0, 32]], "one was not disturbed, the other went on from its checkpoint"


def test_a_failing_run_is_not_repeated_and_a_want_too_large_is_named(cluster: Any, tmp_path: Path) -> None:
    node = add_node(cluster)
    try:
        with pytest.raises(CampaignError, match="a run wants 4 CPU, the cluster has 1"):
            RayEngine(cluster.address, Resources(cpus=4), workers=1)
        fails = {"callback": {"campaigns_for_tests.StopsAt": {"calls": 20}}}
        packages = ["campaigns_for_tests"]
        campaign = small.campaign(tmp_path, {"fails": PPO | fails, "ppo": PPO}, gym_packages=packages, steps=32)
        engine = RayEngine(cluster.address, Resources(cpus=0.5), workers=1)
        try:
            engine.start(campaign.runs)
            outcomes = {outcome.run.variant: outcome.error for outcome in outcomes_of(engine, campaign.runs)}
        finally:
            engine.stop()
        assert outcomes == {"fails": "RuntimeError: failed at call 20", "ppo": ""}
        assert "RuntimeError: failed at call 20" in state_of(campaign.runs[0]).traceback
        assert (Path(campaign.runs[1].folder) / PROGRESS).exists()
    finally:
        cluster.remove_node(node)
