"""
Which algorithms keep all solutions where several are equally good? One table over algorithms and environments.

    python benchmarks/mode_coverage.py

Trains every algorithm of ``ALGORITHMS`` on MultiGoal2D, TurningDoubleWell and TurningGMM and evaluates its sampled actions
with ``sb3_diffusion.evaluation``. Every run leaves one JSON (metrics, exact settings, versions, commit) in
``benchmarks/results/mode_coverage/<task>/``, on MultiGoal2D also its trajectories; all finished ones together make
``mode_coverage.csv``, ``mode_coverage.md`` (mean over the seeds, worst seed in brackets) and ``mode_coverage.png``
(MultiGoal2D, first seed). A finished run is skipped, so an interrupted campaign goes on with the same command. One run uses
one thread.

Off-policy algorithms share one set of settings for each task, on-policy ones another; PPO and DPPO have no temperature. K = 4
everywhere; the learning rate falls linearly to 0 in the second half, so that the critics' last errors do not tip the balance.
In the two turning tasks no action makes the future better or worse, so the discount does not change what is optimal, and a
small one is easier to learn with. TurningGMM needs larger networks: a critic of 64 x 64 cannot hold 40 bumps, whatever the
policy.
"""

import argparse
import csv
import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sb3_diffusion.evaluation import provenance, run_all


class Algorithm(NamedTuple):
    """
    One row of the table.

    ``algorithm`` and ``policy`` are "module:class" (or an alias of the policy); ``family`` names the settings that it shares;
    ``diffusion`` tells whether the policy takes ``diffusion_steps``; ``arguments`` are on top of everything else.
    """

    label: str
    algorithm: str
    family: str
    diffusion: bool = False
    policy: str = "MlpPolicy"
    arguments: Mapping[str, Any] = MappingProxyType({})


ZERO_TEMPERATURE: Mapping[str, Any] = MappingProxyType({"ent_coef": 0.0})
ALGORITHMS = {
    "sac": Algorithm("SAC", "stable_baselines3:SAC", "off-policy"),
    "ppo": Algorithm("PPO", "stable_baselines3:PPO", "on-policy", arguments=ZERO_TEMPERATURE),
    "diffsac": Algorithm("DiffSAC", "sb3_diffusion:DiffSAC", "off-policy", True),
    "diffsac-fullchain": Algorithm(
        "SAC(DiffusionSACPolicy)", "stable_baselines3:SAC", "off-policy", True, "sb3_diffusion:DiffusionSACPolicy"
    ),
    "diffwpo": Algorithm("DiffWPO", "sb3_diffusion:DiffWPO", "off-policy", True),
    "diffppo": Algorithm("DiffPPO", "sb3_diffusion:DiffPPO", "on-policy", True),
    "dppo": Algorithm("DiffPPO at τ = 0", "sb3_diffusion:DiffPPO", "on-policy", True, arguments=ZERO_TEMPERATURE),
}


class Schedule(NamedTuple):
    """
    A number that is ``first`` up to the share ``begin`` of the training, ``last`` from the share ``end`` on, and in between
    falls linearly, or geometrically.
    """

    first: float
    last: float
    begin: float
    end: float
    geometric: bool = False

    def __call__(self, progress_remaining: float) -> float:
        fraction = min(1.0, max(0.0, (1 - progress_remaining - self.begin) / (self.end - self.begin)))
        if self.geometric:
            return float(self.first * (self.last / self.first) ** fraction)
        return float(self.first + (self.last - self.first) * fraction)


class Task(NamedTuple):
    """An environment, its settings by family (``steps`` is the training's length), and the table's columns of metrics."""

    env_id: str
    settings: dict[str, dict[str, Any]]
    columns: dict[str, str]


