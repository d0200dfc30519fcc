"""rl-zoo3's callbacks that know SB3's algorithms alone, for ours too."""

from typing import Any

import rl_zoo3.callbacks
from sb3_contrib import TQC
from stable_baselines3 import SAC


class ParallelTrainCallback(rl_zoo3.callbacks.ParallelTrainCallback):
    """
    rl-zoo3's callback, which collects and trains in two threads. Its own would train a copy of class SAC; this one trains a
    copy of the model's class, with the model's normalisation and progress. An error in the training thread ends the training.

    Parameters are those of rl-zoo3's ``ParallelTrainCallback``.
    """

    _model: Any
    error: BaseException | None = None

    def _init_callback(self) -> None:
        module: Any = rl_zoo3.callbacks
        theirs = module.SAC
        if isinstance(self.model, (SAC, TQC)):
            # The class that it looks for first, and with which it loads
            module.SAC = type(self.model)
        try:
            super()._init_callback()
        finally:
            module.SAC = theirs
        self._model._vec_normalize_env = self.model.get_vec_normalize_env()

    def train(self) -> None:
        """Start the training thread."""
        for name in ("num_timesteps", "_current_progress_remaining"):
            setattr(self._model, name, getattr(self.model, name))
        super().train()

    def _train_thread(self) -> None:
        try:
            super()._train_thread()
        except BaseException as error:
            self.error = error

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _on_rollout_end(self) -> None:
        self._raise_error()
        super()._on_rollout_end()

    def _on_training_end(self) -> None:
        # Where training never started there is no thread.
        if hasattr(self, "process"):
            super()._on_training_end()
        self._raise_error()
