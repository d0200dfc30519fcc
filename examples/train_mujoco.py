"""
Train DiffCrossQ on a MuJoCo environment and leave, in the folder ``--out``, what shows the result:

* ``model.zip``: the agent, as it was at its best evaluation; ``DiffCrossQ.load`` reads it
* ``evaluations.csv``: return of the deterministic policy during training
* ``learning_curve.png``: the same as a picture, beside the returns of random actions and of none, and where it was recorded
  (``recorded_sac.csv``: HalfCheetah-v5, Hopper-v5) beside SB3's SAC, which is shown for three times as many steps
* ``agent.gif``: that agent at work, where the machine can render
* ``two_modes.png``: what no Gaussian can do, from two trainings in a second process (two_modes.py)

The files appear together at the end: a run that fails or is interrupted leaves those of an earlier run as they are.
"""

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import NamedTuple

if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and find_library("EGL"):
    # Read when mujoco is imported, hence before the other imports.
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import mujoco
import numpy as np
import torch as th
import two_modes
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion import DiffCrossQ, DiffSAC
from sb3_diffusion.common.saving import replacing
from sb3_diffusion.evaluation.style import BLACK, BLUE, DPI, GREEN, GREY, VERMILLION, bare

EVALUATIONS = 10
EVALUATION_EPISODES = 5
WARM_UP_STEPS = 1_000
# Smaller and faster than the default (critics of 1024 x 1024), to have a good agent within minutes.
NET_ARCH = [256, 256]
GIF_FRAMES = 120
GIF_WIDTH = 320
MINUTES_OF_10_000_STEPS = 4.5
# How many times as many steps of SAC are drawn: at first there is little to see of it.
SAC_SHOWN = 3
HIGHEST_INTEGER = 2**31 - 1
# SB3's SAC with its defaults (256 x 256, 3e-4). HalfCheetah-v5: sac-early-start in benchmarks/results/paces.csv, whose warm-up
# is as long as here; Hopper-v5: sac in learning.csv, 10 000 steps of warm-up
RECORDED = Path(__file__).with_name("recorded_sac.csv")


class Evaluation(BaseCallback):
    """
    Evaluates the deterministic policy ten times, the last time when training ends, and saves the best model.

    :param env: evaluation environments
    :param every: training steps between evaluations
    :param path: of the best model
    """

    def __init__(self, env: VecEnv, every: int, path: Path):
        super().__init__()
        self.env = env
        self.every = every
        self.path = path
        self.steps: list[int] = []
        self.returns: list[list[float]] = []

    def _evaluate(self) -> None:
        returns, _ = evaluate_policy(self.model, self.env, EVALUATION_EPISODES, return_episode_rewards=True)
        self.steps.append(self.num_timesteps)
        self.returns.append(list(returns))  # type: ignore[arg-type]
        if self.best == len(self.steps) - 1:
            self.model.save(self.path)

    @property
    def best(self) -> int:
        """:return: index of the best evaluation, of several the first"""
        return int(np.mean(self.returns, axis=1).argmax())

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0 and len(self.steps) < EVALUATIONS - 1:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        self._evaluate()


class Recorded(NamedTuple):
    """A learning curve from a file: training steps, and the mean, lowest and highest return of the seeds, shape (n,) each."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_seeds: int


def recorded_sac(env_id: str, path: Path = RECORDED) -> Recorded | None:
    """:return: how SB3's SAC learned on an environment; None if it was not recorded there"""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["environment"] == env_id]
    if not rows:
        return None
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(int(row["timesteps"]), []).append(float(row["deterministic_return"]))
    steps = np.array(sorted(by_step))
    returns = [by_step[step] for step in steps.tolist()]
    mean, low, high = (np.array([of(step) for step in returns]) for of in (np.mean, np.min, np.max))
    return Recorded(steps, mean, low, high, len({row["seed"] for row in rows}))


def untrained_returns(env_id: str, seed: int, random: bool, episodes: int = 10) -> list[float]:
    """Returns of episodes with uniformly random actions, or with the action 0, or what of the box is nearest to it."""
    env = gym.make(env_id)
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    space.seed(seed)
    zero = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    returns = []
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(space.sample() if random else zero)
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


