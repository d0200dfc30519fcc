"""
Train DiffSAC on a MuJoCo environment and leave, in the folder ``--out``, what shows the result:

* ``model.zip``: the agent; ``DiffSAC.load`` reads it
* ``evaluations.csv``: return of the deterministic policy during training
* ``learning_curve.png``: the same as a picture, beside the return of random actions
* ``agent.gif``: the trained agent at work, where the machine can render

The files appear together at the end: a run that fails or is interrupted leaves those of an earlier run as they are.
"""

import argparse
import csv
import os
import sys
import tempfile
from ctypes.util import find_library
from pathlib import Path

if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and find_library("EGL"):
    # Read when mujoco is imported, hence before the other imports.
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import mujoco
import numpy as np
import torch as th
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion import DiffSAC

EVALUATIONS = 10
EVALUATION_EPISODES = 10
WARM_UP_STEPS = 1_000
# Smaller and faster than the defaults (256 x 256, 3e-4), to have a good agent within minutes.
NET_ARCH = [128, 128]
LEARNING_RATE = 1e-3
GIF_FRAMES = 120
GIF_WIDTH = 320
HIGHEST_INTEGER = 2**31 - 1


class Evaluation(BaseCallback):
    """
    Evaluates the deterministic policy ten times, the last time when training ends.

    :param env: evaluation environments
    :param every: training steps between evaluations
    """

    def __init__(self, env: VecEnv, every: int):
        super().__init__()
        self.env = env
        self.every = every
        self.steps: list[int] = []
        self.returns: list[list[float]] = []

    def _evaluate(self) -> None:
        returns, _ = evaluate_policy(self.model, self.env, EVALUATION_EPISODES, return_episode_rewards=True)
        self.steps.append(self.num_timesteps)
        self.returns.append(list(returns))  # type: ignore[arg-type]

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0 and len(self.steps) < EVALUATIONS - 1:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        self._evaluate()


