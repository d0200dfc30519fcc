"""One evaluation of a run: a row of its table."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_diffusion.experiments.building import RunManager
from sb3_diffusion.experiments.checkpoints import replay_buffer_of
from sb3_diffusion.experiments.generators import EVALUATION, derived_seed, generators_of_its_own
from sb3_diffusion.experiments.plan import Run, function_named

ENTROPY_STATES = 256
MEASURED = (
    "timesteps",
    "deterministic_return",
    "deterministic_return_std",
    "sampled_return",
    "sampled_return_std",
    "deterministic_length",
    "sampled_length",
    "seconds",
    "path_entropy",
    "ent_coef",
)


def temperature(model: BaseAlgorithm, logged: dict[str, Any]) -> float | None:
    """:return: the temperature τ of the present policy, None where the algorithm has none"""
    log_ent_coef, ent_coef = getattr(model, "log_ent_coef", None), getattr(model, "ent_coef", None)
    if "train/ent_coef" in logged:
        return float(logged["train/ent_coef"])
    if log_ent_coef is not None:
        return float(log_ent_coef.detach().exp())
    return float(ent_coef) if isinstance(ent_coef, int | float) else None


def path_entropy(model: BaseAlgorithm, logged: dict[str, Any]) -> float | None:
    """
    :return: the path entropy as last logged; for a Gaussian actor, whose entropy it is, minus the mean log-probability at
        states of the replay buffer; None where neither is known
    """
    if "train/path_entropy" in logged:
        return float(logged["train/path_entropy"])
    action_log_prob = getattr(getattr(model, "actor", None), "action_log_prob", None)
    buffer = replay_buffer_of(model)
    if action_log_prob is None or buffer is None or buffer.size() == 0:
        return None
    observations = buffer.sample(ENTROPY_STATES, env=model.get_vec_normalize_env()).observations
    model.policy.set_training_mode(False)
    with th.no_grad():
        return -float(action_log_prob(observations)[1].mean())


class Evaluator:
    """
    Evaluates in environments of its own, one per episode, with random numbers of its own: the training does not notice.

    :param run: the run
    :param manager: makes its environments
    """

    def __init__(self, run: Run, manager: RunManager) -> None:
        self.run, self.manager = run, manager
        self.metrics = [function_named(path) for path in run.evaluation.metrics]
        self.env: VecEnv | None = None

    def __call__(self, model: BaseAlgorithm, seconds: float, logged: dict[str, Any]) -> dict[str, float | None]:
        """
        :param model: is left as it was
        :param seconds: of training so far
        :param logged: the last values of SB3's logger
        :return: a value for each of :data:`MEASURED`, then those of the metrics
        """
        seed = derived_seed(self.run.seed, model.num_timesteps, EVALUATION)
        training_mode = model.policy.training
        with generators_of_its_own(seed):
            if self.env is None:
                self.env = self.manager.create_envs(self.run.evaluation.episodes, eval_env=True)
            if model.get_vec_normalize_env() is not None:
                assert model.env is not None
                sync_envs_normalization(model.env, self.env)
            row: dict[str, float | None] = {"timesteps": model.num_timesteps}
            for name, deterministic in (("deterministic", True), ("sampled", False)):
                self.env.seed(seed)
                returns, lengths = evaluate_policy(
                    model, self.env, self.run.evaluation.episodes, deterministic, return_episode_rewards=True
                )
                assert isinstance(returns, list) and isinstance(lengths, list)
                row[f"{name}_return"], row[f"{name}_return_std"] = float(np.mean(returns)), float(np.std(returns))
                row[f"{name}_length"] = float(np.mean(lengths))
            row |= {"seconds": seconds, "ent_coef": temperature(model, logged), "path_entropy": path_entropy(model, logged)}
            row = {name: row[name] for name in MEASURED}
            for function in self.metrics:
                self.env.seed(seed)
                row |= {name: float(value) for name, value in function(model, self.env).items()}
        model.policy.set_training_mode(training_mode)
        return row

    def close(self) -> None:
        """Close its environments."""
        if self.env is not None:
            self.env.close()