SMALL, LARGE = {"net_arch": [64, 64]}, {"net_arch": [128, 128, 128]}
TASKS = {
    "goals": Task(
        "MultiGoal2D-v0",
        {
            "off-policy": {
                "steps": 10_000,
                "learning_starts": 1000,
                "learning_rate": Schedule(3e-3, 0.0, 0.5, 1.0),
                "ent_coef": Schedule(10.0, 5.0, 0.5, 0.9, geometric=True),
                "policy_kwargs": SMALL,
            },
            "on-policy": {
                "steps": 100_000,
                "n_envs": 32,
                "learning_rate": Schedule(1e-3, 0.0, 0.5, 1.0),
                "ent_coef": Schedule(10.0, 5.0, 0.5, 0.9, geometric=True),
                "policy_kwargs": SMALL,
            },
        },
        {"goals": "goals of 4", "entropy": "entropy", "mean_return": "return"},
    ),
    "turning": Task(
        "TurningDoubleWell-v0",
        {
            "off-policy": {
                "steps": 5000,
                "gamma": 0.9,
                "learning_rate": Schedule(1e-3, 0.0, 0.5, 1.0),
                "ent_coef": "auto",
                "policy_kwargs": SMALL,
            },
            "on-policy": {
                "steps": 100_000,
                "gamma": 0.9,
                "learning_rate": Schedule(1e-3, 0.0, 0.5, 1.0),
                "ent_coef": Schedule(0.5, 0.02, 0.0, 0.7, geometric=True),
                "policy_kwargs": SMALL,
            },
        },
        {"smallest_share": "smallest share", "mean_reward": "mean reward"},
    ),
    "mixture": Task(
        "TurningGMM-v0",
        {
            "off-policy": {
                "steps": 5000,
                "gamma": 0.9,
                "learning_starts": 1000,
                "learning_rate": Schedule(3e-3, 0.0, 0.5, 1.0),
                "ent_coef": Schedule(10.0, 1.0, 0.0, 0.7, geometric=True),
                "policy_kwargs": LARGE,
            },
            "on-policy": {
                "steps": 100_000,
                "gamma": 0.9,
                "learning_rate": Schedule(1e-3, 0.0, 0.5, 1.0),
                "ent_coef": Schedule(10.0, 1.0, 0.0, 0.7, geometric=True),
                "policy_kwargs": LARGE,
            },
        },
        {"divergence": "KL in nats", "mean_reward": "mean reward"},
    ),
}
# Metrics that are better when they are smaller: their worst seed is the largest.
SMALLER_IS_BETTER = ("divergence",)
COMMON: dict[str, dict[str, Any]] = {"off-policy": {}, "on-policy": {"n_envs": 8, "n_steps": 128, "batch_size": 64}}
DIFFUSION_STEPS = 4


