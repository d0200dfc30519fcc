"""Runs of a campaign: what their numbers depend on, and what they do not depend on."""

import pickle
import random
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import campaigns_for_tests as small
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_diffusion.experiments import checkpoints, training
from sb3_diffusion.experiments.building import RunManager
from sb3_diffusion.experiments.checkpoints import checkpoints_in, end_trajectories
from sb3_diffusion.experiments.folders import RESULT, state_of
from sb3_diffusion.experiments.plan import Evaluation, Run

ON_POLICY = small.SMALL | {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "sac": {"algo": "sac", **small.OFF_POLICY},
    "diffsac": {"algo": "diffsac", **small.OFF_POLICY},
    "ppo": {"algo": "ppo", **ON_POLICY, "n_envs": 2, "normalize": True, "learning_rate": "lin_3e-4"},
}
HER = {
    "replay_buffer_class": "HerReplayBuffer",
    "replay_buffer_kwargs": "dict(n_sampled_goal=2)",
    "policy": "MultiInputPolicy",
}
NOISE = {"noise_type": "ornstein-uhlenbeck", "noise_std": 0.3, "n_envs": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffwpo": ("Short-v0", {"algo": "diffwpo", **small.OFF_POLICY}),
    "diffppo": ("Short-v0", {"algo": "diffppo", **ON_POLICY, "normalize": {"norm_reward": False}}),
    "diffusion policy in SAC": (
        "Short-v0",
        {"algo": "sac", "policy": "sb3_diffusion.DiffusionSACPolicy", **small.OFF_POLICY},
    ),
    "normalised n-step SAC": ("Short-v0", {"algo": "sac", "n_steps": 3, "normalize": True, **small.OFF_POLICY}),
    "gSDE": ("Short-v0", {"algo": "sac", "use_sde": True, **small.OFF_POLICY, "train_freq": 8, "gradient_steps": 2}),
    "episodes": ("BimodalBandit-v0", {"algo": "sac", **small.OFF_POLICY, "train_freq": [3, "episode"], "gradient_steps": -1}),
    "hindsight": ("ReachGoal-v0", {"algo": "sac", **HER, **small.OFF_POLICY, "buffer_size": 500}),
    "little memory": (
        "Short-v0",
        {"algo": "sac", "replay_buffer_kwargs": {"handle_timeout_termination": False}, "optimize_memory_usage": True}
        | small.OFF_POLICY,
    ),
    "full buffer": ("Short-v0", {"algo": "sac", "buffer_size": 40, **small.OFF_POLICY}),
    "td3 with noise": ("Short-v0", {"algo": "td3", **NOISE, **small.OFF_POLICY}),
    "dqn": ("CartPole-v1", {"algo": "dqn", "learning_rate": "lin_1e-2", **small.OFF_POLICY}),
    "crossq": ("Short-v0", {"algo": "crossq", **small.OFF_POLICY}),
    "tqc": ("Short-v0", {"algo": "tqc", **small.OFF_POLICY}),
    "recurrent": ("Short-v0", {"algo": "ppo_lstm", **ON_POLICY, "policy": "MlpLstmPolicy", "n_envs": 2}),
    "compiled": ("Short-v0", {"algo": "diffsac", "torch_compile": True, **small.OFF_POLICY}),
    "compiled diffcrossq": ("Short-v0", {"algo": "diffcrossq", "torch_compile": True, **small.OFF_POLICY}),
    "diffcrossq": ("Short-v0", {"algo": "diffcrossq", "policy_delay": 3, **small.OFF_POLICY}),
    "difftqc": ("Short-v0", {"algo": "difftqc", **small.OFF_POLICY}),
    "trpo": ("Short-v0", {"algo": "trpo", "n_steps": 16, "batch_size": 16, **small.SMALL}),
    "ars": ("Short-v0", {"algo": "ars", "n_delta": 1, "policy": "LinearPolicy", "n_envs": 2}),
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
    started = time.monotonic()
    expected = small.finish(twin)
    # Shares of a run's time that leave some of it after ten kills, on a fast machine too
    longest = 0.08 * (time.monotonic() - started)
    moments = random.Random(0)
    for number in range(10):
        before = checkpoints_in(Path(run.folder))
        process = small.start(run)
        if number % 2:  # so that it gets on even if the machine is slow
            small.wait_until(lambda: checkpoints_in(Path(run.folder))[-1:] != before[-1:])  # noqa: B023
        moment = moments.uniform(0.0, longest / 3 if number % 2 else longest)
        assert small.kill(process, moment), "it was done before it was killed ten times"
    result = small.finish(run)
    assert len(result["parts"]) > 3
    assert small.measured(result) == small.measured(expected)
    assert same_parameters(run, twin)


# A compilation takes longer than all others together.
SLOW = ("compiled", "compiled diffcrossq")


class Killed(BaseException):
    """What a test lets happen instead of a signal."""


def die(*_: Any) -> None:
    raise Killed


def killed_run(run: Run, monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> None:
    """The run as it is when the process dies before a function."""
    with monkeypatch.context() as patch:
        patch.setattr(module, function, die)
        with pytest.raises(Killed):
            training.train(run)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS])
