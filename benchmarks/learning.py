"""
Learning curves of our algorithms and of SB3's SAC and PPO, in one campaign on one machine.

    python benchmarks/learning.py --envs HalfCheetah-v5 Hopper-v5 --variants sac diffsac diffwpo --seeds 0 1 2
    python benchmarks/learning.py --envs HalfCheetah-v5 Walker2d-v5 --variants ppo diffppo --steps 500000 --eval-freq 50000

Every run writes one CSV (``timesteps`` in environment steps, returns of ``--eval-episodes`` episodes with deterministic and
with sampled actions), one JSON with its exact settings and versions, and the trained model, which git ignores. A finished run
is skipped, so an interrupted campaign goes on with the same command. One run uses one thread.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from sb3_diffusion.evaluation import provenance, run_all

COLUMNS = (
    "timesteps",
    "deterministic_mean",
    "deterministic_std",
    "stochastic_mean",
    "stochastic_std",
    "deterministic_length",
    "ent_coef",
    "path_entropy",
    "seconds",
)
# For every off-policy variant, on top of each algorithm's defaults, which are SB3's SAC defaults everywhere (256x256 networks,
# batch size 256, learning rate 3e-4, one update per step): rl-zoo3's warm-up for MuJoCo. On-policy variants have rl-zoo3's
# tuned settings of PPO for the environment (version 4), normalised observations and rewards among them.
OFF_POLICY: dict[str, Any] = {"learning_starts": 10_000}
FIXED_VARIANCE: dict[str, Any] = {"learn_variance": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "sac": {"algo": "sac"},
    "diffsac": {"algo": "diffsac", "torch_compile": True},
    "diffwpo": {"algo": "diffwpo", "torch_compile": True},
    "diffsac-fullchain": {"algo": "diffusion-sac"},
    "ppo": {"algo": "ppo"},
    # Found with short runs (docs/experiments.md). The clip range holds for each of the K + 1 decisions; a factor is a number,
    # or one by the environment (1 elsewhere). Our temperature is in units of the normalised reward, PPO's entropy coefficient
    # in those of the advantage.
    "diffppo": {
        "algo": "diffppo",
        "learning_rate_factor": 2.0,
        "clip_range_factor": {"Walker2d-v5": 0.7, "Hopper-v5": 0.7},
        "ent_coef": 0.0002,
        "policy_kwargs": FIXED_VARIANCE,
    },
}
# One default changed at a time, for short runs, by the algorithm: --variants diffsac-choices --steps 30000 --out
# benchmarks/results/choices; --variants diffppo-choices --steps 100000 --eval-freq 20000 with the same --out.
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "diffsac": {
        "2-steps": {"policy_kwargs": {"diffusion_steps": 2}},
        "8-steps": {"policy_kwargs": {"diffusion_steps": 8}},
        "2-latents": {"latents_per_state": 2},
        "4-latents": {"latents_per_state": 4},
        "cosine": {"policy_kwargs": {"noise_schedule": "cosine"}},
        "steep": {"policy_kwargs": {"beta_min": 0.1, "beta_max": 0.4}},
        "learned-schedule": {"policy_kwargs": {"learn_schedule": True}},
        "no-readout": {"policy_kwargs": {"state_dependent_readout": False}},
        "fixed-variance": {"policy_kwargs": {"learn_variance": False}},
        "half-entropy": {"target_entropy": "half"},  # minus half the action dimension
        "low-temperature": {"ent_coef": "auto_0.2"},
        "bfloat16-chains": {"bfloat16_chains": True},
    },
    "diffppo": {
        "slow": {"learning_rate_factor": 1.0},
        "decay": {"learning_rate_factor": 3.0, "learning_rate_decays": True},  # linearly to 0
        "full-clip": {"clip_range_factor": 1.0},
        "tight-clip": {"clip_range_factor": 0.7},
        "narrow-clip": {"clip_range_factor": 0.45},
        "hot": {"ent_coef": 0.01},
        "zero-temperature": {"ent_coef": 0.0},
        "learned-variance": {"policy_kwargs": {"learn_variance": True}},
        "2-steps": {"policy_kwargs": FIXED_VARIANCE | {"diffusion_steps": 2}},
        "8-steps": {"policy_kwargs": FIXED_VARIANCE | {"diffusion_steps": 8}},
        "no-squash": {"policy_kwargs": FIXED_VARIANCE | {"squash_output": False}},
        "2-latents": {"latents_per_state": 2},
    },
}
for base, changes in CHOICES.items():
    VARIANTS |= {f"{base}-{name}": VARIANTS[base] | kwargs for name, kwargs in changes.items()}
# With SB3's defaults the temperature falls from 1 for 10 000 gradient steps before anything is learned. SimbaV2's baselines,
# whose SAC is the published reference for HalfCheetah, start it at 0.01, with half the target entropy and 5 000 warm-up steps.
QUICK_START: dict[str, Any] = {"learning_starts": 5_000, "ent_coef": "auto_0.01", "target_entropy": "half"}
VARIANTS |= {f"{name}-quick-start": VARIANTS[name] | QUICK_START for name in ("sac", "diffsac")}
# What might reach the published level of SAC on HalfCheetah at 100 000 steps sooner, for all algorithms alike
PACES: dict[str, dict[str, Any]] = {
    "learning-rate-1e-3": {"learning_rate": 1e-3},
    "early-start": {"learning_rate": 1e-3, "learning_starts": 1_000},
}
OFF_POLICY_ALGORITHMS = ("sac", "diffsac", "diffwpo")
VARIANTS |= {f"{name}-{pace}": VARIANTS[name] | kwargs for name in OFF_POLICY_ALGORITHMS for pace, kwargs in PACES.items()}
# As many rows for the gradient of the read-out as SAC's actor has
VARIANTS["diffsac-early-start-2-latents"] = VARIANTS["diffsac-early-start"] | {"latents_per_state": 2}
SHORT_RUNS = {
    f"{base}-choices": [base, *others, *(f"{base}-{name}" for name in CHOICES[base])]
    for base, others in {"diffsac": ["sac", "diffsac-fullchain"], "diffppo": ["ppo"]}.items()
}


def settings_of(variant: str, env_id: str) -> dict[str, Any]:
    """Everything that a variant's models are built with, but the seed."""
    own = dict(VARIANTS[variant])
    if "ppo" not in own["algo"]:
        settings = OFF_POLICY | own
        if settings.get("target_entropy") == "half":
            import gymnasium as gym

            settings["target_entropy"] = -gym.make(env_id).action_space.shape[0] / 2  # type: ignore[index]
        return settings
    import rl_zoo3
    import yaml
    from stable_baselines3.common.utils import LinearSchedule
    from torch import nn

    tuned = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml").read_text())
    settings = tuned[env_id.replace("-v5", "-v4")]
    del settings["n_timesteps"]
    for name in ("learning_rate", "clip_range"):
        if f"{name}_factor" in own:
            factor = own.pop(f"{name}_factor")
            settings[name] *= factor.get(env_id, 1.0) if isinstance(factor, dict) else factor
    if own.pop("learning_rate_decays", False):
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    # A Python expression, as rl-zoo3 reads it
    settings["policy_kwargs"] = eval(settings.get("policy_kwargs", "dict()"), {"nn": nn})
    return {**settings, **own, "policy_kwargs": settings["policy_kwargs"] | own.get("policy_kwargs", {})}


