"""``torch.compile`` for the functions of a gradient step, with a way back."""

import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch as th
import torch._dynamo

Result = TypeVar("Result")


def compiled_or_eager(function: Callable[..., Result]) -> Callable[..., Result]:
    """
    The function compiled by ``torch.compile`` at its first call. Where that fails (no C++ compiler, a module that cannot be
    traced, a PyTorch that cannot trace gradients), a warning says why, and the function runs as it is from then on.

    :param function: computes losses *and* their gradients: in one graph the backward pass needs none of the masks that it
        would otherwise store, at a price that leaves nothing of the gain on a CPU
    :return: a function with the same arguments, results and random numbers
    """
    # A copy: PyTorch compiles one function only so many times, and without it all models of a process would share that number.
    assert isinstance(function, types.FunctionType)
    function = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    compiled: Callable[..., Result] | None = None
    failed = False

    def call(*args: Any) -> Result:
        nonlocal compiled, failed
        if not failed:
            try:
                if compiled is None:
                    # PyTorch's own switch for torch.autograd.grad inside a compiled function (2.11 has it)
                    torch._dynamo.config.trace_autograd_ops = True
                    compiled = th.compile(function, fullgraph=True, dynamic=False, options={"fallback_random": True})
                return compiled(*args)
            except Exception as error:
                failed = True
                reason = str(error).strip().splitlines()
                warnings.warn(
                    f"torch_compile=True: compiling failed, training goes on without ({type(error).__name__}: {reason[:1]})",
                    stacklevel=2,
                )
        return function(*args)

    return call
