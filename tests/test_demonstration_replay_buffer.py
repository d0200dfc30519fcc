"""Batches of which a share is demonstrations."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from envs_for_tests import AnyObservationEnv, AsDict, StrictBoxEnv
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_diffusion import DiffCrossQ, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.demonstrations import DemonstrationReplayBuffer, Demonstrations

OBSERVATIONS = spaces.Box(-10.0, 10.0, (3,), np.float32)
ACTIONS = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([5.0, 0.5], np.float32))
# Rewards of demonstrations start here, those of the agent lie below.
MARK = 100.0


def demonstrated(
    lengths: tuple[int, ...] = (4, 1, 6), terminates: tuple[bool, ...] = (True, False, False), **kwargs: Any
) -> Any:
    """Episodes in which row i has the observation i / 10 and the reward 100 + i; next observations follow."""
    n, ends = sum(lengths), np.cumsum(lengths)
    rng = np.random.default_rng(0)
    terminations = np.zeros(n, dtype=bool)
    terminations[ends - 1] = terminates
    values: dict[str, Any] = dict(
        observations=np.repeat(np.arange(n, dtype=np.float32)[:, None] / 10, 3, axis=1),
        actions=rng.uniform(ACTIONS.low, ACTIONS.high, (n, 2)).astype(np.float32),
        episode_ends=ends,
        rewards=MARK + np.arange(n),
        terminations=terminations,
        final_observations=np.repeat(-np.arange(1, len(ends) + 1, dtype=np.float32)[:, None], 3, axis=1),
    )
    return Demonstrations(**(values | kwargs))


def a_buffer(buffer_size: int = 50, n_envs: int = 1, **kwargs: Any) -> DemonstrationReplayBuffer:
    arguments = dict(demonstrations=demonstrated()) | kwargs
    return DemonstrationReplayBuffer(buffer_size, OBSERVATIONS, ACTIONS, "cpu", n_envs, **arguments)


def fill(buffer: ReplayBuffer, n: int = 20) -> ReplayBuffer:
    for i in range(n):
        observation = np.full((buffer.n_envs, 3), 1 + i / 100, np.float32)
        buffer.add(
            observation,
            observation + 0.01,
            np.zeros((buffer.n_envs, 2), np.float32),
            np.full(buffer.n_envs, i / 100),
            np.zeros(buffer.n_envs),
            [{}] * buffer.n_envs,
        )
    return buffer


def n_demonstrated(samples: Any) -> int:
    return int((samples.rewards >= MARK).sum())


def rows_of(samples: Any) -> np.ndarray:
    """Which row each transition starts in, by its observation."""
    return np.rint(10 * samples.observations[:, 0].numpy()).astype(int)


def test_half_of_each_batch_are_demonstrations_in_random_order() -> None:
    buffer = fill(a_buffer())
    samples = buffer.sample(256)
    assert isinstance(samples.rewards, th.Tensor) and len(samples.rewards) == 256
    assert n_demonstrated(samples) == 128
    first_half = n_demonstrated(samples._replace(rewards=samples.rewards[:128]))
    assert 40 < first_half < 88
    assert buffer.size() == 20


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 30))
def test_the_share_is_exact_in_the_long_run_and_to_a_row_at_any_time(share: float, batch_size: int, n_batches: int) -> None:
    buffer = fill(a_buffer(share=share))
    drawn = 0
    for i in range(1, n_batches + 1):
        samples = buffer.sample(batch_size)
        assert len(samples.rewards) == batch_size
        drawn += n_demonstrated(samples)
        assert abs(drawn - share * batch_size * i) < 1


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (0.25, 16), (1, 64), (0.3, 19)])
def test_every_share_from_none_to_all_is_kept(share: float, expected: int) -> None:
    assert n_demonstrated(fill(a_buffer(share=share)).sample(64)) == expected


def test_the_share_may_be_changed_between_batches() -> None:
    buffer = fill(a_buffer())
    buffer.share = 0.25
    assert n_demonstrated(buffer.sample(64)) == 16


def test_before_the_agent_has_done_anything_all_are_demonstrations() -> None:
    buffer = a_buffer()
    assert n_demonstrated(buffer.sample(10)) == 10
    assert n_demonstrated(fill(buffer).sample(10)) == 5


def test_a_batch_depends_on_numpys_seed_alone() -> None:
    def batch(seed: int) -> Any:
        buffer = fill(a_buffer())
        np.random.seed(seed)
        return buffer.sample(32)

    first, again, other = batch(0), batch(0), batch(1)
    assert all(th.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None)
    assert not th.equal(first.observations, other.observations)


@pytest.mark.parametrize("handle_timeouts", [True, False])
def test_demonstrated_transitions_are_those_of_the_data_with_scaled_actions(handle_timeouts: bool) -> None:
    data = demonstrated()
    samples = a_buffer(handle_timeout_termination=handle_timeouts).sample(500)
    rows = rows_of(samples)
    assert set(rows) == set(range(11))
    assert samples.rewards[:, 0].numpy() == pytest.approx(MARK + rows)
    low, high = ACTIONS.low, ACTIONS.high
    assert low + 0.5 * (samples.actions.numpy() + 1) * (high - low) == pytest.approx(data.actions[rows], abs=1e-5)
    following = np.where(rows == 3, -1, np.where(rows == 4, -2, np.where(rows == 10, -3, (rows + 1) / 10)))
    assert samples.next_observations[:, 0].numpy() == pytest.approx(following)
    # Only what terminated is done; a time limit is none where it is handled.
    done = (rows == 3) if handle_timeouts else np.isin(rows, (3, 4, 10))
    assert np.array_equal(samples.dones[:, 0].numpy() > 0, done)
    assert samples.discounts is None


def test_fields_have_the_shapes_and_types_of_sb3s_own() -> None:
    expected, found = fill(ReplayBuffer(50, OBSERVATIONS, ACTIONS, "cpu")).sample(8), fill(a_buffer()).sample(8)
    only = a_buffer().sample(8)
    for one, two, three in zip(expected, found, only, strict=True):
        if one is not None:
            assert one.shape == two.shape == three.shape and one.dtype == two.dtype == three.dtype


def test_a_truncated_episode_whose_end_nobody_saw_is_left_before_its_last_step() -> None:
    buffer = a_buffer(demonstrations=demonstrated(final_observations=None))
    samples = buffer.sample(400)
    assert set(rows_of(samples)) == {0, 1, 2, 3, 5, 6, 7, 8, 9}
    buffer = a_buffer(demonstrations=demonstrated(final_observations=None), n_steps=3)
    samples = buffer.sample(400)
    rows = rows_of(samples)
    assert set(rows) == {0, 1, 2, 3, 5, 6, 7, 8, 9}
    last = np.where(rows <= 3, np.minimum(rows + 2, 3), np.minimum(rows + 2, 9))
    assert samples.discounts.numpy()[:, 0] == pytest.approx(0.99 ** (last - rows + 1))
    bootstrapped = rows > 3
    assert samples.next_observations[bootstrapped, 0].numpy() == pytest.approx((last[bootstrapped] + 1) / 10)


def sb3s(data: Demonstrations, kind: type[ReplayBuffer], **kwargs: Any) -> ReplayBuffer:
    """The same transitions in one of SB3's own buffers."""
    buffer = kind(len(data), OBSERVATIONS, ACTIONS, "cpu", **kwargs)
    rows = np.arange(len(data))
    steps, scaled = data.transitions(rows), data.scaled_actions_at(rows, ACTIONS)
    for i in rows:
        buffer.add(
            steps.observations[i : i + 1],
            steps.next_observations[i : i + 1],
            scaled[i : i + 1],
            steps.rewards[i : i + 1],
            (steps.terminations | steps.truncations)[i : i + 1],
            [{"TimeLimit.truncated": bool(steps.truncations[i])}],
        )
    return buffer


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("handle_timeouts", [True, False])
@pytest.mark.parametrize("normalized", [False, True])
def test_n_step_returns_are_those_of_sb3s_buffer_with_the_same_data(
    n_steps: int, handle_timeouts: bool, normalized: bool
) -> None:
    data = demonstrated()
    kwargs: dict[str, Any] = dict(handle_timeout_termination=handle_timeouts)
    if n_steps > 1:
        kwargs |= dict(n_steps=n_steps, gamma=0.9)
    reference = sb3s(data, NStepReplayBuffer if n_steps > 1 else ReplayBuffer, **kwargs)
    env = None
    if normalized:
        env = VecNormalize(DummyVecEnv([lambda: StrictBoxEnv(ACTIONS.low, ACTIONS.high)]))
        env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var = np.array([0.1, 0.2, 0.3]), np.full(3, 0.25), np.array(4.0)
        env.clip_reward = 52.0
    buffer = a_buffer(demonstrations=data, **kwargs)
    assert isinstance(buffer, NStepReplayBuffer) == (n_steps > 1)
    samples, plain = buffer.sample(300, env), reference._get_samples(np.arange(len(data)), env)
    unnormalized = samples.observations.numpy() if env is None else env.unnormalize_obs(samples.observations.numpy())
    rows = np.rint(10 * unnormalized[:, 0]).astype(int)
    for name, expected in plain._asdict().items():
        found = getattr(samples, name)
        if expected is None:
            assert found is None
        else:
            assert found.numpy() == pytest.approx(expected.numpy()[rows], rel=1e-5), name


