"""
How tight is the path bound? The divergence of a diffusion policy's actions from the optimal policy, by quadrature, against the
bound on it that training minimises, over the number of steps K and the noise schedule (arXiv 2512.02019; docs/method.md).

    python examples/bound_tightness.py

The process has two decisions with one action each. The first, with two good actions, also steers: action a leads to the
right state with probability 1 / (1 + exp(-a / 0.1)), else to the left one. Left has one sharp optimum far off the centre,
right two of different height. Its optimal soft action values are known, so nothing but the diffusion is trained: by the full
chain's gradient, for all three states at once, while the temperature falls from 1 to 0.1. Divergences are those of whole
trajectories, sums over the states weighted by how often the policy is there. Leaves ``bound_tightness.csv`` and
``bound_tightness.png`` in --out. Takes 25 minutes.

What was found (means of three seeds, examples/results/bound_tightness): with read-out and learned variance the slack of the
default schedule falls from 0.53 nats at K = 1 to 0.21 at K = 16, and the bound from 0.87 to 0.42 at K = 8 (0.58 at K = 16).
The cosine schedule's bound is nearly exact at K = 1 (slack 0.002), but its policy is the worst there (2.15 nats): a tight
bound makes no good policy. Without read-out, with fixed variance, most of the default schedule's bound is divergence and not
slack (3.5 of 4.2 nats at K = 16).
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_diffusion.common import DiffusionActor
from sb3_diffusion.evaluation import BoundTightness, bound_tightness, log_partition
from sb3_diffusion.evaluation.style import COLORS, DPI, WIDTH, bare

SEEDS = (0, 1, 2)
DIFFUSION_STEPS = (1, 2, 4, 8, 16)
# Arguments of the actor; linear schedules run from the first number at k = 1 to the second at k = K.
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear 0.05 to 0.2": {"beta_min": 0.05, "beta_max": 0.2},
    "linear 0.1 to 0.4": {"beta_min": 0.1, "beta_max": 0.4},
    "cosine": {"noise_schedule": "cosine"},
}
TEMPERATURE = 0.1
UPDATES = 1200
CHAINS_PER_STATE = 32
LEARNING_RATE = 3e-3
NET_ARCH = [32, 32]

# Centres, heights and common width of the rewards' bumps in each state.
START, LEFT, RIGHT = ((-0.5, 0.5), (1.0, 1.0), 0.2), ((-0.7,), (1.0,), 0.1), ((-0.6, 0.3), (1.0, 0.9), 0.15)


def bumps(actions: th.Tensor, centres: Sequence[float], heights: Sequence[float], width: float) -> th.Tensor:
    """``Σ_i h_i exp(-(a - c_i)² / 2w²)`` of each action."""
    distances = (actions.unsqueeze(-1) - th.tensor(centres, dtype=actions.dtype)) / width
    return th.exp(-0.5 * distances.square()) @ th.tensor(heights, dtype=actions.dtype)


def goes_right(actions: th.Tensor) -> th.Tensor:
    """Probability that the first decision leads to the right state."""
    return th.sigmoid(actions / 0.1)


class OptimalValues(NamedTuple):
    """Soft values of the left and the right state at the final temperature."""

    left: float
    right: float

    def q_value(self, state: int, actions: th.Tensor) -> th.Tensor:
        """Soft action values of state 0 (first decision), 1 (left) or 2 (right)."""
        if state > 0:
            return bumps(actions, *(LEFT, RIGHT)[state - 1])
        probability = goes_right(actions)
        return bumps(actions, *START) + probability * self.right + (1 - probability) * self.left


def optimal_values() -> OptimalValues:
    """τ log ∫ exp(r / τ) of the two last states."""
    left, right = (
        TEMPERATURE * log_partition(lambda a, bump=bump: bumps(th.as_tensor(a), *bump).numpy(), TEMPERATURE)  # type: ignore[misc]
        for bump in (LEFT, RIGHT)
    )
    return OptimalValues(left, right)


class ChainSampler(nn.Module):
    """The module whose call is ``actor.sample``: actions and path log-probability, (B,) each."""

    def __init__(self, actor: DiffusionActor) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, features: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        sample = self.actor.sample(features, noise)
        return sample.actions.squeeze(1), sample.path_log_prob


def train(actors: list[DiffusionActor], values: OptimalValues, updates: int) -> None:
    """
    Minimise ``τ (log p(x^K) + Σ_k ℓ_k) - Q(s, u)`` for each of some actors that differ in weights and schedule only. They are
    stacked, and no more than their number of operations tells one from many. τ falls geometrically to its final value at two
    thirds of the training, the learning rate linearly to 0 in the last third.
    """
    samplers = [ChainSampler(actor) for actor in actors]
    parameters, buffers = th.func.stack_module_state(samplers)  # type: ignore[arg-type]
    sample = th.func.vmap(
        lambda *state_and_input: th.func.functional_call(samplers[0], state_and_input[:2], state_and_input[2:])
    )
    optimizer = th.optim.Adam(parameters.values(), LEARNING_RATE, fused=True)
    features = th.eye(3).repeat_interleave(CHAINS_PER_STATE, dim=0).expand(len(actors), -1, -1)
    for update in range(updates):
        progress = update / updates
        temperature = max(TEMPERATURE, TEMPERATURE ** (1.5 * progress))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 3 * (1 - progress))
        noise = th.randn(len(actors), actors[0].diffusion_steps + 1, features.shape[1], 1)
        actions, path_log_prob = sample(parameters, buffers, features, noise)
        q_values = [values.q_value(state, part) for state, part in enumerate(actions.chunk(3, dim=1))]
        # A sum over the actors: none of them sees how many there are.
        loss = (temperature * path_log_prob - th.cat(q_values, dim=1)).mean(dim=1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with th.no_grad():
        for i, sampler in enumerate(samplers):
            for name, parameter in sampler.named_parameters():
                parameter.copy_(parameters[name][i])


def evaluate(actor: DiffusionActor, values: OptimalValues) -> tuple[float, float]:
    """Marginal and path divergence of the trajectories from the optimal policy's, in nats."""

    def in_state(state: int) -> BoundTightness:
        q_function = lambda actions: values.q_value(state, th.as_tensor(actions)).numpy()  # noqa: E731
        # With a small read-out scale, latents lie far outside the prior.
        return bound_tightness(actor, th.eye(3)[state : state + 1], q_function, TEMPERATURE, 2401, grid_bound=24.0)

    first, left, right = in_state(0), in_state(1), in_state(2)
    probability = float(first.masses @ goes_right(th.as_tensor(first.actions)).numpy())
    weighted = ((1.0, first), (1 - probability, left), (probability, right))
    marginal = sum(weight * found.marginal_divergence for weight, found in weighted)
    path = sum(weight * found.path_divergence for weight, found in weighted)
    return marginal, path


