"""Random numbers of a run: where its training's come from, and how others are kept apart from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.utils import set_random_seed

TRAINING, EVALUATION = 0, 1


def derived_seed(seed: int, timesteps: int, purpose: int) -> int:
    """:return: a seed below 2^31 that is a function of a run's seed, its environment steps so far and what it is for"""
    return int(np.random.SeedSequence([seed, timesteps, purpose]).generate_state(1)[0] >> 1)


@contextmanager
def generators_of_its_own(seed: int) -> Iterator[None]:
    """The global generators of PyTorch, NumPy and Python start from ``seed`` in the block and are as before after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with th.random.fork_rng(range(th.cuda.device_count())):
        set_random_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