def test_dict_observations_use_sb3s_dict_buffer_and_come_mixed() -> None:
    data = demonstrated()
    space = spaces.Dict(position=OBSERVATIONS, phase=spaces.Discrete(20))
    columns = dict(position=data.observations, phase=np.arange(len(data)))
    final = dict(position=data.final_observations, phase=np.array([15, 16, 17]))
    data = demonstrated(observations=columns, final_observations=final)
    buffer = DemonstrationReplayBuffer(50, space, ACTIONS, "cpu", demonstrations=data)
    assert isinstance(buffer, DictReplayBuffer)
    for _ in range(5):
        one = dict(position=np.zeros((1, 3), np.float32), phase=np.array([19]))
        buffer.add(one, one, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    samples = buffer.sample(100)
    assert n_demonstrated(samples) == 50
    theirs = samples.rewards[:, 0] >= MARK
    rows = samples.observations["phase"][theirs, 0].numpy()
    assert samples.observations["phase"].shape == (100, 1)
    assert samples.observations["position"][theirs, 0].numpy() == pytest.approx(rows / 10)
    assert set(samples.next_observations["phase"][theirs, 0].numpy()) >= {15, 16, 17}
    assert (samples.observations["phase"][~theirs] == 19).all()


def test_images_are_transposed_as_the_agents_are() -> None:
    space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    env = VecTransposeImage(DummyVecEnv([lambda: AnyObservationEnv(space)]))
    data = Demonstrations.from_policy(lambda observation: np.zeros(1), AnyObservationEnv(space), 2, seed=0)
    buffer = DemonstrationReplayBuffer(20, env.observation_space, env.action_space, "cpu", demonstrations=data)
    samples = buffer.sample(6)
    assert samples.observations.shape == samples.next_observations.shape == (6, 3, 36, 40)
    assert samples.observations.dtype == th.uint8
    pixels = {tuple(image[:, 0, 0].tolist()) for image in samples.observations}
    assert pixels <= {tuple(image[0, 0].tolist()) for image in data.observations}


def test_memory_is_optimised_for_the_agents_transitions() -> None:
    buffer = fill(a_buffer(optimize_memory_usage=True, handle_timeout_termination=False))
    assert not hasattr(buffer, "next_observations")
    assert n_demonstrated(buffer.sample(64)) == 32


@pytest.fixture
def demonstrations() -> Demonstrations:
    """Of the environment below, by random actions."""
    env = StrictBoxEnv(ACTIONS.low, ACTIONS.high)
    env.action_space.seed(0)
    return Demonstrations.from_policy(lambda observation: env.action_space.sample(), env, 5, seed=0)


def model(algorithm: Any, demonstrations: Any, env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    arguments: dict[str, Any] = dict(buffer_size=100, learning_starts=4, batch_size=8, seed=0, device="cpu")
    own = kwargs.pop("replay_buffer_kwargs", {})
    return algorithm(
        policy,
        env or StrictBoxEnv(ACTIONS.low, ACTIONS.high),
        policy_kwargs=dict(net_arch=[8]),
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs=dict(demonstrations=demonstrations) | own,
        **(arguments | kwargs),
    )


@pytest.mark.parametrize("algorithm", [SAC, TQC, CrossQ, DiffSAC, DiffCrossQ, DiffTQC, DiffWPO])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(replay_buffer_kwargs=dict(n_steps=3, gamma=0.99)),
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
    ],
    ids=["plain", "n-step", "memory"],
)
def test_algorithms_train_with_it_and_depend_on_the_seed_alone(
    algorithm: Any, kwargs: dict[str, Any], demonstrations: Demonstrations
) -> None:
    first, again = (model(algorithm, demonstrations, **kwargs).learn(20) for _ in range(2))
    assert first.replay_buffer.size() == 20
    assert all(th.equal(a, b) for a, b in zip(first.policy.parameters(), again.policy.parameters(), strict=True))
    other = model(algorithm, demonstrations, **kwargs)
    other.replay_buffer.share = 0.0
    other.learn(20)
    assert any(not th.equal(a, b) for a, b in zip(first.policy.parameters(), other.policy.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", [SAC, DiffSAC])
def test_algorithms_train_on_dict_observations_of_several_normalised_environments(algorithm: Any) -> None:
    make = lambda: AsDict(StrictBoxEnv(ACTIONS.low, ACTIONS.high))  # noqa: E731
    controller = lambda observation: np.array([observation["only"][0], 0.1])  # noqa: E731
    data = Demonstrations.from_policy(controller, make(), 3, seed=0)
    env = VecNormalize(make_vec_env(make, 2, seed=0))
    trained = model(algorithm, data, env, "MultiInputPolicy").learn(20)
    samples = trained.replay_buffer.sample(64, env=trained.get_vec_normalize_env())
    raw = trained.replay_buffer.sample(64)
    assert samples.observations["only"].std() > 1.5 * raw.observations["only"].std()
    assert isinstance(trained.replay_buffer, DictReplayBuffer)


@pytest.mark.parametrize("algorithm", [SAC, DiffSAC])
def test_model_and_buffer_are_saved_and_training_goes_on_alike(
    algorithm: Any, demonstrations: Demonstrations, tmp_path: Path
) -> None:
    trained = model(algorithm, demonstrations, replay_buffer_kwargs=dict(share=0.3)).learn(20)
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=trained.get_env())
    assert isinstance(loaded.replay_buffer, DemonstrationReplayBuffer) and loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.share == 0.3 and loaded.replay_buffer.size() == 20
    loaded.set_logger(trained.logger)
    for one in (trained, loaded):
        np.random.seed(3)
        th.manual_seed(3)
        one.train(2, batch_size=16)
    assert all(th.equal(a, b) for a, b in zip(trained.policy.parameters(), loaded.policy.parameters(), strict=True))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_buffers_of_dict_observations_and_of_n_step_returns_are_saved_and_go_on_alike(n_steps: int, tmp_path: Path) -> None:
    def make() -> Any:
        env = StrictBoxEnv(ACTIONS.low, ACTIONS.high)
        return AsDict(env) if n_steps == 1 else env

    data = Demonstrations.from_policy(lambda observation: np.array([0.2, 0.1]), make(), 3, seed=0)
    policy = "MultiInputPolicy" if n_steps == 1 else "MlpPolicy"
    trained = model(SAC, data, make(), policy, replay_buffer_kwargs=dict(n_steps=n_steps, share=0.3)).learn(20)
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = SAC.load(tmp_path / "model")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert type(loaded.replay_buffer) is type(trained.replay_buffer)
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.share, loaded.replay_buffer.size()) == (n_steps, 0.3, 20)
    batches = []
    for one in (trained, loaded):
        np.random.seed(3)
        batches.append(one.replay_buffer.sample(16))
    assert th.equal(batches[0].rewards, batches[1].rewards) and th.equal(batches[0].actions, batches[1].actions)


