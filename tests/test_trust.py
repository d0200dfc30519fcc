"""Extreme numbers, kills, full disks: finite or refused, and the earlier file always loads."""

import multiprocessing
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import ALGORITHMS, SMALL, SMALL_ON_POLICY, differing, full_state
from envs_for_tests import StrictBoxEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor

from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.common.finite import NotFinite

ALL: list[Any] = [*ALGORITHMS, DiffPPO]


def make(algorithm: Any, env: Any = None, **kwargs: Any) -> Any:
    small = SMALL_ON_POLICY if algorithm is DiffPPO else SMALL
    env = StrictBoxEnv() if env is None else env
    return algorithm("MlpPolicy", env, policy_kwargs=dict(net_arch=[16]), **small | kwargs)


def trains_or_is_refused(model: Any, steps: int = 40) -> bool:
    """:return: whether it trained; all that it holds is finite then"""
    try:
        model.learn(steps)
    except NotFinite:
        return False
    for name, weight in model.policy.state_dict().items():
        assert th.isfinite(weight).all(), name
    return True


# Extreme numbers


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_networks_with_absurd_weights_give_actions_in_the_box(algorithm: Any, scale: float, deterministic: bool) -> None:
    model = make(algorithm, StrictBoxEnv([-3.0, 0.0], [5.0, 0.5])).learn(20)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(scale)
    observations = np.random.default_rng(0).uniform(-10, 10, (50, 3)).astype(np.float32)
    actions = model.predict(observations, deterministic=deterministic)[0]
    assert np.isfinite(actions).all()
    assert ((actions >= model.action_space.low) & (actions <= model.action_space.high)).all()
    trains_or_is_refused(model)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_absurd_rewards_are_learned_from(algorithm: Any, scale: float) -> None:
    class Scaled(StrictBoxEnv):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            observation, reward, *rest = super().step(action)
            return observation, scale * reward, *rest

    assert trains_or_is_refused(make(algorithm, Scaled()))


class LimitEnv(StrictBoxEnv):
    """Observations at the limits of float32."""

    def _observation(self) -> np.ndarray:
        return np.float32([np.finfo(np.float32).max, -np.finfo(np.float32).max, np.finfo(np.float32).tiny])

    def __init__(self) -> None:
        super().__init__()
        largest = np.finfo(np.float32).max
        self.observation_space = spaces.Box(-largest, largest, (3,))


@pytest.mark.parametrize("algorithm", ALL)
def test_observations_at_the_limits_of_their_numbers_are_learned_from_or_refused(algorithm: Any) -> None:
    env = LimitEnv()
    try:
        model = make(algorithm, env)
        if trains_or_is_refused(model):
            assert np.isfinite(model.predict(env.reset()[0])[0]).all()
    except NotFinite as error:
        assert "overflow" in str(error)


# Kills and full disks


def save_again_and_again(model: Any, folder: Path) -> None:
    while True:
        model.save(folder / "model")
        if hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer(folder / "buffer")


def learn_with_checkpoints(model: Any, folder: Path) -> None:
    callbacks = [
        CheckpointCallback(1, str(folder), "model", save_replay_buffer=True),
        EvalCallback(Monitor(StrictBoxEnv()), n_eval_episodes=1, eval_freq=1, best_model_save_path=str(folder), verbose=0),
    ]
    while True:
        model.learn(40, callback=callbacks)  # under the same names again and again


def kill_while_saving(algorithm: Any, folder: Path, times: int, work: Any = save_again_and_again) -> int:
    """:return: how many kills left an unfinished file behind"""
    random, unfinished = np.random.default_rng(0), 0
    model = make(algorithm).learn(20)
    model.save(folder / "model")
    for _ in range(times):
        process = multiprocessing.get_context("fork").Process(target=work, args=(model, folder))
        process.start()
        time.sleep(float(random.uniform(0.02, 0.2)))
        process.kill()
        process.join()
        for path in folder.iterdir():
            if path.name.startswith("."):
                unfinished += 1
                path.unlink()
            elif path.suffix == ".zip":
                loaded = algorithm.load(path)
                if work is save_again_and_again:
                    assert not differing(full_state(model), full_state(loaded))
        for path in folder.glob("*.pkl"):
            loaded.load_replay_buffer(path)
    return unfinished


