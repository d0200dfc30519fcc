"""
How should the number of updates and the clip range of DiffPPO change with K? A grid over both for several K on Pendulum.

    python examples/updates_and_clip_range.py

Each of the K steps of a chain has its own probability ratio and its own clip, so an update may move the whole chain further
the more steps it has. Writes the campaign of the grid to --out, runs it (``python -m sb3_diffusion.campaign``; a finished run
is not repeated) and draws updates_and_clip_range.png: means over the last fifth of the training of the return, of the
closed-form divergence of a chain in an update and of the share of clipped ratios.

What was found (two seeds, ``examples/results/updates_and_clip_range.csv``; its returns are those of the training's own
episodes): neither needs to change with K. For K = 2, 4 and 8
alike 20 epochs with a clip range of 0.1 or 0.2 end best (-207 to -236), and fewer epochs are too few at any clip range (10:
-490 and below). More steps bear a wide range less: at 0.4 the return falls to -271, -302 and -430 while the divergence of
a chain in an update grows to 0.31, 0.36 and 0.57 nats.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from sb3_diffusion.evaluation.style import COLORS, DPI, bare
from sb3_diffusion.experiments.command import campaign_command
from sb3_diffusion.experiments.plan import CampaignError

DIFFUSION_STEPS = (2, 4, 8)
EPOCHS = (5, 10, 20)
CLIP_RANGES = (0.05, 0.1, 0.2, 0.4)
SETTINGS: dict[str, Any] = {
    "algo": "diffppo",
    "n_envs": 4,
    "n_steps": 512,
    "batch_size": 256,
    "learning_rate": 1e-3,
    "gamma": 0.9,
    "ent_coef": 0.01,
}
# The last fifth must hold an update.
LEAST_STEPS = 5 * SETTINGS["n_envs"] * SETTINGS["n_steps"]
COLUMNS = {
    "sampled_return": "return of an episode",
    "approx_kl": "divergence of a chain, nats",
    "clip_fraction": "share of clipped ratios",
}


def variant(diffusion_steps: int, n_epochs: int, clip_range: float) -> str:
    """:return: its name in the campaign"""
    return f"K{diffusion_steps}-epochs{n_epochs}-clip{clip_range:g}"


def campaign(diffusion_steps: list[int], seeds: list[int], steps: int) -> dict[str, Any]:
    """:return: the content of the campaign's file"""
    return {
        "environments": ["Pendulum-v1"],
        "seeds": seeds,
        "steps": steps,
        "evaluation": {
            "every": max(1, steps // 20),
            "episodes": 10,
            "metrics": ["sb3_diffusion.experiments.metrics.update_size"],
        },
        "device": "cpu",
        "default": SETTINGS,
        "variants": {
            variant(k, n_epochs, clip_range): {
                "n_epochs": n_epochs,
                "clip_range": clip_range,
                "policy_kwargs": {"net_arch": [64, 64], "diffusion_steps": k},
            }
            for k in diffusion_steps
            for n_epochs in EPOCHS
            for clip_range in CLIP_RANGES
        },
    }


def draw(table: pd.DataFrame, diffusion_steps: list[int], steps: int) -> Figure:
    """:return: a row of panels for each column, one curve over the clip range for each number of epochs"""
    last = table[table["timesteps"] > 0.8 * steps].groupby("variant")[list(COLUMNS)].mean()
    figure = Figure(figsize=(3.0 * len(diffusion_steps), 7.5), dpi=DPI, layout="constrained")
    figure.suptitle("DiffPPO on Pendulum-v1, means of the last fifth of the training", fontsize="medium")
    panels = figure.subplots(len(COLUMNS), len(diffusion_steps), sharex=True, sharey="row", squeeze=False)
    for i, k in enumerate(diffusion_steps):
        panels[0, i].set_title(f"K = {k}")
        panels[-1, i].set_xlabel("clip range")
        for j, (column, title) in enumerate(COLUMNS.items()):
            for n_epochs, color, marker in zip(EPOCHS, COLORS, "os^", strict=False):
                values = [last.loc[variant(k, n_epochs, clip_range), column] for clip_range in CLIP_RANGES]
                panels[j, i].plot(CLIP_RANGES, values, f"{marker}-", color=color, markersize=4, label=f"{n_epochs} epochs")
            panels[j, 0].set_ylabel(title)
            panels[j, i].set_xscale("log")
            panels[j, i].set_xticks(CLIP_RANGES, [str(clip_range) for clip_range in CLIP_RANGES])
            panels[j, i].minorticks_off()
            bare(panels[j, i])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(EPOCHS), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--diffusion-steps", type=int, nargs="+", default=list(DIFFUSION_STEPS), help="K, any number of them (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="one run each (%(default)s)")
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps of a run (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("updates_and_clip_range"), help="folder (%(default)s)")
    args = parser.parse_args()
    if args.steps < LEAST_STEPS:
        parser.error(f"--steps {args.steps} leaves no update in its last fifth; allowed: {LEAST_STEPS} or more")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "campaign.yml"
    file.write_text(yaml.safe_dump(campaign(args.diffusion_steps, args.seeds, args.steps), sort_keys=False))
    try:
        status = campaign_command([str(file), "--out", str(args.out), "--workers", str(args.workers)])
    except CampaignError as error:
        parser.error(str(error))
    if status:
        raise SystemExit(status)
    draw(pd.read_csv(args.out / "results.csv"), args.diffusion_steps, args.steps).savefig(
        args.out / "updates_and_clip_range.png"
    )
    print(f"wrote {args.out}/results.csv and updates_and_clip_range.png")


if __name__ == "__main__":
    main()
