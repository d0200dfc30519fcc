"""Demonstrations for environments in which one decision is several actions."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from envs_for_tests import AsDict, StrictBoxEnv

from sb3_diffusion import DiffSAC
from sb3_diffusion.demonstrations import DemonstrationReplayBuffer, Demonstrations, in_chunks
from sb3_diffusion.demonstrations.pretraining import ImitationData
from sb3_diffusion.envs import ActionChunk, MultiGoal2D


def walks(n_episodes: int = 4) -> Demonstrations:
    """To the goal on the right, in steps of different lengths."""
    rng = np.random.default_rng(0)
    return Demonstrations.from_policy(
        lambda observation: np.array([rng.uniform(0.3, 1.0), 0.0]), "MultiGoal2D-v0", n_episodes, seed=0
    )


@pytest.mark.parametrize("length", [1, 2, 3, 5, 100])
def test_executing_the_chunks_gives_their_rewards_observations_and_ends(length: int) -> None:
    data, gamma = walks(), 0.9
    chunks = in_chunks(data, length, gamma)
    env = ActionChunk(MultiGoal2D(), length, gamma)
    chunks.check_spaces(env.observation_space, env.action_space)
    assert chunks.action_space == env.action_space
    assert len(chunks) == len(data)
    assert chunks.n_episodes == np.minimum(data.episode_lengths, length).sum()
    assert chunks.final_observations is not None and chunks.rewards is not None
    for episode, (start, end) in enumerate(zip(chunks.episode_starts, chunks.episode_ends, strict=True)):
        env.reset(seed=0, options={"position": chunks.observations[start]})
        for row in range(start, end):
            observation, reward, terminated, _, _ = env.step(chunks.actions[row])
            assert reward == pytest.approx(chunks.rewards[row], rel=1e-4)
            assert terminated == chunks.terminations[row] == (row == end - 1)
            following = chunks.final_observations[episode] if row == end - 1 else chunks.observations[row + 1]
            assert observation == pytest.approx(following, abs=1e-5)


def test_chunks_begin_at_every_step_once() -> None:
    data = walks()
    first = np.concatenate([data.observations, in_chunks(data, 3).observations])
    _, counts = np.unique(first, axis=0, return_counts=True)
    assert (counts == 2).all()


def test_one_action_a_chunk_changes_nothing_but_the_shape() -> None:
    data, chunks = walks(), in_chunks(walks(), 1)
    assert np.array_equal(chunks.actions[:, 0], data.actions) and np.array_equal(chunks.observations, data.observations)
    assert np.array_equal(chunks.rewards, data.rewards) and np.array_equal(chunks.episode_ends, data.episode_ends)


def test_chunks_of_one_episode_stay_together_where_data_is_split() -> None:
    """All but the chunks' own starts are the same actions."""
    singles = Demonstrations.from_policy(lambda observation: [0.1], StrictBoxEnv(), 6, seed=0)
    chunks = in_chunks(singles, 4)
    assert chunks.episode_sources.tolist() == np.repeat(np.arange(6), 4).tolist()
    assert in_chunks(singles.select([3, 1]), 2).episode_sources.tolist() == [3, 3, 1, 1]
    model = DiffSAC("MlpPolicy", ActionChunk(StrictBoxEnv(), 4), buffer_size=10, device="cpu")
    train, validation = ImitationData(chunks, model, 0.02).split(0.3, np.random.default_rng(0))
    sources = np.repeat(chunks.episode_sources, chunks.episode_lengths)
    assert len(validation) > 0 and not set(sources[train]) & set(sources[validation])
    again = pickle.loads(pickle.dumps(chunks))
    assert again.episode_sources.tolist() == chunks.episode_sources.tolist()
    with pytest.raises(ValueError, match="demonstrations=3 must be Demonstrations"):
        in_chunks(3, 2)  # type: ignore[arg-type]


def test_dictionaries_maps_and_unknown_rewards_are_taken(tmp_path: Path) -> None:
    data = Demonstrations.from_policy(lambda observation: np.zeros(1), AsDict(StrictBoxEnv()), 2, seed=0)
    chunks = in_chunks(data, 4, folder=tmp_path / "maps")
    assert isinstance(chunks.observations, dict) and isinstance(chunks.observations["only"], np.memmap)
    assert chunks.actions.shape == (20, 4, 1) and chunks.truncations.sum() == 8
    bare = Demonstrations(np.zeros((5, 3)), np.zeros((5, 1)), [5])
    assert in_chunks(bare, 2).rewards is None and in_chunks(bare, 2).final_observations is None


def test_a_policy_over_chunks_is_trained_with_them() -> None:
    env: Any = ActionChunk(MultiGoal2D(), 3, 0.9)
    chunks = in_chunks(walks(), 3, 0.9)
    model = DiffSAC(
        "MlpPolicy",
        env,
        gamma=0.9**3,
        learning_starts=2,
        batch_size=8,
        policy_kwargs=dict(net_arch=[8]),
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs=dict(demonstrations=chunks),
        device="cpu",
    )
    model.pretrain(chunks, n_epochs=2, seed=0).learn(10)
    assert model.predict(env.reset(seed=0)[0])[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("kwargs", "complaint"), [(dict(length=0), "length=0 must"), (dict(length=2, gamma=2), "gamma=2 must")]
)
def test_arguments_out_of_range_are_refused_by_name(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        in_chunks(walks(1), **kwargs)
