"""
The pictures of policies in README.md and docs/evaluation.md: trains four small models (two minutes on a free core) and draws
them.

    python docs/figures/policies.py             writes docs/figures/denoising.png and the others beside it
    python docs/figures/policies.py --models FOLDER     keeps the models there, and uses those that are there
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import two_modes

from sb3_diffusion import DiffSAC
from sb3_diffusion.envs import TurningDoubleWell
from sb3_diffusion.evaluation import (
    animate_denoising,
    plot_actions_and_critic,
    plot_denoising,
    plot_log_ratios,
    plot_modes_along_episode,
)
from sb3_diffusion.experiments.annealing import Annealing

HERE = Path(__file__).parent
TEMPERATURE = two_modes.TEMPERATURE
SMALL: dict[str, Any] = dict(learning_rate=1e-3, policy_kwargs=dict(net_arch=[64, 64]), seed=0, device="cpu")


class FourGoodActions(gym.Env):
    """One step; four equally good actions in two dimensions, ``exp(-|u - g|² / 2 w²)`` with g = (±0.5, ±0.5) and w = 0.2."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(np.exp(-np.square(np.abs(action) - 0.5).sum() / (2 * 0.2**2)))
        return np.zeros(1, dtype=np.float32), reward, True, False, {}


def four(algorithm: Any) -> BaseAlgorithm:
    """A policy of FourGoodActions, whose temperature falls as the bandit's."""
    falls = Annealing(what="ent_coef", first=1.0, last=TEMPERATURE, end=0.667, geometric=True)
    return algorithm("MlpPolicy", FourGoodActions(), ent_coef=1.0, **SMALL).learn(4_000, falls)


def turns(algorithm: Any) -> BaseAlgorithm:
    """A policy of TurningDoubleWell, with the settings of benchmarks/campaigns/turning.yml."""
    falls = Annealing(what="learning_rate", first=1e-3, last=0.0, begin=0.5)
    return algorithm("MlpPolicy", "TurningDoubleWell-v0", **SMALL).learn(5_000, falls)


TRAININGS = {
    "diffsac_bandit": (DiffSAC, two_modes.train),
    "sac_bandit": (SAC, two_modes.train),
    "diffsac_four": (DiffSAC, four),
    "diffsac_turns": (DiffSAC, turns),
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="where models are kept (default: nowhere)")
    given = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models = load_or_train(folder)
    one = np.zeros(1, dtype=np.float32)
    bandit_of, four_of, turns_of = models["diffsac_bandit"], models["diffsac_four"], models["diffsac_turns"]
    two_modes.draw(bandit_of, models["sac_bandit"]).savefig(HERE / "denoising.png")
    animate_denoising(bandit_of, one, HERE / "denoising.gif")
    plot_denoising(four_of, one).savefig(HERE / "denoising_2d.png")
    plot_actions_and_critic(bandit_of, one).savefig(HERE / "critic.png")
    plot_actions_and_critic(four_of, one).savefig(HERE / "critic_2d.png")
    plot_modes_along_episode(turns_of, "TurningDoubleWell-v0", max_steps=60).savefig(HERE / "episode.png")
    plot_log_ratios(turns_of, TurningDoubleWell.HEADINGS[:3]).savefig(HERE / "log_ratios.png")


if __name__ == "__main__":
    main()
