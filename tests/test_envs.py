"""The environments that show what a diffusion policy is for."""

import importlib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sb3_diffusion.envs
from sb3_diffusion.envs import BimodalBandit, TurningDoubleWell

ENVS = ["BimodalBandit-v0", "TurningDoubleWell-v0"]


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("check_env", [gymnasium_check_env, sb3_check_env], ids=["gymnasium", "sb3"])
def test_the_environment_checkers_have_nothing_to_say(env_id: str, check_env: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id).unwrapped)


def test_registering_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(sb3_diffusion.envs)
    assert all(env_id in gym.registry for env_id in ENVS)


def test_the_bandit_terminates_after_one_step_and_pays_the_reward_of_the_action() -> None:
    env = gym.make("BimodalBandit-v0")
    first, _ = env.reset(seed=0)
    action = np.array([0.3], dtype=np.float32)
    observation, reward, terminated, truncated, _ = env.step(action)
    assert terminated and not truncated
    assert reward == pytest.approx(BimodalBandit().reward(0.3), abs=1e-6)
    assert np.array_equal(observation, first)


def test_the_bandit_reward_is_one_at_both_centres_and_falls_by_their_width() -> None:
    reward = BimodalBandit().reward
    assert reward([-0.5, 0.5]) == pytest.approx(1, abs=1e-5)
    assert reward(0.7) == pytest.approx(np.exp(-0.5), abs=1e-5)
    assert reward(0.0) == pytest.approx(2 * np.exp(-3.125))
    actions = np.linspace(-1, 1, 21).reshape(3, 7)
    assert reward(actions).shape == (3, 7)
    assert reward(actions) == pytest.approx(reward(-actions))


def test_the_bandit_takes_other_centres_widths_and_heights() -> None:
    reward = BimodalBandit(centres=(-0.8, 0.6), width=0.05, heights=(2.0, 0.5)).reward
    assert reward([-0.8, 0.6]) == pytest.approx([2.0, 0.5])
    assert reward(0.65) == pytest.approx(0.5 * np.exp(-0.5))


@pytest.mark.parametrize(
    "kwargs, complaint",
    [
        ({"centres": (0.5,)}, r"centres=\(0.5,\) must be two numbers"),
        ({"centres": (-0.5, 1.5)}, r"centres\[1\]=1.5 must be .* <= 1"),
        ({"width": 0.0}, "width=0.0 must be .* > 0"),
        ({"width": float("nan")}, "width=nan must be"),
        ({"heights": (1.0, 0.0)}, r"heights\[1\]=0.0 must be .* > 0"),
        ({"heights": (1.0, 1.0, 1.0)}, "heights=.* must be two numbers"),
    ],
)
def test_the_bandit_refuses_arguments_out_of_range_by_name(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        BimodalBandit(**kwargs)


def test_a_turn_of_0_45_and_90_degrees_pays_085_1_and_0() -> None:
    reward = TurningDoubleWell.reward
    assert reward([-1, -0.5, 0, 0.5, 1]) == pytest.approx([0, 1, 0.85, 1, 0])
    # Halfway (in squared turn) to the optimum and beyond it.
    assert reward(np.sqrt([0.125, 0.625])) == pytest.approx([0.85 + 0.15 * 0.75, 0.75])


def test_the_turn_reward_is_symmetric_and_has_its_maximum_at_45_degrees() -> None:
    actions = np.linspace(-1, 1, 2001).reshape(3, -1)
    rewards = TurningDoubleWell.reward(actions)
    assert rewards.shape == actions.shape
    assert rewards == pytest.approx(TurningDoubleWell.reward(-actions))
    assert rewards.max() == pytest.approx(1) and abs(actions.ravel()[rewards.argmax()]) == pytest.approx(0.5)


@pytest.mark.parametrize("action, turn", [(1.0, 45.0), (0.01, 45.0), (0.0, 45.0), (-0.01, -45.0), (-1.0, -45.0)])
def test_the_executed_turn_snaps_to_45_degrees_but_the_chosen_one_is_paid(action: float, turn: float) -> None:
    env = TurningDoubleWell()
    _, before = env.reset(seed=0)
    observation, reward, _, _, info = env.step(np.array([action], dtype=np.float32))
    assert info["turn"] == turn
    assert info["heading"] == (before["heading"] + turn) % 360
    angle = np.deg2rad(info["heading"])
    assert observation == pytest.approx([np.cos(angle), np.sin(angle)], abs=1e-6)
    assert info["position"] == pytest.approx(observation)
    assert reward == pytest.approx(TurningDoubleWell.reward(action), abs=1e-6)


def test_exactly_eight_observations_are_reachable_and_all_are_first_ones() -> None:
    env = TurningDoubleWell()
    first = {tuple(env.reset(seed=seed)[0]) for seed in range(100)}
    rng = np.random.default_rng(0)
    visited = {tuple(env.step(rng.uniform(-1, 1, 1).astype(np.float32))[0]) for _ in range(2000)}
    assert first == visited == {tuple(heading) for heading in TurningDoubleWell.HEADINGS}
    assert len(first) == 8


def test_the_time_limit_truncates_after_200_steps_and_nothing_terminates() -> None:
    env = gym.make("TurningDoubleWell-v0")
    env.reset(seed=0)
    flags = [env.step(np.array([0.4], dtype=np.float32))[2:4] for _ in range(200)]
    assert flags == [(False, False)] * 199 + [(False, True)]


def test_changing_a_returned_observation_or_info_does_not_change_the_environment() -> None:
    env = TurningDoubleWell()
    observation, info = env.reset(seed=0)
    observation[:] = 9
    info["position"][:] = 9
    observation, _, _, _, info = env.step(np.array([0.5], dtype=np.float32))
    assert np.linalg.norm(observation) == pytest.approx(1)
    assert info["position"] == pytest.approx(observation)
