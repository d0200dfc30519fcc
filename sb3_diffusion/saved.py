"""Which class a saved model is of."""

import inspect
import json
import pathlib
import zipfile

from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_diffusion


def algorithms() -> dict[str, type[BaseAlgorithm]]:
    """:return: the library's algorithms by name"""
    members = {name: getattr(sb3_diffusion, name) for name in sb3_diffusion.__all__}
    return {name: cls for name, cls in members.items() if inspect.isclass(cls) and issubclass(cls, BaseAlgorithm)}


def algorithm_of(path: pathlib.Path) -> type[BaseAlgorithm]:
    """
    The algorithm that saved a file, by the folder of its policy class. Executes nothing.

    :param path: of the file
    :return: the class
    :raises ValueError: if the policy class is none of the library's
    """
    with zipfile.ZipFile(path) as archive:
        policy_class = json.loads(archive.read("data")).get("policy_class") or {}
    module = str(policy_class.get("__module__", ""))
    for algorithm in algorithms().values():
        if module.rpartition(".")[0] == algorithm.__module__.rpartition(".")[0]:
            return algorithm
    raise ValueError(
        f"{path} has the policy class {module!r}, which is none of the library's: say --algorithm {[*algorithms()]}"
    )