def test_demonstrations_that_lie_in_files_are_saved_by_their_place(tmp_path: Path) -> None:
    n = 20_000
    observations = np.lib.format.open_memmap(tmp_path / "observations.npy", "w+", np.float32, (n, 3))
    observations[:] = np.random.default_rng(0).uniform(-1, 1, (n, 3))
    data = Demonstrations(observations, np.zeros((n, 2), np.float32), [n], np.zeros(n, np.float32))
    mapped = a_buffer(buffer_size=1, demonstrations=data)
    copied = a_buffer(buffer_size=1, demonstrations=Demonstrations(np.array(observations), data.actions, [n], data.rewards))
    assert len(pickle.dumps(mapped)) < len(pickle.dumps(copied)) - observations.nbytes + 10_000
    again = pickle.loads(pickle.dumps(mapped))
    np.random.seed(0)
    expected = mapped.sample(5).observations
    np.random.seed(0)
    assert th.equal(again.sample(5).observations, expected)


def test_a_minari_data_set_is_named_and_saved_by_its_name(
    demonstrations: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    demonstrations.to_minari("points/random-v0")
    named, given = model(SAC, "points/random-v0").learn(10), model(SAC, demonstrations).learn(10)
    assert all(th.equal(a, b) for a, b in zip(named.policy.parameters(), given.policy.parameters(), strict=True))
    assert len(pickle.dumps(named.replay_buffer)) < len(pickle.dumps(given.replay_buffer)) - 1000
    named.save(tmp_path / "named")
    given.save(tmp_path / "given")
    assert (tmp_path / "named.zip").stat().st_size < (tmp_path / "given.zip").stat().st_size - 500
    named.save_replay_buffer(tmp_path / "buffer")
    loaded = SAC.load(tmp_path / "named")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert np.array_equal(loaded.replay_buffer.demonstrations.actions, demonstrations.actions)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="points/random-v0"):
        loaded.load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        (dict(share=1.1), "share=1.1 must be .* >= 0 and <= 1"),
        (dict(share=-0.1), "share=-0.1 must be"),
        (dict(share="half"), "share='half' must be"),
        (dict(gamma=2), "gamma=2 must be"),
        (dict(n_steps=0), "n_steps=0 must be an integer >= 1"),
        (dict(n_steps=2.5), "n_steps=2.5 must be an integer >= 1"),
        (dict(demonstrations=np.zeros(3)), "demonstrations=array.* must be Demonstrations or the id"),
        (dict(demonstrations=demonstrated(rewards=None)), "demonstrations=.* have no rewards"),
        (dict(demonstrations=demonstrated(rewards=np.full(11, np.nan))), "reward at row 0 is nan"),
        (dict(demonstrations=demonstrated((1, 1), (False, False), final_observations=None)), "no final_observations"),
        (dict(demonstrations=demonstrated(actions=np.zeros((11, 3)))), r"actions have the shape \(3,\)"),
        (dict(demonstrations=demonstrated(actions=np.full((11, 2), 6.0))), "actions: 11 of 11 lie outside"),
        (
            dict(demonstrations=demonstrated(observations=np.zeros((11, 4)), final_observations=None)),
            "observations have the sh",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name_before_anything_starts(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        a_buffer(**kwargs)


def test_n_step_returns_of_dict_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="n_steps=3 must be 1 for Dict observations"):
        DemonstrationReplayBuffer(50, spaces.Dict(only=OBSERVATIONS), ACTIONS, "cpu", demonstrations=demonstrated(), n_steps=3)


def test_optimised_memory_is_refused_where_sb3_has_none() -> None:
    arguments: dict[str, Any] = dict(demonstrations=demonstrated(), handle_timeout_termination=False)
    for n_steps, observations in ((1, spaces.Dict(only=OBSERVATIONS)), (3, OBSERVATIONS)):
        with pytest.raises(ValueError, match="optimize_memory_usage=True must be False for Dict observations and for n_steps"):
            DemonstrationReplayBuffer(
                50, observations, ACTIONS, "cpu", optimize_memory_usage=True, n_steps=n_steps, **arguments
            )


def test_a_file_of_another_kind_of_buffer_is_refused_and_the_own_one_stays(
    demonstrations: Demonstrations, tmp_path: Path
) -> None:
    env = StrictBoxEnv(ACTIONS.low, ACTIONS.high)
    plain = DiffSAC("MlpPolicy", env, buffer_size=100, learning_starts=50, device="cpu").learn(10)
    plain.save_replay_buffer(tmp_path / "plain")
    n_steps = model(DiffSAC, demonstrations, replay_buffer_kwargs=dict(n_steps=3)).learn(10)
    n_steps.save_replay_buffer(tmp_path / "n_steps")
    with_demonstrations = model(DiffSAC, demonstrations)
    own = with_demonstrations.replay_buffer
    for name, holds in (("plain", "ReplayBuffer with n_steps=1"), ("n_steps", "NStepDemo.* with n_steps=3")):
        with pytest.raises(
            ValueError, match=f"holds a {holds}, but this model has a DemonstrationReplayBuffer with n_steps=1"
        ):
            with_demonstrations.load_replay_buffer(tmp_path / name)
        assert with_demonstrations.replay_buffer is own


def test_demonstrations_that_have_gone_are_named_with_the_way_to_load_without(tmp_path: Path) -> None:
    env = StrictBoxEnv(ACTIONS.low, ACTIONS.high)
    data = Demonstrations.from_policy(lambda observation: [0.1, 0.1], env, 1, seed=0, folder=tmp_path / "maps")
    model(DiffSAC, data).save(tmp_path / "model")
    DiffSAC.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "maps")
    with pytest.raises(FileNotFoundError, match=r"demonstrations in .*maps.* have gone; .*custom_objects"):
        DiffSAC.load(tmp_path / "model")
    DiffSAC.load(tmp_path / "model", custom_objects=dict(replay_buffer_class=None, replay_buffer_kwargs={}))


def test_a_share_that_is_changed_to_no_share_is_named() -> None:
    buffer = a_buffer()
    buffer.share = -1
    with pytest.raises(ValueError, match="share=-1 must be"):
        buffer.sample(4)


def test_a_missing_data_set_is_named() -> None:
    pytest.importorskip("minari")
    with pytest.raises(FileNotFoundError, match="no/such-v0"):
        a_buffer(demonstrations="no/such-v0")
