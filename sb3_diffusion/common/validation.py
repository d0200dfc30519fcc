"""Clear refusals of arguments out of range, before any training starts."""

import math
from collections.abc import Iterable
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
