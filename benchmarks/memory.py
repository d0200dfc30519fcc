"""
Peak memory of one gradient step: DiffSAC's per-step gradient and the full-chain gradient (SB3's SAC with the same policy).

    python benchmarks/memory.py

HalfCheetah-v5's shapes, 256x256 networks, batch 256. Counted are the storages of all live tensors after every operation:
parameters, optimizer states, gradients, activations; the replay buffer is not a tensor. Writes results/memory.csv and .png.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch as th
from matplotlib.figure import Figure
from shapes import ShapesEnv
from stable_baselines3 import PPO, SAC
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_diffusion import DiffSAC, DiffusionSACPolicy


class PeakMemory(TorchDispatchMode):
    """Bytes held by all tensors made inside the context and by those given at its start; ``peak`` is their maximum."""

    def __init__(self, tensors: list[th.Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.add(tensors)

    def add(self, tensors: list[th.Tensor]) -> None:
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self.storages[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        outputs = func(*args, **(kwargs or {}))
        self.add([leaf for leaf in tree_leaves(outputs) if isinstance(leaf, th.Tensor)])
        return outputs


def peak_megabytes(model: SAC | PPO) -> float:
    """
    :param model: that has made gradient steps, so that its optimizers have their states
    :return: the most that all tensors of a gradient step hold at a time, in MB
    """
    networks: list[Any] = [model.policy]
    if isinstance(model, SAC):
        networks = [model.actor, model.critic, model.critic_target]
        if isinstance(model, DiffSAC) and model.diffusion_value is not None:
            networks.append(model.diffusion_value)
    tensors = [parameter for network in networks for parameter in network.parameters()]
    states = [network.optimizer.state for network in networks if hasattr(network, "optimizer")]
    tensors += [leaf for state in states for leaf in tree_leaves(state) if isinstance(leaf, th.Tensor)]
    memory = PeakMemory(tensors)
    with memory:
        if isinstance(model, SAC):
            model.train(1, batch_size=256)
        else:
            model.train()
    return memory.peak / 1e6


def build(algorithm: type[SAC], diffusion_steps: int) -> SAC:
    policy = "MlpPolicy" if issubclass(algorithm, DiffSAC) else DiffusionSACPolicy
    model = algorithm(
        policy,
        ShapesEnv(),
        learning_starts=260,
        buffer_size=300,
        seed=0,
        device="cpu",
        policy_kwargs=dict(diffusion_steps=diffusion_steps),
    )
    return model.learn(262)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion-steps", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    th.set_num_threads(1)
    rows = [
        (steps, *(peak_megabytes(build(algorithm, steps)) for algorithm in (DiffSAC, SAC))) for steps in args.diffusion_steps
    ]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["diffusion_steps", "diffsac_mb", "fullchain_mb"])
        writer.writerows([steps, f"{ours:.2f}", f"{full:.2f}"] for steps, ours, full in rows)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(args.diffusion_steps, [row[1] for row in rows], "o-", label="DiffSAC (one reverse step)")
    axes.plot(args.diffusion_steps, [row[2] for row in rows], "s--", label="full chain (SB3's SAC)")
    axes.set(xlabel="diffusion steps K", ylabel="peak memory of a gradient step [MB]", ylim=(0, None))
    axes.legend()
    figure.savefig(out / "memory.png", dpi=150)
    for steps, ours, full in rows:
        print(f"K = {steps}: DiffSAC {ours:.1f} MB, full chain {full:.1f} MB")


if __name__ == "__main__":
    main()
