"""``torch.compile`` for the functions of a gradient step, with a way back."""

import types
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch as th

Result = TypeVar("Result")


class CompiledOrEager(Generic[Result]):
    """
    The function compiled by ``torch.compile`` at its first call. Where that fails (no C++ compiler, a module that cannot be
    traced, a PyTorch that cannot trace gradients), a warning says why, and the function runs as it is from then on. Copies and
    pickles compile anew.

    :param function: of a module or class; computes losses *and* their gradients: in one graph the backward pass needs none of
        the masks that it would otherwise store, at a price that leaves nothing of the gain on a CPU. Calls have its arguments,
        results and random numbers
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        # PyTorch compiles one function only so many times: without a copy, all models of a process would share that number.
        assert isinstance(function, types.FunctionType)
        self.original = function
        self.function: Callable[..., Result] = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        self.compiled: Callable[..., Result] | None = None
        self.failed = False

    def __call__(self, *args: Any) -> Result:
        if not self.failed:
            try:
                if self.compiled is None:
                    # Only here: it would make importing the library twice as long.
                    import torch._dynamo

                    # PyTorch's own switch for torch.autograd.grad inside a compiled function (2.11 has it)
                    torch._dynamo.config.trace_autograd_ops = True
                    self.compiled = th.compile(self.function, fullgraph=True, dynamic=False, options={"fallback_random": True})
                return self.compiled(*args)
            except Exception as error:
                self.failed = True
                reason = str(error).strip().splitlines()
                warnings.warn(
                    f"torch_compile=True: compiling failed, training goes on without ({type(error).__name__}: {reason[:1]})",
                    stacklevel=2,
                )
        return self.function(*args)

    def __reduce__(self) -> tuple[type, tuple[Callable[..., Result]]]:
        return type(self), (self.original,)
