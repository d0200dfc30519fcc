"""
The library's algorithms in rl-zoo3.

rl-zoo3 has no plug-in mechanism; its commands look ``--algo`` up in the dictionary ``rl_zoo3.ALGOS`` when they are called.
``python -m sb3_diffusion.train`` and ``python -m sb3_diffusion.enjoy`` put ours there and then call rl-zoo3's own commands.
For ``-optimize`` it has two more dictionaries.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import rl_zoo3
import rl_zoo3.callbacks
import rl_zoo3.exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_diffusion
from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.demonstrations import DemonstrationReplayBuffer
from sb3_diffusion.zoo.callbacks import ParallelTrainCallback

__all__ = ["ALGORITHMS", "ParallelTrainCallback", "has_display", "hyperparameter_file", "register", "with_hyperparameter_file"]

# The keys are the class names in lower case: rl-zoo3 derives one from the other.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "diffcrossq": DiffCrossQ,
    "diffppo": DiffPPO,
    "diffsac": DiffSAC,
    "difftqc": DiffTQC,
    "diffwpo": DiffWPO,
}


# Whose search space rl-zoo3's ``-optimize`` takes for ours, and which numbers of diffusion steps it tries besides.
# rl-zoo3 has no search space for CrossQ.
SEARCHED_LIKE = {"diffcrossq": "sac", "diffppo": "ppo", "diffsac": "sac", "difftqc": "tqc", "diffwpo": "sac"}
SEARCHED_DIFFUSION_STEPS = (2, 4, 8)
# What these spaces contain and CrossQ lacks: it has no target networks.
NOT_SEARCHED = ("tau",)


def with_diffusion_steps(algo: str, hyperparams: dict[str, Any], diffusion_steps: int) -> dict[str, Any]:
    """
    :param algo: a key of ``ALGORITHMS``
    :param hyperparams: arguments of the algorithm whose search space it takes
    :param diffusion_steps: K
    :return: the arguments that it has, with K among the policy's
    """
    if algo == "diffcrossq":
        hyperparams = {name: value for name, value in hyperparams.items() if name not in NOT_SEARCHED}
    return hyperparams | {"policy_kwargs": hyperparams["policy_kwargs"] | {"diffusion_steps": diffusion_steps}}


def sample_hyperparams(
    algo: str, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param algo: a key of ``ALGORITHMS``; the other parameters are rl-zoo3's own
    :return: arguments of the algorithm
    """
    hyperparams = HYPERPARAMS_SAMPLER[SEARCHED_LIKE[algo]](trial, n_actions, n_envs, additional_args)
    return with_diffusion_steps(algo, hyperparams, trial.suggest_categorical("diffusion_steps", SEARCHED_DIFFUSION_STEPS))


def convert_hyperparams(algo: str, sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param algo: a key of ``ALGORITHMS``
    :param sampled_params: the parameters of a trial
    :return: arguments of the algorithm
    """
    others = {name: value for name, value in sampled_params.items() if name != "diffusion_steps"}
    return with_diffusion_steps(algo, HYPERPARAMS_CONVERTER[SEARCHED_LIKE[algo]](others), sampled_params["diffusion_steps"])


def register() -> None:
    """
    Make our algorithms choices of ``--algo`` in every rl-zoo3 command called from now on in this process, and rl-zoo3's
    ``ParallelTrainCallback``, as hyper-parameter files name it, one that trains them. In these files
    ``replay_buffer_class: DemonstrationReplayBuffer`` is understood, as ``HerReplayBuffer`` is.
    """
    # In place: the commands hold references to these very dictionaries.
    rl_zoo3.ALGOS.update(ALGORITHMS)
    rl_zoo3.callbacks.ParallelTrainCallback = ParallelTrainCallback  # type: ignore[misc]
    # rl-zoo3 evaluates these entries where its own imports are.
    rl_zoo3.exp_manager.DemonstrationReplayBuffer = DemonstrationReplayBuffer  # type: ignore[attr-defined]
    for algo in ALGORITHMS:
        HYPERPARAMS_SAMPLER[algo] = partial(sample_hyperparams, algo)
        HYPERPARAMS_CONVERTER[algo] = partial(convert_hyperparams, algo)


def hyperparameter_file(algo: str) -> Path:
    """
    The hyper-parameters that come with the library.

    :param algo: a key of ``ALGORITHMS``
    :return: the path of its YAML file
    """
    package = Path(sb3_diffusion.__file__).parent
    installed = package / "hyperparams"
    # In a clone the folder lies beside the package.
    return (installed if installed.is_dir() else package.parent / "hyperparams") / f"{algo}.yml"


def has_display() -> bool:
    """:return: whether a window can be opened; without a display the rendering libraries end the process instead of failing"""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def with_hyperparameter_file(arguments: list[str]) -> list[str]:
    """
    Complete the arguments of rl-zoo3's train, which finds hyper-parameter files only for its own algorithms.

    :param arguments: the command line after the program's name
    :return: the same, with ``--conf-file`` where the algorithm is ours and the user named no file
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("-conf", "--conf-file")
    given, _ = parser.parse_known_args(arguments)
    if given.algo in ALGORITHMS and given.conf_file is None:
        # In front, where no option that takes several values can swallow it.
        return ["--conf-file", str(hyperparameter_file(given.algo)), *arguments]
    return arguments
