"""Pre-training as a callback: what rl-zoo3's files and campaigns can ask for."""

import inspect
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.demonstrations.columns import to_space
from sb3_diffusion.demonstrations.demonstrations import Demonstrations
from sb3_diffusion.demonstrations.pretraining import PretrainingMixin


class PretrainCallback(BaseCallback):
    """
    Calls :meth:`~sb3_diffusion.DiffSAC.pretrain` when a training begins, so that a file of hyper-parameters can ask for it:

    .. code-block:: yaml

        callback:
          - sb3_diffusion.demonstrations.PretrainCallback:
              demonstrations: half-good/halfcheetah-v0
              n_epochs: 40
              critic_warmup_steps: 2_000

    A model that has learned before is left alone: a training that goes on, from a file or with ``reset_num_timesteps=False``.

    :param demonstrations: :class:`Demonstrations`, or the id of a local Minari data set
    :param reference_kl_coef: of the pull to the imitator, as for :meth:`~sb3_diffusion.DiffSAC.set_reference`; None: no pull
    :param pretrain_kwargs: of ``pretrain``
    :raises ValueError: for a bad coefficient and a name that ``pretrain`` does not know; when the training begins, for a model
        without ``pretrain``, and as ``pretrain``
    """

    def __init__(
        self,
        demonstrations: Demonstrations | str,
        reference_kl_coef: float | None = None,
        verbose: int = 0,
        **pretrain_kwargs: Any,
    ) -> None:
        super().__init__(verbose)
        if reference_kl_coef is not None:
            check_number("reference_kl_coef", reference_kl_coef, 0)
        try:
            inspect.signature(PretrainingMixin.pretrain).bind(None, demonstrations, **pretrain_kwargs)
        except TypeError as error:
            raise ValueError(f"PretrainCallback, arguments of pretrain: {error}") from None
        self.demonstrations, self.reference_kl_coef, self.pretrain_kwargs = demonstrations, reference_kl_coef, pretrain_kwargs

    def _on_training_start(self) -> None:
        model: Any = self.model
        if not isinstance(model, PretrainingMixin):
            raise ValueError(f"PretrainCallback: {type(model).__name__} has no pretrain; use an algorithm of sb3_diffusion")
        if model.num_timesteps > 0 or model._n_updates > 0:
            return
        demonstrations = self.demonstrations
        if isinstance(demonstrations, str):
            demonstrations = Demonstrations.from_minari(demonstrations)
        # The logger of this training is the one to log to.
        own_logger, model._custom_logger = model._custom_logger, True
        try:
            model.pretrain(demonstrations, **self.pretrain_kwargs)
        finally:
            model._custom_logger = own_logger
        vec_normalize = model.get_vec_normalize_env()
        if vec_normalize is not None:
            # The first observation was normalised before anything was known.
            first = vec_normalize.normalize_obs(vec_normalize.get_original_obs())
            model._last_obs = to_space(first, model.observation_space)
        if self.reference_kl_coef is not None:
            model.set_reference(self.reference_kl_coef)

    def _on_step(self) -> bool:
        return True
