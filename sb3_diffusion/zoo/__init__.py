"""
The library's algorithms in rl-zoo3.

rl-zoo3 has no plug-in mechanism; its commands look ``--algo`` up in the dictionary ``rl_zoo3.ALGOS`` when they are called.
``python -m sb3_diffusion.train`` and ``python -m sb3_diffusion.enjoy`` put ours there and then call rl-zoo3's own commands.
"""

import argparse
from pathlib import Path

import rl_zoo3
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_diffusion
from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO

__all__ = ["ALGORITHMS", "hyperparameter_file", "register", "with_hyperparameter_file"]

# The keys are the class names in lower case: rl-zoo3 derives one from the other.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"diffppo": DiffPPO, "diffsac": DiffSAC, "diffwpo": DiffWPO}


def register() -> None:
    """Make our algorithms choices of ``--algo`` in every rl-zoo3 command called from now on in this process."""
    # In place: the commands hold a reference to this very dictionary.
    rl_zoo3.ALGOS.update(ALGORITHMS)


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
