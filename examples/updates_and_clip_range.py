"""
How should the number of updates and the clip range of DiffPPO change with K? A grid over both for several K on Pendulum.

    python examples/updates_and_clip_range.py

Each of the K steps of a chain has its own probability ratio and its own clip, so an update may move the whole chain further
the more steps it has. Writes updates_and_clip_range.csv (return of the last fifth of the training, and means over it of the
closed-form divergence of a chain in an update and of the share of clipped ratios) and updates_and_clip_range.png to --out. A
finished run is not repeated.

What was found (two seeds, ``examples/results/updates_and_clip_range``): neither needs to change with K. For K = 2, 4 and 8
alike 20 epochs with a clip range of 0.1 or 0.2 end best (-207 to -236), and fewer epochs are too few at any clip range (10:
-490 and below). More steps bear a wide range less: at 0.4 the return falls to -271, -302 and -430 while the divergence of
a chain in an update grows to 0.31, 0.36 and 0.57 nats.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO
from sb3_diffusion.evaluation import remembered, run_all

SEEDS = (0, 1)
DIFFUSION_STEPS = (2, 4, 8)
EPOCHS = (5, 10, 20)
CLIP_RANGES = (0.05, 0.1, 0.2, 0.4)
STEPS = 60_000
N_ENVS = 4
SETTINGS: dict[str, Any] = dict(
    n_steps=512, batch_size=256, learning_rate=1e-3, gamma=0.9, ent_coef=0.01, policy_kwargs=dict(net_arch=[64, 64])
)
COLUMNS = {
    "mean_return": "return, last fifth",
    "approx_kl": "divergence of a chain, nats",
    "clip_fraction": "share of clipped ratios",
}


class Curve(BaseCallback):
    """The logged figures of every update, and the mean return of the episodes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        if "train/approx_kl" in values:
            row = {name: values[f"train/{name}"] for name in ("approx_kl", "clip_fraction")}
            episodes = list(self.model.ep_info_buffer or [])[-4 * N_ENVS :]
            self.rows.append(row | {"mean_return": float(np.mean([episode["r"] for episode in episodes]))})


def train(diffusion_steps: int, n_epochs: int, clip_range: float, seed: int, steps: int) -> dict[str, float]:
    th.set_num_threads(1)
    policy_kwargs = SETTINGS["policy_kwargs"] | {"diffusion_steps": diffusion_steps}
    settings = SETTINGS | {"policy_kwargs": policy_kwargs, "n_epochs": n_epochs, "clip_range": clip_range}
    model = DiffPPO("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=N_ENVS, seed=seed), seed=seed, device="cpu", **settings)
    curve = Curve()
    model.learn(steps, callback=curve, log_interval=1_000_000)
    last = curve.rows[-max(1, len(curve.rows) // 5) :]
    return {column: float(np.mean([row[column] for row in last])) for column in COLUMNS}


def result_of(diffusion_steps: int, n_epochs: int, clip_range: float, seed: int, steps: int, out: Path) -> dict[str, float]:
    grid = {"diffusion_steps": diffusion_steps, "n_epochs": n_epochs, "clip_range": clip_range}
    path = out / "runs" / f"K{diffusion_steps}_epochs{n_epochs}_clip{int(1000 * clip_range)}_seed{seed}.json"
    settings = {**grid, "seed": seed, "steps": steps, "n_envs": N_ENVS, **SETTINGS}
    return remembered(path, settings, lambda: train(diffusion_steps, n_epochs, clip_range, seed, steps))


def run_one(*job: Any) -> str:
    figures = ", ".join(f"{name} {value:.3g}" for name, value in result_of(*job).items())
    return f"K = {job[0]}, {job[1]} epochs, clip range {job[2]}, seed {job[3]}: {figures}"


def summarise(seeds: list[int], diffusion_steps: list[int], steps: int, out: Path) -> None:
    """Table of all runs; one row of panels for each column, one curve over the clip range for each number of epochs."""
    figure = Figure(figsize=(3.6 * len(diffusion_steps), 8), layout="constrained")
    panels = figure.subplots(len(COLUMNS), len(diffusion_steps), sharex=True, sharey="row", squeeze=False)
    with (out / "updates_and_clip_range.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["diffusion_steps", "n_epochs", "clip_range", "seed", *COLUMNS])
        for i, k in enumerate(diffusion_steps):
            for n_epochs in EPOCHS:
                results = [[result_of(k, n_epochs, clip, seed, steps, out) for seed in seeds] for clip in CLIP_RANGES]
                for clip, runs in zip(CLIP_RANGES, results, strict=True):
                    for seed, run in zip(seeds, runs, strict=True):
                        writer.writerow([k, n_epochs, clip, seed, *(f"{run[column]:.5g}" for column in COLUMNS)])
                for j, column in enumerate(COLUMNS):
                    means = [np.mean([run[column] for run in runs]) for runs in results]
                    panels[j, i].plot(CLIP_RANGES, means, "o-", markersize=4, label=f"{n_epochs} epochs")
    for i, k in enumerate(diffusion_steps):
        panels[0, i].set_title(f"K = {k}")
        panels[-1, i].set_xlabel("clip range")
        for j, title in enumerate(COLUMNS.values()):
            panels[j, 0].set_ylabel(title)
            panels[j, i].set_xscale("log")
            panels[j, i].set_xticks(CLIP_RANGES, [str(clip) for clip in CLIP_RANGES])
            panels[j, i].minorticks_off()
            panels[j, i].grid(alpha=0.3)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(EPOCHS))
    figure.savefig(out / "updates_and_clip_range.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=list(DIFFUSION_STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("updates_and_clip_range"))
    args = parser.parse_args()
    grid = [(k, n_epochs, clip) for k in args.diffusion_steps for n_epochs in EPOCHS for clip in CLIP_RANGES]
    run_all(run_one, [(*point, seed, args.steps, args.out) for seed in args.seeds for point in grid], args.workers)
    summarise(args.seeds, args.diffusion_steps, args.steps, args.out)
    print(f"wrote {args.out}/updates_and_clip_range.csv and .png")


if __name__ == "__main__":
    main()
