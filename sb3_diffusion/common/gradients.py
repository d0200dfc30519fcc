"""Gradients that a function returns, on their way to the optimizers."""

from collections.abc import Iterable

import torch as th

Gradients = tuple[th.Tensor | None, ...]


def trainable(optimizers: list[th.optim.Optimizer]) -> list[th.Tensor]:
    """
    The parameters of these optimizers, without frozen ones. Those lose the gradient of an earlier step, with which an
    optimizer would move them on.
    """
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        if not parameter.requires_grad:
            parameter.grad = None
    return [parameter for parameter in parameters if parameter.requires_grad]


def gradients_of(losses: Iterable[th.Tensor], parameters: list[th.Tensor]) -> Gradients:
    """
    The gradients of a sum of losses, None for a parameter that none of them depends on: with parts frozen, a loss may depend
    on none at all.
    """
    losses = [loss for loss in losses if loss.requires_grad]
    if not losses or not parameters:
        return (None,) * len(parameters)
    return th.autograd.grad(losses, parameters, allow_unused=True)


def on_a_gpu(tensor: th.Tensor) -> bool:
    return tensor.is_cuda


def assign(parameters: list[th.Tensor], gradients: Gradients) -> None:
    """
    Give each parameter its gradient, in the place of the last one, and call its post-accumulate-grad hooks. On a GPU it is
    copied: a compiled function returns it in the memory of its CUDA graph, and in a layout that fused optimizers may refuse.
    """
    copies: list[tuple[th.Tensor, th.Tensor]] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None or not on_a_gpu(parameter):
            parameter.grad = gradient
            continue
        if parameter.grad is None:
            parameter.grad = th.empty_like(parameter)
        copies.append((parameter.grad, gradient))
    if copies:
        # One kernel for all of them
        th._foreach_copy_([place for place, _ in copies], [gradient for _, gradient in copies])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # PyTorch's engine calls them only where it accumulates by itself.
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if gradient is not None:
                hook(parameter)
