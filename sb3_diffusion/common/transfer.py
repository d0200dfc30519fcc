"""Replayed batches on their way to a GPU."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from torch.utils._pytree import tree_flatten, tree_unflatten

# A user's own buffer may keep its transitions where it likes.
PACKAGES_WITH_KNOWN_BUFFERS = ("stable_baselines3", "sb3_contrib", "sb3_diffusion")


def moved_together(tensors: Iterable[Any], device: th.device) -> list[Any]:
    """
    :param tensors: on the CPU; what is no tensor, or lies elsewhere, stays as it is
    :param device: where they go
    :return: the same on the device, by one copy for each dtype, for which the CPU does not wait
    """
    result = list(tensors)
    by_dtype: dict[th.dtype, list[int]] = defaultdict(list)
    for index, tensor in enumerate(result):
        if isinstance(tensor, th.Tensor) and tensor.device.type == "cpu":
            by_dtype[tensor.dtype].append(index)
    for dtype, indices in by_dtype.items():
        sizes = [result[index].numel() for index in indices]
        packed = th.empty(sum(sizes), dtype=dtype, pin_memory=device.type == "cuda")
        th.cat([result[index].flatten() for index in indices], out=packed)
        parts = packed.to(device, non_blocking=True).split(sizes)
        for index, part in zip(indices, parts, strict=True):
            result[index] = part.view(result[index].shape)
    return result


def sample_in_one_transfer(buffer: Any, batch_size: int, env: VecNormalize | None, device: th.device) -> Any:
    """
    ``buffer.sample``, whose tensors SB3 copies to a GPU one by one, each time waiting for the copy.

    :param buffer: a replay buffer
    :param batch_size: transitions
    :param env: normalises them
    :param device: the model's
    :return: what the buffer returns, on the device
    """
    known = type(buffer).__module__.partition(".")[0] in PACKAGES_WITH_KNOWN_BUFFERS
    if device.type == "cpu" or not known:
        return buffer.sample(batch_size, env=env)
    buffer.device, kept = th.device("cpu"), buffer.device
    try:
        data = buffer.sample(batch_size, env=env)
    finally:
        buffer.device = kept
    tensors, structure = tree_flatten(data)
    return tree_unflatten(moved_together(tensors, device), structure)