def test_every_kind_of_algorithm_goes_on_as_if_nothing_had_happened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_id, variant = KINDS[kind]
    plan = small.campaign(tmp_path, {"any": variant}, environments=[env_id], checkpoints={"every": 48})
    run = plan.runs[0]
    twin = replace(run, folder=str(tmp_path / "twin"))
    training.train(twin)
    if variant["algo"] == "ars":
        assert run.checkpoint_every == run.steps, "it starts anew"
        killed_run(run, monkeypatch, training, "remove_checkpoints")
        (Path(run.folder) / RESULT).unlink()
    else:
        killed_run(run, monkeypatch, training, "restart")
        assert 48 <= state_of(run).timesteps < 120
    training.train(run)
    assert small.measured(small.result(run)) == small.measured(small.result(twin))
    assert [row["timesteps"] // 50 for row in small.result(run)["rows"]] == [1, 2, 2]
    assert same_parameters(run, twin)
    assert not checkpoints_in(Path(run.folder))


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "shutil.rmtree"])
def test_a_checkpoint_is_there_as_a_whole_or_not_at_all(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.campaign(tmp_path, {"sac": VARIANTS["sac"]}, checkpoints={"every": 48}).runs[0]
    twin = replace(run, folder=str(tmp_path / "twin"))
    training.train(twin)
    module, _, name = function.partition(".")
    killed_run(run, monkeypatch, training, "restart")
    original, calls = getattr(getattr(checkpoints, module), name), []

    def die_at_the_second_checkpoint(*arguments: Any, **more: Any) -> Any:
        if any("000096" in str(argument) for argument in arguments) or len(checkpoints_in(Path(run.folder))) == 2:
            raise Killed
        calls.append(arguments)
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(getattr(checkpoints, module), name, die if name == "fsync" else die_at_the_second_checkpoint)
        with pytest.raises(Killed):
            training.train(run)
    assert state_of(run).timesteps == (96 if name == "rmtree" else 48)
    training.train(run)
    assert small.measured(small.result(run)) == small.measured(small.result(twin))
    assert not list(Path(run.folder).glob("*checkpoint*"))


@pytest.mark.parametrize("variant", ["sac", "diffsac", "ppo"])
def test_evaluation_does_not_change_the_training(variant: str, tmp_path: Path) -> None:
    run = small.campaign(tmp_path, {variant: VARIANTS[variant]}, checkpoints={"every": 64}).runs[0]
    metric = ("campaigns_for_tests.goal_distance",)
    twin = replace(run, folder=str(tmp_path / "twin"), evaluation=Evaluation(every=17, episodes=1, metrics=metric))
    training.train(run)
    training.train(twin)
    assert len(small.result(twin)["rows"]) > len(small.result(run)["rows"])
    assert same_parameters(run, twin)


def test_without_checkpoints_a_run_is_what_sb3_does(tmp_path: Path) -> None:
    run = small.campaign(tmp_path, {"sac": VARIANTS["sac"]}, seeds=[3], checkpoints={"every": 120}).runs[0]
    training.train(run)
    model = SAC(
        "MlpPolicy", make_vec_env(small.StrictBoxEnv, seed=3), seed=3, device="cpu", **deepcopy(small.OFF_POLICY)
    ).learn(120)
    trained = parameters(run)
    assert all(th.equal(tensor, trained[name]) for name, tensor in model.policy.state_dict().items())


def test_schedules_run_over_the_whole_run_whatever_the_checkpoints(tmp_path: Path) -> None:
    run = small.campaign(tmp_path, {"ppo": VARIANTS["ppo"]}, checkpoints={"every": 32}, steps=128).runs[0]
    training.train(run)
    rates = [row["train/learning_rate"] for row in small.result(run)["training"] if "train/learning_rate" in row]
    # 2 environments, 16 steps: an update every 32 steps, and none of them with a rate of 0 before the end
    assert rates == pytest.approx([3e-4 * (1 - 32 / 128), 3e-4 * (1 - 96 / 128), 3e-4 * (1 - 96 / 128)])


def test_seconds_are_those_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = training.Stopwatch(10.0)
    now = [watch.since]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    now[0] += 2.0
    with watch.paused():
        now[0] += 100.0
        assert watch.seconds() == 12.0
    now[0] += 3.0
    assert watch.seconds() == 15.0


def test_normalisation_statistics_go_on_over_a_checkpoint(tmp_path: Path) -> None:
    run = small.campaign(tmp_path, {"ppo": VARIANTS["ppo"]}, checkpoints={"every": 32}, steps=128).runs[0]
    training.train(run)
    with (Path(run.folder) / "vecnormalize.pkl").open("rb") as file:
        statistics = pickle.load(file)
    # A row for every step of both environments and for the reset at the start and at each of three checkpoints
    assert statistics.obs_rms.count == pytest.approx(128 + 4 * 2, abs=0.1)
    assert statistics.ret_rms.count == pytest.approx(128, abs=0.1)


def test_a_checkpoint_has_no_unfinished_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.campaign(tmp_path, {"sac": VARIANTS["sac"]}, checkpoints={"every": 46}).runs[0]
    killed_run(run, monkeypatch, training, "restart")
    with (checkpoints_in(Path(run.folder))[0] / "replay_buffer.pkl").open("rb") as file:
        buffer = pickle.load(file)
    assert len(buffer.timeouts) == 46 < buffer.buffer_size, "only what is filled"
    assert np.flatnonzero(buffer.timeouts).tolist() == [9, 19, 29, 39, 45], "episodes have 10 steps"


@pytest.mark.parametrize("kind", ["plain", "terminal", "little memory", "hindsight"])
def test_an_unfinished_episode_in_the_replay_buffer_counts_as_truncated_at_a_checkpoint(kind: str, tmp_path: Path) -> None:
    env_id, variant = KINDS.get(kind, ("Short-v0", VARIANTS["sac"]))
    run = small.campaign(tmp_path, {"any": variant}, environments=[env_id]).runs[0]
    model: Any = RunManager(run).create_model()
    model.learn(6 if kind == "hindsight" else 24)  # episodes have 7 steps, or 10
    buffer, last = model.replay_buffer, model.replay_buffer.pos - 1
    if kind == "terminal":
        buffer.dones[last] = True
    end_trajectories(model)
    assert buffer.dones[last] == 1
    timeouts = {"plain": 1, "hindsight": 1, "terminal": 0, "little memory": 0}
    assert buffer.timeouts[last] == timeouts[kind], "the value of the next observation counts"
    if kind == "hindsight":
        assert buffer.ep_length[last] == 6, "the episode can be sampled"