def draw_learning_curve(path: Path, evaluation: Evaluation, untrained: dict[str, float], env_id: str) -> None:
    """
    Mean return against training steps; the band spans the episodes of one evaluation, of the recorded SAC the seeds.

    :param untrained: by name, returns without training
    """
    returns, last = np.array(evaluation.returns), evaluation.steps[-1]
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(evaluation.steps, returns.min(1), returns.max(1), color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(evaluation.steps, returns.mean(1), color=BLUE, marker="o", label="DiffCrossQ, deterministic")
    best = evaluation.best
    axes.plot(evaluation.steps[best], returns[best].mean(), color=BLACK, marker="*", markersize=10, linestyle="", label="kept")
    sac = recorded_sac(env_id)
    if sac is not None and (shown := sac.steps <= SAC_SHOWN * last).any():
        steps = sac.steps[shown]
        axes.fill_between(steps, sac.low[shown], sac.high[shown], color=VERMILLION, alpha=0.2, linewidth=0)
        label = f"SB3's SAC, recorded ({sac.n_seeds} seeds)"
        axes.plot(steps, sac.mean[shown], color=VERMILLION, marker="s", linestyle="--", label=label)
        last = max(last, steps[-1])
    for (name, value), color, line in zip(untrained.items(), (GREY, GREEN), ("--", ":"), strict=True):
        axes.axhline(value, color=color, linestyle=line, label=name)
    axes.set(title=env_id, xlabel="environment steps", ylabel="return of an episode", xlim=(0, 1.03 * last))
    axes.legend(frameon=False, fontsize="small")
    bare(axes)
    figure.savefig(path)


def record_gif(path: Path, model: DiffCrossQ, env_id: str, seed: int) -> None:
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


def draw_two_modes(steps: int, seed: int, out: str) -> None:
    """Train two small policies of a bandit and draw what they do."""
    th.set_num_threads(1)
    figure = two_modes.draw(*(two_modes.train(algorithm, steps, seed) for algorithm in (DiffSAC, SAC)))
    with replacing(Path(out) / "two_modes.png", ".png") as temporary:
        figure.savefig(temporary)


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
    parser = argparse.ArgumentParser(
        description="Train DiffCrossQ; leave model, evaluations, learning curve and GIF in --out."
    )
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
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
        parser.error(f"--env {arguments.env}: DiffCrossQ needs a Box action space, this one has {env.action_space}")
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
    # Each of MuJoCo's warnings once: it repeats some for every environment that is made.
    mujoco.set_mju_user_warning(cache(lambda message: print(f"MuJoCo: {message}", file=sys.stderr)))
    arguments = parse_arguments()
    th.set_num_threads(1)  # small networks gain little from more, and lose a lot where other programs run
    kinds = {"random actions": True, "no action (zero)": False}
    untrained = {
        name: float(np.mean(untrained_returns(arguments.env, arguments.seed, random))) for name, random in kinds.items()
    }
    told = ", ".join(f"{name} {value:.1f}" for name, value in untrained.items())
    minutes = max(1, round(MINUTES_OF_10_000_STEPS * arguments.steps / 10_000))
    print(f"{arguments.env}, return without training: {told}")
    print(f"training for {arguments.steps} steps, about {minutes} min on two free cores", flush=True)

    # In a process of its own, on the other core; a short demo draws less finished policies
    two_modes_steps = int(np.clip(arguments.steps, two_modes.FEWEST_STEPS, two_modes.STEPS))
    picture = multiprocessing.get_context("spawn").Process(
        target=draw_two_modes, args=(two_modes_steps, arguments.seed, str(arguments.out))
    )
    picture.start()
    model = DiffCrossQ(
        "MlpPolicy",
        arguments.env,
        learning_starts=min(WARM_UP_STEPS, arguments.steps // 10),
        policy_kwargs=dict(diffusion_steps=arguments.diffusion_steps, net_arch=NET_ARCH),
        seed=arguments.seed,
        device="cpu",
    )
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=arguments.out) as folder:
        unfinished = Path(folder)
        evaluation_envs = make_vec_env(arguments.env, n_envs=EVALUATION_EPISODES, seed=arguments.seed + 1_000)
        evaluation = Evaluation(evaluation_envs, arguments.steps // EVALUATIONS, unfinished / "model.zip")
        model.learn(arguments.steps, callback=evaluation, progress_bar=True)
        evaluation_envs.close()
        write_csv(unfinished / "evaluations.csv", evaluation)
        draw_learning_curve(unfinished / "learning_curve.png", evaluation, untrained, arguments.env)
        gif = unfinished / "agent.gif"
        try:
            record_gif(gif, DiffCrossQ.load(evaluation.path, device="cpu"), arguments.env, arguments.seed)
        except Exception as error:  # each rendering library fails in its own way, and none of them should cost the result
            print(f"No GIF: {why_no_picture(arguments.env, error)}")
            gif.unlink(missing_ok=True)
            # It would show another agent than the new model.
            (arguments.out / gif.name).unlink(missing_ok=True)
        for file in sorted(unfinished.iterdir()):
            os.replace(file, arguments.out / file.name)
            print(f"wrote {arguments.out / file.name}")
    picture.join()
    if picture.exitcode != 0:
        sys.exit(f"two_modes.png could not be drawn (exit code {picture.exitcode})")
    print(f"wrote {arguments.out / 'two_modes.png'}")
    best, last = np.mean(evaluation.returns, axis=1)[[evaluation.best, -1]]
    print(
        f"{arguments.env} after {arguments.steps} steps: DiffCrossQ {last:.1f}, {told}; "
        f"kept: the best of {EVALUATIONS} evaluations, {best:.1f} after {evaluation.steps[evaluation.best]} steps"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: what an earlier run left is unchanged.")
