"""
One environment step of DiffPPO against K steps of SB3's PPO on the serial form of the same decision process, ``AugmentedMDP``.

    python benchmarks/serial.py

HalfCheetah-v5, networks of 64 x 64, rollouts of 256 environment steps for each environment, 10 epochs, as many optimizer steps
for either: a minibatch of PPO on the wrapper holds K times as many rows as one of DiffPPO, which carries K diffusion steps in
each. All take turns in every round; reported are medians of milliseconds per step of all environments (collecting and
training, and collecting alone) and of the ratio in the same round. Writes serial.csv (all rounds) and serial.md to ``--out``.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO
from sb3_diffusion.envs import AugmentedMDP
from sb3_diffusion.evaluation import provenance

N_STEPS = 256


def build(kind: str, diffusion_steps: int, n_envs: int, env_id: str) -> PPO:
    kwargs = dict(n_epochs=10, seed=0, device="cpu")
    if kind == "vectorised":
        env = make_vec_env(env_id, n_envs=n_envs, seed=0)
        policy_kwargs = dict(diffusion_steps=diffusion_steps)
        return DiffPPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=64 * n_envs, policy_kwargs=policy_kwargs, **kwargs)
    env = make_vec_env(lambda: FlattenObservation(AugmentedMDP(gym.make(env_id), diffusion_steps)), n_envs=n_envs, seed=0)
    return PPO("MlpPolicy", env, n_steps=diffusion_steps * N_STEPS, batch_size=diffusion_steps * 64 * n_envs, **kwargs)


def milliseconds(model: PPO, training: bool) -> float:
    """For one step of all environments, a whole rollout with or without the updates after it."""
    start = time.perf_counter()
    if training:
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False, log_interval=1_000_000)
    else:
        with mock.patch.object(model, "train"):
            model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False, log_interval=1_000_000)
    return (time.perf_counter() - start) / N_STEPS * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serial")
    args = parser.parse_args()
    th.set_num_threads(1)
    settings = [(n_envs, k) for n_envs in args.n_envs for k in args.diffusion_steps]
    models = {(kind, *setting): build(kind, setting[1], setting[0], args.env)
              for setting in settings for kind in ("serial", "vectorised")}  # fmt: skip
    rows: list[tuple[int, str, int, int, str, float]] = []
    for round_ in range(args.rounds + 1):  # the first one warms up
        for (kind, n_envs, k), model in models.items():
            for part, training in (("all", True), ("collecting", False)):
                figure = milliseconds(model, training)
                if round_ > 0:
                    rows.append((round_, kind, n_envs, k, part, figure))
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "serial.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "kind", "n_envs", "diffusion_steps", "part", "milliseconds"])
        writer.writerows(rows)
    lines = [
        "| environments | K | serial [ms] | vectorised [ms] | ratio | collecting, serial [ms] | vectorised [ms] | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n_envs, k in settings:
        cells = [str(n_envs), str(k)]
        for part in ("all", "collecting"):
            both = {
                kind: np.array([row[5] for row in rows if row[1:5] == (kind, n_envs, k, part)])
                for kind in ("serial", "vectorised")
            }
            cells += [f"{np.median(values):.2f}" for values in both.values()]
            cells.append(f"{np.median(both['serial'] / both['vectorised']):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    (args.out / "serial.md").write_text("\n".join(lines) + "\n")
    (args.out / "serial.json").write_text(
        json.dumps({"env": args.env, "rounds": args.rounds, **provenance()}, indent=1) + "\n"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
