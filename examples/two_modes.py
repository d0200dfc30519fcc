"""
Two equally good actions, one state: DiffSAC learns to take either, SAC's Gaussian spreads over the bad ones between them.

    python examples/two_modes.py

Trains both on BimodalBandit-v0, with a temperature that falls from 1 to 0.1 (a minute of a core), and leaves in --out
``two_modes.png``: how noise becomes an action, step by step, and the Gaussian beside it; dashed is the exact optimum,
``exp(r / 0.1) / Z``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import SAC

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import boltzmann_density, plot_denoising, policy_chains
from sb3_diffusion.evaluation.chain_plots import highest_density
from sb3_diffusion.evaluation.style import BLACK
from sb3_diffusion.experiments.annealing import Annealing

TEMPERATURE = 0.1
STEPS = 4_000
FEWEST_STEPS = 200  # of which 100 are SAC's warm-up


def train(algorithm: type[SAC], steps: int = STEPS, seed: int = 0) -> Any:
    """:return: a policy of BimodalBandit"""
    falls = Annealing(what="ent_coef", first=1.0, last=TEMPERATURE, end=0.667, geometric=True)
    policy_kwargs = dict(net_arch=[64, 64])
    kwargs: dict[str, Any] = dict(learning_rate=1e-3, ent_coef=1.0, policy_kwargs=policy_kwargs, seed=seed, device="cpu")
    return algorithm("MlpPolicy", "BimodalBandit-v0", **kwargs).learn(steps, falls)


def draw(diffusion: Any, gaussian: Any) -> Figure:
    """:return: noise on its way to an action of the diffusion policy; beside, to the same scale, the Gaussian's actions"""
    observation = np.zeros(1, dtype=np.float32)
    th.manual_seed(0)
    actions, _ = gaussian.predict(np.zeros((20_000, 1), dtype=np.float32), deterministic=False)
    figure = plot_denoising(diffusion, observation, 6000, beside={"SAC's Gaussian": actions})
    chains, beside = figure.axes
    chains.set_title("DiffSAC: noise becomes one of two good actions, in four steps", fontsize="medium")
    grid = np.linspace(-1, 1, 401)
    exact = boltzmann_density(BimodalBandit().reward, TEMPERATURE, grid)
    highest = highest_density(policy_chains(diffusion, observation, 6000).actions[0, 0, :, 0], (-1.0, 1.0))
    for axes, place, scale in ((chains, diffusion.actor.diffusion_steps, 0.8 / highest), (beside, 0.0, 0.9 / highest)):
        axes.plot(place + scale * exact, grid, color=BLACK, linewidth=1.2, linestyle="--")
    beside.set_xlabel("dashed: exact")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    check_number("--steps", arguments.steps, FEWEST_STEPS, integer=True)
    check_number("--seed", arguments.seed, 0, integer=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    print(f"training DiffSAC and SAC for {arguments.steps} steps each", flush=True)
    models = (train(algorithm, arguments.steps, arguments.seed) for algorithm in (DiffSAC, SAC))
    draw(*models).savefig(arguments.out / "two_modes.png")
    print(f"wrote {arguments.out / 'two_modes.png'}")


if __name__ == "__main__":
    main()
