"""Several actions in one decision."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs_for_tests import AnyActionEnv, StrictBoxEnv
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_diffusion import DiffSAC
from sb3_diffusion.envs import ActionChunk, MultiGoal2D


class Recorder(StrictBoxEnv):
    """Keeps the actions that it executed, and pays 1, 2, 3 … in turn; ends when and as it is told."""

    def __init__(self, end: int = 10**6, terminates: bool = False) -> None:
        super().__init__(low=[-2.0, 0.0], high=[2.0, 1.0])
        self.end, self.terminates = end, terminates

    def reset(self, **kwargs: Any) -> Any:
        self.executed: list[np.ndarray] = []
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        observation, _, _, _, _ = super().step(action)
        self.executed.append(action)
        n = len(self.executed)
        assert n <= self.end, "stepped after the end"
        over = n == self.end
        return observation, float(n), over and self.terminates, over and not self.terminates, {"step": n}


def sampled(env: ActionChunk, seed: int = 0) -> np.ndarray:
    env.action_space.seed(seed)
    return env.action_space.sample()


@pytest.mark.parametrize("check_env", [gymnasium_check_env, sb3_check_env], ids=["gymnasium", "sb3"])
def test_the_environment_checkers_have_nothing_to_say(check_env: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Gymnasium's wants to check unwrapped environments.
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*|.*render modes.*")
        check_env(ActionChunk(gym.make("MultiGoal2D-v0"), 3))


def test_the_chunk_is_executed_in_order_and_its_rewards_are_discounted() -> None:
    env = ActionChunk(Recorder(), 3, gamma=0.5)
    assert env.action_space.shape == (3, 2) and env.action_space.dtype == np.float32
    assert env.action_space.low.tolist() == [[-2, 0]] * 3 and env.action_space.high.tolist() == [[2, 1]] * 3
    env.reset(seed=0)
    chunk = sampled(env)
    _, reward, terminated, truncated, info = env.step(chunk)
    assert np.array_equal(env.unwrapped.executed, chunk)  # type: ignore[attr-defined]
    assert reward == 1 + 0.5 * 2 + 0.25 * 3
    assert (terminated, truncated) == (False, False)
    assert info == {"step": 3, "n_env_steps": 3, "discount": 0.125}


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("end", [3, 4, 5])
def test_an_end_inside_a_chunk_keeps_its_kind_and_drops_the_rest(end: int, terminates: bool) -> None:
    env = ActionChunk(Recorder(end, terminates), 3, gamma=0.5)
    env.reset(seed=0)
    outcomes = [env.step(sampled(env))]
    if end > 3:
        assert outcomes[0][2:4] == (False, False)
        outcomes.append(env.step(sampled(env)))
    n = end - 3 * (len(outcomes) - 1)
    _, reward, terminated, truncated, info = outcomes[-1]
    assert len(env.unwrapped.executed) == end  # type: ignore[attr-defined]
    assert (terminated, truncated) == (terminates, not terminates)
    assert info["n_env_steps"] == n and info["discount"] == 0.5**n
    assert reward == sum(0.5**i * (end - n + 1 + i) for i in range(n))


def test_a_time_limit_inside_counts_environment_steps_and_truncates() -> None:
    env = ActionChunk(gym.make("MultiGoal2D-v0"), 4)
    env.reset(seed=0)
    infos, truncated = [], False
    while not truncated:
        _, _, terminated, truncated, info = env.step(np.zeros((4, 2), dtype=np.float32))
        assert not terminated
        infos.append(info["n_env_steps"])
    assert infos == [4] * 7 + [2]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.floats(0, 1), st.integers(1, 20))
def test_the_discounted_return_is_that_of_the_single_steps(length: int, gamma: float, end: int) -> None:
    env = ActionChunk(Recorder(end, terminates=True), length, gamma)
    env.reset(seed=0)
    total, weight, terminated = 0.0, 1.0, False
    while not terminated:
        _, reward, terminated, _, _ = env.step(sampled(env))
        total += weight * reward
        weight *= gamma**length
    assert total == pytest.approx(sum(gamma**i * (i + 1) for i in range(end)))


def test_sb3_marks_a_truncation_inside_a_chunk_as_a_time_limit_and_keeps_its_last_observation() -> None:
    vec_env = DummyVecEnv([lambda: ActionChunk(Recorder(end=4), 3)])
    vec_env.reset()
    chunk = np.zeros((1, 3, 2), dtype=np.float32)
    vec_env.step(chunk)
    observations, _, dones, infos = vec_env.step(chunk)
    assert dones[0] and infos[0]["TimeLimit.truncated"]
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])


def test_a_monitor_inside_counts_environment_steps_and_one_outside_chunks() -> None:
    inside = ActionChunk(Monitor(Recorder(end=7)), 3, gamma=0.5)
    outside = Monitor(ActionChunk(Recorder(end=7), 3, gamma=0.5))
    for env, length, total in ((inside, 7, 28), (outside, 3, 1 + 1 + 0.75 + 4 + 2.5 + 1.5 + 7)):
        env.reset(seed=0)
        for _ in range(3):
            _, _, _, truncated, info = env.step(np.zeros((3, 2), dtype=np.float32))
        assert truncated and info["episode"]["l"] == length and info["episode"]["r"] == total


def test_sb3s_own_functions_report_episodes_in_environment_steps() -> None:
    vec_env = make_vec_env("MultiGoal2D-v0", 2, seed=0, wrapper_class=ActionChunk, wrapper_kwargs=dict(length=3))
    model = SAC("MlpPolicy", vec_env, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")
    _, lengths = evaluate_policy(model, vec_env, 2, return_episode_rewards=True)
    assert max(lengths) > 10 and all(length <= 30 for length in lengths)


def test_training_composes_with_frame_stacking_and_vecnormalize() -> None:
    make: dict[str, Any] = dict(wrapper_class=ActionChunk, wrapper_kwargs=dict(length=3, gamma=0.9))
    vec_env = VecNormalize(VecFrameStack(make_vec_env("MultiGoal2D-v0", 2, seed=0, **make), 2), gamma=0.9**3)
    model = DiffSAC(
        "MlpPolicy", vec_env, gamma=0.9**3, learning_starts=8, batch_size=8, policy_kwargs=dict(net_arch=[8]), device="cpu"
    )
    model.learn(30)
    assert model.predict(vec_env.reset())[0].shape == (2, 3, 2)
    assert model.observation_space.shape == (4,)
    assert model.replay_buffer is not None and model.replay_buffer.action_dim == 6


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        (dict(length=0), "length=0 must be an integer >= 1"),
        (dict(length=1.5), "length=1.5 must be an integer >= 1"),
        (dict(length=2, gamma=1.1), "gamma=1.1 must be a finite number >= 0 and <= 1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ActionChunk(MultiGoal2D(), **kwargs)


def test_an_action_space_that_is_no_box_is_refused() -> None:
    with pytest.raises(ValueError, match=r"action space Discrete\(3\); allowed: a Box"):
        ActionChunk(AnyActionEnv(spaces.Discrete(3)), 2)


def test_a_chunk_of_another_shape_is_refused() -> None:
    env = ActionChunk(MultiGoal2D(), 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action has the shape \(2, 2\); allowed: \(3, 2\)"):
        env.step(np.zeros((2, 2), dtype=np.float32))


def test_the_specification_of_the_wrapped_environment_makes_it_again() -> None:
    env = ActionChunk(gym.make("MultiGoal2D-v0"), 3, gamma=0.9)
    assert env.spec is not None
    again = gym.make(env.spec)
    assert again.action_space == env.action_space and again.get_wrapper_attr("gamma") == 0.9