def build(settings: dict[str, Any], env_id: str, seed: int, eval_episodes: int) -> tuple[Any, Any]:
    """The model, and its environments for evaluation."""
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    import sb3_diffusion

    kwargs = dict(settings)
    algo, normalize, n_envs = kwargs.pop("algo"), kwargs.pop("normalize", False), kwargs.pop("n_envs", 1)
    if "policy_kwargs" in kwargs:
        kwargs["policy_kwargs"] = dict(kwargs["policy_kwargs"])  # SB3 writes into it
    env = make_vec_env(env_id, n_envs=n_envs, seed=seed)
    # One environment per evaluation episode: a batch of predictions costs hardly more than one.
    eval_env = make_vec_env(env_id, n_envs=eval_episodes, seed=10_000 + seed)
    if normalize:
        env = VecNormalize(env, gamma=kwargs["gamma"])
        eval_env = VecNormalize(eval_env, training=False, norm_reward=False)
    kwargs["policy"] = sb3_diffusion.DiffusionSACPolicy if algo == "diffusion-sac" else "MlpPolicy"
    algorithms = {"sac": SAC, "diffusion-sac": SAC, "ppo": PPO, "diffsac": sb3_diffusion.DiffSAC}
    algorithms |= {"diffwpo": sb3_diffusion.DiffWPO, "diffppo": sb3_diffusion.DiffPPO}
    return algorithms[algo](env=env, seed=seed, device="cpu", **kwargs), eval_env


