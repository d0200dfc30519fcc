"""
What single levers on the time of a gradient step are worth: those that DiffSAC pulls, and those that were left alone.

    python benchmarks/levers.py

Each lever is one piece of work done in two ways, in turns in every round: HalfCheetah-v5's shapes, networks of 256 x 256,
batch 256, K = 4, not compiled. Reported are medians of the milliseconds and, so that they can be compared, the difference as
a share of the whole gradient step in the same round. Writes levers.csv (all rounds) and levers.md to ``--out``.
"""

import argparse
import csv
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from shapes import ShapesEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import polyak_update

from sb3_diffusion import DiffSAC

BATCH = 256
Work = Callable[[], Any]


def build() -> DiffSAC:
    model = DiffSAC("MlpPolicy", make_vec_env(ShapesEnv), seed=0, device="cpu", learning_starts=300)
    return model.learn(310)


def two_backward_passes(model: DiffSAC) -> tuple[Work, Work]:
    """The slope of the critics in the action, with the gradients of the critics' weights and without."""
    features, actions = th.randn(BATCH, 17), th.rand(BATCH, 6, requires_grad=True)

    def slope(inputs: list[th.Tensor]) -> None:
        loss = th.cat(model.critic(features, actions), dim=1).min(dim=1).values.mean()
        th.autograd.grad(loss, inputs)

    return lambda: slope([actions, *model.critic.parameters()]), lambda: slope([actions])


def twin_critics(model: DiffSAC) -> tuple[Work, Work]:
    """Loss and gradients of the two critics one after the other, and as one batched product in each layer."""
    features, actions = th.randn(BATCH, 17), th.rand(BATCH, 6)
    networks = [[layer for layer in network if isinstance(layer, th.nn.Linear)] for network in model.critic.q_networks]
    weights = [
        th.stack([layer.weight.detach().t() for layer in pair]).requires_grad_() for pair in zip(*networks, strict=True)
    ]
    biases = [
        th.stack([layer.bias.detach().unsqueeze(0) for layer in pair]).requires_grad_() for pair in zip(*networks, strict=True)
    ]

    def separate() -> None:
        loss = th.stack([q_values.square().mean() for q_values in model.critic(features, actions)]).sum()
        th.autograd.grad(loss, list(model.critic.parameters()))

    def batched() -> None:
        rows = th.cat([features, actions], dim=1).expand(2, -1, -1)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            rows = th.baddbmm(bias, rows, weight).relu()
        loss = th.baddbmm(biases[-1], rows, weights[-1]).square().mean(dim=(1, 2)).sum()
        th.autograd.grad(loss, weights + biases)

    return separate, batched


def optimizers(model: DiffSAC) -> tuple[Work, Work]:
    """All Adam steps of a gradient step, in PyTorch's default way and fused."""

    def steps(fused: bool) -> Work:
        modules = deepcopy([model.actor, model.critic, model.diffusion_value])
        for module in modules:
            for parameter in module.parameters():  # type: ignore[union-attr]
                parameter.grad = th.zeros_like(parameter)
        all_ = [th.optim.Adam(module.parameters(), fused=fused or None) for module in modules]  # type: ignore[union-attr]
        return lambda: [optimizer.step() for optimizer in all_]

    return steps(False), steps(True)


def target_updates(model: DiffSAC) -> tuple[Work, Work]:
    """SB3's ``polyak_update``, and one ``lerp`` over all tensors."""
    critic, target = deepcopy(model.critic), deepcopy(model.critic_target)
    parameters = [parameter.data for parameter in critic.parameters()], [parameter.data for parameter in target.parameters()]
    return (
        lambda: polyak_update(critic.parameters(), target.parameters(), 0.005),
        lambda: th._foreach_lerp_(parameters[1], parameters[0], 0.005),
    )


def first_layer(model: DiffSAC) -> tuple[Work, Work]:
    """The features' part of the denoiser's first layer, once for each of the K steps, and once for all."""
    features, condition = th.randn(BATCH, 17), model.actor.denoiser.condition
    return (lambda: [condition(features) for _ in range(model.actor.diffusion_steps)]), lambda: condition(features)


def precision(model: DiffSAC) -> tuple[Work, Work]:
    """The chains, which no gradient passes through, in float32 and with bfloat16 products."""
    features = th.randn(BATCH, 17)

    return lambda: model.actor.sample(features), lambda: model.actor.sample(features, bfloat16=True)


def fewer_own_states(model: DiffSAC) -> tuple[Work, Work]:
    """Chains at the states and the next states, and at the next states and a sixteenth of the states."""
    both, fewer = th.randn(2 * BATCH, 17), th.randn(BATCH + BATCH // 16, 17)
    return lambda: model.actor.sample(both), lambda: model.actor.sample(fewer)


# Name, whether DiffSAC does it, the two ways
LEVERS: dict[str, tuple[str, Callable[[DiffSAC], tuple[Work, Work]]]] = {
    "no gradients of the critics' weights in the actor's step": ("yes", two_backward_passes),
    "chains at the next states and few others": ("yes", fewer_own_states),
    "fused Adam": ("yes", optimizers),
    "features' part of the first layer once for all K": ("yes", first_layer),
    "twin critics as batched products": ("no", twin_critics),
    "target update by one lerp": ("no", target_updates),
    "bfloat16 products in the chains": ("if asked to", precision),
}
UNDIFFERENTIATED = (fewer_own_states, first_layer, precision, target_updates)


def milliseconds(work: Work, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    model = build()
    ways = {name: make(model) for name, (_, make) in LEVERS.items()}
    rows = []
    for round_ in range(args.rounds + 1):  # the first one warms up
        step = milliseconds(lambda: model.train(1, batch_size=BATCH), args.repeats)
        for name, both in ways.items():
            with th.set_grad_enabled(LEVERS[name][1] not in UNDIFFERENTIATED):
                without, with_ = (milliseconds(work, args.repeats) for work in both)
            if round_ > 0:
                rows.append([round_, name, without, with_, step])
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "levers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["round", "lever", "without", "with", "gradient_step"], *rows])
    lines = ["| lever | in DiffSAC | without [ms] | with [ms] | saves, of a gradient step |", "|---|---|---|---|---|"]
    for name, (taken, _) in LEVERS.items():
        without, with_, step = np.array([row[2:] for row in rows if row[1] == name]).T
        low, middle, high = np.percentile((without - with_) / step, [25, 50, 75])
        cells = [name, taken, f"{np.median(without):.3f}", f"{np.median(with_):.3f}"]
        lines.append("| " + " | ".join([*cells, f"{middle:.1%} ({low:.1%} to {high:.1%})"]) + " |")
    (args.out / "levers.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
