"""
How near the diffusion policy itself can come to known densities: trained with the exact reward in the critic's place, so that
neither the critic nor the diffusion value nor exploration plays a part. One to three action dimensions, one to six modes.

    OMP_NUM_THREADS=1 python benchmarks/fidelity.py --out benchmarks/results/fidelity_exact.csv

Half a minute for each problem, setting and seed, which give one row for each context (the loss is SAC's own, through the
whole chain; Adam, batches of 256, the learning rate falls to 0 in the second half; "annealed": the temperature falls to its
value from ten times that in the first half). With --picture, what the campaign's models sample:

    python -m sb3_diffusion.campaign benchmarks/campaigns/fidelity.yml --out logs/campaigns/fidelity
    python benchmarks/fidelity.py --picture logs/campaigns/fidelity --out benchmarks/results/fidelity.png
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
import rl_zoo3
import torch as th
from stable_baselines3 import SAC

from sb3_diffusion import DiffusionSACPolicy
from sb3_diffusion.envs import BoltzmannBandit
from sb3_diffusion.evaluation import fidelity, plot_fidelity
from sb3_diffusion.experiments.comparison import readable
from sb3_diffusion.zoo import register

# Sharp and flat temperatures, modes near each other and far apart
PROBLEMS: dict[str, dict[str, Any]] = {
    "three bumps": {},
    "1-D, sharp": dict(bench_seed=0, temperature=0.1),
    "1-D": dict(bench_seed=0, temperature=0.2),
    "1-D, flat": dict(bench_seed=0, temperature=0.4),
    "1-D, far, flat": dict(bench_seed=1, separation=6.0, temperature=0.3),
    "2-D, near": dict(bench_seed=2, action_dim=2, separation=3.0, temperature=0.1),
    "2-D, far": dict(bench_seed=3, action_dim=2, separation=6.0, temperature=0.1),
    "3-D, near": dict(bench_seed=4, action_dim=3, n_modes=(1, 2, 4), separation=3.0, temperature=0.1),
    "2-D, near, flat": dict(bench_seed=2, action_dim=2, separation=3.0, temperature=0.25),
    "2-D, far, flat": dict(bench_seed=3, action_dim=2, separation=6.0, temperature=0.25),
    "3-D, near, flat": dict(bench_seed=4, action_dim=3, n_modes=(1, 2, 4), separation=3.0, temperature=0.25),
}
COSINE = dict(diffusion_steps=16, latent_frequencies=4, noise_schedule="cosine")
# The first temperature in units of the last one, and what the policy has
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "K = 8": (1, dict(diffusion_steps=8)),
    "K = 4, 4 frequencies": (1, dict(diffusion_steps=4, latent_frequencies=4)),
    "K = 8, 4 frequencies": (1, dict(diffusion_steps=8, latent_frequencies=4)),
    "K = 16, 4 frequencies": (1, dict(diffusion_steps=16, latent_frequencies=4)),
    "K = 8, 4 frequencies, annealed": (10, dict(diffusion_steps=8, latent_frequencies=4)),
    "K = 8, 6 frequencies, annealed": (10, dict(diffusion_steps=8, latent_frequencies=6)),
    "K = 16, cosine, 4 frequencies": (1, COSINE),
    "K = 16, cosine, 4 frequencies, annealed": (10, COSINE),
}


class ExactReward:
    """The rewards of a problem as a function of tensors, with gradients."""

    def __init__(self, env: BoltzmannBandit) -> None:
        self.bumps = [tuple(th.as_tensor(part, dtype=th.float32) for part in bumps) for bumps in env.contexts]

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """:param actions: (contexts · n, d), the first n of the first context, and so on; returns (contexts · n,)"""
        rewards = []
        for (centres, heights, widths), rows in zip(self.bumps, actions.chunk(len(self.bumps)), strict=True):
            squares = (rows.unsqueeze(1) - centres).square().sum(dim=-1)
            rewards.append((heights * th.exp(-0.5 * squares / widths.square())).sum(dim=1))
        return th.cat(rewards)


def train(
    env: BoltzmannBandit, policy_kwargs: dict[str, Any], first: float, updates: int, learning_rate: float, seed: int
) -> SAC:
    """
    :param first: temperature, in units of the environment's
    :return: a model whose actor was trained with the exact reward; its critics were not
    """
    model = SAC(DiffusionSACPolicy, env, seed=seed, device="cpu", policy_kwargs=dict(net_arch=[64, 64]) | policy_kwargs)
    actor, reward = model.actor, ExactReward(env)
    observations = th.as_tensor(env.observations)
    observations = observations.repeat_interleave(256 // len(observations), dim=0)
    for update in range(updates):
        progress = update / updates
        temperature = env.temperature * max(1.0, first ** (1 - 2 * progress))
        for group in actor.optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, 2 * (1 - progress))
        actions, path_log_prob = actor.action_log_prob(observations)
        actor.optimizer.zero_grad()
        (temperature * path_log_prob - reward(actions)).mean().backward()
        actor.optimizer.step()
    return model


def table(path: Path, problems: list[str], settings: list[str], seeds: list[int], updates: int, learning_rate: float) -> None:
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["problem"], row["setting"], row["seed"], row["updates"], row["learning_rate"]) for row in rows}
    for problem in problems:
        for setting in settings:
            for seed in seeds:
                if (problem, setting, seed, updates, learning_rate) in done:
                    continue
                env, start = BoltzmannBandit(**PROBLEMS[problem]), time.perf_counter()
                first, policy_kwargs = SETTINGS[setting]
                model = train(env, policy_kwargs, first, updates, learning_rate, seed)
                found, seconds = fidelity(model, env), time.perf_counter() - start
                for context, shares in enumerate(found.mode_shares):
                    rows.append(
                        dict(
                            problem=problem,
                            setting=setting,
                            seed=seed,
                            updates=updates,
                            learning_rate=learning_rate,
                            modes=len(shares),
                            total_variation=round(float(found.total_variation[context]), 4),
                            smallest_mode_share=round(float(shares.min()), 3),
                            path_divergence=round(float(found.path_divergence[context]), 4),
                            bound_gap=round(float(found.bound_gap[context]), 4),
                            seconds=round(seconds, 1),
                        )
                    )
                pd.DataFrame(rows).to_csv(path, index=False)
                print(pd.DataFrame(rows[-len(found.mode_shares) :]).to_string(header=False, index=False), flush=True)


def picture(campaign: Path, path: Path) -> None:
    """Of the first seed of each variant of a campaign, what it samples in each context against the exact density."""
    register()
    variants = json.loads((campaign / "results.json").read_text())["variants"]
    samples: dict[str, Any] = {}
    for name, by_environment in variants.items():
        ((environment, settings),) = by_environment.items()
        env = gym.make(environment, **settings["settings"].get("env_kwargs", {})).unwrapped
        assert isinstance(env, BoltzmannBandit)
        found = sorted((campaign / "runs" / name / environment).glob("*/model.zip"), key=lambda file: int(file.parent.name))
        if env.action_dim == 1 and found:
            model = rl_zoo3.ALGOS[settings["algo"]].load(found[0], device="cpu")
            samples[readable(name)] = env, fidelity(model, env)
    plot_fidelity(samples).savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the table, continued where it is there; or the picture")
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="the campaign's --out (none: the table)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="some of them (all)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="some of them (all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="one run each (%(default)s)")
    parser.add_argument("--updates", type=int, default=3000, help="gradient steps of a run (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="in the first half (%(default)s)")
    args = parser.parse_args()
    if args.picture is not None:
        return picture(args.picture, args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table(args.out, args.problems, args.settings, args.seeds, args.updates, args.learning_rate)


if __name__ == "__main__":
    main()
