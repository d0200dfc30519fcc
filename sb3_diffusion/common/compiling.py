"""``torch.compile`` for the functions of a training, with a way back."""

import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch as th

Result = TypeVar("Result")

# After so many seconds without a word, compiling looks like a hang.
SECONDS_OF_SILENCE = 5.0


@contextmanager
def announced(what: str, at_once: bool) -> Iterator[None]:
    """
    One line to stderr that something is being compiled.

    :param what: is compiled
    :param at_once: at the start; else only if it takes longer than ``SECONDS_OF_SILENCE``
    """
    line = f"torch_compile=True: compiling {what}, once; this can take a minute or two"
    timer = threading.Timer(0.0 if at_once else SECONDS_OF_SILENCE, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_cuda(model: Any) -> bool:
    return getattr(getattr(model, "device", None), "type", "cpu") == "cuda"


def compiler_options(model: Any) -> dict[str, bool]:
    """
    Inductor's options for the functions of a model. On a CPU the random numbers stay PyTorch's own. On a GPU each function is
    recorded as a CUDA graph, random numbers included: launching its kernels one by one takes longer than they run.
    """
    return {"triton.cudagraphs": True} if on_cuda(model) else {"fallback_random": True}


def begin_step(model: Any) -> None:
    """
    Before a gradient step, and before an action is sampled. On a GPU the results of compiled functions live until the next
    step begins, in the memory of their CUDA graphs: what is wanted longer must be copied.
    """
    if model.torch_compile and on_cuda(model):
        th.compiler.cudagraph_mark_step_begin()


def allow_gradients() -> None:
    """
    Allow ``torch.autograd.grad`` inside compiled functions, by PyTorch's own switch.

    :raises NotImplementedError: if PyTorch is too old for that
    """
    # Only here: it would make importing the library twice as long.
    import torch._dynamo

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise NotImplementedError(f"gradient steps compile with PyTorch 2.11 or newer; this is {th.__version__}")
    torch._dynamo.config.trace_autograd_ops = True


class CompiledOrEager(Generic[Result]):
    """
    The function compiled by ``torch.compile`` at its first call. Where that fails (no C++ compiler, a module that cannot be
    traced, a PyTorch that cannot trace gradients), a warning says why, and the function runs as it is from then on; so it does
    where compiling again for other arguments fails later. Any other error of a later call is the function's own, and its
    caller's. Copies and pickles compile anew. While the first call compiles, a line on stderr says so: at once if
    the first argument is a verbose model, else after some seconds.

    :param function: of a module or class. If it trains, it computes losses *and* their gradients: in one graph the backward
        pass needs none of the masks that it would otherwise store, at a price that leaves nothing of the gain on a CPU. Calls
        have its arguments, results and random numbers
    :param what: the function's name in that line; a gradient step by default
    """

    def __init__(self, function: Callable[..., Result], what: str | None = None) -> None:
        # PyTorch compiles one function only so many times: without a copy, all models of a process would share that number.
        assert isinstance(function, types.FunctionType)
        self.original = function
        self.what = what or f"the gradient step ({function.__name__.strip('_').replace('_', ' ')})"
        self.function: Callable[..., Result] = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        self.compiled: Callable[..., Result] | None = None
        self.works = self.failed = False

    def __call__(self, *args: Any) -> Result:
        if not self.failed:
            try:
                if self.compiled is None:
                    allow_gradients()
                    options: Any = compiler_options(args[0] if args else None)
                    self.compiled = th.compile(self.function, fullgraph=True, dynamic=False, options=options)
                if self.works:
                    return self.compiled(*args)
                with announced(self.what, at_once=bool(getattr(args[0], "verbose", 0)) if args else False):
                    result = self.compiled(*args)
                self.works = True
                return result
            except Exception as error:
                # The compiler's errors have no common class.
                if self.works and not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                self.failed = True
                reason = str(error).strip().splitlines()
                # From here, not from the caller: what fails for all functions alike is said once.
                warnings.warn(
                    f"torch_compile=True: compiling failed, training goes on without ({type(error).__name__}: {reason[:1]})",
                    stacklevel=1,
                )
        return self.function(*args)

    def __reduce__(self) -> tuple[type, tuple[Callable[..., Result], str]]:
        return type(self), (self.original, self.what)
