"""Does the file act as the model does?"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.export.policy import OBSERVATION, ExportablePolicy

N_OBSERVATIONS = 1024
# In units of half the range of an action; float32 alone leaves about 1e-6.
TOLERANCE = 1e-4
# Where two modes are equally good to the last digits, which of them is taken depends on the order of summation.
N_JITTERS, JITTER, MAX_UNDECIDED_SHARE = 16, 1e-5, 0.01
# Unbounded observations are drawn from a standard normal; bounds further away are no typical values either.
LARGEST_BOUND = 1e3

Actions = Callable[[dict[str, np.ndarray]], np.ndarray]


class ExportError(RuntimeError):
    """The file would not act as the model does."""


def typical_observations(policy: ExportablePolicy, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """
    Random observations as the environment might give them, by input.

    :param policy: whose inputs they are for
    :param n: how many
    :param seed: of their generator
    :return: arrays (n, *shape)
    """
    generator = np.random.default_rng(seed)
    observations = {}
    for key, space in policy.inputs.items():
        if key in policy.normalized:
            statistics = policy.vec_normalize.obs_rms  # type: ignore[union-attr]
            running = statistics[key] if isinstance(statistics, dict) else statistics
            values = running.mean + 2 * np.sqrt(running.var) * generator.standard_normal((n, *space.shape))  # type: ignore[misc]
            if np.issubdtype(space.dtype, np.integer):
                values = np.clip(values, space.low, space.high)  # type: ignore[attr-defined]
            observations[key] = values.astype(space.dtype)
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            normal = generator.standard_normal((n, *space.shape))
            within = np.maximum(np.abs(space.low), np.abs(space.high)) <= LARGEST_BOUND
            low, high = (np.where(within, bound, 0.0) for bound in (space.low, space.high))
            uniform = low + generator.random((n, *space.shape)) * (high - low)
            observations[key] = np.clip(np.where(within, uniform, normal), space.low, space.high).astype(space.dtype)
        else:
            space = copy.deepcopy(space)
            space.seed(int(generator.integers(2**31)))
            observations[key] = np.stack([np.asarray(space.sample()) for _ in range(n)])
    return observations


@contextmanager
def given_noise(model: BaseAlgorithm, noise: np.ndarray | None) -> Iterator[None]:
    """Within it, the model's sampled predictions use this noise (B, K + 1, d)."""
    if noise is None:
        yield
        return
    actor = model.policy.actor  # type: ignore[union-attr]
    tensor = th.as_tensor(noise, device=model.device).transpose(0, 1)
    with mock.patch.object(actor, "_chain_noise", lambda features: tensor):
        yield


def predicted(policy: ExportablePolicy, model: BaseAlgorithm, observations: dict[str, np.ndarray]) -> np.ndarray:
    """What a user gets today: normalised as VecNormalize does, then the model's own ``predict``."""
    given = observations if policy.is_dict else observations[OBSERVATION]
    if policy.vec_normalize is not None:
        given = policy.vec_normalize.normalize_obs(given)  # type: ignore[assignment]
    return model.predict(given, deterministic=policy.deterministic)[0]


def undecided(policy: ExportablePolicy, observations: dict[str, np.ndarray], actions: np.ndarray, unit: np.ndarray) -> int:
    """Of rows whose actions differ from the model's, how many are those of the same policy with weights altered by 1e-5."""
    agree = np.zeros(len(actions), dtype=bool)
    tensors = [th.as_tensor(value) for value in observations.values()]
    generator = th.Generator().manual_seed(0)
    for _ in range(N_JITTERS):
        altered = copy.deepcopy(policy)
        for parameter in altered.parameters():
            parameter.mul_(1 + JITTER * th.randn(parameter.shape, generator=generator))
        with th.no_grad():
            difference = np.abs(altered(*tensors).numpy() - actions) / unit
        agree |= difference.reshape(len(actions), -1).max(axis=1) <= 100 * TOLERANCE
    return int(agree.sum())


def verify(policy: ExportablePolicy, model: BaseAlgorithm, actions_of: Actions, noise: np.ndarray | None = None) -> float:
    """
    Compare a file with the model's ``predict`` on 1 024 random observations.

    :param policy: what was exported
    :param model: the model
    :param actions_of: the file's actions (B, *action shape) for a batch of each input
    :param noise: (1024, K + 1, d), for the model's sampled actions
    :return: the largest difference, in units of half the range of an action, of all rows but those where the model itself
        takes another of two equally good modes when its weights change in the fifth digit
    :raises ExportError: if it is above 1e-4, if more than a hundredth of the rows are such, or if shapes or dtypes differ
    """
    observations = typical_observations(policy, N_OBSERVATIONS)
    with given_noise(model, noise):
        expected = predicted(policy, model, observations)
    actions = actions_of(observations)
    if actions.shape != expected.shape or actions.dtype != expected.dtype:
        raise ExportError(
            f"The file gives actions of shape {actions.shape} and dtype {actions.dtype}, predict of {expected.shape} and "
            f"{expected.dtype}"
        )
    unit = (policy.action_space.high.astype(np.float64) - policy.action_space.low.astype(np.float64)) / 2
    differences = (np.abs(actions.astype(np.float64) - expected) / unit).reshape(len(actions), -1).max(axis=1)
    wrong = ~(differences <= TOLERANCE)
    if policy.deterministic and 0 < wrong.sum() <= MAX_UNDECIDED_SHARE * len(wrong):
        rows = {key: value[wrong] for key, value in observations.items()}
        if undecided(policy, rows, actions[wrong], unit) == wrong.sum():
            differences, wrong = differences[~wrong], wrong[:0]
    if wrong.any():
        raise ExportError(
            f"On {wrong.sum()} of {N_OBSERVATIONS} random observations the file's actions differ from predict's, by up to "
            f"{np.nanmax(differences):.2g} of half their range; allowed: {TOLERANCE:g}. Does the policy depend on more than "
            "the observation, or change what an exporter takes for constant?"
        )
    single = {key: value[:1] for key, value in observations.items()}
    if actions_of(single).shape != (1, *policy.action_space.shape):
        raise ExportError("The file does not take a batch of one observation")
    return float(differences.max())
