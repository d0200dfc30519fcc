"""
How the cost of DiffSAC grows: with K, κ, network width, action and observation dimension, and the number of environments.

    python benchmarks/scaling.py

One setting is changed at a time from HalfCheetah-v5's shapes (17 observations, 6 actions), 256 x 256 networks, batch 256,
K = 4, κ = 1, one environment; an environment that costs nothing. All settings take turns in every round; reported are medians
of the ratio to the unchanged setting in the same round, SB3's SAC with the same shapes beside it. Writes scaling.csv and
scaling.md.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from shapes import ShapesEnv
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffSAC

BASE = dict(diffusion_steps=4, latents_per_state=1, width=256, action_dim=6, observation_dim=17, n_envs=1)
SWEEPS = dict(
    diffusion_steps=[1, 2, 4, 8, 16, 32, 64],
    latents_per_state=[1, 2, 4],
    width=[64, 128, 256, 512, 1024],
    action_dim=[1, 6, 16, 64],
    observation_dim=[4, 17, 64, 376],
    n_envs=[1, 4, 16, 64],
)


def make(algorithm: type[SAC], setting: dict[str, int]) -> SAC:
    env_kwargs = dict(observation_dim=setting["observation_dim"], action_dim=setting["action_dim"])
    env = make_vec_env(ShapesEnv, n_envs=setting["n_envs"], env_kwargs=env_kwargs)
    policy_kwargs: dict[str, Any] = dict(net_arch=[setting["width"]] * 2)
    kwargs: dict[str, Any] = {}
    if algorithm is DiffSAC:
        policy_kwargs["diffusion_steps"] = setting["diffusion_steps"]
        kwargs["latents_per_state"] = setting["latents_per_state"]
    model = algorithm(
        "MlpPolicy", env, seed=0, device="cpu", learning_starts=300, buffer_size=2000, policy_kwargs=policy_kwargs, **kwargs
    )
    return model.learn(300 + 5 * setting["n_envs"])


def milliseconds(model: SAC, figure: str) -> float:
    start = time.perf_counter()
    if figure == "gradient_step":
        model.train(4, batch_size=256)
        return (time.perf_counter() - start) / 4 * 1e3
    # One gradient step per call of all environments
    model.learn(4 * model.n_envs, reset_num_timesteps=False, log_interval=1_000_000)
    return (time.perf_counter() - start) / 4 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    rows = []
    for name, values in SWEEPS.items():
        figure = "training_step" if name == "n_envs" else "gradient_step"
        models = {}
        for value in values:
            models["DiffSAC", value] = make(DiffSAC, BASE | {name: value})
            if name not in ("diffusion_steps", "latents_per_state"):
                models["SAC", value] = make(SAC, BASE | {name: value})
        times: dict[Any, list[float]] = {key: [] for key in models}
        for _ in range(args.rounds):
            for key, model in models.items():
                times[key].append(milliseconds(model, figure))
        base = np.array(times["DiffSAC", BASE[name]])
        for (algorithm, value), series in times.items():
            relative = float(np.median(np.array(series) / base))
            rows.append([name, value, algorithm, figure, f"{np.median(series):.3g}", f"{relative:.3g}"])
            print(*rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    header = ["setting", "value", "algorithm", "figure", "milliseconds", "relative_to_base"]
    with (args.out / "scaling.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    (args.out / "scaling.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
