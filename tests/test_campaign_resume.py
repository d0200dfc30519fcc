"""Runs of a campaign that are killed and continued."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import campaigns_for_tests as small
import pytest
import torch as th
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_diffusion.experiments.checkpoints import checkpoints_in
from sb3_diffusion.experiments.plan import Run

ON_POLICY = small.SMALL | {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "sac": {"algo": "sac", **small.OFF_POLICY},
    "diffsac": {"algo": "diffsac", **small.OFF_POLICY},
    "ppo": {"algo": "ppo", **ON_POLICY, "n_envs": 2, "normalize": True, "learning_rate": "lin_3e-4"},
}


def parameters(run: Run) -> dict[str, th.Tensor]:
    """Of the trained model."""
    _, saved, _ = load_from_zip_file(Path(run.folder) / "model.zip")
    return saved["policy"]


def same_parameters(first: Run, second: Run) -> bool:
    one, other = parameters(first), parameters(second)
    return one.keys() == other.keys() and all(th.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_ten_times_has_the_numbers_of_one_that_was_not(variant: str, tmp_path: Path) -> None:
    plan = small.campaign(tmp_path, {variant: VARIANTS[variant]}, steps=400, checkpoints={"every": 32})
    run = plan.runs[0]
    twin = replace(run, folder=str(tmp_path / "twin"))
    expected = small.finish(twin)
    moments = random.Random(0)
    for number in range(10):
        before = checkpoints_in(Path(run.folder))
        process = small.start(run)
        if number % 2:  # so that it gets on even if the machine is slow
            small.wait_until(lambda: checkpoints_in(Path(run.folder))[-1:] != before[-1:])  # noqa: B023
        assert small.kill(
            process, moments.uniform(0.0, 0.1 if number % 2 else 0.5)
        ), "it was done before it was killed ten times"
    result = small.finish(run)
    assert len(result["parts"]) > 3
    assert small.measured(result) == small.measured(expected)
    assert same_parameters(run, twin)
