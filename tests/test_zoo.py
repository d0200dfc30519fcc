"""rl-zoo3's commands with our algorithms, and the hyper-parameter files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import rl_zoo3
import torch as th
import yaml
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_diffusion import DiffSAC
from sb3_diffusion.zoo import ALGORITHMS, hyperparameter_file, register, with_hyperparameter_file

# What rl-zoo3 takes from an entry for itself; all other keys go to the algorithm's constructor.
ZOO_KEYS = {"n_timesteps", "normalize", "n_envs", "env_wrapper", "noise_type", "noise_std"}


def hyperparameters(algo: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(hyperparameter_file(algo).read_text())


ENTRIES = [(algo, env_id) for algo in ALGORITHMS for env_id in hyperparameters(algo) if env_id != "default"]


def zoo(command: str, *arguments: str, cwd: Path) -> str:
    """Run one of the two commands where a user would: in a folder that is not the clone."""
    process = subprocess.run(
        [sys.executable, "-m", f"sb3_diffusion.{command}", *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_algorithms_are_registered_under_the_name_that_rl_zoo3_derives_from_the_class() -> None:
    register()
    for name, algorithm in ALGORITHMS.items():
        assert rl_zoo3.ALGOS[name] is algorithm
        assert name == algorithm.__name__.lower()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_hyperparameters_are_numbers_where_they_look_like_numbers(algo: str) -> None:
    def leaves(nested: Any) -> list[Any]:
        if isinstance(nested, dict):
            return [leaf for value in nested.values() for leaf in leaves(value)]
        return [nested]

    for leaf in leaves(hyperparameters(algo)):
        if isinstance(leaf, str):
            with pytest.raises(ValueError):
                float(leaf)


@pytest.mark.parametrize(("algo", "env_id"), ENTRIES)
def test_every_entry_constructs_its_algorithm(algo: str, env_id: str) -> None:
    try:
        env = gym.make(env_id)
    except ImportError as error:
        pytest.skip(f"{env_id} is not installed: {error}")
    arguments = {key: value for key, value in hyperparameters(algo)[env_id].items() if key not in ZOO_KEYS}
    if isinstance(arguments.get("policy_kwargs"), str):
        arguments["policy_kwargs"] = eval(arguments["policy_kwargs"], {"nn": th.nn})  # as rl-zoo3 does
    if issubclass(ALGORITHMS[algo], OffPolicyAlgorithm):
        arguments["buffer_size"] = 1  # Memory for a replay buffer is not what is tested.
    model = ALGORITHMS[algo](env=env, device="cpu", **arguments)
    model.predict(env.reset()[0])


@pytest.mark.parametrize(
    ("arguments", "completed"),
    [
        (["--algo", "diffsac"], True),
        (["--algo=diffsac", "-params", "gamma:0.9", "-P"], True),
        (["--algo", "diffsac", "-conf", "mine.yml"], False),
        (["--algo", "diffsac", "--conf-file=mine.yml"], False),
        (["--algo", "sac"], False),
        ([], False),
    ],
)
def test_our_hyperparameter_file_is_used_unless_the_user_names_one(arguments: list[str], completed: bool) -> None:
    expected = ["--conf-file", str(hyperparameter_file("diffsac")), *arguments] if completed else arguments
    assert with_hyperparameter_file(arguments) == expected


@pytest.mark.parametrize("algo", [*ALGORITHMS, "sac"])
def test_train_and_enjoy_run_our_algorithms_and_those_of_stable_baselines3(algo: str, tmp_path: Path) -> None:
    common = ("--algo", algo, "--env", "Pendulum-v1", "-f", "logs", "--device", "cpu", "--num-threads", "1")
    # A whole rollout with all epochs would take a minute.
    short = ("-params", "n_steps:32", "n_epochs:1") if algo == "diffppo" else ()
    printed = zoo("train", *common, "-n", "200", "--eval-freq", "100", "--eval-episodes", "1", *short, cwd=tmp_path)
    assert "('learning_rate', 0.001)" in printed
    assert (tmp_path / "logs" / algo / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()
    assert "Mean reward" in zoo("enjoy", *common, "-n", "250", "--no-render", cwd=tmp_path)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_optuna_samples_constructs_the_algorithm_and_is_found_again_from_the_trial(algo: str) -> None:
    register()
    trial = optuna.create_study().ask()
    additional_args = {"using_her_replay_buffer": False, "her_kwargs": {}}
    arguments = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, additional_args)
    assert trial.params["diffusion_steps"] in (2, 4, 8)
    assert HYPERPARAMS_CONVERTER[algo](trial.params) == arguments
    memory = {"buffer_size": 1} if issubclass(ALGORITHMS[algo], OffPolicyAlgorithm) else {}
    model: Any = ALGORITHMS[algo]("MlpPolicy", "Pendulum-v1", device="cpu", **memory, **arguments)
    assert model.policy.actor.diffusion_steps == trial.params["diffusion_steps"]
    assert model.learning_rate == trial.params["learning_rate"]


def test_train_optimizes_our_algorithms(tmp_path: Path) -> None:
    common = ("--algo", "diffsac", "--env", "Pendulum-v1", "-f", "logs", "--device", "cpu", "--num-threads", "1", "-n", "20")
    study = ("--storage", f"sqlite:///{tmp_path}/study.db", "--study-name", "study")
    options = ("--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots")
    zoo("train", *common, *study, "-optimize", *options, cwd=tmp_path)
    _, trial = optuna.load_study(study_name="study", storage=study[1]).trials
    assert trial.state.name == "COMPLETE"
    # rl-zoo3 takes no notice of --trial-id 0.
    zoo("train", *common, *study, "--trial-id", "1", "--eval-freq", "-1", cwd=tmp_path)
    (path,) = tmp_path.glob("logs/**/Pendulum-v1.zip")
    model = DiffSAC.load(path, device="cpu")
    assert model.actor.diffusion_steps == trial.params["diffusion_steps"]
    assert model.tau == trial.params["tau"]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["BimodalBandit-v0", "TurningDoubleWell-v0"])
def test_our_environments_train_in_several_processes(env_id: str, tmp_path: Path) -> None:
    common = ("--algo", "diffsac", "--env", env_id, "-f", "logs", "--device", "cpu", "--num-threads", "1")
    parameters = ("-params", "n_envs:2", "learning_starts:50")
    zoo("train", *common, "-n", "100", "--vec-env", "subproc", "--eval-freq", "-1", *parameters, cwd=tmp_path)
    zoo("enjoy", *common, "-n", "20", "--no-render", cwd=tmp_path)
