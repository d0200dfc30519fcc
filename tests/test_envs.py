"""The environments that show what a diffusion policy is for."""

import importlib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import sb3_diffusion.envs
from sb3_diffusion.envs import BimodalBandit, MultiGoal2D, TurningDoubleWell, TurningGMM

ENVS = ["BimodalBandit-v0", "MultiGoal2D-v0", "TurningDoubleWell-v0", "TurningGMM-v0"]


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


@pytest.mark.parametrize("env_id", ["TurningDoubleWell-v0", "TurningGMM-v0"])
def test_the_time_limit_truncates_after_200_steps_and_nothing_terminates(env_id: str) -> None:
    env = gym.make(env_id)
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


def test_the_mixtures_have_five_means_a_sector_in_the_allowed_range_and_depend_on_the_seed_alone() -> None:
    means = TurningGMM().means
    assert means.shape == (8, 5)
    assert np.abs(means).max() <= 0.75 and means.std() == pytest.approx(1.5 / 12**0.5, abs=0.1)
    assert len(np.unique(means)) == 40
    assert np.array_equal(means, TurningGMM(mixture_seed=0).means)
    assert not np.isclose(means, TurningGMM(mixture_seed=1).means).any()


def test_the_mixture_reward_is_the_log_density_of_the_sectors_mixture() -> None:
    env = TurningGMM()
    env.means = np.array([[-0.6, -0.3, 0.0, 0.3, 0.6]] * 7 + [[0.0] * 5])
    peak = 1 / (0.05 * np.sqrt(2 * np.pi))
    # Five equal Gaussians on top of each other are one; apart, each has a fifth of the mass.
    assert env.reward([0.0, 0.05, 0.1], 7) == pytest.approx(np.log(peak) - np.array([0, 0.5, 2.0]))
    assert env.reward([-0.6, 0.35], 0) == pytest.approx(np.log(peak / 5) - np.array([0, 0.5]), abs=1e-5)
    assert env.reward(0.15, 3) == pytest.approx(np.log(2 * peak * np.exp(-4.5) / 5), abs=1e-5)
    assert env.reward([1.0, -1.0], 7) == pytest.approx(np.log(1e-12))
    assert env.reward(np.zeros((2, 3)), np.zeros((2, 1), dtype=int)).shape == (2, 3)


def test_the_mixture_reward_is_a_normalised_log_density_on_the_action_space() -> None:
    actions = np.linspace(-1, 1, 20_001)
    densities = np.exp(TurningGMM(mixture_seed=3).reward(actions, np.arange(8)[:, None]))
    assert np.trapezoid(densities, actions) == pytest.approx(np.ones(8), abs=1e-6)


def test_a_sector_spans_45_degrees_from_a_multiple_of_45_on() -> None:
    assert TurningGMM.sector([0, 44.9, 45, 314.9, 315, 359.9, 360]).tolist() == [0, 0, 1, 6, 7, 7, 0]


