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
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import DiffPPO, DiffSAC, enjoy
from sb3_diffusion.zoo import ALGORITHMS, ParallelTrainCallback, hyperparameter_file, register, with_hyperparameter_file

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


PARALLEL = """
Pendulum-v1:
  n_timesteps: !!float 600
  policy: 'MlpPolicy'
  train_freq: [1, "episode"]
  gradient_steps: -1
  learning_starts: 100
  batch_size: 16
  buffer_size: 1000
  callback:
    - rl_zoo3.callbacks.ParallelTrainCallback:
        gradient_steps: 5
  policy_kwargs: "dict(net_arch=[16])"
"""


@pytest.mark.parametrize("algo", ["diffsac", "diffwpo", "sac"])
def test_training_in_two_threads_trains_the_algorithm_that_was_asked_for(algo: str, tmp_path: Path) -> None:
    (tmp_path / "parallel.yml").write_text(PARALLEL)
    common = ("--algo", algo, "--env", "Pendulum-v1", "-f", "logs", "--device", "cpu", "--num-threads", "1")
    zoo("train", *common, "-conf", "parallel.yml", "--eval-freq", "-1", cwd=tmp_path)
    (path,) = tmp_path.glob("logs/**/Pendulum-v1.zip")
    register()
    model: Any = rl_zoo3.ALGOS[algo].load(path, device="cpu")
    assert model._n_updates >= 5


def test_the_copy_that_trains_in_a_thread_has_the_models_class_normalisation_and_progress() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    arguments: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[16]), learning_starts=100, batch_size=16, buffer_size=1000)
    model = DiffSAC("MlpPolicy", env, train_freq=(1, "episode"), device="cpu", **arguments)
    callback = ParallelTrainCallback(gradient_steps=3)
    model.learn(600, callback)
    assert type(callback._model) is DiffSAC
    assert callback._model.get_vec_normalize_env() is env
    assert callback._model.num_timesteps == 600
    assert callback._model._n_updates > 0


def test_an_error_in_the_training_thread_ends_the_training() -> None:
    model = DiffSAC("MlpPolicy", "Pendulum-v1", train_freq=(1, "episode"), learning_starts=100, buffer_size=1000, device="cpu")

    class Failing(ParallelTrainCallback):
        def _init_callback(self) -> None:
            super()._init_callback()
            self._model.train = self.fail

        def fail(self, **_: Any) -> None:
            raise ValueError("the loss is not finite")

    with pytest.raises(ValueError, match="the loss is not finite"):
        model.learn(2_000, Failing())


def test_rl_zoo3s_own_callback_does_not_train_another_algorithm_in_silence() -> None:
    theirs = ParallelTrainCallback.__mro__[1]
    for model in (
        DiffSAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu"),
        DiffPPO("MlpPolicy", "Pendulum-v1", device="cpu"),
    ):
        with pytest.raises((ValueError, AssertionError), match=r"holds a DiffSAC model|not supported for parallel training"):
            model.learn(10, theirs())  # type: ignore[operator]
    with pytest.raises(AssertionError, match="not supported for parallel training"):
        DiffPPO("MlpPolicy", "Pendulum-v1", device="cpu").learn(10, ParallelTrainCallback())


@pytest.mark.parametrize("arguments", [[], ["--algo", "diffsac", "--env", "Pendulum-v1"]])
def test_enjoy_says_how_to_do_without_a_display(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["enjoy", *arguments])
    with pytest.raises(SystemExit, match="this machine has no display: add --no-render"):
        enjoy.main()


def test_enjoy_asks_for_no_display_where_it_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("rl_zoo3.enjoy.enjoy", lambda: called.append("yes"))
    monkeypatch.delenv("DISPLAY", raising=False)
    for arguments in (["--no-render"], ["--help"], ["-n", "5", "--no-rend"]):
        monkeypatch.setattr(sys, "argv", ["enjoy", *arguments])
        enjoy.main()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "argv", ["enjoy"])
    enjoy.main()
    assert len(called) == 4


def test_a_classic_environment_is_recorded(tmp_path: Path) -> None:
    """With what the extra "zoo" brings."""
    common = ("--algo", "diffsac", "--env", "Pendulum-v1", "-f", "logs")
    zoo("train", *common, "-n", "20", "--eval-freq", "-1", "--device", "cpu", "--num-threads", "1", cwd=tmp_path)
    script = (
        "import runpy, sys; from sb3_diffusion.zoo import register; register();"
        "runpy.run_module('rl_zoo3.record_video', run_name='__main__')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, *common, "-n", "5", "-o", "videos"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.glob("videos/*.mp4"))
