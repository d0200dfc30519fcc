"""
What a diffusion policy costs: training, gradient step, prediction and memory beside SB3's SAC and PPO, all in one process.

    python benchmarks/speed.py --diffusion-steps 1 4 16 --compiled-steps 4 16

The contestants take turns in every round, so that the machine's drift hits all of them; reported are the medians of the rounds
and of each round's ratio to SB3's algorithm (PPO for DiffPPO, SAC for the others), with the quartiles. HalfCheetah-v5,
networks of 256 x 256, batch 256, defaults otherwise; PPO and DiffPPO make 20 gradient steps for 512 environment steps, DiffPPO
on all K steps of each row. The parts of a gradient step are timed in the plain (not compiled) functions: there "forward" is a
loss, "backward" its gradients. Writes <env>_<device>_<threads>.json (all
rounds) and .md (the tables) to ``--out``.
"""

import argparse
import json
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import stable_baselines3.sac.sac as sb3_sac
import torch as th
from memory import peak_megabytes
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from torch.utils.flop_counter import FlopCounterMode

import sb3_diffusion.diffsac.diffsac as diffsac_module
from sb3_diffusion import DiffPPO, DiffSAC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.evaluation import provenance

BATCHES = (1, 16, 256)
WARM_UP = 300
ROLLOUT = 512


def make(algorithm: type[SAC], policy: Any, env: str, device: str, **kwargs: Any) -> SAC:
    """A model that has taken its first gradient steps."""
    model = algorithm(policy, make_vec_env(env, seed=0), seed=0, device=device, learning_starts=WARM_UP, **kwargs)
    return model.learn(WARM_UP + 10)


