"""Demonstrations of single actions as demonstrations of action chunks."""

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.demonstrations.columns import ColumnWriter, map_columns, take
from sb3_diffusion.demonstrations.demonstrations import Demonstrations


def in_chunks(
    demonstrations: Demonstrations, length: int, gamma: float = 0.99, folder: str | Path | None = None
) -> Demonstrations:
    """
    The same demonstrations for the environment in :class:`~sb3_diffusion.envs.ActionChunk`. A chunk may begin at any step:
    each episode of T steps becomes ``min(length, T)`` episodes of chunks that begin one step later each, so there are as many
    chunks as there were steps; they stay together where data is split. The last chunk of an episode is filled up with its last
    action; that is never executed, and no reward counts there.

    :param demonstrations: N steps of single actions
    :param length: actions in a chunk, ≥ 1, the wrapper's
    :param gamma: γ, discount of an environment step, the wrapper's
    :param folder: a new or empty folder for maps of the result, which then need not fit into memory; one episode has to
    :return: N chunks, actions of shape (N, length, \\*action shape)
    :raises ValueError: for an argument out of range, and for a folder that is not empty
    """
    check_number("length", length, 1, integer=True)
    check_number("gamma", gamma, 0, 1)
    if not isinstance(demonstrations, Demonstrations):
        raise ValueError(f"demonstrations={demonstrations!r} must be Demonstrations")
    steps, discounts = np.arange(length), gamma ** np.arange(length)
    episode_lengths: list[int] = []
    episode_sources: list[int] = []
    names = ["observations", "actions", "terminations"]
    with ColumnWriter(folder) as writer:
        for episode, (start, end) in enumerate(zip(demonstrations.episode_starts, demonstrations.episode_ends, strict=True)):
            for first in range(start, min(start + length, end)):
                beginnings = np.arange(first, end, length)
                rows = beginnings[:, None] + steps
                executed, rows = rows < end, np.minimum(rows, end - 1)
                writer.append("observations", map_columns(lambda c, b=beginnings: take(c, b), demonstrations.observations))
                actions = take(demonstrations.actions, rows.ravel())
                writer.append("actions", actions.reshape(*rows.shape, *actions.shape[1:]))
                writer.append("terminations", demonstrations.terminations[rows[:, -1]])
                if demonstrations.rewards is not None:
                    rewards = (demonstrations.rewards[rows] * executed * discounts).sum(axis=1)
                    writer.append("rewards", rewards.astype(np.float32))
                if demonstrations.final_observations is not None:
                    last = np.array([episode])
                    writer.append(
                        "final_observations", map_columns(lambda c, e=last: take(c, e), demonstrations.final_observations)
                    )
                episode_lengths.append(len(beginnings))
                episode_sources.append(int(demonstrations.episode_sources[episode]))
        names += ["rewards"] * (demonstrations.rewards is not None)
        names += ["final_observations"] * (demonstrations.final_observations is not None)
        columns: dict[str, Any] = {name: writer.columns(name) for name in names}
    box = demonstrations.action_space
    if isinstance(box, spaces.Box):
        low, high = (np.repeat(bound[None], length, axis=0) for bound in (box.low, box.high))
        box = spaces.Box(low, high, dtype=box.dtype.type)
    return Demonstrations(
        **columns,
        episode_ends=np.cumsum(episode_lengths),
        observation_space=demonstrations.observation_space,
        action_space=box,
        episode_sources=episode_sources,
    )
