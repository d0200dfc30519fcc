"""Networks that see a state, a latent and the diffusion step it belongs to."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its ``forward``."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def layer_functions(layers: nn.Sequential) -> list[Callable[[th.Tensor], th.Tensor]]:
    """
    The layers as plain functions. ``nn.Module.__call__`` and the look-up of weights take as long as a small layer does for one
    state, which is what a policy acts on; what has hooks stays as it is.
    """
    if hooked(layers):
        return [layers]
    functions: list[Callable[[th.Tensor], th.Tensor]] = []
    for layer in layers:
        if hooked(layer):
            functions.append(layer)
        elif type(layer) is nn.Linear:
            functions.append(partial(F.linear, weight=layer.weight, bias=layer.bias))
        else:
            functions.append(layer.forward)
    return functions


class StepConditionedMLP(nn.Module):
    """
    An MLP of (features of the state, latent ``x^k`` over ν, step k).

    The first layer is split into the three parts that its input has: the features' part is the same for all K steps of a
    chain and computed once (:meth:`condition`); the step's part is a table with one row per step.

    :param features_dim: size of the state features
    :param latent_dim: d
    :param diffusion_steps: rows of the step table; ``steps`` count from 1
    :param output_dim: size of the output
    :param net_arch: hidden sizes; empty for a linear network
    :param activation_fn: activation between the layers
    :param prior_std: ν, the unit in which the network sees latents
    :param latent_frequencies: n: beside each component of a latent the network sees its sine and cosine at the angular
        frequencies 1, 2, 4 … 2^(n-1) (docs/method.md, "How sharply the networks see a latent")
    """

    frequencies: th.Tensor

    def __init__(
        self,
        features_dim: int,
        latent_dim: int,
        diffusion_steps: int,
        output_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        prior_std: float = 1.0,
        latent_frequencies: int = 0,
    ) -> None:
        super().__init__()
        self.prior_std = prior_std
        self.latent_frequencies = latent_frequencies
        self.register_buffer("frequencies", 2.0 ** th.arange(latent_frequencies) / prior_std, persistent=False)
        width = net_arch[0] if net_arch else output_dim
        # One layer over the concatenated input gives the usual initialisation; the step enters like a bias.
        joint = nn.Linear(features_dim + latent_dim * (1 + 2 * latent_frequencies), width)
        self.state_layer = nn.utils.skip_init(nn.Linear, features_dim, width)
        self.state_layer.weight.data = joint.weight.data[:, :features_dim].clone()
        self.state_layer.bias.data = joint.bias.data
        self.latent_weight = nn.Parameter(joint.weight.data[:, features_dim:].t().contiguous())
        self.step_table = nn.Embedding(diffusion_steps, width)
        nn.init.normal_(self.step_table.weight, std=0.3)
        body = [activation_fn(), *create_mlp(width, output_dim, net_arch[1:], activation_fn)] if net_arch else []
        self.body = nn.Sequential(*body)

    def zero_output(self) -> None:
        """Set the last layer to zero, so that the network starts as the constant 0."""
        for parameter in (self.body[-1] if len(self.body) else self).parameters():
            nn.init.zeros_(parameter)

    def seen(self, latents: th.Tensor) -> th.Tensor:
        """
        What the first layer gets of a latent, in units of 1/ν.

        :param latents: (…, d), ``x^k``
        :return: (…, d (1 + 2n)): ``x``, then ``ν sin(2^j x / ν)`` and ``ν cos(2^j x / ν)`` of each component
        """
        if not self.latent_frequencies:
            return latents
        phases = (latents.unsqueeze(-1) * self.frequencies).flatten(-2)
        return th.cat([latents, self.prior_std * phases.sin(), self.prior_std * phases.cos()], dim=-1)

    def condition(self, features: th.Tensor) -> th.Tensor:
        """
        The features' part of the first layer.

        :param features: (B, features_dim)
        :return: (B, width)
        """
        return self.state_layer(features)

    def along_chains(self, features: th.Tensor) -> Callable[[th.Tensor, int], th.Tensor]:
        """
        The network for chains through the steps, with all that the steps share computed or looked up once.

        :param features: (B, features_dim)
        :return: a function of latents (B, d) and k, one integer, that returns (B, output_dim)
        """
        if hooked(self):
            condition = self.condition(features)
            return lambda latents, k: self(condition, latents, k)
        conditions = (self.state_layer(features) + self.step_table.weight.unsqueeze(1)).unbind()
        weight, scale, layers = self.latent_weight, 1 / self.prior_std, layer_functions(self.body)

        def at_step(latents: th.Tensor, k: int) -> th.Tensor:
            hidden = th.addmm(conditions[k - 1], self.seen(latents), weight, alpha=scale)
            for layer in layers:
                hidden = layer(hidden)
            return hidden

        return at_step

    def forward(self, condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int | None) -> th.Tensor:
        """
        :param condition: (B, width), from :meth:`condition`; or (B, 1, width)
        :param latents: (B, d), ``x^k``; or κ of each state, (B, κ, d)
        :param steps: (B,) integers in 1 … K, or one integer for all rows; or (B, κ), or (κ,) for all states; None: κ = K, all
            in their order
        :return: (B, output_dim) or (B, κ, output_dim)
        """
        condition = condition + (self.step_table.weight if steps is None else self.step_table.weight[steps - 1])
        several = latents.dim() == 3
        if several:
            shape = latents.shape[:2]
            condition, latents = condition.flatten(0, 1), latents.flatten(0, 1)
        output = self.body(th.addmm(condition, self.seen(latents), self.latent_weight, alpha=1 / self.prior_std))
        return output.unflatten(0, shape) if several else output


class PartlyFrozenMLP(StepConditionedMLP):
    """
    A :class:`StepConditionedMLP` whose last reverse steps learn while the earlier ones, with larger k, stay what they were
    (DPPO, arXiv 2409.00588): those are evaluated by a frozen copy.

    Parameters not listed are those of :class:`StepConditionedMLP`.

    :param learned_steps: the steps 1 … ``learned_steps`` learn
    """

    def __init__(self, *args: Any, learned_steps: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.learned_steps = learned_steps
        self.frozen = StepConditionedMLP(*args, **kwargs)
        # Whether all steps learn, for the time being
        self.thawed = False
        self.freeze()

    def freeze(self) -> None:
        """From now on the earlier steps stay what the network makes of them at present."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("frozen.")}
        self.frozen.load_state_dict(own)
        self.frozen.requires_grad_(False)
        self.thawed = False

    def zero_output(self) -> None:
        super().zero_output()
        self.freeze()

    def condition(self, features: th.Tensor) -> th.Tensor:
        return th.cat([super().condition(features), self.frozen.condition(features)], dim=-1)

    def along_chains(self, features: th.Tensor) -> Callable[[th.Tensor, int], th.Tensor]:
        own = super().along_chains(features)
        if self.thawed:
            return own
        frozen = self.frozen.along_chains(features)
        return lambda latents, k: (own if k <= self.learned_steps else frozen)(latents, k)

    def forward(self, condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int | None) -> th.Tensor:
        own, frozen = condition.chunk(2, dim=-1)
        if self.thawed:
            return super().forward(own, latents, steps)
        if isinstance(steps, int):
            return super().forward(own, latents, steps) if steps <= self.learned_steps else self.frozen(frozen, latents, steps)
        of_all = th.arange(1, self.step_table.num_embeddings + 1, device=latents.device) if steps is None else steps
        learned = (of_all <= self.learned_steps).unsqueeze(-1)
        return th.where(learned, super().forward(own, latents, steps), self.frozen(frozen, latents, steps))


def fused_by_default(optimizer_class: type[th.optim.Optimizer], optimizer_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """
    :param optimizer_class: the optimizer
    :param optimizer_kwargs: the user's arguments for it
    :return: the arguments, with ``fused=True`` for Adam and AdamW unless they say otherwise
    """
    optimizer_kwargs = dict(optimizer_kwargs or {})
    if optimizer_class in (th.optim.Adam, th.optim.AdamW) and "foreach" not in optimizer_kwargs:
        optimizer_kwargs.setdefault("fused", True)
    return optimizer_kwargs
