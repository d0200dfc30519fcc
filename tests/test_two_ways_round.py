"""The maze with a wall that can be passed left or right, and its demonstrator."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("mujoco")

from sb3_diffusion.envs.two_ways_round import LEFT, RIGHT, TwoWaysRound, WaypointController


def episode(env: gym.Env, controller: WaypointController, seed: int) -> tuple[int, float, dict[str, Any], bool]:
    """Length, return, last info and whether it was terminated."""
    observation, _ = env.reset(seed=seed)
    controller.reset(seed=seed)
    length, total = 0, 0.0
    while True:
        observation, reward, terminated, truncated, info = env.step(controller(observation))
        length, total = length + 1, total + float(reward)
        if terminated or truncated:
            return length, total, info, terminated


@pytest.mark.parametrize("check_env", [gymnasium_check_env, sb3_check_env], ids=["gymnasium", "sb3"])
def test_the_environment_checkers_have_nothing_to_say(check_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PointMaze's own: its observations have no bounds.
        warnings.filterwarnings("ignore", message=".*infinity.*")
        check_env(gym.make("TwoWaysRound-v0").unwrapped)


def test_the_demonstrator_arrives_on_either_side() -> None:
    env, controller = gym.make("TwoWaysRound-v0"), WaypointController()
    episodes = [episode(env, controller, seed) for seed in range(60)]
    assert all(terminated and total == 1 and info["is_success"] for _, total, info, terminated in episodes)
    ways = [info["way"] for _, _, info, _ in episodes]
    assert set(ways) == {LEFT, RIGHT}
    assert np.mean(np.array(ways) == LEFT) == pytest.approx(0.5, abs=4 * 0.5 / 60**0.5)
    assert 30 < np.mean([length for length, *_ in episodes]) < 70


@pytest.mark.parametrize("way", ["left", "right"])
def test_a_blocked_way_ends_nowhere_and_the_other_one_at_the_goal(way: str) -> None:
    other = {"left": "right", "right": "left"}[way]
    env = gym.make("TwoWaysRound-v0", blocked=way)
    length, total, info, terminated = episode(env, WaypointController(way=way), 0)
    assert (length, total, info["way"], info["is_success"], terminated) == (150, 0, 0, False, False)
    _, total, info, terminated = episode(env, WaypointController(way=other), 0)
    assert terminated and total == 1 and info["way"] == {"left": LEFT, "right": RIGHT}[other]


def test_a_speed_of_five_takes_half_the_time() -> None:
    env = gym.make("TwoWaysRound-v0")
    slow, fast = (episode(env, WaypointController(speed=speed, noise=0), 0)[0] for speed in (2, 5))
    assert 0.4 * slow < fast < 0.6 * slow


def test_an_action_is_held_for_a_twentieth_of_a_second() -> None:
    env = TwoWaysRound()
    env.reset(seed=0)
    before = env.data.time
    observation = env.step(np.array([0.5, 0.0], dtype=np.float32))[0]
    assert env.data.time - before == pytest.approx(0.05)
    assert observation["observation"][2] == pytest.approx(0.5 * WaypointController.VELOCITY_PER_STEP, rel=0.05)


def test_an_episode_of_the_demonstrator_depends_on_the_seed_alone() -> None:
    controller, again = WaypointController(), WaypointController()
    episode(gym.make("TwoWaysRound-v0"), controller, 5)
    observation, _ = TwoWaysRound().reset(seed=0)
    controller.reset(seed=3)
    again.reset(seed=3)
    assert [controller(observation).tolist() for _ in range(3)] == [again(observation).tolist() for _ in range(3)]


def test_the_picture_shows_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    env, controller = TwoWaysRound(render_mode="rgb_array"), WaypointController()
    observation, _ = env.reset(seed=0)
    first = env.render()
    for _ in range(10):
        observation = env.step(controller(observation))[0]
    last = env.render()
    assert first.shape == last.shape == (400, 560, 3) and not np.array_equal(first, last)


def test_sb3_reports_the_success_rate() -> None:
    vec_env = make_vec_env("TwoWaysRound-v0", 2, seed=0)
    vec_env.reset()
    infos: list[dict[str, Any]] = []
    while not any("episode" in info for info in infos):
        infos = vec_env.step(np.zeros((2, 2), dtype=np.float32))[3]
    assert [info["is_success"] for info in infos] == [False, False] and infos[0]["TimeLimit.truncated"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: TwoWaysRound(blocked="both"), "blocked='both' is unknown; allowed: .*'left', 'right'"),
        (lambda: WaypointController(speed=0), "speed=0 must be .* > 0"),
        (lambda: WaypointController(noise=-1), "noise=-1 must be .* >= 0"),
        (lambda: WaypointController(way="up"), "way='up' is unknown"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()
