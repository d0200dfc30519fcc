"""Demonstrations from what an SB3 algorithm has in its replay buffer."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_diffusion.demonstrations.columns import map_columns


def read_replay_buffer(source: BaseAlgorithm | ReplayBuffer | str | Path) -> dict[str, Any]:
    """The arguments of ``Demonstrations.from_arrays``; for the parameters see ``Demonstrations.from_replay_buffer``."""
    buffer: Any = source
    if isinstance(source, BaseAlgorithm):
        buffer = getattr(source, "replay_buffer", None)
        if buffer is None:
            raise ValueError(
                f"{type(source).__name__} has no replay buffer: save_replay_buffer keeps one apart from its model"
            )
    elif isinstance(source, (str, Path)):
        buffer = load_from_pkl(source)
    if not isinstance(buffer, ReplayBuffer):
        raise ValueError(f"source={buffer!r} must be a model, a ReplayBuffer, or a file that save_replay_buffer wrote")
    action_space = buffer.action_space
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"the replay buffer has the action space {action_space}; allowed: Box")
    if buffer.size() == 0:
        raise ValueError("the replay buffer is empty")

    if not buffer.handle_timeout_termination:
        warnings.warn(
            "source: a replay buffer with handle_timeout_termination=False does not tell time limits from terminations; "
            "all of its episodes count as terminated",
            stacklevel=3,
        )
    # In the order in which it was written; without stored next observations the oldest row has lost its observation.
    rows = np.arange(buffer.pos)
    if buffer.full:
        rows = (np.arange(buffer.buffer_size) + buffer.pos) % buffer.buffer_size
        rows = rows[1:] if buffer.optimize_memory_usage else rows
    if len(rows) == 0:
        raise ValueError("the replay buffer has no whole step")

    def episodes_of_each(column: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
        # One environment after the other
        return column[rows].swapaxes(0, 1).reshape(-1, *column.shape[2:])

    def in_shape(column: np.ndarray, space: spaces.Space) -> np.ndarray:
        return column.reshape(-1, *space.shape) if space.shape is not None else column

    space = buffer.observation_space
    parts: Any = space.spaces if isinstance(space, spaces.Dict) else space
    observations = map_columns(lambda column, part: in_shape(episodes_of_each(column), part), buffer.observations, parts)
    if buffer.optimize_memory_usage:
        next_rows = (rows + 1) % buffer.buffer_size
        next_observations = in_shape(episodes_of_each(buffer.observations, next_rows), space)
    else:
        next_observations = map_columns(
            lambda column, part: in_shape(episodes_of_each(column), part), buffer.next_observations, parts
        )
    dones, timeouts = episodes_of_each(buffer.dones) > 0, episodes_of_each(buffer.timeouts) > 0
    # Where one environment's steps end, another's begin.
    truncations = timeouts.copy()
    truncations[len(rows) - 1 :: len(rows)] |= ~dones[len(rows) - 1 :: len(rows)]
    low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    actions = in_shape(episodes_of_each(buffer.actions), action_space)
    return dict(
        observations=observations,
        # SB3 stores them scaled to [-1, 1].
        actions=np.clip(low + 0.5 * (actions + 1) * (high - low), low, high).astype(action_space.dtype),
        rewards=episodes_of_each(buffer.rewards),
        next_observations=next_observations,
        terminations=dones & ~timeouts,
        truncations=truncations,
        observation_space=space,
        action_space=action_space,
    )
