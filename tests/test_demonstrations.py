"""Demonstrations: where they come from, what a row is, and what does not fit a model."""

import pickle
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch as th
from envs_for_tests import AnyObservationEnv, AsDict, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.demonstrations import Demonstrations
from sb3_diffusion.demonstrations import columns as columns_module
from sb3_diffusion.envs import ActionChunk

minari = pytest.importorskip("minari")  # Minari 0.5.4 needs Python 3.11

LOW, HIGH = np.array([-3.0, 0.0]), np.array([5.0, 0.5])


class Countdown(gym.Env):
    """Ends for good after three steps; after a negative first action by a time limit, after five. Observes time, episode."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(np.float32(LOW), np.float32(HIGH))
    n_episodes = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n_episodes += 1
        self.time = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([self.time, self.n_episodes], dtype=np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.patient = action[0] < 0 if self.time == 0 else self.patient
        self.time += 1
        return self.observe(), float(action[1]), self.time == 3 and not self.patient, self.time == 5, {}


def by_time(observation: np.ndarray) -> list[float]:
    """Every second episode starts with a negative action."""
    time, episode = observation
    return [-1.0 if episode % 2 == 0 else 1.0, 0.1 * time]


@pytest.fixture
def countdown() -> Demonstrations:
    return Demonstrations.from_policy(by_time, Countdown(), 3)


@pytest.fixture
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def to_minari(demonstrations: Demonstrations, dataset_id: str, **metadata: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the metadata that Minari recommends
        return demonstrations.to_minari(dataset_id, **metadata)


def assert_equal(first: Demonstrations, second: Demonstrations) -> None:
    for name in ("observations", "final_observations", "actions", "rewards", "terminations", "truncations", "episode_ends"):
        a, b = getattr(first, name), getattr(second, name)
        assert type(a) is type(b) or not isinstance(a, dict)
        for key in a if isinstance(a, dict) else [None]:
            x, y = (a, b) if key is None else (a[key], b[key])
            np.testing.assert_array_equal(x, y, err_msg=name, strict=True)
    assert first.action_space == second.action_space


def test_a_recorded_row_is_what_the_environment_saw_and_did(countdown: Demonstrations) -> None:
    assert countdown.episode_ends.tolist() == [3, 8, 11]
    assert countdown.observations[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]
    assert countdown.observations[:, 1].tolist() == [1] * 3 + [2] * 5 + [3] * 3
    assert countdown.final_observations.tolist() == [[3, 1], [5, 2], [3, 3]]
    assert np.flatnonzero(countdown.terminations).tolist() == [2, 10]
    assert np.flatnonzero(countdown.truncations).tolist() == [7]
    np.testing.assert_allclose(countdown.actions[3:8], [[-1, 0], [-1, 0.1], [-1, 0.2], [-1, 0.3], [-1, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(countdown.rewards, countdown.actions[:, 1])
    np.testing.assert_allclose(countdown.episode_returns, [0.3, 1.0, 0.3], rtol=1e-6)
    assert countdown.episode_lengths.tolist() == [3, 5, 3]
    assert len(countdown) == 11 and countdown.n_episodes == 3


def test_the_next_observation_is_the_next_rows_and_at_an_end_the_final_one(countdown: Demonstrations) -> None:
    rows = np.array([10, 0, 2, 7, 6])
    transitions = countdown.transitions(rows)
    assert transitions.observations.tolist() == [[2, 3], [0, 1], [2, 1], [4, 2], [3, 2]]
    assert transitions.next_observations.tolist() == [[3, 3], [1, 1], [3, 1], [5, 2], [4, 2]]
    assert transitions.terminations.tolist() == [True, False, True, False, False]
    assert transitions.truncations.tolist() == [False, False, False, True, False]
    assert transitions.rewards.dtype == np.float32
    assert countdown.episodes_of(rows).tolist() == [2, 0, 0, 1, 1]
    assert countdown.transition_rows.tolist() == list(range(11))


def test_without_final_observations_truncated_ends_are_no_transitions_and_terminated_ones_are() -> None:
    observations = np.arange(6.0)[:, None]
    demonstrations = Demonstrations.from_arrays(
        observations, np.zeros((6, 1)), np.ones(6), terminations=[0, 0, 1, 0, 0, 0], episode_ends=[3, 6]
    )
    assert demonstrations.transition_rows.tolist() == [0, 1, 2, 3, 4]
    assert demonstrations.next_observations_at(np.array([1, 2, 4])).tolist() == [[2], [2], [5]]


def test_copies_are_handed_out(countdown: Demonstrations) -> None:
    countdown.transitions(np.arange(11)).observations[:] = -1
    countdown.next_observations_at(np.arange(11))[:] = -1
    assert countdown.observations.min() == 0 and countdown.final_observations.min() == 1


def test_next_observations_alone_tell_where_episodes_end(countdown: Demonstrations) -> None:
    rows = np.arange(11)
    again = Demonstrations.from_arrays(
        countdown.observations,
        countdown.actions,
        countdown.rewards,
        next_observations=countdown.next_observations_at(rows),
        terminations=countdown.terminations,
        action_space=countdown.action_space,
    )
    assert_equal(again, countdown)


def test_steps_in_any_order_are_episodes_of_their_own(countdown: Demonstrations) -> None:
    rows = np.array([5, 0, 9, 3, 7])
    shuffled = countdown.transitions(rows)
    again = Demonstrations.from_arrays(
        shuffled.observations, shuffled.actions, shuffled.rewards, shuffled.next_observations, shuffled.terminations
    )
    assert again.n_episodes == 5
    np.testing.assert_array_equal(again.next_observations_at(np.arange(5)), shuffled.next_observations)


def test_actions_in_the_environments_units_scale_to_what_sb3_stores(countdown: Demonstrations) -> None:
    model = SAC("MlpPolicy", Countdown(), buffer_size=10, device="cpu")
    rows = np.array([2, 4])
    scaled = countdown.scaled_actions_at(rows, countdown.action_space)
    np.testing.assert_allclose(scaled, model.policy.scale_action(countdown.actions[rows]), atol=1e-6)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_model_in_a_vec_normalize_is_recorded_raw_and_leaves_the_statistics_alone(n_envs: int) -> None:
    env = VecNormalize(DummyVecEnv([lambda: StrictBoxEnv(LOW, HIGH)] * n_envs))
    model = DiffSAC("MlpPolicy", env, learning_starts=5, batch_size=8, buffer_size=100, seed=0, device="cpu").learn(30)
    before = pickle.dumps((env.obs_rms, env.ret_rms))
    demonstrations = Demonstrations.from_policy(model, env, 5, seed=1, deterministic=True)
    assert pickle.dumps((env.obs_rms, env.ret_rms)) == before
    assert demonstrations.episode_lengths.tolist() == [10] * 5
    # The policy saw the normalised ones: acting on them again gives the same actions. The rewards are the environment's.
    actions, _ = model.predict(env.normalize_obs(demonstrations.observations), deterministic=True)
    np.testing.assert_allclose(actions, demonstrations.actions, atol=1e-5)
    later = np.concatenate([demonstrations.observations[1:10], demonstrations.final_observations[:1]])
    np.testing.assert_allclose(demonstrations.rewards[:10], -np.abs(later).sum(axis=1), atol=1e-5)
    demonstrations.check(model)


def test_each_of_several_environments_records_its_share(countdown: Demonstrations) -> None:
    env = DummyVecEnv([Countdown] * 2)
    demonstrations = Demonstrations.from_policy(by_time, env, 5)
    # First episodes have three steps, second ones five: the two environments alternate in step.
    assert sorted(demonstrations.episode_lengths.tolist()) == [3, 3, 3, 5, 5]


def test_a_seed_makes_recording_deterministic_and_leaves_the_global_generators_alone() -> None:
    model = DiffSAC("MlpPolicy", StrictBoxEnv(), buffer_size=10, seed=0, device="cpu")
    th.manual_seed(5), np.random.seed(5)
    expected = th.rand(1), np.random.rand()
    th.manual_seed(5), np.random.seed(5)
    first = Demonstrations.from_policy(model, StrictBoxEnv(), 2, seed=3)
    assert (th.rand(1), np.random.rand()) == expected
    assert_equal(first, Demonstrations.from_policy(model, StrictBoxEnv(), 2, seed=3))
    other = Demonstrations.from_policy(model, StrictBoxEnv(), 2, seed=4)
    assert not np.array_equal(first.actions, other.actions)


class LeftOrRight:
    """A controller that decides once per episode."""

    def reset(self, *, seed: int) -> None:
        self.side = np.random.default_rng(seed).choice([-1.0, 1.0])

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return np.array([self.side])


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_controller_decides_anew_in_each_episode_and_in_each_environment(n_envs: int) -> None:
    env = DummyVecEnv([StrictBoxEnv] * n_envs)
    demonstrations = Demonstrations.from_policy(LeftOrRight(), env, 12, seed=0)
    sides = demonstrations.actions.reshape(12, 10)
    assert (sides == sides[:, :1]).all()
    assert set(sides[:, 0]) == {-1.0, 1.0}


def test_actions_are_clipped_before_they_are_executed_and_recorded() -> None:
    demonstrations = Demonstrations.from_policy(lambda observation: [7.0], StrictBoxEnv(), 1)
    assert (demonstrations.actions == 1.0).all()


def test_recording_refuses_bad_arguments() -> None:
    env = StrictBoxEnv()
    for arguments, message in (
        (dict(policy=3), "policy=3"),
        (dict(n_episodes=0), "n_episodes=0"),
        (dict(seed=-1), "seed=-1"),
        (dict(env=3), "env=3"),
        (dict(env=DummyVecEnv([lambda: gym.make("CartPole-v1")])), "action space"),
        (dict(policy=lambda observation: [np.nan]), "finite"),
        (dict(policy=lambda observation: [0.0, 0.0]), r"action of the shape \(2,\); allowed: \(1,\)"),
        (dict(policy=lambda observation: [[0.0, 0.0]], env=ActionChunk(env, 2)), r"shape \(1, 2\); allowed: \(2, 1\)"),
        (dict(env=VecFrameStack(VecNormalize(DummyVecEnv([StrictBoxEnv])), 2)), "VecFrameStack around VecNormalize"),
    ):
        with pytest.raises(ValueError, match=message):
            Demonstrations.from_policy(**{"policy": lambda observation: [0.0], "env": env, "n_episodes": 1} | arguments)


def test_images_and_dictionaries_are_recorded_and_fit_a_model_that_transposes_them() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (40, 36, 3), np.uint8), "number": spaces.Discrete(4)})
    demonstrations = Demonstrations.from_policy(lambda observation: [0.5], AnyObservationEnv(space), 2, seed=0)
    assert demonstrations.observations["image"].shape == (20, 40, 36, 3)
    assert demonstrations.observations["number"].shape == (20,)
    model = DiffSAC("MultiInputPolicy", AnyObservationEnv(space), buffer_size=10, device="cpu")
    assert model.observation_space["image"].shape == (3, 40, 36)
    demonstrations.check(model)
    rows = demonstrations.observations_at(np.array([3, 1]), model.observation_space)
    np.testing.assert_array_equal(rows["image"][1], demonstrations.observations["image"][1].transpose(2, 0, 1))
    assert rows["number"].tolist() == demonstrations.observations["number"][[3, 1]].tolist()


@pytest.mark.parametrize("observations", ["vector", "dict", "image"])
def test_minari_gives_back_what_it_was_given(minari_folder: Path, tmp_path: Path, observations: str) -> None:
    if observations == "image":
        image = spaces.Dict({"i": spaces.Box(0, 255, (40, 36, 3), np.uint8), "n": spaces.Discrete(3)})
        demonstrations = Demonstrations.from_policy(lambda observation: [0.2], AnyObservationEnv(image), 2, seed=0)
    else:
        env = AsDict(Countdown()) if observations == "dict" else Countdown()
        policy = (lambda observation: by_time(observation["only"])) if observations == "dict" else by_time
        demonstrations = Demonstrations.from_policy(policy, env, 3)
    dataset = to_minari(demonstrations, "test/countdown-v0")
    assert dataset.total_episodes == demonstrations.n_episodes
    again = Demonstrations.from_minari("test/countdown-v0")
    assert_equal(again, demonstrations)
    mapped = Demonstrations.from_minari(dataset, folder=tmp_path / "maps")
    assert_equal(mapped, demonstrations)
    assert isinstance(mapped.actions, np.memmap)
    columns = mapped.observations if isinstance(mapped.observations, dict) else {"": mapped.observations}
    assert all(isinstance(column, np.memmap) for column in columns.values())


def test_minari_keeps_how_to_make_the_environment(minari_folder: Path) -> None:
    demonstrations = Demonstrations.from_policy(lambda observation: [0.0], "Pendulum-v1", 1, seed=0)
    to_minari(demonstrations, "pendulum-v0")
    again = Demonstrations.from_minari("pendulum-v0")
    assert again.env_spec is not None and again.env_spec.id == "Pendulum-v1"
    assert minari.load_dataset("pendulum-v0").recover_environment().spec.id == "Pendulum-v1"
    assert_equal(again, demonstrations)


def test_minaris_filtered_episodes_and_unknown_rewards(minari_folder: Path, countdown: Demonstrations) -> None:
    countdown.rewards = None
    dataset = to_minari(countdown, "countdown-v0")
    kept = dataset.filter_episodes(lambda episode: bool(episode.truncations[-1]))
    filtered = Demonstrations.from_minari(kept)
    assert filtered.episode_lengths.tolist() == [5]
    assert filtered.rewards is None


def test_a_failed_write_leaves_nothing_and_an_existing_data_set_as_it_was(
    minari_folder: Path, countdown: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_minari(countdown, "first-v0")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        to_minari(countdown.select([0]), "first-v0")
    assert_equal(Demonstrations.from_minari("first-v0"), countdown)

    def disk_full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(minari.MinariDataset, "update_dataset_from_buffer", disk_full)
    with pytest.raises(OSError, match="disk full"):
        to_minari(countdown, "second-v0")
    assert not (minari_folder / "second-v0").exists()


def test_minari_refuses_what_it_cannot_hold_or_we_cannot_use(minari_folder: Path, countdown: Demonstrations) -> None:
    with pytest.raises(FileNotFoundError):
        Demonstrations.from_minari("nobody/has-v0")
    with pytest.raises(ValueError, match="dataset=3"):
        Demonstrations.from_minari(3)  # type: ignore[arg-type]
    arrays = Demonstrations.from_arrays(countdown.observations, countdown.actions)
    with pytest.raises(ValueError, match="observation_space=None"):
        arrays.to_minari("x-v0")
    with pytest.raises(ValueError, match="final_observations"):
        arrays.to_minari("x-v0", observation_space=countdown.observation_space, action_space=countdown.action_space)
    with pytest.raises(ValueError, match="Discrete"):
        to_minari(countdown, "x-v0", action_space=spaces.Discrete(2))


def test_a_folder_that_holds_something_is_refused_and_a_failure_leaves_none(
    minari_folder: Path, tmp_path: Path, countdown: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or an empty folder"):
        countdown.select([0], folder=tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    calls = []

    def fails_at_the_second(observation: np.ndarray) -> list[float]:
        calls.append(observation)
        if len(calls) > 4:
            raise RuntimeError("tired")
        return [1.0, 0.0]

    with pytest.raises(RuntimeError, match="tired"):
        Demonstrations.from_policy(fails_at_the_second, Countdown(), 3, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_pickle_of_maps_holds_paths_and_of_arrays_the_arrays(tmp_path: Path, countdown: Demonstrations) -> None:
    mapped = countdown.select(range(3), folder=tmp_path / "maps")
    assert_equal(mapped, countdown)
    content = pickle.dumps(mapped)
    assert str(tmp_path / "maps").encode() in content
    again = pickle.loads(content)
    assert isinstance(again.observations, np.memmap)
    assert_equal(again, countdown)
    assert_equal(pickle.loads(pickle.dumps(countdown)), countdown)
    # NumPy maps a file in Fortran's order as it lies.
    np.save(tmp_path / "fortran.npy", np.asfortranarray(countdown.observations))
    fortran = Demonstrations(np.load(tmp_path / "fortran.npy", mmap_mode="r"), countdown.actions, countdown.episode_ends)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fortran)).observations, countdown.observations)
    # A part of a map is no file of its own.
    part = Demonstrations(mapped.observations[3:6], mapped.actions[3:6], [3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).observations, countdown.observations[3:6])


def test_hdf5_data_sets_are_read_where_they_lie(tmp_path: Path, countdown: Demonstrations) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminations"):
            file[name] = getattr(countdown, name)
        demonstrations = Demonstrations.from_arrays(
            file["observations"],
            file["actions"],
            file["rewards"],
            terminations=file["terminations"],
            episode_ends=[3, 8, 11],
            final_observations=countdown.final_observations,
            action_space=countdown.action_space,
        )
        assert isinstance(demonstrations.observations, h5py.Dataset)
        rows = np.array([7, 0, 7, 10])
        for mine, other in zip(demonstrations.transitions(rows), countdown.transitions(rows), strict=True):
            np.testing.assert_array_equal(mine, other)
        demonstrations.check_spaces(Countdown.observation_space, Countdown.action_space)
        content = pickle.dumps(demonstrations)
    again = pickle.loads(content)
    assert isinstance(again.observations, h5py.Dataset)
    assert_equal(again, countdown)


@pytest.mark.parametrize("optimize_memory_usage", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("buffer_size", [400, 24])
def test_a_replay_buffer_is_read_in_order_and_in_the_environments_units(
    optimize_memory_usage: bool, n_envs: int, buffer_size: int, tmp_path: Path
) -> None:
    env = DummyVecEnv([Countdown] * n_envs)
    model = SAC(
        "MlpPolicy",
        env,
        buffer_size=buffer_size,
        learning_starts=1000,
        optimize_memory_usage=optimize_memory_usage,
        replay_buffer_kwargs=dict(handle_timeout_termination=not optimize_memory_usage),
        seed=0,
        device="cpu",
    ).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    told = pytest.warns(UserWarning, match="does not tell time limits") if optimize_memory_usage else nullcontext()
    with told:
        demonstrations = Demonstrations.from_replay_buffer(tmp_path / "buffer.pkl")
    with told:
        assert_equal(demonstrations, Demonstrations.from_replay_buffer(model))
    buffer = model.replay_buffer
    rows_per_env = 40 // n_envs if buffer_size == 400 else buffer.buffer_size - optimize_memory_usage
    assert len(demonstrations) == n_envs * rows_per_env
    demonstrations.check(model)
    time, episode = demonstrations.observations.T
    later = demonstrations.next_observations_at(np.arange(len(demonstrations)))
    # What optimises memory keeps the next episode's first observation in the place of a last one.
    inside = ~demonstrations.terminations if optimize_memory_usage else slice(None)
    assert (later[inside, 0] == time[inside] + 1).all() and (later[inside, 1] == episode[inside]).all()
    # Where the record of an environment ends, an episode is cut off.
    # What optimises memory takes a time limit for a termination.
    cut_off = rows_per_env * np.arange(1, n_envs + 1) - 1
    ends = np.setdiff1d(demonstrations.episode_ends - 1, cut_off)
    assert set(time[ends]) == {2, 4}
    assert (demonstrations.terminations[ends] == (optimize_memory_usage | (time[ends] == 2))).all()
    # A negative first action makes an episode long: the units are right.
    for start, end in zip(demonstrations.episode_starts, demonstrations.episode_ends, strict=True):
        if time[start] == 0 and end - start == 5:
            assert demonstrations.actions[start, 0] < 0
    np.testing.assert_allclose(demonstrations.rewards, demonstrations.actions[:, 1], atol=1e-6)


def test_a_replay_buffer_of_dictionaries_and_numbers() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (40, 36, 3), np.uint8), "number": spaces.Discrete(4)})
    model = SAC("MultiInputPolicy", AnyObservationEnv(space), buffer_size=100, learning_starts=100, device="cpu").learn(25)
    assert isinstance(model.replay_buffer, DictReplayBuffer)
    demonstrations = Demonstrations.from_replay_buffer(model)
    assert demonstrations.episode_lengths.tolist() == [10, 10, 5]
    assert demonstrations.observations["number"].shape == (25,)
    demonstrations.check(model)
    flat = SAC("MlpPolicy", AnyObservationEnv(spaces.Discrete(5)), buffer_size=100, learning_starts=100, device="cpu").learn(5)
    assert Demonstrations.from_replay_buffer(flat).observations.shape == (5,)


def test_no_or_an_empty_replay_buffer_is_refused(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", StrictBoxEnv(), buffer_size=10, device="cpu")
    with pytest.raises(ValueError, match="empty"):
        Demonstrations.from_replay_buffer(model)
    model.save(tmp_path / "model")
    model.replay_buffer = None
    with pytest.raises(ValueError, match="no replay buffer"):
        Demonstrations.from_replay_buffer(model)
    with pytest.raises(ValueError, match="source=3"):
        Demonstrations.from_replay_buffer(3)  # type: ignore[arg-type]
    discrete = ReplayBuffer(10, spaces.Box(-1, 1, (2,)), spaces.Discrete(3))
    with pytest.raises(ValueError, match="Discrete"):
        Demonstrations.from_replay_buffer(discrete)


def test_select_keeps_whole_episodes(countdown: Demonstrations) -> None:
    assert_equal(countdown.select([0, 1, 2]), countdown)
    chosen = countdown.select(countdown.episode_returns > 0.5)
    assert chosen.episode_lengths.tolist() == [5] and (chosen.observations[:, 1] == 2).all()
    assert countdown.select([2, 1]).episode_lengths.tolist() == [3, 5]
    for episodes in ([], [7], np.zeros(3, dtype=bool)):
        with pytest.raises(ValueError, match="episodes="):
            countdown.select(episodes)


def test_arrays_that_do_not_fit_together_are_named() -> None:
    good: dict[str, Any] = dict(observations=np.zeros((4, 2)), actions=np.zeros((4, 1)))
    for arguments, message in (
        (dict(actions=np.zeros((0, 1)), observations=np.zeros((0, 2))), "actions are empty"),
        (dict(observations=np.zeros((3, 2))), "observations of shape"),
        (dict(observations={"a": np.zeros((4, 2)), "b": np.zeros(3)}), r"observations\['b'\] of shape"),
        (dict(rewards=np.zeros((4, 1))), "rewards of shape"),
        (dict(terminations=np.zeros(5)), "terminations of shape"),
        (dict(truncations=np.zeros(5)), "truncations of shape"),
        (dict(next_observations=np.zeros((4, 3))), "next_observations of shape"),
        (dict(next_observations=np.zeros((4, 2)), final_observations=np.zeros((1, 2))), "two ways"),
        (dict(final_observations=np.zeros((2, 2))), "final_observations of shape"),
        (dict(next_observations=np.zeros((4, 2)), episode_ends=[2, 9]), r"episode_ends=array.* must ascend"),
        (dict(next_observations=np.zeros((4, 2)), episode_ends=[]), r"episode_ends=array.* must ascend"),
        (dict(episode_ends=[1.7, 4]), "episode_ends=.*must be integers"),
        (dict(next_observations=np.zeros((5, 2)), observations=np.zeros((5, 2))), "observations of shape"),
        (dict(observations={}), "observations are an empty dictionary"),
        (dict(actions=np.float32(1)), "actions=.* must be rows"),
        (dict(final_observations={"a": np.zeros((1, 2))}), "final_observations of shape None"),
        (dict(episode_ends=[2, 5]), "episode_ends="),
        (dict(episode_ends=[3, 2, 4]), "episode_ends="),
        (dict(episode_ends=[4], terminations=[0, 1, 0, 0]), "end an episode at row 1"),
        (dict(episode_ends=[4], truncations=[1, 0, 0, 0]), "truncations end an episode at row 0"),
        (dict(episode_ends=[4], next_observations=np.ones((4, 2))), "next_observations end an episode at row 0"),
        (dict(clip_actions=True), "action_space=None"),
    ):
        with pytest.raises(ValueError, match=message):
            Demonstrations.from_arrays(**good | arguments)


def test_clip_actions_puts_actions_on_the_bounds(countdown: Demonstrations) -> None:
    actions = countdown.actions * 10
    arguments: dict[str, Any] = dict(observations=countdown.observations, actions=actions, action_space=countdown.action_space)
    raw = Demonstrations.from_arrays(**arguments)
    with pytest.raises(ValueError, match=r"11 of 11 lie outside .* by up to 7.*clip_actions=True"):
        raw.check_spaces(Countdown.observation_space, Countdown.action_space)
    clipped = Demonstrations.from_arrays(**arguments, clip_actions=True)
    clipped.check_spaces(Countdown.observation_space, Countdown.action_space)
    np.testing.assert_array_equal(clipped.actions, np.clip(actions, np.float32(LOW), np.float32(HIGH)))


def test_what_does_not_fit_a_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "ROWS_AT_ONCE", 3)
    box, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-2, 2, (1,))
    observations, actions = np.zeros((5, 2), np.float32), np.ones((5, 1), np.float32)
    Demonstrations.from_arrays(observations, actions).check_spaces(box, action_space)
    nan, far = observations.copy(), observations.copy()
    nan[3, 1], far[3, 1] = np.nan, 1.5
    image = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    for given, wanted, message in (
        (dict(actions=np.zeros((5, 2))), {}, r"actions have the shape \(2,\)"),
        (dict(actions=[[0], [0], [0], [np.inf], [0]]), {}, "actions are not finite at row 3"),
        (dict(actions=np.full((5, 1), 2.1)), {}, "by up to 0.1"),
        (dict(action_space=spaces.Box(-1, 1, (1,))), {}, "other units"),
        (dict(), dict(action_space=spaces.Discrete(2)), "allowed: Box"),
        (dict(observations=nan), {}, "not finite at row 3"),
        (dict(final_observations=nan[3:4]), {}, "final_observations are not finite at row 0"),
        (dict(actions=np.ones((5, 1), complex)), {}, "actions are complex128; allowed: real numbers"),
        (dict(observations=np.zeros((5, 2), object)), {}, "observations are object; allowed: real numbers"),
        (dict(rewards=[0, 0, np.nan, 0, 0]), {}, "the reward at row 2 is nan; rewards that nobody knows are None"),
        (dict(observations=far), {}, r"1 of 5 rows lie outside .*\[0.0, 1.5\]"),
        (dict(observations=np.zeros((5, 3))), {}, r"observations have the shape \(3,\)"),
        (dict(observations={"a": observations}), {}, "observations are a dictionary"),
        (dict(), dict(observation_space=spaces.Dict({"a": box})), r"an array of shape \(5, 2\)"),
        (dict(observations={"b": observations}), dict(observation_space=spaces.Dict({"a": box})), r"\['b'\]"),
        (dict(observations={"a": far}), dict(observation_space=spaces.Dict({"a": box})), r"observations\['a'\]: 1 of 5"),
        (dict(observations=np.zeros((5, 40, 36, 3))), dict(observation_space=image), "uint8"),
        (dict(observations=[0, 1, 4, 0, 0]), dict(observation_space=spaces.Discrete(4)), "the first is 4"),
        (dict(observations=[[0, 4]] * 5), dict(observation_space=spaces.MultiDiscrete([2, 4])), "outside"),
        (dict(observations=[[0, 2]] * 5), dict(observation_space=spaces.MultiBinary(2)), "outside"),
    ):
        demonstrations = Demonstrations.from_arrays(**dict(observations=observations, actions=actions) | given)
        with pytest.raises(ValueError, match=message):
            demonstrations.check_spaces(**dict(observation_space=box, action_space=action_space) | wanted)


def test_few_observations_outside_the_bounds_are_a_warning() -> None:
    observations = np.zeros((1000, 1), np.float32)
    observations[7] = 2
    demonstrations = Demonstrations.from_arrays(observations, np.zeros((1000, 1)))
    with pytest.warns(UserWarning, match="1 of 1000 rows"):
        demonstrations.check_spaces(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))


def test_an_episode_may_end_because_a_bound_was_left() -> None:
    observations, actions = np.zeros((5, 1), np.float32), np.zeros((5, 1))
    demonstrations = Demonstrations(observations, actions, [2, 5], final_observations=np.full((2, 1), 1.5))
    with pytest.warns(UserWarning, match="final_observations: 2 of 2 rows lie outside"):
        demonstrations.check_spaces(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))


def test_frames_stacked_around_vec_normalize_are_refused() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([StrictBoxEnv])), 2)
    model = DiffPPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    raw = Demonstrations.from_policy(lambda observation: [0.1], StrictBoxEnv(), 1, seed=0)
    with pytest.raises(ValueError, match="VecFrameStack around VecNormalize"):
        raw.check(model)


def test_normalised_demonstrations_do_not_fit_a_vec_normalize_that_knows_raw_ones() -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]))
    model = DiffSAC("MlpPolicy", env, buffer_size=10, device="cpu")
    raw = Demonstrations.from_policy(lambda observation: [0.1], StrictBoxEnv(), 5, seed=0)
    raw.check(model)
    env.obs_rms.update(raw.observations)
    raw.check(model)
    shifted = Demonstrations.from_arrays(raw.observations + 9, raw.actions)
    with pytest.raises(ValueError, match="VecNormalize clips"):
        shifted.check(model)


def test_images_below_a_vec_normalize_are_checked_as_the_environment_gives_them() -> None:
    env = VecTransposeImage(VecNormalize(DummyVecEnv([lambda: FakeImageEnv(discrete=False)]), norm_obs=False))
    model = DiffSAC("CnnPolicy", env, buffer_size=10, device="cpu")
    demonstrations = Demonstrations.from_policy(model, env, 1, seed=0)
    assert demonstrations.observations.dtype == np.uint8
    demonstrations.check(model)


def test_without_minari_the_extra_and_the_python_that_it_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"needs the package minari: .* extra 'demonstrations' \(Python 3.11 or newer\)"):
        Demonstrations.from_minari("any/data-v0")
