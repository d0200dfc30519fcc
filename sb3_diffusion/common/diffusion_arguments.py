"""The arguments that every diffusion policy has, in one place: names, defaults, meaning, limits."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ParamSpec, TypedDict

import torch as th

from sb3_diffusion.common.validation import check_choice, check_number
from sb3_diffusion.diffusion import KERNELS, make_betas

Parameters = ParamSpec("Parameters")
# Far beyond any use: a wavelength of 2e-4 ν
MAX_FREQUENCIES = 16


@dataclass(frozen=True)
class DiffusionArguments:
    """
    The diffusion of a policy. A user gives them as ``policy_kwargs=dict(diffusion_steps=8)``.

    :param diffusion_steps: K ≥ 1
    :param prior_std: ν, from 1e-6 to 1e6
    :param kernel: "vp" (exact variance-preserving kernels) or "euler" (the paper's)
    :param noise_schedule: "linear", "geometric", "cosine", or the betas ``β_1 … β_K``
    :param beta_min: β_1 of the linear and geometric schedules, from 1e-8 on and below 1
    :param beta_max: β_K of the linear and geometric schedules, from 1e-8 on and below 1
    :param learn_schedule: learn one β per step and action dimension, starting from the schedule
    :param learn_variance: learn the state-dependent variance of each reverse step; else it is the paper's fixed one
    :param state_dependent_readout: learn ``m(s)`` and ``c(s)``; else ``m = 0`` and ``c = 1`` as in the paper
    :param latent_frequencies: n, from 0 to 16: the networks also see the sine and cosine of each component of a latent at the
        angular frequencies 1, 2, 4 … 2^(n-1), in units of 1/ν, and learn several modes in fewer updates; 0: the latent alone
    :raises ValueError: for an argument out of range
    """

    diffusion_steps: int = 4
    prior_std: float = 1.0
    kernel: str = "vp"
    noise_schedule: str | Sequence[float] = "linear"
    beta_min: float = 0.05
    beta_max: float = 0.2
    learn_schedule: bool = False
    learn_variance: bool = True
    state_dependent_readout: bool = True
    latent_frequencies: int = 0

    def __post_init__(self) -> None:
        check_number("diffusion_steps", self.diffusion_steps, 1, integer=True)
        check_number("prior_std", self.prior_std, 1e-6, 1e6)
        check_choice("kernel", self.kernel, KERNELS)
        for name in ("learn_schedule", "learn_variance", "state_dependent_readout"):
            check_choice(name, getattr(self, name), (False, True))
        check_number("latent_frequencies", self.latent_frequencies, 0, MAX_FREQUENCIES, integer=True)
        self.betas()

    def betas(self) -> th.Tensor:
        """:return: (K,), ``β_1 … β_K``"""
        return make_betas(self.noise_schedule, self.diffusion_steps, self.beta_min, self.beta_max)


class DiffusionKeywords(TypedDict, total=False):
    """The same names and types for type checkers and editors, which cannot read them off a dataclass (a test compares)."""

    diffusion_steps: int
    prior_std: float
    kernel: str
    noise_schedule: str | Sequence[float]
    beta_min: float
    beta_max: float
    learn_schedule: bool
    learn_variance: bool
    state_dependent_readout: bool
    latent_frequencies: int


def with_diffusion_arguments(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """
    A constructor whose ``**diffusion`` are :class:`DiffusionArguments`. Its signature shows each of them with its default, and
    it takes them by position too.

    :param init: ``__init__`` of an actor or a policy
    """
    own = inspect.signature(init)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shown = [inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields(DiffusionArguments)]
    signature = own.replace(parameters=[*list(own.parameters.values())[:-1], *shown])

    @wraps(init)
    def taking(*args: Any, **kwargs: Any) -> None:
        init(**signature.bind(*args, **kwargs).arguments)  # type: ignore[call-arg]

    taking.__signature__ = signature  # type: ignore[attr-defined]
    del taking.__wrapped__  # type: ignore[attr-defined]  # Sphinx would look for the defaults in its source
    return taking
