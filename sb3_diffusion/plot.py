"""
Draw what a saved model's policy does (docs/evaluation.md).

    python -m sb3_diffusion.plot denoising MODEL.zip --env HalfCheetah-v5 --out denoising.png
    python -m sb3_diffusion.plot denoising MODEL.zip --observation 0 0.5 --out denoising.gif

denoising: how noise becomes actions, as a picture or a GIF; critic: the actions of a state over the critic's landscape;
episode: the modes and their shares along an episode; log-ratios: what each diffusion step costs, and how tight the bound is.

MODEL.zip and the file of VecNormalize are loaded as Stable-Baselines3 loads them, which executes code that they contain: use
those you trust.
"""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_diffusion.command_line import missing, program
from sb3_diffusion.common.saving import replacing
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.saved import algorithm_of, algorithms

PICTURES = ("denoising", "critic", "episode", "log-ratios")
FORMATS = (".png", ".pdf", ".svg", ".gif")
MOST_EPISODE_STEPS = 100_000


def parser() -> argparse.ArgumentParser:
    """:return: the parser of the command"""
    result = argparse.ArgumentParser(
        prog=program("plot"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("picture", choices=PICTURES, help="which to draw")
    result.add_argument("model", type=pathlib.Path, help="a file that model.save wrote")
    result.add_argument(
        "--out", type=pathlib.Path, help="the file to write: .png, .pdf, .svg, or .gif of denoising (default: <picture>.png)"
    )
    result.add_argument("--algorithm", choices=[*algorithms()], help="of the model (default: as its policy class says)")
    result.add_argument("--env", help="Gymnasium id: where observations come from, and the episode (default: none)")
    result.add_argument("--vec-normalize", type=pathlib.Path, help="the file of the training's VecNormalize (default: none)")
    result.add_argument(
        "--observation",
        type=float,
        nargs="+",
        action="append",
        metavar="NUMBER",
        help="an observation as the policy sees it, repeatable (default: from an episode of --env)",
    )
    result.add_argument(
        "--at", type=int, nargs="+", default=[0], metavar="STEP", help="steps of an episode of --env to draw (default: 0)"
    )
    result.add_argument(
        "--dims",
        type=int,
        nargs="+",
        metavar="DIM",
        help="one or two dimensions of the action (default: all of one or two, of more principal axes, or for critic modes)",
    )
    result.add_argument(
        "--chains", type=int, help="particles or actions in each state (default: 2000; log-ratios and episode 512)"
    )
    result.add_argument("--steps", type=int, default=200, help="of the episode, at most (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of the environment and the noise (default: %(default)s)")
    return result


def environment(arguments: argparse.Namespace) -> VecEnv:
    """
    :return: one, vectorised and normalised as the model's was
    :raises ValueError: for an unknown one
    """
    from stable_baselines3.common.env_util import make_vec_env

    try:
        env = make_vec_env(arguments.env, seed=arguments.seed)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"--env {arguments.env}: {error}") from None
    if arguments.vec_normalize is None:
        return env
    env = VecNormalize.load(str(arguments.vec_normalize), env)
    env.training = env.norm_reward = False
    return env


def observations_of(model: BaseAlgorithm, arguments: argparse.Namespace) -> Any:
    """
    :return: those given, or those at the steps ``--at`` of an episode with the model's deterministic actions
    :raises ValueError: if there are none
    """
    from sb3_diffusion.evaluation.callback import first_of
    from sb3_diffusion.evaluation.episode_plots import one_environment

    if arguments.observation:
        lengths = {len(numbers) for numbers in arguments.observation}
        if len(lengths) > 1:
            raise ValueError(f"--observation: all must have as many numbers, not {sorted(lengths)}")
        return np.array(arguments.observation, dtype=np.float32)
    if arguments.env is None:
        raise ValueError("say where the observations come from: --env, or --observation")
    for step in arguments.at:
        check_number("--at", step, 0, MOST_EPISODE_STEPS, integer=True)
    env = one_environment(model, environment(arguments))
    env.seed(arguments.seed)
    observation: Any = env.reset()
    found: dict[int, Any] = {}
    for step in range(max(arguments.at) + 1):
        if step in arguments.at:
            found[step] = first_of(observation, 1)
        observation, _, done, _ = env.step(model.predict(observation, deterministic=True)[0])
        if done[0] and step < max(arguments.at):
            raise ValueError(f"--at {max(arguments.at)}: the episode ends after {step + 1} steps")
    env.close()
    rows = [found[step] for step in arguments.at]
    if isinstance(observation, dict):
        return {key: np.concatenate([row[key] for row in rows]) for key in observation}
    return np.concatenate(rows)


def draw(model: BaseAlgorithm, arguments: argparse.Namespace, out: pathlib.Path) -> None:
    """Write the picture that the arguments name."""
    from sb3_diffusion.evaluation import (
        animate_denoising,
        plot_actions_and_critic,
        plot_denoising,
        plot_log_ratios,
        plot_modes_along_episode,
    )

    common: dict[str, Any] = dict(seed=arguments.seed)
    if arguments.chains is not None:
        common["n_chains"] = arguments.chains
    dims: dict[str, Any] = dict(dims=arguments.dims)
    if arguments.picture == "episode":
        if arguments.env is None:
            raise ValueError("an episode needs --env")
        figure = plot_modes_along_episode(model, environment(arguments), arguments.steps, **common, **dims)
    else:
        observations = observations_of(model, arguments)
        if out.suffix == ".gif":
            animate_denoising(model, observations, out, **common, **dims)
            return
        if arguments.picture == "denoising":
            figure = plot_denoising(model, observations, **common, **dims)
        elif arguments.picture == "critic":
            figure = plot_actions_and_critic(model, observations, **common, **dims)
        else:
            figure = plot_log_ratios(model, observations, **common)
    with replacing(out, out.suffix) as temporary:
        figure.savefig(temporary)


def plot(arguments: Sequence[str] | None = None) -> None:
    """
    Draw one picture and print where it is.

    :param arguments: the command line after the program's name; None: of this process
    """
    command = parser()
    given = command.parse_args(arguments)
    out = given.out or pathlib.Path(f"{given.picture}.png")
    if out.suffix not in FORMATS:
        command.error(f"--out {out} must end in one of {', '.join(FORMATS)}")
    if out.suffix == ".gif" and given.picture != "denoising":
        command.error(f"--out {out}: only denoising is drawn as a GIF")
    if given.picture == "log-ratios" and given.dims:
        command.error("--dims: log-ratios are of all dimensions together")
    for path in (given.model, given.vec_normalize):
        if path is not None and not path.exists():
            command.error(f"{path} does not exist")
    if out.parent.is_dir() and not os.access(out.parent, os.W_OK):
        command.error(f"--out {out}: the folder {out.parent} cannot be written")
    try:
        algorithm = algorithms()[given.algorithm] if given.algorithm else algorithm_of(given.model)
        draw(algorithm.load(given.model, device="cpu"), given, out)
    except (ValueError, OSError) as error:
        command.error(str(error))
    print(out)


def main() -> None:
    """Run the command on ``sys.argv``."""
    try:
        plot()
    except ModuleNotFoundError as error:
        raise SystemExit(missing("a picture", error, "plots")) from error


if __name__ == "__main__":
    main()
