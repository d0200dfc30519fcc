"""The entropy coefficient of off-policy algorithms while they train."""

from typing import Any

from sb3_diffusion.common.validation import check_number, scheduled


def follow_ent_coef(model: Any, exclusive: bool = False) -> None:
    """
    Read ``model.ent_coef`` afresh: a schedule, or a number that a callback may have changed. A number that has not changed
    leaves ``model.ent_coef_tensor`` alone, which a callback may set too.

    :param model: an off-policy algorithm
    :param exclusive: whether 0 is refused
    :raises ValueError: for a number out of range, and for a change between a learned coefficient and a given one
    """
    given, learned = model.ent_coef, model.log_ent_coef is not None
    if isinstance(given, str) != learned:
        kept = "learned" if learned else "given"
        raise ValueError(
            f"ent_coef={given!r} while training: the coefficient was {kept} when the model was built and stays so"
        )
    if callable(given):
        model.ent_coef_tensor.fill_(scheduled("ent_coef", given, model._current_progress_remaining, exclusive))
    elif not learned and given != getattr(model, "_followed_ent_coef", given):
        check_number("ent_coef", given, 0, exclusive=exclusive)
        model.ent_coef_tensor.fill_(given)
    model._followed_ent_coef = None if callable(given) else given