WORK = pytest.mark.parametrize("work", [save_again_and_again, learn_with_checkpoints], ids=lambda work: work.__name__)


@WORK
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_process_that_is_killed_while_it_saves_leaves_the_earlier_file(algorithm: Any, work: Any, tmp_path: Path) -> None:
    kill_while_saving(algorithm, tmp_path, 5, work)


@pytest.mark.slow
@WORK
def test_a_hundred_kills_while_saving_leave_files_that_load(work: Any, tmp_path: Path) -> None:
    # Otherwise none of them hit what they were aimed at.
    assert kill_while_saving(DiffSAC, tmp_path, 100, work) > 10


def saves_of(model: Any) -> list[tuple[Callable[[Path], None], str]]:
    """The ways to save a model and what belongs to it, each with a name for the file."""
    saves = [(model.save, "model.zip")]
    return saves if isinstance(model, DiffPPO) else [*saves, (model.save_replay_buffer, "buffer.pkl")]


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("algorithm", ALL)
def test_a_save_that_fails_half_way_is_an_error_and_leaves_the_earlier_file(algorithm: Any, tmp_path: Path) -> None:
    model = make(algorithm).learn(20)
    for save, name in saves_of(model):
        save(tmp_path / name)
        earlier = (tmp_path / name).read_bytes()
        with no_file_larger_than(len(earlier) // 2), pytest.raises((OSError, RuntimeError)):
            save(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == earlier
        (tmp_path / name).unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("algorithm", ALL)
def test_a_full_disk_is_an_error_and_leaves_the_earlier_files(algorithm: Any, small_disk: Path) -> None:
    model = make(algorithm).learn(20)
    for save, name in saves_of(model):
        save(small_disk / name)
    earlier = {name: (small_disk / name).read_bytes() for _, name in saves_of(model)}
    with pytest.raises(OSError, match="No space left"), (small_disk / "filling").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    for save, name in saves_of(model):
        with pytest.raises((OSError, RuntimeError)):
            save(small_disk / name)
        assert {path.name: path.read_bytes() for path in small_disk.iterdir() if path.name != "filling"} == earlier
    loaded = algorithm.load(small_disk / "model.zip")
    assert not differing(full_state(model), full_state(loaded))


# Determinism

TRAIN = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch as th
from conftest import full_state
from test_trust import evaluated
import sb3_diffusion

th.set_num_threads(1)
th.save(full_state(evaluated(getattr(sb3_diffusion, sys.argv[2]), True)), sys.argv[3])
"""


def evaluated(algorithm: Any, evaluates: bool) -> Any:
    callback = EvalCallback(Monitor(StrictBoxEnv()), n_eval_episodes=2, eval_freq=7, verbose=0) if evaluates else None
    return make(algorithm).learn(48, callback=callback)


@pytest.mark.parametrize("algorithm", ALL)
def test_the_same_seed_gives_the_same_weights_in_another_process_and_with_or_without_evaluation(
    algorithm: Any, tmp_path: Path
) -> None:
    here = full_state(evaluated(algorithm, False))
    assert not differing(here, full_state(evaluated(algorithm, True)))
    arguments = [str(Path(__file__).parent), algorithm.__name__, str(tmp_path / "state.pt")]
    subprocess.run([sys.executable, "-c", TRAIN, *arguments], check=True)
    assert not differing(here, th.load(tmp_path / "state.pt", weights_only=False))


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beta_min", [0.05, 1e-8])
def test_observations_in_the_thousands_are_learned_from_at_a_high_learning_rate(
    algorithm: Any, seed: int, beta_min: float
) -> None:
    class Wide(StrictBoxEnv):
        def _observation(self) -> np.ndarray:
            return np.float32(self.np_random.uniform(-1e4, 1e4, 3))

        def __init__(self) -> None:
            super().__init__(episode_length=1)
            self.observation_space = spaces.Box(-1e4, 1e4, (3,))

    small = SMALL_ON_POLICY if algorithm is DiffPPO else SMALL
    policy_kwargs = dict(net_arch=[8], beta_min=beta_min)
    arguments = small | dict(learning_rate=1e-2, seed=seed)
    assert trains_or_is_refused(algorithm("MlpPolicy", Wide(), policy_kwargs=policy_kwargs, **arguments))
