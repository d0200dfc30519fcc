"""A run's environment and model, through rl-zoo3's own code."""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.experiments.plan import Run


class RunManager(ExperimentManager):
    """
    rl-zoo3's manager, which reads a run's settings where rl-zoo3 reads an entry of its files, and writes nothing.

    :param run: the run
    :param device: PyTorch's, instead of the run's
    """

    def __init__(self, run: Run, device: str | None = None) -> None:
        super().__init__(
            argparse.Namespace(),
            run.algo,
            run.environment,
            run.folder,
            n_timesteps=run.steps,
            eval_freq=-1,
            seed=run.seed,
            verbose=0,
            device=device or run.device,
            # rl-zoo3 looks for statistics of VecNormalize beside the trained agent, by default in the working directory.
            trained_agent=str(Path(run.folder) / "no trained agent"),
        )
        self.settings = run.settings

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # rl-zoo3 replaces the values of these dictionaries, the inner ones too; SB3 writes into policy_kwargs.
        settings = deepcopy(self.settings) | {"n_timesteps": self.n_timesteps}
        return settings, deepcopy(settings)

    def create_log_folder(self) -> None:
        pass

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        pass

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = True) -> VecEnv:
        return super().create_envs(n_envs, eval_env, no_log=True)

    def create_model(self) -> BaseAlgorithm:
        """:return: the untrained model with its environment; from then on ``callbacks`` are those of the settings"""
        experiment = self.setup_experiment()
        assert experiment is not None
        # rl-zoo3 leaves what evaluation's environments are made with behind where the settings change it.
        self.eval_env_kwargs = self.env_kwargs
        return experiment[0]

    def new_callbacks(self) -> list[BaseCallback]:
        """:return: the callbacks of the settings, made anew"""
        return self._preprocess_hyperparams(self.read_hyperparameters()[0])[2]