def run(options: dict[str, bool], diffusion_steps: int, seeds: Sequence[int], updates: int) -> list[dict[str, Any]]:
    """Train and evaluate one policy for each schedule and seed; the rows of the table."""
    space, values = spaces.Box(0.0, 1.0, (3,)), optimal_values()
    runs = [(schedule, seed) for schedule in SCHEDULES for seed in seeds]
    actors = []
    for schedule, seed in runs:
        th.manual_seed(seed)
        kwargs: dict[str, Any] = {"diffusion_steps": diffusion_steps, **options, **SCHEDULES[schedule]}
        actors.append(DiffusionActor(space, spaces.Box(-1.0, 1.0, (1,)), NET_ARCH, FlattenExtractor(space), 3, **kwargs))
    train(actors, values, updates)
    rows: list[dict[str, Any]] = []
    for (schedule, seed), actor in zip(runs, actors, strict=True):
        marginal, path = evaluate(actor, values)
        row = {**options, "schedule": schedule, "diffusion_steps": diffusion_steps, "seed": seed}
        rows.append(row | {"marginal_divergence": marginal, "path_divergence": path, "slack": path - marginal})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel for each pair of options: bound (solid) and exact divergence (dashed) against K, mean over the seeds."""
    curves: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for row in rows:
        for column in ("path_divergence", "marginal_divergence"):
            key = (row["state_dependent_readout"], row["learn_variance"], row["schedule"], column)
            steps, value = row["diffusion_steps"], row[column]
            curves.setdefault(key, {}).setdefault(steps, []).append(value)
    figure = Figure(figsize=(WIDTH, 6.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for (readout, variance, schedule, column), by_steps in curves.items():
        panel, bound = panels[int(readout), int(variance)], column == "path_divergence"
        number = list(SCHEDULES).index(schedule)
        panel.plot(
            list(by_steps),
            [np.mean(values) for values in by_steps.values()],
            f"{'os^'[number]}{'-' if bound else '--'}",
            color=COLORS[number],
            markersize=4,
            label=f"{schedule}, {'bound' if bound else 'exact'}",
        )
        panel.set_title(f"read-out {'on' if readout else 'off'}, learned variance {'on' if variance else 'off'}")
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(by_steps), [str(steps) for steps in by_steps])
    for panel in panels.flat:
        bare(panel)
        panel.set_yscale("log")
        panel.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
        panel.minorticks_off()
    for panel in panels[1]:
        panel.set_xlabel("diffusion steps K")
    for panel in panels[:, 0]:
        panel.set_ylabel("divergence, nats")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--diffusion-steps", type=int, nargs="+", default=list(DIFFUSION_STEPS), help="K, any number of them (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one training each (%(default)s)")
    parser.add_argument("--updates", type=int, default=UPDATES, help="gradient steps of a training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bound_tightness"), help="folder for the results (%(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for readout in (False, True):
        for variance in (False, True):
            options = {"state_dependent_readout": readout, "learn_variance": variance}
            for diffusion_steps in arguments.diffusion_steps:
                rows += run(options, diffusion_steps, arguments.seeds, arguments.updates)
                told = ", ".join(f"{name} {value}" for name, value in options.items())
                print(
                    f"{told}, K = {diffusion_steps}: {len(rows)} policies in {time.perf_counter() - start:.0f} s", flush=True
                )
    with (arguments.out / "bound_tightness.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out / "bound_tightness.png")
    print(f"{len(rows)} policies in {time.perf_counter() - start:.0f} s; wrote {arguments.out}/bound_tightness.csv and .png")


if __name__ == "__main__":
    main()
