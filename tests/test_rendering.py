"""The environments' pictures: in SB3, in Gymnasium's recorder, in a window, and without pygame."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import sb3_diffusion.envs

IDS = [f"{name}-v0" for name in sb3_diffusion.envs.HORIZONS]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def after_some_steps(env_id: str, render_mode: str | None, n_steps: int = 5) -> gym.Env:
    env = gym.make(env_id, render_mode=render_mode)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(n_steps):
        _, _, terminated, _, _ = env.step(env.action_space.sample())
        if terminated:
            env.reset()
    return env


@pytest.mark.parametrize("env_id", IDS)
def test_the_picture_has_a_light_ground_and_changes_with_the_state(env_id: str) -> None:
    env = after_some_steps(env_id, "rgb_array")
    first = env.render()
    assert isinstance(first, np.ndarray) and first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    # Video encoders want even numbers.
    assert all(side % 2 == 0 and 300 <= side <= 1000 for side in first.shape[:2])
    assert (first == 255).all(axis=2).mean() > 0.5
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 10
    assert np.array_equal(first, env.render())
    env.step(env.action_space.sample())
    assert not np.array_equal(first, env.render())


@pytest.mark.parametrize("env_id", IDS)
def test_drawing_changes_nothing_in_the_environment(env_id: str) -> None:
    drawn, undrawn = after_some_steps(env_id, "rgb_array"), after_some_steps(env_id, None)
    drawn.render()
    for _ in range(3):
        action = undrawn.action_space.sample()
        assert np.array_equal(drawn.step(action)[0], undrawn.step(action)[0])


@pytest.mark.parametrize("env_id", IDS)
def test_sb3s_vec_envs_take_the_environments_as_they_are_and_tile_their_pictures(env_id: str) -> None:
    vec_env = make_vec_env(env_id, n_envs=2, seed=0)
    vec_env.reset()
    picture = vec_env.render()
    assert vec_env.render_mode == "rgb_array" and isinstance(picture, np.ndarray) and picture.ndim == 3


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_renders_in_every_mode(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_the_window_follows_the_steps_and_is_closed(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    waits: list[int] = []
    monkeypatch.setattr(pygame.time, "wait", waits.append)
    env = after_some_steps(env_id, "human", n_steps=2)
    assert len(waits) >= 3 and set(waits) == {100}
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    picture = env.unwrapped._picture().pixels()  # type: ignore[attr-defined]
    assert np.array_equal(shown, picture)
    assert env.render() is None
    env.close()
    assert pygame.display.get_surface() is None
    env.close()


def test_gymnasiums_recorder_writes_a_video(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # moviepy's own
        env = gym.make("MultiGoal2D-v0", render_mode="rgb_array")
        env = gym.wrappers.RecordVideo(env, str(tmp_path / "videos"), disable_logger=True)
        env.reset(seed=0)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
        env.close()
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]


def test_an_unknown_render_mode_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"render_mode='ansi' is unknown; allowed: .*'human', 'rgb_array'"):
        sb3_diffusion.envs.MultiGoal2D(render_mode="ansi")


def test_rendering_without_a_mode_says_what_to_pass() -> None:
    env = sb3_diffusion.envs.MultiGoal2D()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None


def test_the_library_neither_imports_pygame_nor_needs_it_before_it_draws(tmp_path: Path) -> None:
    (tmp_path / "pygame.py").write_text("raise ImportError('not installed')")
    script = (
        "import sys; import gymnasium as gym\n"
        "env = gym.make('sb3_diffusion:MultiGoal2D-v0', render_mode='rgb_array')\n"
        "assert 'pygame' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "env.reset(seed=0); env.step(env.action_space.sample())\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    env.render()\nexcept gym.error.DependencyNotInstalled as error:\n    print(error)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert 'pip install "gymnasium[classic-control]"' in finished.stdout


def test_rl_zoo3s_enjoy_shows_the_environment_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("requests")
    common = ("--algo", "diffsac", "--env", "MultiGoal2D-v0", "-f", "logs", "--device", "cpu")
    for command, options in (("train", ("-n", "20", "--eval-freq", "-1")), ("enjoy", ("-n", "3"))):
        finished = subprocess.run(
            [sys.executable, "-m", f"sb3_diffusion.{command}", *common, *options], cwd=tmp_path, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
    assert "Loading logs" in finished.stdout and "warn" not in finished.stderr.lower()
