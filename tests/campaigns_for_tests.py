"""Small campaigns, and processes that are killed while they run one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from envs_for_tests import StrictBoxEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion.experiments.folders import RESULT, read_json
from sb3_diffusion.experiments.plan import Campaign, Run, read_campaign
from sb3_diffusion.experiments.training import execute


class ReachGoalEnv(gym.Env):
    """A point on a line that is to reach another: a goal environment for hindsight experience replay."""

    def __init__(self) -> None:
        point = spaces.Box(-5.0, 5.0, (1,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Dict({"observation": point, "achieved_goal": point, "desired_goal": point})

    def observe(self) -> dict[str, np.ndarray]:
        return {"observation": self.point.copy(), "achieved_goal": self.point.copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        super().reset(seed=seed)
        self.point, self.goal = (self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32) for _ in range(2))
        self.n_steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        self.point = np.clip(self.point + 0.5 * action, -5.0, 5.0).astype(np.float32)
        self.n_steps += 1
        return self.observe(), float(self.compute_reward(self.point, self.goal, {})), False, self.n_steps >= 7, {}


gym.register("ReachGoal-v0", ReachGoalEnv)
# Episodes of ten steps: an evaluation costs little.
gym.register("Short-v0", StrictBoxEnv)


class StopsAt(BaseCallback):
    """A user's callback that fails at a number of calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def _on_step(self) -> bool:
        if self.n_calls == self.calls:
            raise RuntimeError(f"failed at call {self.calls}")
        return True


class KillsItself(StopsAt):
    """A process that ends without a word, as one does that takes too much memory."""

    def _on_step(self) -> bool:
        if self.n_calls == self.calls:
            print("it ends here", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class WaitsForFile(StopsAt):
    """Waits at a number of calls until there is a file "go on" above the run's folder, and says so by a file "waits"."""

    def _on_step(self) -> bool:
        if self.n_calls == self.calls:
            folder = Path(os.readlink("/proc/self/fd/1")).parent  # of the run: its log is there
            (folder / "waits").touch()
            wait_until(lambda: any((parent / "go on").exists() for parent in folder.parents), 300.0)
        return True


def goal_distance(model: Any, env: Any) -> dict[str, float]:
    """A metric for an evaluation, with random numbers of all kinds."""
    observations = env.reset()
    actions, _ = model.predict(observations, deterministic=False)
    return {"mean_action": float(actions.mean()), "first_observation": float(observations[0][0]) + 0.0 * np.random.rand()}


SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}}
OFF_POLICY = SMALL | {"batch_size": 8, "learning_starts": 20, "train_freq": 2}


def campaign(folder: Path, variants: dict[str, Any], **more: Any) -> Campaign:
    """A campaign in ``folder`` whose file says so."""
    content = {"environments": ["Short-v0"], "seeds": [0], "steps": 120, "variants": variants}
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


def result(run: Run) -> dict[str, Any]:
    """Of a finished run."""
    content = read_json(Path(run.folder) / RESULT)
    assert content is not None, (Path(run.folder) / "log.txt").read_text()
    return content


def finish(run: Run) -> dict[str, Any]:
    """Its result, from a process of its own."""
    process = start(run)
    process.join()
    return result(run)


def kill(process: multiprocessing.process.BaseProcess, seconds: float) -> bool:
    """Kill it after so long; whether it was still running."""
    process.join(seconds)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return alive


def measured(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result without the time they took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in content["rows"]]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look every few milliseconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.005)
