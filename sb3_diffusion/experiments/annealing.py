"""Learning rates, temperatures and pulls that fall, for files that cannot hold functions."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule

from sb3_diffusion.common.validation import check_choice, check_number
from sb3_diffusion.diffppo import DiffPPO


class Annealing(BaseCallback):
    """
    Lets a number of an algorithm fall during training: ``first`` up to the share ``begin`` of it, ``last`` from the share
    ``end`` on, in between linear or geometric. In a campaign's or rl-zoo3's file::

        ent_coef: 1.0
        callback:
          - sb3_diffusion.experiments.annealing.Annealing: {what: ent_coef, first: 1.0, last: 0.1, end: 0.7, geometric: true}

    Our algorithms take such a function as ``ent_coef`` themselves; this is for files, and for SB3's SAC, which takes a number.

    :param what: ``"learning_rate"``; ``"ent_coef"`` of SAC, of its relatives (which must have a number there) or of DiffPPO;
        ``"reference_kl_coef"`` of the pull that a ``PretrainCallback`` before this one, or ``set_reference``, has set
    :param first: at the start, at least 0
    :param last: at the end, at least 0; above 0 if ``geometric``
    :param begin: share of the training, 0 … 1
    :param end: share of the training, above ``begin``
    :param geometric: whether equal times divide it by equal factors
    :raises ValueError: for arguments out of range, and for an algorithm without such a number
    """

    def __init__(
        self, what: str, first: float, last: float, begin: float = 0.0, end: float = 1.0, geometric: bool = False
    ) -> None:
        super().__init__()
        check_choice("what", what, ("learning_rate", "ent_coef", "reference_kl_coef"))
        check_number("first", first, 0, exclusive=geometric)
        check_number("last", last, 0, exclusive=geometric)
        check_number("begin", begin, 0, 1)
        check_number("end", end, begin, 1, exclusive=True)
        self.what, self.first, self.last, self.begin, self.end, self.geometric = what, first, last, begin, end, geometric

    def value(self, progress_remaining: float) -> float:
        """:return: the number at a remaining progress, 1 … 0"""
        fraction = min(1.0, max(0.0, (1 - progress_remaining - self.begin) / (self.end - self.begin)))
        if self.geometric:
            return float(self.first * (self.last / self.first) ** fraction)
        return float(self.first + (self.last - self.first) * fraction)

    def _init_callback(self) -> None:
        if self.what == "ent_coef" and not isinstance(self.model, DiffPPO) and not hasattr(self.model, "ent_coef_tensor"):
            raise ValueError(
                f"{type(self.model).__name__} with ent_coef={getattr(self.model, 'ent_coef', None)!r} has no temperature to "
                "anneal; allowed: SAC and its relatives with a number, and DiffPPO"
            )

    def _on_training_start(self) -> None:
        model: Any = self.model
        if self.what == "learning_rate":
            model.learning_rate, model.lr_schedule = self.value, FloatSchedule(self.value)
        elif self.what == "reference_kl_coef":
            if getattr(model, "reference_actor", None) is None:
                raise ValueError(
                    f"what='reference_kl_coef': this {type(model).__name__} has no pull to a reference; set one before, by "
                    "PretrainCallback(reference_kl_coef=…) or model.set_reference"
                )
            model.reference_kl_coef = self._value_now()  # a number, which a saved model keeps
        elif isinstance(model, DiffPPO):
            model._ent_coef_schedule = FloatSchedule(self.value)

    def _value_now(self) -> float:
        # The algorithm updates its progress only after this callback.
        return self.value(1 - self.model.num_timesteps / self.model._total_timesteps)

    def _on_step(self) -> bool:
        model: Any = self.model
        if self.what == "reference_kl_coef":
            model.reference_kl_coef = self._value_now()
        elif self.what == "ent_coef" and not isinstance(model, DiffPPO):
            model.ent_coef_tensor.fill_(self._value_now())
        return True
