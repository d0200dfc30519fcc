"""
Demonstrations of a half-good agent, for a policy that imitates it and gets better than it is.

    python examples/half_good_to_good.py
    python examples/half_good_to_good.py --env Walker2d-v5 --target 400 --seed 1002
    export MINARI_DATASETS_PATH=half_good/minari
    python -m sb3_diffusion.campaign examples/half_good_to_good.yml --out half_good/campaign
    python -m sb3_diffusion.report half_good/campaign

The first two train sb3-contrib's CrossQ on --env until its episodes are worth --target, half of what Stable-Baselines3's SAC
reaches in 100 000 steps, and leave --episodes of them as a local Minari data set in --out; some minutes of a core each.
Walker2d's seed is that of an agent with a regular gait (return 400 ± 40; seeds 1000 and 1001 gave 365 ± 117 and 484 ± 257).
The campaign compares, at equal environment steps:

* ``diffcrossq-pretrained``: DiffCrossQ imitates the episodes before its first step, its critics learn from them, and then half
  of each batch comes from them
* ``diffcrossq``: DiffCrossQ from scratch
* ``sac-with-demonstrations``: Stable-Baselines3's SAC with the same replay buffer
"""

import argparse
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.demonstrations import Demonstrations

SETTINGS: dict[str, Any] = dict(learning_starts=5_000, policy_kwargs=dict(net_arch=[256, 256]), device="cpu")


def half_good_agent(env: str, target: float, every: int, most_steps: int, seed: int) -> CrossQ:
    """
    :param target: return of an episode with sampled actions, the mean of five
    :param every: steps between two evaluations
    :param most_steps: of training
    :raises RuntimeError: if it never gets there
    """
    model = CrossQ("MlpPolicy", env, seed=seed, **SETTINGS)
    while model.num_timesteps < most_steps:
        model.learn(every, reset_num_timesteps=False)
        returns, _ = evaluate_policy(model, gym.make(env), 5, deterministic=False, return_episode_rewards=True, warn=False)
        value = float(np.mean(returns))
        print(f"{env}, {model.num_timesteps} steps: return {value:.0f} of {target:.0f}", flush=True)
        if value >= target:
            return model
    raise RuntimeError(f"--target {target}: not reached within {most_steps} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium's name (default: %(default)s)")
    parser.add_argument("--target", type=float, default=2650, help="return of the half-good agent (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=50, help="demonstrated (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1_000, help="steps between two looks (default: %(default)s)")
    parser.add_argument("--most-steps", type=int, default=100_000, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the agent (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("half_good"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    for name in ("episodes", "every", "most_steps"):
        check_number(f"--{name.replace('_', '-')}", getattr(arguments, name), 1, integer=True)
    th.set_num_threads(1)
    os.environ["MINARI_DATASETS_PATH"] = str((arguments.out / "minari").resolve())
    dataset = f"half-good/{arguments.env.lower()}"
    try:
        Demonstrations.from_minari(dataset)
    except FileNotFoundError:
        pass
    else:
        parser.error(f"--out {arguments.out}: holds {dataset} already")
    model = half_good_agent(arguments.env, arguments.target, arguments.every, arguments.most_steps, arguments.seed)
    demonstrations = Demonstrations.from_policy(model, arguments.env, arguments.episodes, seed=arguments.seed)
    demonstrations.to_minari(
        dataset,
        author="sb3_diffusion",
        author_email="none",
        code_permalink="examples/half_good_to_good.py",
        algorithm_name="sb3-contrib CrossQ",
        eval_env=arguments.env,
        description=f"CrossQ after {model.num_timesteps} steps, sampled actions.",
    )
    returns = np.asarray(demonstrations.episode_returns)
    print(f"{dataset}: {len(returns)} episodes, return {returns.mean():.0f} ± {returns.std():.0f}")


if __name__ == "__main__":
    main()