def run_one(variant: str, env_id: str, seed: int, steps: int, eval_freq: int, eval_episodes: int, out: str) -> str:
    folder = Path(out) / env_id
    name = f"{variant}_seed{seed}"
    target = folder / f"{name}.csv"
    settings = settings_of(variant, env_id)
    report = {"variant": variant, "env": env_id, "seed": seed, "steps": steps, "eval_episodes": eval_episodes}
    report["settings"] = {key: repr(value) for key, value in settings.items()}
    if target.exists():
        previous = json.loads((folder / f"{name}.json").read_text())
        if any(previous[key] != value for key, value in report.items()):
            raise ValueError(f"{target} was made with {previous}, not {report}; delete it or choose another --out")
        return f"{env_id} {name}: done before"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial.csv"

    import numpy as np
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    th.set_num_threads(1)
    model, eval_env = build(settings, env_id, seed, eval_episodes)

    class Evaluation(BaseCallback):
        """Write one row every ``eval_freq`` steps; ``seconds`` is training time without evaluation."""

        def _on_training_start(self) -> None:
            self.seconds, self.since = 0.0, time.perf_counter()
            with partial.open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)

        def _on_step(self) -> bool:
            if self.num_timesteps % eval_freq:
                return True
            self.seconds += time.perf_counter() - self.since
            if model.get_vec_normalize_env() is not None:
                sync_envs_normalization(model.env, eval_env)
            row: list[float] = [self.num_timesteps]
            for deterministic in (True, False):
                returns, lengths = evaluate_policy(
                    model, eval_env, n_eval_episodes=eval_episodes, deterministic=deterministic, return_episode_rewards=True
                )
                row += [float(np.mean(returns)), float(np.std(returns))]
                if deterministic:
                    mean_length = float(np.mean(lengths))
            values = self.logger.name_to_value
            row += [mean_length, values.get("train/ent_coef", np.nan), values.get("train/path_entropy", np.nan), self.seconds]
            with partial.open("a", newline="") as file:
                csv.writer(file).writerow([f"{value:.6g}" for value in row])
            self.since = time.perf_counter()
            return True

    (folder / f"{name}.json").write_text(json.dumps(report | provenance(), indent=1) + "\n")
    model.learn(steps, callback=Evaluation(), log_interval=1_000_000)
    model.save(folder / f"{name}.zip")
    partial.replace(target)
    return f"{env_id} {name}: {target.read_text().splitlines()[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    default = ["sac", "diffsac", "diffwpo", "diffsac-fullchain"]
    parser.add_argument("--variants", nargs="+", default=default, choices=[*VARIANTS, *SHORT_RUNS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--eval-freq", type=int, default=10_000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "learning"))
    args = parser.parse_args()
    args.variants = [name for variant in args.variants for name in SHORT_RUNS.get(variant, [variant])]
    jobs = [(variant, env, seed) for seed in args.seeds for env in args.envs for variant in args.variants]
    run_all(run_one, [(*job, args.steps, args.eval_freq, args.eval_episodes, args.out) for job in jobs], args.workers)


if __name__ == "__main__":
    main()
