"""
Which states should the actor be trained at besides the next ones (own_states)? Truncated, short and long episodes; the price.

    python benchmarks/own_states.py

Writes results/own_states.csv: per setting, share and seed, after so many steps, the mean squared error of the deterministic
action where an episode is one step, and the return of 10 episodes of Pendulum-v1; and a gradient step's milliseconds of CPU.
"""

import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_diffusion import DiffSAC

RESULTS = Path(__file__).parent / "results" / "own_states.csv"
# None: SAC, which trains its actor at all rows' own states
SHARES: tuple[Any, ...] = (0, 1 / 16, "auto", 1, None)
SEEDS = (0, 1, 2)
GRID = np.linspace(-1, 1, 201, dtype=np.float32).reshape(-1, 1)


def best_actions(contexts: np.ndarray) -> np.ndarray:
    return 0.8 * np.sin(4 * contexts)


class Contexts(gym.Env):
    """
    A context, one action for it, and a time limit of one step: the best action is 0.8 sin 4x.

    :param last: what the last observation of an episode is: "another" context, or 0 in all episodes, "fixed"
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, last: str):
        self.last = last

    def _draw(self) -> np.ndarray:
        self.context = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.context

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = -float(((action - best_actions(self.context)) ** 2).sum())
        return self._draw() if self.last == "another" else np.zeros(1, np.float32), reward, False, True, {}


def error(model: Any) -> float:
    return float(((model.predict(GRID, deterministic=True)[0] - best_actions(GRID)) ** 2).mean())


def pendulum_return(model: Any) -> float:
    env = Monitor(gym.make("Pendulum-v1"))
    env.reset(seed=1000)
    return float(np.mean(evaluate_policy(model, env, n_eval_episodes=10)[0]))


SETTINGS: dict[str, Any] = {
    f"one step, truncated, last observation: {last}": (lambda last=last: Contexts(last), error, (600, 1200, 1800))
    for last in ("another", "fixed")
} | {"Pendulum-v1": (lambda: gym.make("Pendulum-v1"), pendulum_return, (2000, 3000, 4000))}


class Measure(BaseCallback):
    """
    :param measure: of the model
    :param at: steps after which it is taken
    """

    def __init__(self, measure: Any, at: tuple[int, ...]):
        super().__init__()
        self.measure, self.at, self.values = measure, at, {}

    def _on_step(self) -> bool:
        # Before the update that this step brings; the last update is within the next measurement
        if self.num_timesteps - 1 in self.at:
            self.values[self.num_timesteps - 1] = self.measure(self.model)
        return True


def make(share: Any, env: gym.Env, **kwargs: Any) -> Any:
    arguments = dict(learning_rate=1e-3, policy_kwargs=dict(net_arch=[64, 64]), device="cpu") | kwargs
    return SAC("MlpPolicy", env, **arguments) if share is None else DiffSAC("MlpPolicy", env, own_states=share, **arguments)


def gradient_step_milliseconds(rounds: int = 15, steps: int = 5) -> dict[Any, float]:
    """Median over rounds that take the shares in turn: default networks and batch, Pendulum-v1's spaces."""
    models = {
        share: make(share, gym.make("Pendulum-v1"), policy_kwargs={}, seed=0).learn(130)
        for share in (0, 1 / 16, 1 / 4, 1 / 2, 1, None)
    }
    times: dict[Any, list[float]] = {share: [] for share in models}
    for _ in range(rounds):
        for share, model in models.items():
            started = time.process_time()
            model.train(steps, batch_size=256)
            times[share].append((time.process_time() - started) / steps * 1e3)
    return {share: float(np.median(values)) for share, values in times.items()}


def main() -> None:
    """Run all and write the table."""
    th.set_num_threads(1)
    rows: list[list[Any]] = [["setting", "own_states", "seed", "steps", "value"]]
    for setting, (make_env, measure, at) in SETTINGS.items():
        for share in SHARES:
            if share == "auto" and setting == "Pendulum-v1":
                continue  # 1/16 there, by definition
            for seed in SEEDS:
                callback = Measure(measure, at)
                model = make(share, Monitor(make_env()), seed=seed).learn(max(at) + 1, callback=callback)
                name = "SAC" if share is None else share
                rows += [[setting, name, seed, steps, f"{value:.4g}"] for steps, value in callback.values.items()]
                print(setting, name, seed, callback.values, model.num_timesteps, flush=True)
    for share, value in gradient_step_milliseconds().items():
        rows.append(["milliseconds of a gradient step", "SAC" if share is None else share, 0, "", f"{value:.3g}"])
        print(rows[-1], flush=True)
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