def make_on_policy(
    algorithm: type[PPO], env: str, device: str, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> PPO:
    """The same for PPO and DiffPPO."""
    model = algorithm(
        "MlpPolicy",
        make_vec_env(env, seed=0),
        seed=0,
        device=device,
        n_steps=ROLLOUT,
        batch_size=256,
        policy_kwargs=dict(net_arch=[256, 256]) | (policy_kwargs or {}),
        **kwargs,
    )
    return model.learn(ROLLOUT)


def contestants(args: argparse.Namespace) -> dict[str, Callable[[], BaseAlgorithm]]:
    common = args.env, args.device
    builders: dict[str, Callable[[], BaseAlgorithm]] = {
        "SAC": partial(make, SAC, "MlpPolicy", *common),
        "PPO": partial(make_on_policy, PPO, *common),
    }

    def build(steps: int, function: Any, *algorithm: Any, **kwargs: Any) -> Callable[[], BaseAlgorithm]:
        return lambda: function(*algorithm, *common, policy_kwargs=dict(diffusion_steps=steps), **kwargs)

    ours = {"DiffSAC": (make, DiffSAC, "MlpPolicy"), "DiffWPO": (make, DiffWPO, "MlpPolicy")}
    for steps in args.diffusion_steps:
        for name, recipe in {**ours, "DiffPPO": (make_on_policy, DiffPPO)}.items():
            builders[f"{name}, K = {steps}"] = build(steps, *recipe)
            if steps in args.compiled_steps:
                builders[f"{name} compiled, K = {steps}"] = build(steps, *recipe, torch_compile=True)
        if steps in args.compiled_steps:
            rounded = build(steps, *ours["DiffSAC"], torch_compile=True, bfloat16_chains=True)
            builders[f"DiffSAC compiled, bfloat16, K = {steps}"] = rounded
        builders[f"full chain, K = {steps}"] = build(steps, make, SAC, DiffusionSACPolicy)
    return builders


def reference(name: str) -> str:
    """SB3's algorithm that a contestant is compared with."""
    return "PPO" if "PPO" in name else "SAC"


def train(model: BaseAlgorithm) -> int:
    """Make some gradient steps; returns how many."""
    if isinstance(model, SAC):
        model.train(10, batch_size=256)
        return 10
    assert isinstance(model, PPO)
    model.train()
    return model.n_epochs * ROLLOUT // model.batch_size


class Clock:
    """Milliseconds of a call, waiting for the device's work."""

    def __init__(self, device: str) -> None:
        self.synchronize = th.cuda.synchronize if device.startswith("cuda") else lambda: None

    def milliseconds(self, function: Callable[[], Any], repeats: int) -> float:
        self.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        self.synchronize()
        return (time.perf_counter() - start) / repeats * 1e3


def off_policy_parts(model: SAC, patch: Callable[..., None]) -> list[th.optim.Optimizer]:
    """Name the parts of SAC's gradient step and of ours; returns the optimizers."""
    patch(model.replay_buffer, "sample", "buffer")
    for module in (sb3_sac, diffsac_module):
        patch(module, "polyak_update", "target update")
    optimizers: list[Any] = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    if isinstance(model, DiffSAC):
        if model.diffusion_value is not None:
            optimizers.append(model.diffusion_value.optimizer)
        if isinstance(model, DiffWPO):
            optimizers.append(model.kl_coef_optimizer)
        patch(model, "_sample_chains", "chains")
        patch(model, "_diffusion_value_loss", "diffusion value, forward")
        patch(model, "_actor_losses", "actor, forward")
        patch(model, "_evaluate_step", "critics, forward")
        patch(model, "_improve_step", "rest")
        names = ["critics and diffusion value, backward", *["actor, backward"] * (3 if isinstance(model, DiffWPO) else 1)]
        gradients = iter(names * 10_000)
        patch(th.autograd, "grad", lambda: next(gradients))
    else:
        patch(model.actor, "action_log_prob", "chains")
        patch(model.critic, "forward", "critics, forward")
        patch(model.critic_target, "forward", "critics, forward")
        # In SB3's order: temperature, critics, actor
        gradients = iter(["rest", "critics, backward", "actor, backward"] * 10_000)
        patch(th.Tensor, "backward", lambda: next(gradients))
    return optimizers


def on_policy_parts(model: BaseAlgorithm, patch: Callable[..., None]) -> list[th.optim.Optimizer]:
    """The same for PPO and DiffPPO."""
    assert isinstance(model, PPO)
    patch(model.rollout_buffer, "_get_samples", "buffer")
    patch(
        model.policy, "evaluate_decisions" if isinstance(model, DiffPPO) else "evaluate_actions", "policy and value, forward"
    )
    patch(th.autograd, "grad", "all, backward")
    patch(th.Tensor, "backward", "all, backward")
    return [model.policy.optimizer]


@contextmanager
def timed_parts(model: BaseAlgorithm, clock: Clock) -> Iterator[dict[str, float]]:
    """Milliseconds spent in each part of the gradient steps made inside, without what is nested in it."""
    parts: dict[str, float] = defaultdict(float)
    running: list[float] = []

    def timed(name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            running.append(0.0)
            results = []
            elapsed = clock.milliseconds(lambda: results.append(function(*args, **kwargs)), 1)
            nested = running.pop()
            parts[name if isinstance(name, str) else name()] += elapsed - nested
            if running:
                running[-1] += elapsed
            return results[0]

        return call

    with ExitStack() as stack:

        def patch(target: Any, attribute: str, name: str | Callable[[], str]) -> None:
            stack.enter_context(mock.patch.object(target, attribute, timed(name, getattr(target, attribute))))

        optimizers = off_policy_parts(model, patch) if isinstance(model, SAC) else on_policy_parts(model, patch)
        for optimizer in optimizers:
            patch(optimizer, "step", "optimizers")
            patch(optimizer, "zero_grad", "optimizers")
        patch(model, "train", "rest")
        yield parts


def quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def tables(report: dict[str, Any]) -> str:
    rounds, facts, settings = report["rounds"], report["facts"], report["settings"]
    names = list(facts)

    def ratio(name: str, figure: str) -> str:
        return quartiles([r[name][figure] / r[reference(name)][figure] for r in rounds])

    lines = [
        f"Medians of {len(rounds)} rounds (quartiles). {settings['env']}, {settings['threads']} thread(s), "
        f"{settings['device']}, {report['machine']}. Matrix products run at "
        f"{quartiles([r['matmul_gflops'] for r in rounds])} GFLOP/s.",
        "",
        "| | training steps/s | relative to SB3's | gradient step [ms] | relative to SB3's | MFLOP | share of product rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        # Steps per second are the inverse of the time, so is their ratio.
        speed = quartiles([1e3 / r[name]["training_step"] for r in rounds])
        relative = quartiles([r[reference(name)]["training_step"] / r[name]["training_step"] for r in rounds])
        update = quartiles([r[name]["gradient_step"] for r in rounds])
        share = quartiles([facts[name]["mflop"] / r[name]["gradient_step"] / r["matmul_gflops"] for r in rounds])
        cells = [name, speed, relative, update, ratio(name, "gradient_step"), f"{facts[name]['mflop']:.0f}", share]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Prediction (sampled action), relative to SB3's; deterministic action in brackets.", ""]
    lines += ["| | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " |", "|---" * (len(BATCHES) + 1) + "|"]
    for name in names:
        cells = []
        for batch in BATCHES:
            both = [statistics.median(r[name][f"{kind}_{batch}"] / r[reference(name)][f"predict_{batch}"] for r in rounds)
                    for kind in ("predict", "deterministic")]  # fmt: skip
            cells.append(f"{both[0]:.2f} ({both[1]:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    timed = [name for name in names if "parts" in rounds[0][name]]
    parts = sorted({part for name in timed for part in rounds[0][name]["parts"]})
    lines += ["", "Parts of a plain gradient step [ms], timers included.", ""]
    lines += ["| | " + " | ".join(parts) + " |", "|---" * (len(parts) + 1) + "|"]
    for name in timed:
        cells = [
            quartiles([r[name]["parts"][part] for r in rounds]) if part in rounds[0][name]["parts"] else "" for part in parts
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Peak memory of all tensors in a plain gradient step.", "", "| | MB |", "|---|---|"]
    lines += [f"| {name} | {facts[name]['megabytes']:.1f} |" for name in names if "megabytes" in facts[name]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="with vector observations")
    parser.add_argument("--diffusion-steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--compiled-steps", nargs="*", type=int, default=[4, 8, 16], help="K for which ours also run compiled")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed")
    args = parser.parse_args()
    warnings.filterwarnings("error", message="torch_compile")
    th.set_num_threads(args.threads)
    clock = Clock(args.device)
    models: dict[str, BaseAlgorithm] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, build in contestants(args).items():
        start = time.perf_counter()
        models[name] = model = build()
        facts[name] = {"build_seconds": time.perf_counter() - start, "n_gradient_steps": train(model)}
        if "compiled" in name:
            continue
        with FlopCounterMode(display=False) as counter:
            n_steps = train(model)
        facts[name]["mflop"] = counter.get_total_flops() / n_steps / 1e6
        facts[name]["megabytes"] = peak_megabytes(model)  # type: ignore[arg-type]
    for name, fact in facts.items():
        fact.setdefault("mflop", facts[name.replace(" compiled", "").replace(", bfloat16", "")]["mflop"])

    observations = {
        batch: np.random.default_rng(0).standard_normal((batch, *models["SAC"].observation_space.shape)) for batch in BATCHES
    }
    factor = th.randn(256, 256, device=args.device)
    rounds = []
    for _ in range(args.rounds):
        figures: dict[str, Any] = {"matmul_gflops": 2 * 256**3 / 1e6 / clock.milliseconds(lambda: factor @ factor, 50)}
        for name, model in models.items():
            own = figures[name] = {}
            own["gradient_step"] = clock.milliseconds(partial(train, model), 1) / facts[name]["n_gradient_steps"]
            n_steps = 40 if isinstance(model, SAC) else ROLLOUT
            learn = partial(model.learn, n_steps, reset_num_timesteps=False, log_interval=1_000_000)
            own["training_step"] = clock.milliseconds(learn, 1) / n_steps
            for batch, observation in observations.items():
                own[f"predict_{batch}"] = clock.milliseconds(partial(model.predict, observation), 20)
                search = partial(model.predict, observation, deterministic=True)
                own[f"deterministic_{batch}"] = clock.milliseconds(search, 2)
            if "compiled" not in name:
                with timed_parts(model, clock) as parts:
                    n_steps = train(model)
                own["parts"] = {part: value / n_steps for part, value in parts.items()}
        rounds.append(figures)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    report = {"settings": settings, **provenance()}
    report |= {"facts": facts, "rounds": rounds}
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"{args.env}_{args.device.replace(':', '')}_{args.threads}"
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{name}.md").write_text(tables(report))
    print(tables(report))


if __name__ == "__main__":
    main()
