"""Clear refusals of arguments out of range, before any training starts."""

import math
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any


def check_number(
    name: str, value: Any, minimum: float, maximum: float = math.inf, exclusive: bool = False, integer: bool = False
) -> None:
    """
    Refuse everything but a finite number in ``[minimum, maximum]``.

    :param name: the argument, as its user knows it
    :param value: what was given
    :param minimum: smallest allowed value
    :param maximum: largest allowed value
    :param exclusive: whether ``minimum`` itself is refused
    :param integer: whether only integers are allowed
    :raises ValueError: naming argument, value and what is allowed
    """
    kind = "an integer" if integer else "a finite number"
    try:
        valid = not isinstance(value, bool) and math.isfinite(value) and minimum <= value <= maximum
        valid = valid and not (exclusive and value == minimum) and not (integer and not isinstance(value, Integral))
    except TypeError:
        valid = False
    if not valid:
        bounds = f"{'>' if exclusive else '>='} {minimum}" + (f" and <= {maximum}" if maximum < math.inf else "")
        raise ValueError(f"{name}={value!r} must be {kind} {bounds}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """
    Refuse everything but one of the allowed values.

    :raises ValueError: naming argument, value and what is allowed
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {allowed}")


def scheduled(name: str, schedule: Callable[[float], float], progress_remaining: float, exclusive: bool = False) -> float:
    """
    The value of a schedule. SB3's remaining progress runs below 0 where the last rollout is longer than what was left.

    :param name: the argument that the schedule was given for
    :param schedule: a function of the remaining progress, 1 … 0
    :param progress_remaining: as SB3 gives it
    :param exclusive: whether 0 is refused
    :return: a number of at least 0
    :raises ValueError: naming argument, value and what is allowed
    """
    progress = min(1.0, max(0.0, progress_remaining))
    value = schedule(progress)
    check_number(f"{name}({progress:g})", value, 0, exclusive=exclusive)
    return value


def check_schedule(name: str, schedule: Callable[[float], float], exclusive: bool = False) -> None:
    """Refuse a schedule whose first or last value :func:`scheduled` would refuse."""
    for progress in (1.0, 0.0):
        scheduled(name, schedule, progress, exclusive)
