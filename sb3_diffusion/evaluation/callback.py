"""Pictures of a policy in TensorBoard while it trains."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_diffusion.common.finite import Observation
from sb3_diffusion.common.validation import LARGEST_SEED, check_number
from sb3_diffusion.evaluation.chain_plots import FEWEST_SAMPLES, MOST_STATES, check_states, plot_denoising, plot_log_ratios
from sb3_diffusion.evaluation.critic_plots import check_critic, plot_actions_and_critic
from sb3_diffusion.evaluation.episode_plots import one_environment, plot_modes_along_episode
from sb3_diffusion.evaluation.policy_chains import diffusion_actor, observation_tensors, to_numpy
from sb3_diffusion.experiments.generators import generators_of_its_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_EPISODE = 50
NOISINGS = 16


def first_of(observations: Any, most: int) -> Any:
    """:return: so many of a batch of observations, copied"""
    if isinstance(observations, dict):
        return {key: batch[:most].copy() for key, batch in observations.items()}
    return np.array(observations[:most])


def pixels(figure: "Figure") -> np.ndarray:
    """:return: (height, width, 3), 8 bits"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class PolicyPicturesCallback(BaseCallback):
    """
    Draws :func:`plot_denoising`, :func:`plot_log_ratios`, where the model has a critic of actions
    :func:`plot_actions_and_critic`, and with an environment :func:`plot_modes_along_episode`, into TensorBoard, under
    ``pictures/``.

    Training goes on as without it, to the last bit: the pictures' random numbers come from generators of their own, and the
    policy's modules are left as they were. They take some seconds each time; where that is more than ``max_share`` of the time
    since training began, the next ones wait until it no longer is.

    :param every: environment steps between two sets of pictures, 1 or more
    :param observations: up to six, as the policy sees them, the first also for the critic's picture; None: those with which
        the training begins
    :param env: one environment for the episode, its Gymnasium id, or a ``VecEnv`` of one; it must not be one of the
        training's. Statistics of ``VecNormalize`` are copied from the training's. None: no episode
    :param n_chains: chains in each state, at least 128
    :param max_share: of the time since training began, above 0 and up to 1
    :param seed: of the generators
    :raises ValueError: for a number out of range; when training begins, for a model without a diffusion policy or without
        ``tensorboard_log``, and for observations or an environment that do not fit
    """

    def __init__(
        self,
        every: int,
        observations: Observation | None = None,
        env: gym.Env | VecEnv | str | None = None,
        n_chains: int = 512,
        max_share: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("every", every, 1, integer=True)
        check_number("n_chains", n_chains, FEWEST_SAMPLES, integer=True)
        check_number("max_share", max_share, 0, 1, exclusive=True)
        check_number("seed", seed, 0, LARGEST_SEED, integer=True)
        self.every, self.observations, self.env = every, observations, env
        self.n_chains, self.max_share, self.seed = n_chains, max_share, seed
        self.vec_env: VecEnv | None = None
        self.seconds = 0.0
        """How long the pictures took so far."""

    def _on_training_start(self) -> None:
        diffusion_actor(self.model)
        formats = self.logger.output_formats
        writers = [output.writer for output in formats if isinstance(output, TensorBoardOutputFormat)]
        if not writers:
            raise ValueError(f"{type(self).__name__} draws into TensorBoard: give the model tensorboard_log=<a folder>")
        self.writer = writers[0]
        if self.observations is None:
            self.observations = first_of(self.model._last_obs, MOST_STATES)  # type: ignore[attr-defined]
        tensors = observation_tensors(self.model, self.observations)
        check_states(tensors)
        self.observations = to_numpy(tensors)  # several, also where one was given
        self.pictures = self._pictures()
        self.began, self.last = time.perf_counter(), self.num_timesteps

    def _pictures(self) -> dict[str, Callable[[], "Figure"]]:
        model, seed = self.model, self.seed
        observations: Any = self.observations
        pictures: dict[str, Callable[[], Figure]] = {
            "denoising": lambda: plot_denoising(model, observations, self.n_chains, seed=seed),
            "log_ratios": lambda: plot_log_ratios(model, observations, self.n_chains, NOISINGS, seed),
        }
        if has_critic(model):
            pictures["critic"] = lambda: plot_actions_and_critic(model, first_of(observations, 1), self.n_chains, seed=seed)
        if self.env is not None:
            self.vec_env = one_environment(model, self.env)
            pictures["episode"] = self._episode
        return pictures

    def _episode(self) -> "Figure":
        assert self.vec_env is not None
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.vec_env)
        return plot_modes_along_episode(self.model, self.vec_env, LONGEST_EPISODE, self.n_chains, seed=self.seed)

    def _on_step(self) -> bool:
        due = self.num_timesteps - self.last >= self.every
        if due and self.seconds <= self.max_share * (time.perf_counter() - self.began):
            self.draw()
            self.last = self.num_timesteps
        return True

    def draw(self) -> None:
        """Draw all pictures now."""
        start = time.perf_counter()
        with generators_of_its_own(self.seed):  # an environment of the user's may draw from the global ones
            for name, picture in self.pictures.items():
                self.writer.add_image(f"pictures/{name}", pixels(picture()), self.num_timesteps, dataformats="HWC")
        self.seconds += time.perf_counter() - start


def has_critic(model: BaseAlgorithm) -> bool:
    """:return: whether the model has a critic of actions"""
    try:
        check_critic(model)
    except ValueError:
        return False
    return True
