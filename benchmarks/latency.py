"""
What one action costs: SB3's SAC and our ``predict``, and the exported policy in onnxruntime.

    python benchmarks/latency.py

HalfCheetah's shapes (17 observations, 6 actions), networks of 256 x 256, one thread. The contestants take turns in every
round, so that the machine's drift hits all of them; reported are the medians of the rounds and of each round's ratio to SAC's
``predict`` (sampled or deterministic) of the same batch. What is measured is the thread's own time, which other processes do
not lengthen much. The diffusion policies, after a short training on random observations, have one mode everywhere, as nearly
everywhere in MuJoCo's tasks. The kind "every state searched" is the other extreme of deterministic actions. Writes latency.csv
(one row per figure) and latency.json (settings and machine) to ``--out``.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_diffusion import DiffSAC
from sb3_diffusion.diffusion import mode
from sb3_diffusion.evaluation import provenance
from sb3_diffusion.export import export_onnx


class Kind(NamedTuple):
    """Of actions: whether deterministic, and from which share on a state is searched."""

    deterministic: bool
    max_unexplained_share: float = mode.MAX_UNEXPLAINED_SHARE


KINDS = {"sampled": Kind(False), "deterministic": Kind(True), "every state searched": Kind(True, -1.0)}


class Shapes(gym.Env):
    """Nothing but spaces."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,))
    action_space = spaces.Box(-1.0, 1.0, (6,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.standard_normal(17).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation = self.np_random.standard_normal(17).astype(np.float32)
        return observation, -float(np.square(action - 0.3).sum()), False, False, {}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict(model: Any, kind: Kind) -> Callable[[np.ndarray], Any]:
    return lambda observation: model.predict(observation, deterministic=kind.deterministic)


def run(model: DiffSAC, kind: Kind, threads: int, path: Path) -> Callable[[np.ndarray], Any]:
    """The same with onnxruntime."""
    export_onnx(model, path, kind.deterministic)
    file = session(path, threads)
    return lambda observation: file.run(None, {"observation": observation})


def microseconds(function: Callable[[], Any], seconds: float) -> float:
    """Of one call; as many calls as fit into the time."""
    n_calls, start, begun = 0, time.thread_time(), time.perf_counter()
    while n_calls < 1 or time.perf_counter() - begun < seconds:
        function()
        n_calls += 1
    return (time.thread_time() - start) / n_calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion-steps", nargs="+", type=int, default=[4, 8, 16], help="K (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 256], help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=200, help="environment steps of the short training (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.05, help="of each figure in a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    common: dict[str, Any] = dict(device="cpu", seed=0, buffer_size=10_000, learning_starts=100)
    sac = SAC("MlpPolicy", Shapes(), **common)
    models = {
        steps: DiffSAC("MlpPolicy", Shapes(), policy_kwargs=dict(diffusion_steps=steps), **common).learn(args.steps)
        for steps in args.diffusion_steps
    }
    observations = {batch: np.random.default_rng(0).standard_normal((batch, 17)).astype(np.float32) for batch in args.batches}
    contestants: dict[tuple[str, int | str, str], Callable[[np.ndarray], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in KINDS.items():
            contestants["SAC predict", "", name] = predict(sac, kind)
            with mock.patch.object(mode, "MAX_UNEXPLAINED_SHARE", kind.max_unexplained_share):
                for steps, model in models.items():
                    contestants["DiffSAC predict", steps, name] = predict(model, kind)
                    path = Path(folder) / f"{name}_{steps}.onnx"
                    contestants["DiffSAC onnxruntime", steps, name] = run(model, kind, args.threads, path)
    figures: dict[tuple[str, int | str, str, int], list[float]] = {}
    for _ in range(args.rounds):
        for batch, observation in observations.items():
            for key, call in contestants.items():
                with mock.patch.object(mode, "MAX_UNEXPLAINED_SHARE", KINDS[key[2]].max_unexplained_share):
                    figures.setdefault((*key, batch), []).append(microseconds(partial(call, observation), args.seconds))
    rows = []
    for (contestant, steps, name, batch), values in figures.items():
        ratios = np.divide(values, figures["SAC predict", "", name, batch])
        low, middle, high = np.percentile(values, [25, 50, 75])
        rows.append(
            dict(
                contestant=contestant,
                diffusion_steps=steps,
                kind=name,
                batch=batch,
                microseconds=round(middle, 1),
                low_quartile=round(low, 1),
                high_quartile=round(high, 1),
                relative_to_sac=round(float(np.median(ratios)), 3),
            )
        )
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "latency.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    report = {"settings": settings, **provenance(), "onnxruntime": onnxruntime.__version__}
    (args.out / "latency.json").write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{value!s:>20}" for value in row.values()))


if __name__ == "__main__":
    main()
