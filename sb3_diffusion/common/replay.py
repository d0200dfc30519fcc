"""What replay buffers give, whatever their class."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples


def complete_samples(samples: Any, gamma: float) -> ReplayBufferSamples | DictReplayBufferSamples:
    """
    :param samples: any object with the fields of SB3's replay samples, of any number of rows; ``discounts`` may be missing
    :param gamma: γ, the discount of rows that bring none
    :return: the same as SB3's tuple, with ``discounts`` (B, 1): a tensor, because a compiled function would be compiled again
        for every new number
    """
    discounts = getattr(samples, "discounts", None)
    if discounts is None:
        discounts = th.full_like(samples.rewards, gamma)
    if hasattr(samples, "_replace"):
        return samples._replace(discounts=discounts)
    fields = (samples.observations, samples.actions, samples.next_observations, samples.dones, samples.rewards, discounts)
    return DictReplayBufferSamples(*fields) if isinstance(samples.observations, dict) else ReplayBufferSamples(*fields)
