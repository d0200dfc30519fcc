"""
A long training with evaluation, checkpoints and TensorBoard: memory, open files and speed must not drift.

    python benchmarks/soak.py DiffSAC --record     # 4 minutes on a free core; and so for the other algorithms

Prints one line per tenth of the training: resident memory in MiB, open file handles, environment steps per second of CPU time.
The exit status is 1 if, after the first three tenths (buffers fill, allocators warm up), memory has grown by more than 5 %, or
handles have grown, or the last third is slower than the middle one by more than a quarter. ``--record`` puts the lines into
results/soak.csv, in the place of the algorithm's earlier ones.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor

import sb3_diffusion
from sb3_diffusion.zoo import ALGORITHMS

RESULTS = Path(__file__).parent / "results" / "soak.csv"
COLUMNS = ["algorithm", "steps", "memory_mib", "handles", "steps_per_second"]


class FastEnv(gym.Env):
    """A point that the action pushes."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-1.0, 1.0, (1,))
    length = 50

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.point, self.count = self.np_random.uniform(-1, 1, 3).astype(np.float32), 0
        return self.point, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.point = (0.9 * self.point + 0.1 * action).astype(np.float32)
        self.count += 1
        return self.point, -float(np.abs(self.point).sum()), False, self.count >= self.length, {}


class Watch(BaseCallback):
    """
    Measures at each tenth of the training.

    :param every: steps between two measurements
    """

    def __init__(self, every: int):
        super().__init__()
        self.every = every
        self.rows: list[tuple[float, int, float]] = []

    def _on_training_start(self) -> None:
        self.started = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            now = time.process_time()
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            steps_per_second = self.every / (now - self.started)
            handles = len(os.listdir("/proc/self/fd"))
            self.rows.append((memory, handles, steps_per_second))
            self.started = now
            print(f"{self.num_timesteps:8d} steps  {memory:7.1f} MiB  {handles:3d} handles  {steps_per_second:6.0f} steps/s")
        return True


def record(algorithm: str, rows: list[list[str]]) -> None:
    """Put an algorithm's rows in the place of its earlier ones."""
    kept = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            kept = [row for row in csv.reader(file) if row[0] not in (algorithm, COLUMNS[0])]
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *sorted([*kept, *rows], key=lambda row: (row[0], int(row[1])))])


def main() -> int:
    """Train and judge."""
    names = sorted(algorithm.__name__ for algorithm in ALGORITHMS.values())
    parser = argparse.ArgumentParser(description="Does memory, do file handles or speed drift in a long training?")
    parser.add_argument("algorithm", choices=names, help="trained with small networks on a fast task")
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=f"into {RESULTS.name}")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    algorithm = getattr(sb3_diffusion, arguments.algorithm)
    small = dict(n_steps=256, n_epochs=1) if arguments.algorithm == "DiffPPO" else dict(buffer_size=10_000, train_freq=16)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(arguments.steps // 10)
        callbacks = [
            watch,
            EvalCallback(Monitor(FastEnv()), eval_freq=arguments.steps // 60, best_model_save_path=folder, verbose=0),
            CheckpointCallback(arguments.steps // 60, folder, save_replay_buffer=True),
        ]
        policy_kwargs = dict(net_arch=[16], diffusion_steps=2)
        model = algorithm(
            "MlpPolicy", FastEnv(), batch_size=32, policy_kwargs=policy_kwargs, tensorboard_log=folder, device="cpu", **small
        )
        model.learn(arguments.steps, callback=callbacks)
    if arguments.record:
        tenths = [
            [arguments.algorithm, str(watch.every * (number + 1)), f"{memory:.1f}", str(handles), f"{speed:.0f}"]
            for number, (memory, handles, speed) in enumerate(watch.rows)
        ]
        record(arguments.algorithm, tenths)
    memory, handles, speed = np.array(watch.rows[3:]).T
    growth, slower = memory[-1] / memory[0] - 1, 1 - np.median(speed[-3:]) / np.median(speed[:4])
    print(f"{arguments.algorithm}: memory {growth:+.1%}, handles {int(handles[-1] - handles[0]):+d}, speed {-slower:+.1%}")
    return int(growth > 0.05 or handles[-1] > handles[0] or slower > 0.25)


if __name__ == "__main__":
    sys.exit(main())
