"""What a gradient step asks of an actor objective (docs/method.md, "Actor objectives")."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from sb3_diffusion.common.chains import SampledChains, TensorOrDict


class Objective(NamedTuple):
    """
    How the actor learns from the critics.

    ``losses(model, states, chains, ent_coef)`` returns the actor's losses by name (values without a graph are only logged),
    for the states of the chains and the entropy coefficient τ. ``uses_diffusion_value``: whether it needs ``V_k``.
    ``needs_temperature``: whether τ must be above 0.
    """

    losses: Callable[[Any, TensorOrDict, SampledChains, th.Tensor], dict[str, th.Tensor]]
    uses_diffusion_value: bool = False
    needs_temperature: bool = False