@pytest.mark.parametrize("action", [1.0, 0.3, 0.0, -1.0])
def test_the_mixture_environment_turns_by_120_degrees_times_the_action_and_pays_the_sector_it_turned_in(action: float) -> None:
    env = TurningGMM()
    _, before = env.reset(seed=4)
    observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
    assert info["turn"] == pytest.approx(120 * action)
    assert info["heading"] == pytest.approx((before["heading"] + 120 * action) % 360, abs=1e-4)
    angle = np.deg2rad(info["heading"])
    assert observation == pytest.approx([np.cos(angle), np.sin(angle)], abs=1e-6)
    assert info["position"] == pytest.approx(observation)
    assert reward == pytest.approx(env.reward(np.float32(action), int(before["heading"] // 45)), abs=1e-6)
    assert not terminated and not truncated


def test_first_headings_are_spread_over_the_circle_and_float_errors_stay_in_it() -> None:
    env = TurningGMM()
    first = [env.reset(seed=seed)[1]["heading"] for seed in range(200)]
    assert set(TurningGMM.sector(first)) == set(range(8)) and len(set(first)) == 200
    env._heading = 0.0
    # A turn so small that the new heading, just below 0, is 360 in floating point.
    _, _, _, _, info = env.step(np.array([-1e-20], dtype=np.float32))
    assert info["heading"] == 360
    assert np.isfinite(env.step(np.array([0.0], dtype=np.float32))[1])


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_mixture_seed_that_is_no_number_from_zero_on_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"mixture_seed={seed} must be an integer >= 0"):
        TurningGMM(mixture_seed=seed)


def test_a_move_costs_its_length_and_the_distance_to_the_nearest_goal_by_hand() -> None:
    positions = [[0.0, 0.0], [0.0, 0.0], [2.0, 1.0], [-3.5, 0.0], [-3.5, 0.0], [0.0, 4.5]]
    actions = [[0.0, 0.0], [0.5, 0.0], [0.5, -1.0], [-1.0, 0.0], [-0.5, 0.0], [0.0, 0.0]]
    following, rewards, goals = MultiGoal2D.transition(positions, actions)
    assert np.array_equal(following, np.add(positions, actions))
    assert rewards == pytest.approx(
        [
            -25,
            -30 * 0.25 - 4.5**2,
            -30 * 1.25 - 2.5**2,
            -30 - 0.25 + 10,
            -30 * 0.25 - 1,  # at a distance of exactly 1 the goal is not reached
            -0.25 + 10,
        ]
    )
    assert goals.tolist() == [-1, -1, -1, 2, -1, 1]


def test_the_point_does_not_leave_its_square() -> None:
    following, rewards, _ = MultiGoal2D.transition([[6.5, -6.75]], [[1.0, -1.0]])
    assert following.tolist() == [[7.0, -7.0]]
    assert rewards == pytest.approx([-60 - (2.0**2 + 7.0**2)])


def test_reaching_a_goal_terminates_the_episode_and_is_told() -> None:
    env = gym.make("MultiGoal2D-v0")
    observation, _ = env.reset(seed=0, options={"position": (0, 2.5)})
    assert observation.tolist() == [0, 2.5]
    first = env.step(np.array([0.0, 1.0], dtype=np.float32))
    assert first[0].tolist() == [0, 3.5] and first[1:] == (-30 - 2.25, False, False, {"goal": -1})
    second = env.step(np.array([0.0, 0.75], dtype=np.float32))
    assert second[0].tolist() == [0, 4.25]
    assert second[1:] == (-30 * 0.75**2 - 0.75**2 + 10, True, False, {"goal": 1})


def test_the_point_starts_near_the_origin_and_is_given_up_after_30_steps() -> None:
    env = gym.make("MultiGoal2D-v0")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(500)])
    assert np.abs(starts.mean(axis=0)).max() < 4 * 0.1 / 500**0.5
    assert starts.std(axis=0) == pytest.approx([0.1, 0.1], rel=4 / 1000**0.5)
    flags = [env.step(np.zeros(2, dtype=np.float32))[2:4] for _ in range(30)]
    assert flags == [(False, False)] * 29 + [(False, True)]


@pytest.mark.parametrize("position", [(0, 8), (0,), (0, float("nan"))], ids=str)
def test_a_start_outside_the_square_is_refused(position: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"options\['position'\]=.* must be two numbers in \[-7.0, 7.0\]"):
        MultiGoal2D().reset(options={"position": position})


@pytest.mark.parametrize("env_id", ENVS)
def test_many_environments_run_in_sb3s_vec_env_from_different_starts(env_id: str) -> None:
    vec_env = make_vec_env(env_id, n_envs=4, seed=0)
    model = PPO("MlpPolicy", vec_env, n_steps=16, batch_size=32, seed=0, device="cpu").learn(128)
    assert model.num_timesteps == 128
    if env_id != "BimodalBandit-v0":
        assert len({tuple(row) for row in vec_env.reset()}) > 1