def load_class(path: str) -> Any:
    """The class that "module:class" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def arguments_of(task: str, name: str) -> dict[str, Any]:
    """Everything that a run is made with, but its seed."""
    algorithm = ALGORITHMS[name]
    arguments = COMMON[algorithm.family] | TASKS[task].settings[algorithm.family] | dict(algorithm.arguments)
    if algorithm.diffusion:
        arguments["policy_kwargs"] = arguments["policy_kwargs"] | {"diffusion_steps": DIFFUSION_STEPS}
    return arguments


def evaluate(task: str, model: Any) -> tuple[dict[str, float], Any]:
    """The metrics of a trained model, and the trajectories if there are some to draw."""
    from sb3_diffusion.evaluation import goal_coverage, mixture_divergence, turn_mass

    if task == "goals":
        goals = goal_coverage(model, 200)
        shares = {f"share_{i}": count / 200 for i, count in enumerate(goals.counts.tolist())}
        metrics = {"goals": goals.n_goals, "entropy": goals.entropy, "mean_return": goals.mean_return, **shares}
        return metrics, goals.trajectories
    if task == "turning":
        mass = turn_mass(model, 5000)
        smallest = min(mass.positive.min(), 1 - mass.positive.max())
        return {"smallest_share": float(smallest), "mean_reward": mass.mean_reward}, None
    mixture = mixture_divergence(model)
    worst = float(mixture.by_heading.max())
    return {"divergence": mixture.mean, "worst_divergence": worst, "mean_reward": mixture.mean_reward}, None


def run_one(task: str, name: str, seed: int, out: str) -> str:
    arguments = arguments_of(task, name)
    settings = {"task": task, "algorithm": name, "seed": seed} | {key: repr(value) for key, value in arguments.items()}
    target = Path(out) / task / f"{name}_seed{seed}.json"
    if target.exists():
        previous = json.loads(target.read_text())["settings"]
        if previous != settings:
            raise ValueError(f"{target} was made with {previous}, not {settings}; delete it or choose another --out")
        return f"{task} {name} seed {seed}: done before"
    # SB3 writes into the dictionary that it is given.
    arguments["policy_kwargs"] = dict(arguments["policy_kwargs"])

    import numpy as np
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    import sb3_diffusion.envs  # noqa: F401  registers the environments

    th.set_num_threads(1)
    algorithm = ALGORITHMS[name]
    steps, n_envs = arguments.pop("steps"), arguments.pop("n_envs", 1)
    temperature: Callable[[float], float] | None = None
    if algorithm.algorithm.startswith("stable_baselines3") and callable(arguments.get("ent_coef")):
        temperature = arguments["ent_coef"]
        arguments["ent_coef"] = temperature(1.0)

    class TemperatureSchedule(BaseCallback):
        """What our algorithms do by themselves with ``ent_coef`` as a schedule; SB3's take only a number."""

        def _on_step(self) -> bool:
            if temperature is not None:
                # The algorithm updates its progress only after this callback.
                self.model.ent_coef_tensor.fill_(temperature(1 - self.num_timesteps / steps))  # type: ignore[attr-defined]
            return True

    policy = load_class(algorithm.policy) if ":" in algorithm.policy else algorithm.policy
    env = make_vec_env(TASKS[task].env_id, n_envs, seed)
    model = load_class(algorithm.algorithm)(policy, env, seed=seed, device="cpu", **arguments)
    start = time.perf_counter()
    model.learn(steps, callback=TemperatureSchedule(), log_interval=1_000_000)
    seconds = time.perf_counter() - start
    metrics, trajectories = evaluate(task, model)

    target.parent.mkdir(parents=True, exist_ok=True)
    if trajectories is not None:
        np.savez_compressed(target.with_suffix(".npz"), trajectories=trajectories.astype(np.float16))
    metrics["seconds"] = seconds
    report: dict[str, Any] = {"settings": settings, **provenance(), "metrics": metrics}
    target.write_text(json.dumps(report, indent=1) + "\n")
    return f"{task} {name} seed {seed}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in report["metrics"].items())


def summarise(out: Path) -> None:
    """Write CSV, table and picture of all finished runs."""
    import numpy as np

    from sb3_diffusion.evaluation import plot_goals

    reports = [json.loads(path.read_text()) for task in TASKS for path in sorted((out / task).glob("*.json"))]
    with (out / "mode_coverage.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "algorithm", "seed", "steps", "metric", "value"])
        for report in reports:
            key = [report["settings"][name] for name in ("task", "algorithm", "seed", "steps")]
            writer.writerows([*key, metric, f"{value:.5g}"] for metric, value in report["metrics"].items())

    columns = [(task, metric) for task in TASKS for metric in TASKS[task].columns]
    titles = [f"{TASKS[task].env_id.removesuffix('-v0')}, {TASKS[task].columns[metric]}" for task, metric in columns]
    lines = ["| " + " | ".join(["", *titles]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, algorithm in ALGORITHMS.items():
        cells = []
        for task, metric in columns:
            runs = [
                report for report in reports if (report["settings"]["task"], report["settings"]["algorithm"]) == (task, name)
            ]
            values = [report["metrics"][metric] for report in runs]
            worst = max if metric in SMALLER_IS_BETTER else min
            digits = 0 if metric == "mean_return" else 2
            cells.append(f"{np.mean(values):.{digits}f} ({worst(values):.{digits}f})" if values else "-")
        lines.append("| " + " | ".join([algorithm.label, *cells]) + " |")
    (out / "mode_coverage.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))

    trajectories = {}
    for name, algorithm in ALGORITHMS.items():
        for path in sorted((out / "goals").glob(f"{name}_seed*.npz"))[:1]:
            with np.load(path) as file_with_trajectories:
                trajectories[algorithm.label] = file_with_trajectories["trajectories"].astype(np.float64)
    if trajectories:
        plot_goals(trajectories, n_shown=200).savefig(out / "mode_coverage.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mode_coverage")
    args = parser.parse_args()
    jobs = [(task, name, seed) for seed in args.seeds for task in args.tasks for name in args.algorithms]
    run_all(run_one, [(*job, str(args.out)) for job in jobs], args.workers)
    summarise(args.out)


if __name__ == "__main__":
    main()
