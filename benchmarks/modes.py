"""
Pictures of what the policies of a campaign do where several actions are equally good: the first seed of each variant.

    python -m sb3_diffusion.campaign benchmarks/campaigns/bandit.yml --out logs/campaigns/bandit
    python benchmarks/modes.py logs/campaigns/bandit --out benchmarks/results/bandit

BimodalBandit: sampled actions against the exact density at τ = 0.1; TurningDoubleWell: sampled turns in each heading, against
the optimal density at the temperature with which each run ended; MultiGoal2D: trajectories from the origin. Writes
<out>.png, or <out>_<environment>.png where the campaign has several of these environments.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import rl_zoo3
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import goal_coverage, plot_density, plot_goals, plot_turns, sample_actions, turn_mass
from sb3_diffusion.experiments.comparison import readable
from sb3_diffusion.experiments.metrics import BANDIT_TEMPERATURE
from sb3_diffusion.zoo import register

Models = Mapping[str, BaseAlgorithm]


def bandit(models: Models, temperatures: Mapping[str, float]) -> Figure:
    observation = np.zeros(1, dtype=np.float32)
    samples = {name: sample_actions(model, observation, 4000) for name, model in models.items()}
    return plot_density(samples, BimodalBandit().reward, BANDIT_TEMPERATURE)


def turning(models: Models, temperatures: Mapping[str, float]) -> Figure:
    return plot_turns({name: turn_mass(model, 2000).actions for name, model in models.items()}, temperatures)


def goals(models: Models, temperatures: Mapping[str, float]) -> Figure:
    return plot_goals({name: goal_coverage(model, 200).trajectories for name, model in models.items()}, n_shown=200)


PICTURES: dict[str, Callable[[Models, Mapping[str, float]], Figure]] = {
    "BimodalBandit-v0": bandit,
    "TurningDoubleWell-v0": turning,
    "MultiGoal2D-v0": goals,
}


def load(folder: Path, environment: str, seed: int) -> dict[str, BaseAlgorithm]:
    """:return: by variant, for people, the models of a campaign's finished runs"""
    register()
    variants = json.loads((folder / "results.json").read_text())["variants"]
    models = {}
    for name, settings in variants.items():
        path = folder / "runs" / name / environment / str(seed) / "model.zip"
        if environment in settings and path.is_file():
            models[readable(name)] = rl_zoo3.ALGOS[settings[environment]["algo"]].load(path, device="cpu")
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", type=Path, metavar="FOLDER", help="the campaign's --out")
    parser.add_argument("--out", type=Path, default=Path("modes"), help="how the pictures' names begin (modes)")
    args = parser.parse_args()
    try:
        table = pd.read_csv(args.campaign / "results.csv")
    except OSError as error:
        parser.error(f"{args.campaign} is not the folder of a campaign: {error}")
    drawn = [environment for environment in table["environment"].unique() if environment in PICTURES]
    if not drawn:
        parser.error(f"{args.campaign} has none of the environments {', '.join(PICTURES)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for environment in drawn:
        rows = table[table["environment"] == environment]
        rows = rows[rows["seed"] == rows["seed"].min()]
        models = load(args.campaign, environment, int(rows["seed"].iloc[0]))
        if not models:
            print(f"{environment}: no finished run of seed {rows['seed'].iloc[0]}")
            continue
        last = rows.groupby("variant")["ent_coef"].last() if "ent_coef" in rows else {}
        figure = PICTURES[environment](models, {readable(name): float(tau) for name, tau in last.items() if tau > 0})
        path = args.out.with_name(f"{args.out.name}{f'_{environment}' if len(drawn) > 1 else ''}.png")
        figure.savefig(path)
        print(path)


if __name__ == "__main__":
    main()
