"""
The pictures of policies in README.md and docs/evaluation.md: trains three small models (four minutes on a free core) and draws them.

    python docs/figures/policies.py             writes docs/figures/denoising.png and the others beside it
    python docs/figures/policies.py --models FOLDER     keeps the models there, and uses those that are there
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion import DiffSAC
from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import (
    animate_denoising,
    boltzmann_density,
    plot_actions_and_critic,
    plot_denoising,
    plot_log_ratios,
    plot_modes_along_episode,
)
from sb3_diffusion.evaluation.style import BLACK
from sb3_diffusion.experiments.annealing import Annealing

HERE = Path(__file__).parent
TEMPERATURE = 0.1
SMALL: dict[str, Any] = dict(learning_rate=1e-3, policy_kwargs=dict(net_arch=[64, 64]), seed=0, device="cpu")


def bandit(algorithm: Any) -> BaseAlgorithm:
    """A policy of BimodalBandit whose temperature falls from 1 to 0.1, as in README.md."""
    falls = Annealing(what="ent_coef", first=1.0, last=TEMPERATURE, end=0.667, geometric=True)
    return algorithm("MlpPolicy", "BimodalBandit-v0", ent_coef=1.0, **SMALL).learn(4_000, falls)


def goals(algorithm: Any) -> BaseAlgorithm:
    """A policy of MultiGoal2D, with a temperature of 5 units of reward a nat."""
    return algorithm("MlpPolicy", "MultiGoal2D-v0", ent_coef=5.0, learning_starts=500, **SMALL).learn(5_000)


TRAININGS = {"diffsac_bandit": (DiffSAC, bandit), "sac_bandit": (SAC, bandit), "diffsac_goals": (DiffSAC, goals)}


def load_or_train(folder: Path) -> dict[str, Any]:
    """:return: the models by name"""
    models = {}
    for name, (algorithm, train) in TRAININGS.items():
        path = folder / f"{name}.zip"
        if not path.is_file():
            print(f"training {name}")
            train(algorithm).save(path)
        models[name] = algorithm.load(path, device="cpu")
    return models


def denoising(diffusion: Any, gaussian: Any) -> Figure:
    """README's first picture: noise becomes one of two good actions; beside, the Gaussian of SAC."""
    observation = np.zeros(1, dtype=np.float32)
    th.manual_seed(0)
    actions, _ = gaussian.predict(np.zeros((20_000, 1), dtype=np.float32), deterministic=False)
    figure = plot_denoising(diffusion, observation, 6000, beside={"SAC's Gaussian": actions})
    chains, beside = figure.axes
    chains.set_title("DiffSAC: noise becomes one of two good actions, in four steps", fontsize="medium")
    # The exact density, to the scale of the last step's histogram and of the Gaussian's
    grid = np.linspace(-1, 1, 401)
    exact = boltzmann_density(BimodalBandit().reward, TEMPERATURE, grid)
    last = diffusion.actor.diffusion_steps
    for axes, place, scale in ((chains, last, 0.8 / exact.max()), (beside, 0.0, 0.8 / exact.max())):
        axes.plot(place + scale * exact, grid, color=BLACK, linewidth=1.2, linestyle="--")
    beside.set_xlabel("dashed: exact")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="where models are kept (default: nowhere)")
    given = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models = load_or_train(folder)
    one, origin = np.zeros(1, dtype=np.float32), np.zeros(2, dtype=np.float32)
    diffusion, goals_of = models["diffsac_bandit"], models["diffsac_goals"]
    denoising(diffusion, models["sac_bandit"]).savefig(HERE / "denoising.png")
    plot_denoising(goals_of, origin).savefig(HERE / "denoising_2d.png")
    animate_denoising(goals_of, origin, HERE / "denoising.gif")
    plot_actions_and_critic(diffusion, one).savefig(HERE / "critic.png")
    plot_actions_and_critic(goals_of, origin).savefig(HERE / "critic_2d.png")
    plot_modes_along_episode(goals_of, "MultiGoal2D-v0", max_steps=30).savefig(HERE / "episode.png")
    states = np.array([[0, 0], [1, 1], [3, 0]], dtype=np.float32)
    plot_log_ratios(goals_of, states).savefig(HERE / "log_ratios.png")


if __name__ == "__main__":
    main()
