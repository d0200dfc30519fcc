"""
Does an on-policy diffusion policy keep two equally good turns? DiffPPO with an annealed temperature, DiffPPO at temperature 0
(that is DPPO), and SB3's PPO on TurningDoubleWell-v0.

    python benchmarks/turning_onpolicy.py --workers 2

60 000 steps in 8 environments, 128 steps a rollout, batch 256, 5 epochs, learning rate 1e-3, γ = 0.9, networks of 64 x 64,
K = 4. The temperature falls geometrically from 0.5 to 0.02 in the first two thirds. Every run leaves one JSON (metrics,
settings, commit, versions) and sampled actions in ``benchmarks/results/multimodal/turning-onpolicy/``; all of them make the
CSV and the picture. A finished run is skipped. One run uses one thread.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffusion.evaluation import provenance, run_all

VARIANTS = ("diffppo", "diffppo-zero-temperature", "ppo")
SETTINGS: dict[str, Any] = dict(n_steps=128, batch_size=256, n_epochs=5, learning_rate=1e-3, gamma=0.9)
N_ENVS, STEPS, N_SAVED = 8, 60_000, 500
FINAL_TEMPERATURE = 0.02


def annealed_temperature(progress_remaining: float) -> float:
    """0.5 at the start, geometrically down to 0.02 at two thirds of the training, then constant."""
    return float(max(FINAL_TEMPERATURE, 0.5 * 0.04 ** (1.5 * (1 - progress_remaining))))


def run_one(variant: str, seed: int, out: Path) -> str:
    target = out / f"{variant}_seed{seed}.json"
    kwargs = SETTINGS | {"ent_coef": annealed_temperature if variant == "diffppo" else 0.0, "seed": seed, "device": "cpu"}
    settings = {"variant": variant, "seed": seed, "steps": STEPS, "n_envs": N_ENVS}
    settings |= {name: getattr(value, "__name__", value) for name, value in kwargs.items()}
    if target.exists():
        previous = json.loads(target.read_text())["settings"]
        if previous != settings:
            raise ValueError(f"{target} was made with {previous}, not {settings}; delete it or choose another --out")
        return f"{variant} seed {seed}: done before"
    import torch as th
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_diffusion import DiffPPO
    from sb3_diffusion.evaluation import turn_mass

    th.set_num_threads(1)
    env = make_vec_env("TurningDoubleWell-v0", n_envs=N_ENVS, seed=seed)
    model = (PPO if variant == "ppo" else DiffPPO)("MlpPolicy", env, policy_kwargs={"net_arch": [64, 64]}, **kwargs)
    start = time.perf_counter()
    model.learn(STEPS, log_interval=1_000_000)
    mass = turn_mass(model, 5000)
    metrics = {
        "mass_positive_min": float(mass.positive.min()),
        "mass_positive_max": float(mass.positive.max()),
        "mean_reward": float(mass.mean_reward),
        "seconds": time.perf_counter() - start,
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target.with_suffix(".npz"), actions=mass.actions[..., :N_SAVED].astype(np.float16))
    target.write_text(json.dumps({"settings": settings, **provenance(), "metrics": metrics}, indent=1) + "\n")
    return f"{variant} seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def summarise(out: Path) -> None:
    """Table and picture of all finished runs."""
    from sb3_diffusion.evaluation import plot_turns

    reports = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *reports[0]["metrics"]])
        for report in reports:
            values = [f"{value:.4g}" for value in report["metrics"].values()]
            writer.writerow([report["settings"]["variant"], report["settings"]["seed"], *values])
    samples = {}
    for variant in VARIANTS:
        runs = [report["metrics"] for report in reports if report["settings"]["variant"] == variant]
        sides = [min(run["mass_positive_min"], 1 - run["mass_positive_max"]) for run in runs]
        reached = sum(side >= 0.3 and run["mean_reward"] >= 0.95 for side, run in zip(sides, runs, strict=True))
        print(f"{variant}: {reached} of {len(runs)} seeds keep >= 30 % on each side per heading at a mean reward >= 0.95")
        if runs:
            with np.load(sorted(out.glob(f"{variant}_seed*.npz"))[0]) as file_with_actions:
                samples[variant] = file_with_actions["actions"].astype(np.float64)
    plot_turns(samples, FINAL_TEMPERATURE).savefig(out.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=2)
    default = Path(__file__).parent / "results" / "multimodal" / "turning-onpolicy"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    run_all(run_one, [(variant, seed, args.out) for seed in args.seeds for variant in args.variants], args.workers)
    summarise(args.out)


if __name__ == "__main__":
    main()
