"""Gradients that a function returns, on their way to the optimizers."""

import torch as th

Gradients = tuple[th.Tensor | None, ...]


def trainable(optimizers: list[th.optim.Optimizer]) -> list[th.Tensor]:
    """The parameters of these optimizers, without frozen ones, which lose what gradient they had: they would go on moving."""
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        if not parameter.requires_grad:
            parameter.grad = None
    return [parameter for parameter in parameters if parameter.requires_grad]


def assign(parameters: list[th.Tensor], gradients: Gradients) -> None:
    """Give each parameter its gradient, in the place of the last one."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
