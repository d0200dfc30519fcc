"""
Does a policy keep two equally good actions? DiffSAC per step and through the full chain, DiffWPO, and SB3's SAC.

    python benchmarks/multimodal.py --task bandit --workers 2
    python benchmarks/multimodal.py --task turning --workers 2

Every run leaves one JSON (metrics, exact settings, commit, versions) and a few thousand sampled actions in
``benchmarks/results/multimodal/<task>/``; all of them together make ``<task>.csv``, the first seed ``<task>.png``.
A finished run is skipped, so an interrupted campaign goes on with the same command. One run uses one thread.

Bandit: the temperature falls from 1 to 0.1 (``annealed_temperature``) and the samples are compared with the exact density at
0.1. Turning: defaults with the temperature "auto". Both: networks of 64 x 64, SB3's batch size of 256, learning rate 1e-3 in
the first half and from there linearly down to 0 (``learning_rate``), so that the critics' last errors do not tip the balance.

What that rate is worth: ``--variants diffsac-constant-rate`` keeps 1e-3, and ``--variants diffsac-defaults --steps 20000`` has
nothing but the defaults (256 x 256, 3e-4); both with ``--out benchmarks/results/rates``.

Which steps, schedule, read-out, ... serve best: ``--variants diffsac-choices --out benchmarks/results/choices`` changes one
option at a time, as ``learning.py`` does.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import learning

from sb3_diffusion.evaluation import provenance, run_all

ENVS = {"bandit": "BimodalBandit-v0", "turning": "TurningDoubleWell-v0"}
VARIANTS = ("diffsac", "diffsac-fullchain", "diffwpo", "sac")
OTHER_RATES = ("diffsac-constant-rate", "diffsac-defaults")
# But for those of the temperature, which the bandit has a schedule for
CHOICES: dict[str, dict[str, Any]] = {
    f"diffsac-{name}": kwargs
    for name, kwargs in learning.CHOICES["diffsac"].items()
    if not kwargs.keys() & {"ent_coef", "target_entropy"}
}
FINAL_TEMPERATURE = 0.1
# Saved for the picture; the metrics use all that were drawn.
N_SAVED = 4000


def annealed_temperature(progress_remaining: float) -> float:
    """1 at the start, geometrically down to 0.1 at two thirds of the training, then constant."""
    return float(max(FINAL_TEMPERATURE, FINAL_TEMPERATURE ** (1.5 * (1 - progress_remaining))))


def learning_rate(progress_remaining: float) -> float:
    """1e-3 in the first half of the training, from there linearly to 0."""
    return 1e-3 * min(1.0, 2 * progress_remaining)


def run_one(task: str, variant: str, seed: int, steps: int, diffusion_steps: int, out: str) -> str:
    choice = dict(CHOICES.get(variant, {}))
    policy_kwargs = {"diffusion_steps": diffusion_steps} | choice.pop("policy_kwargs", {})
    settings = {"task": task, "variant": variant, "seed": seed, "steps": steps}
    if variant != "sac":
        settings["diffusion_steps"] = policy_kwargs["diffusion_steps"]
    target = Path(out) / task / f"{variant}_seed{seed}.json"
    if target.exists():
        previous = json.loads(target.read_text())["settings"]
        if previous != settings:
            raise ValueError(f"{target} was made with {previous}, not {settings}; delete it or choose another --out")
        return f"{task} {variant} seed {seed}: done before"

    import gymnasium as gym
    import numpy as np
    import torch as th
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_diffusion import DiffSAC, DiffusionSACPolicy, DiffWPO
    from sb3_diffusion.envs import BimodalBandit, TurningDoubleWell
    from sb3_diffusion.evaluation import histogram_entropy, sample_actions, total_variation, turn_mass

    class TemperatureAnnealing(BaseCallback):
        """What ours do by themselves with ``ent_coef=annealed_temperature``; SB3's SAC takes only a number."""

        def _on_step(self) -> bool:
            # The algorithm updates its progress only after this callback.
            self.model.ent_coef_tensor.fill_(annealed_temperature(1 - self.num_timesteps / steps))  # type: ignore[attr-defined]
            return True

    th.set_num_threads(1)
    kwargs: dict[str, Any] = {"policy_kwargs": {} if variant == "sac" else policy_kwargs, "seed": seed, "device": "cpu"}
    kwargs |= choice
    if variant != "diffsac-defaults":
        kwargs["policy_kwargs"]["net_arch"] = [64, 64]
        kwargs["learning_rate"] = 1e-3 if variant == "diffsac-constant-rate" else learning_rate
    callback = None
    ours: dict[str, type[DiffSAC]] = {"diffwpo": DiffWPO} | dict.fromkeys(("diffsac", *OTHER_RATES, *CHOICES), DiffSAC)
    if task == "bandit":
        kwargs["ent_coef"] = annealed_temperature if variant in ours else 1.0
        callback = None if variant in ours else TemperatureAnnealing()
    # Written down here because SB3 adds entries to policy_kwargs.
    arguments = {name: repr(value) for name, value in kwargs.items()}
    if callable(kwargs.get("learning_rate")):
        arguments["learning_rate"] = "learning_rate"
    arguments["ent_coef"] = "annealed_temperature" if task == "bandit" else "auto"
    env = gym.make(ENVS[task])
    model: SAC
    if variant in ours:
        model = ours[variant]("MlpPolicy", env, **kwargs)
    else:
        model = SAC("MlpPolicy" if variant == "sac" else DiffusionSACPolicy, env, **kwargs)
    start = time.perf_counter()
    model.learn(steps, callback=callback, log_interval=1_000_000)
    seconds = time.perf_counter() - start

    metrics: dict[str, float] = {}
    if task == "bandit":
        observations, reward_fn = np.zeros((1, 1), dtype=np.float32), BimodalBandit().reward
        actions = sample_actions(model, observations[0], 50_000)[:, 0]
        metrics["tv"] = total_variation(actions, reward_fn, FINAL_TEMPERATURE)
        metrics["mass_positive"] = float((actions >= 0).mean())
        metrics["mean_reward"] = float(reward_fn(actions).mean())
        with th.no_grad():
            log_prob = model.actor.action_log_prob(th.zeros(len(actions), 1))[1]
        metrics["path_entropy"] = -float(log_prob.mean())
        # How loose the bound is: entropy of the actions minus that of the path (0 for a Gaussian policy).
        metrics["gap"] = histogram_entropy(actions) - metrics["path_entropy"]
    else:
        observations, reward_fn = TurningDoubleWell.HEADINGS, TurningDoubleWell.reward
        mass = turn_mass(model, 5000)
        actions = mass.actions
        metrics["mass_positive_min"], metrics["mass_positive_max"] = float(mass.positive.min()), float(mass.positive.max())
        metrics["mean_reward"] = mass.mean_reward
        metrics["ent_coef"] = float(model.log_ent_coef.detach().exp())  # type: ignore[union-attr]
    metrics["deterministic_reward"] = float(reward_fn(model.predict(observations, deterministic=True)[0]).mean())
    metrics["seconds"] = seconds

    target.parent.mkdir(parents=True, exist_ok=True)
    saved = actions[..., : N_SAVED // observations.shape[0]]
    np.savez_compressed(target.with_suffix(".npz"), actions=saved.astype(np.float16))
    report = {"settings": settings, "algorithm_arguments": arguments, **provenance(), "metrics": metrics}
    target.write_text(json.dumps(report, indent=1) + "\n")
    return f"{task} {variant} seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def reaches_target(task: str, metrics: dict[str, float]) -> bool:
    if task == "bandit":
        return metrics["tv"] <= 0.10
    smallest_side = min(metrics["mass_positive_min"], 1 - metrics["mass_positive_max"])
    return smallest_side >= 0.35 and metrics["mean_reward"] >= 0.97


def summarise(task: str, variants: list[str], seeds: list[int], out: Path) -> None:
    """Write the table and the picture of all finished runs, and print how many reach the target."""
    import numpy as np

    from sb3_diffusion.envs import BimodalBandit
    from sb3_diffusion.evaluation import plot_density, plot_turns

    reports = [json.loads(path.read_text()) for path in sorted((out / task).glob("*.json"))]
    with (out / f"{task}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "steps", "diffusion_steps", *reports[0]["metrics"]])
        for report in reports:
            settings = [report["settings"].get(name, "") for name in ("variant", "seed", "steps", "diffusion_steps")]
            writer.writerow(settings + [f"{value:.4g}" for value in report["metrics"].values()])

    goal = "total variation <= 0.10" if task == "bandit" else ">= 35 % on each side per heading, mean reward >= 0.97"
    for variant in variants:
        runs = [json.loads((out / task / f"{variant}_seed{seed}.json").read_text())["metrics"] for seed in seeds]
        reached = sum(reaches_target(task, metrics) for metrics in runs)
        means = ", ".join(f"{name} {np.mean([metrics[name] for metrics in runs]):.3f}" for name in runs[0])
        print(f"{task} {variant}: {reached} of {len(runs)} seeds reach {goal}; means: {means}")

    samples = {}
    for variant in variants:
        with np.load(out / task / f"{variant}_seed{seeds[0]}.npz") as file_with_actions:
            samples[f"{variant}, seed {seeds[0]}"] = file_with_actions["actions"].astype(np.float64)
    if task == "bandit":
        figure = plot_density(samples, BimodalBandit().reward, FINAL_TEMPERATURE)
    else:
        # Each run ends at a temperature of its own: the density is the optimal one at that of the first.
        first = json.loads((out / task / f"{variants[0]}_seed{seeds[0]}.json").read_text())["metrics"]
        figure = plot_turns(samples, first["ent_coef"])
    figure.savefig(out / f"{task}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(ENVS), required=True)
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=(*VARIANTS, *OTHER_RATES, *CHOICES, "diffsac-choices")
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--diffusion-steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multimodal")
    args = parser.parse_args()
    args.variants = [name for group in args.variants for name in (CHOICES if group == "diffsac-choices" else [group])]
    jobs = [(args.task, variant, seed) for seed in args.seeds for variant in args.variants]
    run_all(run_one, [(*job, args.steps, args.diffusion_steps, str(args.out)) for job in jobs], args.workers)
    summarise(args.task, args.variants, args.seeds, args.out)


if __name__ == "__main__":
    main()