def random_returns(env_id: str, seed: int, episodes: int = 10) -> list[float]:
    """Returns of episodes with uniformly random actions."""
    env = gym.make(env_id)
    env.action_space.seed(seed)
    returns = []
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def write_csv(path: Path, evaluation: Evaluation) -> None:
    """One row per evaluation: training steps, mean return, return of each episode."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timesteps", "mean_return", *(f"return_{i}" for i in range(1, EVALUATION_EPISODES + 1))])
        for steps, returns in zip(evaluation.steps, evaluation.returns, strict=True):
            writer.writerow([steps, np.mean(returns), *returns])


def draw_learning_curve(path: Path, evaluation: Evaluation, random_return: float, env_id: str) -> None:
    """Mean return against training steps; the band spans the episodes of one evaluation."""
    returns = np.array(evaluation.returns)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(evaluation.steps, returns.min(1), returns.max(1), alpha=0.25, linewidth=0)
    axes.plot(evaluation.steps, returns.mean(1), marker="o", label="DiffSAC, deterministic")
    axes.axhline(random_return, color="gray", linestyle="--", label="random actions")
    axes.set(title=env_id, xlabel="environment steps", ylabel="return of an episode")
    axes.legend()
    figure.savefig(path, dpi=120)


def record_gif(path: Path, model: DiffSAC, env_id: str, seed: int) -> None:
    """The deterministic policy at work, every other step a frame; where an episode ends, the next begins."""
    env = gym.make(env_id, render_mode="rgb_array")
    model_xml = getattr(env.unwrapped, "model", None)
    if model_xml is not None and mujoco.mj_name2id(model_xml, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        # The free camera stays where it is and a running agent leaves the picture.
        env.close()
        env = gym.make(env_id, render_mode="rgb_array", camera_name="track")
    frames = []
    observation, _ = env.reset(seed=seed)
    for step in range(2 * GIF_FRAMES):
        if step % 2 == 0:
            picture = Image.fromarray(np.asarray(env.render()))
            frames.append(picture.resize((GIF_WIDTH, GIF_WIDTH * picture.height // picture.width)))
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    fps = env.metadata.get("render_fps", 30)
    env.close()
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=max(2000 // fps, 20), loop=0)


def why_no_picture(env_id: str, error: Exception) -> str:
    """Whether a package is missing, or the machine cannot render."""
    if isinstance(error, (ImportError, gym.error.DependencyNotInstalled)):
        package = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
        return (
            f"rendering {env_id} needs {'the package ' + package if package else 'a package'} that is not installed ({error})"
        )
    return f"this machine cannot render {env_id} ({type(error).__name__}: {error})"


def parse_arguments() -> argparse.Namespace:
    """The command line; what cannot be trained is refused here, before any work is done."""
    parser = argparse.ArgumentParser(description="Train DiffSAC; leave model, evaluations, learning curve and GIF in --out.")
    parser.add_argument("--env", default="Reacher-v5", help="Gymnasium id (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--diffusion-steps", type=int, default=4, help="K, steps of the diffusion (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    arguments = parser.parse_args()
    for option, lowest in (("steps", EVALUATIONS), ("seed", 0), ("diffusion_steps", 1)):
        value = getattr(arguments, option)
        if not lowest <= value <= HIGHEST_INTEGER:
            parser.error(f"--{option.replace('_', '-')} must be {lowest} ... {HIGHEST_INTEGER}, not {value}")
    try:
        env = gym.make(arguments.env)
    except (gym.error.Error, ImportError) as error:
        parser.error(f"--env {arguments.env}: {error}")
    if not isinstance(env.action_space, gym.spaces.Box):
        parser.error(f"--env {arguments.env}: DiffSAC needs a Box action space, this one has {env.action_space}")
    if not isinstance(env.observation_space, gym.spaces.Box) or len(env.observation_space.shape) != 1:
        parser.error(f"--env {arguments.env}: this example needs vector observations, this one has {env.observation_space}")
    env.close()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error}")
    if not os.access(arguments.out, os.W_OK):
        parser.error(f"--out {arguments.out}: no permission to write")
    return arguments


def main() -> None:
    """Train, evaluate, draw, record."""
    arguments = parse_arguments()
    th.set_num_threads(1)  # small networks gain little from more, and lose a lot where other programs run
    random_return = float(np.mean(random_returns(arguments.env, arguments.seed)))
    print(f"{arguments.env}: random actions return {random_return:.1f}")

    model = DiffSAC(
        "MlpPolicy",
        arguments.env,
        learning_rate=LEARNING_RATE,
        learning_starts=min(WARM_UP_STEPS, arguments.steps // 10),
        policy_kwargs=dict(diffusion_steps=arguments.diffusion_steps, net_arch=NET_ARCH),
        seed=arguments.seed,
        device="cpu",
    )
    evaluation_envs = make_vec_env(arguments.env, n_envs=EVALUATION_EPISODES, seed=arguments.seed + 1_000)
    evaluation = Evaluation(evaluation_envs, every=arguments.steps // EVALUATIONS)
    model.learn(arguments.steps, callback=evaluation, progress_bar=True)
    evaluation_envs.close()

    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=arguments.out) as folder:
        unfinished = Path(folder)
        model.save(unfinished / "model.zip")
        write_csv(unfinished / "evaluations.csv", evaluation)
        draw_learning_curve(unfinished / "learning_curve.png", evaluation, random_return, arguments.env)
        gif = unfinished / "agent.gif"
        try:
            record_gif(gif, model, arguments.env, arguments.seed)
        except Exception as error:  # each rendering library fails in its own way, and none of them should cost the result
            print(f"No GIF: {why_no_picture(arguments.env, error)}")
            gif.unlink(missing_ok=True)
            # It would show another agent than the new model.
            (arguments.out / gif.name).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir()):
            os.replace(file, arguments.out / file.name)
            print(f"wrote {arguments.out / file.name}")
    trained_return = np.mean(evaluation.returns[-1])
    print(f"{arguments.env} after {arguments.steps} steps: DiffSAC {trained_return:.1f}, random actions {random_return:.1f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: what an earlier run left is unchanged.")
