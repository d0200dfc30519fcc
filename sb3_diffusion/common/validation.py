"""Clear refusals of arguments out of range, before any training starts."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from numbers import Integral
from typing import Any, ParamSpec

import numpy as np
from gymnasium import spaces

Parameters = ParamSpec("Parameters")
LARGEST_SEED = 2**32 - 1  # NumPy's
SDE_ARGUMENTS = dict(sde_sample_freq=-1, use_sde_at_warmup=False)


def with_hints(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """
    A constructor whose error for an unknown keyword says what may have been meant: the nearest name, or the same name in
    ``policy_kwargs``. Its signature stays as it is.

    :param init: ``__init__`` of an algorithm or a policy
    """

    @wraps(init)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        own = inspect.signature(init).parameters
        for name, value in kwargs.items():
            if name not in own:
                policy = getattr(args[0], "policy_aliases", {}).get("MlpPolicy")
                of_policy = inspect.signature(policy.__init__).parameters if policy else {}
                hint = ""
                for near in get_close_matches(name, [*own, *of_policy], n=1):
                    meant = repr(near) if near in own else f"policy_kwargs=dict({near}={value!r})"
                    hint = f"; did you mean {meant}?"
                raise TypeError(f"{type(args[0]).__name__}() got an unexpected keyword argument {name!r}{hint}")
        init(*args, **kwargs)

    return checked


def warn_without_effect(**given: tuple[Any, Any]) -> None:
    """
    Warn of arguments that SB3's classes have, and that do nothing in ours.

    :param given: by name, the value that was given and the default
    """
    for name, (value, default) in given.items():
        if value is not None and value != default:  # policy files of SB3 hold None for what they leave out
            warnings.warn(
                f"{name}={value!r} has no effect: it belongs to gSDE, which diffusion policies do not have", stacklevel=4
            )


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


def check_dict(name: str, value: Any) -> None:
    """
    Refuse everything but a dictionary or None.

    :raises ValueError: naming argument, value and what is allowed
    """
    if not isinstance(value, (dict, type(None))):
        raise ValueError(f"{name}={value!r} must be a dict or None")


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


def check_policy_class(policy: Any, allowed: type) -> None:
    """
    Refuse a policy class that the algorithm cannot train.

    :raises ValueError: naming argument, value and what is allowed
    """
    if not (isinstance(policy, type) and issubclass(policy, allowed)):
        raise ValueError(f"policy={policy!r} has not the networks this needs; allowed: subclasses of {allowed.__name__}")


def check_action_span(space: spaces.Box) -> None:
    """
    Refuse a box that cannot be scaled to [-1, 1] and back, as SB3 does it, in the numbers that it is made of.

    :raises ValueError: naming the space
    """
    if not (space.low < space.high).all():
        raise ValueError(f"action_space={space}: every upper bound must lie above the lower one")
    with np.errstate(over="ignore"):
        span = (space.high - space.low).astype(np.float64)
    if not np.allclose(span, space.high.astype(np.float64) - space.low.astype(np.float64), rtol=1e-2):
        raise ValueError(f"action_space={space}: the difference of its bounds is too large for {space.dtype}")


def check_schedule(name: str, schedule: Callable[[float], float], exclusive: bool = False) -> None:
    """Refuse a schedule whose first or last value :func:`scheduled` would refuse."""
    for progress in (1.0, 0.0):
        scheduled(name, schedule, progress, exclusive)


def check_network_arguments(
    net_arch: Any,
    activation_fn: Any,
    features_extractor_class: Any,
    features_extractor_kwargs: Any,
    normalize_images: Any,
    optimizer_class: Any,
    optimizer_kwargs: Any,
    share_features_extractor: Any,
) -> None:
    """
    Refuse a ``net_arch`` that is not None, a list of widths or a dictionary of such lists, and what the others cannot be.

    :raises ValueError: naming argument, value and what is allowed
    """
    parts = net_arch.values() if isinstance(net_arch, dict) else [net_arch or []]
    valid = all(isinstance(widths, (list, tuple)) for widths in parts)
    if not valid or not all(isinstance(width, Integral) and int(width) >= 1 for widths in parts for width in widths):
        raise ValueError(f"net_arch={net_arch!r} must be a list of widths (integers >= 1) or a dict of such lists")
    classes = dict(activation_fn=activation_fn, optimizer_class=optimizer_class)
    for name, value in (classes | dict(features_extractor_class=features_extractor_class)).items():
        if not callable(value):
            raise ValueError(f"{name}={value!r} must be a class, not its name")
    check_dict("features_extractor_kwargs", features_extractor_kwargs)
    check_dict("optimizer_kwargs", optimizer_kwargs)
    check_choice("normalize_images", normalize_images, (False, True))
    check_choice("share_features_extractor", share_features_extractor, (False, True))


def without_sde(policy_kwargs: Any) -> dict[str, Any]:
    """
    A copy without the entry "use_sde", which SB3's off-policy algorithms write into a dictionary that others may share.

    :raises ValueError: for ``policy_kwargs`` that are not a dictionary
    """
    check_dict("policy_kwargs", policy_kwargs)
    return {name: value for name, value in (policy_kwargs or {}).items() if name != "use_sde"}


def wants_sde(use_sde: bool, policy_kwargs: Any) -> bool:
    """
    Whether gSDE is asked for, by the argument or in ``policy_kwargs``: SB3 would overwrite or duplicate the entry there.

    :raises ValueError: for ``policy_kwargs`` that are not a dictionary
    """
    check_dict("policy_kwargs", policy_kwargs)
    return use_sde or (policy_kwargs or {}).get("use_sde", False)


def check_common_arguments(model: Any) -> None:
    """
    Refuse what none of the algorithms takes. NumPy's numbers become Python's, the only ones that SB3's schedules take.

    :param model: an algorithm before its setup
    :raises ValueError: naming argument, value and what is allowed
    """
    if model.use_sde:
        raise ValueError(f"use_sde=True: gSDE is not supported by {type(model).__name__}; allowed: use_sde=False")
    given = {name: (getattr(model, name, default), default) for name, default in SDE_ARGUMENTS.items()}
    warn_without_effect(**given)
    for name in ("learning_rate", "clip_range", "clip_range_vf", "ent_coef"):
        if isinstance(value := getattr(model, name, None), np.number):
            setattr(model, name, value.item())
    if callable(model.learning_rate):
        check_schedule("learning_rate", model.learning_rate)
    else:
        check_number("learning_rate", model.learning_rate, 0)
    check_number("gamma", model.gamma, 0, 1)
    check_number("stats_window_size", model._stats_window_size, 1, integer=True)
    if model.seed is not None:
        check_number("seed", model.seed, 0, LARGEST_SEED, integer=True)
    check_choice("torch_compile", model.torch_compile, (False, True))
