"""Pre-training as a callback: what rl-zoo3's files and campaigns can ask for."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.common.validation import check_number
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

    A training that goes on, from a checkpoint or with ``reset_num_timesteps=False``, is left alone.

    :param demonstrations: :class:`Demonstrations`, or the id of a local Minari data set
    :param reference_kl_coef: of the pull to the imitator, as for :meth:`~sb3_diffusion.DiffSAC.set_reference`; None: no pull
    :param reference_steps: environment steps over which the pull falls to nothing, linearly; None: it stays as it is. Critics
        that know demonstrations alone mislead the policy at first; a pull until they have seen more spares it the drop
    :param pretrain_kwargs: of ``pretrain``
    :raises ValueError: for ``reference_steps`` below 1 or without a number as ``reference_kl_coef``; when the training begins,
        for a model without ``pretrain``, and as ``pretrain``
    """

    def __init__(
        self,
        demonstrations: Demonstrations | str,
        reference_kl_coef: float | Schedule | None = None,
        reference_steps: int | None = None,
        verbose: int = 0,
        **pretrain_kwargs: Any,
    ) -> None:
        super().__init__(verbose)
        if reference_steps is not None:
            check_number("reference_steps", reference_steps, 1, integer=True)
            if callable(reference_kl_coef) or reference_kl_coef is None:
                raise ValueError(
                    f"reference_steps={reference_steps!r} needs a number as reference_kl_coef, not {reference_kl_coef!r}"
                )
            check_number("reference_kl_coef", reference_kl_coef, 0)
        self.demonstrations, self.reference_kl_coef, self.pretrain_kwargs = demonstrations, reference_kl_coef, pretrain_kwargs
        self.reference_steps = reference_steps

    def _on_training_start(self) -> None:
        model: Any = self.model
        if not isinstance(model, PretrainingMixin):
            raise ValueError(f"PretrainCallback: {type(model).__name__} has no pretrain; use an algorithm of sb3_diffusion")
        if model.num_timesteps > 0:
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
        if self.reference_kl_coef is not None:
            model.set_reference(self.reference_kl_coef)

    def _on_step(self) -> bool:
        model: Any = self.model
        if self.reference_steps is not None and model.reference_kl_coef is not None:
            left = 1 - model.num_timesteps / self.reference_steps
            if left > 0:
                model.reference_kl_coef = self.reference_kl_coef * left  # type: ignore[operator]  # a number: __init__
            else:
                model.set_reference(None)
        return True
