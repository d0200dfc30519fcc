"""Demonstrations: what somebody did in an environment, as data to learn from."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.demonstrations.columns import (
    Column,
    Columns,
    ColumnWriter,
    MappedFile,
    as_column,
    in_pieces,
    map_columns,
    named_columns,
    take,
)

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Transitions(NamedTuple):
    """
    B steps of demonstrations, copies. ``observations`` and ``next_observations`` (B, *observation shape), or dictionaries of
    such; ``actions`` (B, *action shape) in the environment's units; ``rewards`` (B,) float32; ``terminations`` and
    ``truncations`` (B,) bool. After a termination the next observation may be any: nothing depends on it.
    """

    observations: Any
    actions: np.ndarray
    next_observations: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


class Demonstrations:
    """
    Episodes, one after the other, in rows: row i is one step. Arrays may lie in memory or be maps of files (``np.memmap``,
    ``h5py.Dataset``), which are then read batch by batch. Made by :meth:`from_arrays`, :meth:`from_minari`,
    :meth:`from_policy` and :meth:`from_replay_buffer`.

    Observations, actions and rewards are the environment's own: neither normalised nor rescaled. Where a model's environment
    is wrapped in ``VecNormalize``, its statistics are applied when data is used.

    With N steps in E episodes, the attributes are

    * ``observations`` (N, *observation shape), or a dictionary of such;
    * ``actions`` (N, *action shape), in the environment's units;
    * ``rewards`` (N,) float32, or None where nobody wrote them down;
    * ``terminations`` (N,) bool, True where an episode ended for good;
    * ``truncations`` (N,) bool, True where the record of an episode ends without a termination: a time limit, or data cut off;
    * ``episode_ends`` (E,) int64, ascending: episode e has the rows ``episode_ends[e - 1] … episode_ends[e] - 1``;
    * ``final_observations`` (E, *observation shape), or a dictionary of such: what was seen after the last step of each
      episode; None if nobody knows. All other next observations are the next row's;
    * ``observation_space``, ``action_space``: of the environment, or None if nobody said;
    * ``env_spec``: how to make the environment again (Gymnasium), or None.

    :raises ValueError: for arrays that do not fit together, naming which
    """

    def __init__(
        self,
        observations: Columns,
        actions: Column,
        episode_ends: Sequence[int] | np.ndarray,
        rewards: Column | None = None,
        terminations: Column | None = None,
        final_observations: Columns | None = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        env_spec: EnvSpec | None = None,
    ) -> None:
        self.observations = map_columns(as_column, observations)
        self.actions = as_column(actions)
        n_steps = len(self.actions)
        self.episode_ends = np.asarray(episode_ends, dtype=np.int64)
        self.rewards = None if rewards is None else np.asarray(rewards, dtype=np.float32)
        self.terminations = np.zeros(n_steps, dtype=bool) if terminations is None else np.asarray(terminations, dtype=bool)
        self.final_observations = None if final_observations is None else map_columns(as_column, final_observations)
        self.observation_space = observation_space
        self.action_space = action_space
        self.env_spec = env_spec
        self._check_arrays()
        self.truncations = np.zeros(n_steps, dtype=bool)
        self.truncations[self.episode_ends - 1] = ~self.terminations[self.episode_ends - 1]

    def _check_arrays(self) -> None:
        n_steps = len(self.actions)
        if n_steps == 0:
            raise ValueError("actions are empty: demonstrations need at least one step")
        columns = dict(named_columns("observations", self.observations))
        columns |= {"terminations": self.terminations}
        if self.rewards is not None:
            columns["rewards"] = self.rewards
        for name, column in columns.items():
            if column.ndim == 0 or len(column) != n_steps:
                raise ValueError(f"{name} of shape {column.shape}: there are {n_steps} actions, and so many rows are wanted")
        for name in ("rewards", "terminations"):
            if name in columns and columns[name].ndim != 1:
                raise ValueError(f"{name} of shape {columns[name].shape} must have the shape ({n_steps},)")
        ends = self.episode_ends
        if ends.ndim != 1 or len(ends) == 0 or ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != n_steps:
            raise ValueError(
                f"episode_ends={ends!r} must ascend from at least 1 to {n_steps}, the number of steps: each is one more than the "
                "last row of its episode"
            )
        inside = self.terminations.copy()
        inside[ends - 1] = False
        if inside.any():
            raise ValueError(f"terminations are True at row {int(inside.argmax())}, where no episode ends by episode_ends")
        if self.final_observations is None:
            return
        final = dict(named_columns("observations", self.final_observations))
        for name, column in named_columns("observations", self.observations):
            if name not in final or final[name].shape != (len(ends), *column.shape[1:]):
                shape = final[name].shape if name in final else None
                raise ValueError(f"final_{name} of shape {shape} must have the shape {(len(ends), *column.shape[1:])}")

    def __len__(self) -> int:
        """:return: N, the number of steps"""
        return len(self.actions)

    def __repr__(self) -> str:
        return f"Demonstrations({len(self)} steps in {self.n_episodes} episodes)"

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def episode_starts(self) -> np.ndarray:
        """(E,) int64, the first row of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """(E,) int64"""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def episode_returns(self) -> np.ndarray:
        """
        (E,) float64, the undiscounted sums of rewards.

        :raises ValueError: without rewards
        """
        if self.rewards is None:
            raise ValueError("these demonstrations have no rewards")
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    @property
    def transition_rows(self) -> np.ndarray:
        """
        (≤ N,) int64, the rows whose next observation is known or not needed: all, unless there are no ``final_observations``;
        then without the last rows of truncated episodes, from which nothing can be bootstrapped.
        """
        if self.final_observations is not None:
            return np.arange(len(self))
        return np.flatnonzero(~self.truncations)

    def episodes_of(self, rows: np.ndarray) -> np.ndarray:
        """
        :param rows: (B,)
        :return: (B,), which episode each row belongs to
        """
        return np.searchsorted(self.episode_ends, rows, side="right")

    def observations_at(self, rows: np.ndarray, space: spaces.Space | None = None) -> Any:
        """
        :param rows: (B,) integers
        :param space: transpose images to what this space wants, channels first or last
        :return: copies, (B, *observation shape), or a dictionary of such
        """
        return to_space(map_columns(lambda column: take(column, rows), self.observations), space)

    def next_observations_at(self, rows: np.ndarray, space: spaces.Space | None = None) -> Any:
        """
        What was seen one step later; after a termination without ``final_observations``, the row's own observation.

        :param rows: (B,) integers, of :attr:`transition_rows`
        :param space: transpose images to what this space wants, channels first or last
        :return: copies, (B, *observation shape), or a dictionary of such
        """
        rows = np.asarray(rows)
        episodes = self.episodes_of(rows)
        last = rows == self.episode_ends[episodes] - 1
        if self.final_observations is None:
            return self.observations_at(np.where(last, rows, rows + 1), space)

        def next_rows(column: Column, final: Column) -> np.ndarray:
            values = take(column, np.where(last, rows, rows + 1))
            if last.any():
                values[last] = take(final, episodes[last])
            return values

        return to_space(map_columns(next_rows, self.observations, self.final_observations), space)

    def transitions(self, rows: np.ndarray, space: spaces.Space | None = None) -> Transitions:
        """
        Steps as a replay buffer wants them, but for the units: those are the environment's.

        :param rows: (B,) integers, of :attr:`transition_rows`
        :param space: transpose images to what this space wants, channels first or last
        :raises ValueError: without rewards
        """
        if self.rewards is None:
            raise ValueError("these demonstrations have no rewards, and a transition needs one")
        return Transitions(
            self.observations_at(rows, space),
            take(self.actions, rows),
            self.next_observations_at(rows, space),
            self.rewards[rows],
            self.terminations[rows],
            self.truncations[rows],
        )

    def scaled_actions_at(self, rows: np.ndarray, action_space: spaces.Box) -> np.ndarray:
        """
        Actions as SB3's off-policy algorithms store them.

        :param rows: (B,) integers
        :param action_space: whose bounds become -1 and 1
        :return: (B, d) float32, in [-1, 1]
        """
        low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
        scaled = 2 * (take(self.actions, rows).reshape(-1, *action_space.shape) - low) / (high - low) - 1
        return np.clip(scaled, -1, 1).astype(np.float32).reshape(len(rows), -1)

    def __getstate__(self) -> dict[str, Any]:
        """Maps of files are pickled as paths: what they hold may be larger than memory."""
        return {name: map_columns(_without_map, value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: map_columns(_with_map, value) for name, value in state.items()})


def _without_map(value: Any) -> Any:
    # Not a part of a map, which is a map of the same file in NumPy's eyes
    if isinstance(value, np.memmap) and not isinstance(value.base, np.ndarray) and value.filename is not None:
        return MappedFile.of(value)
    return value


def _with_map(value: Any) -> Any:
    return value.open() if isinstance(value, MappedFile) else value


def to_space(observations: Any, space: spaces.Space | None) -> Any:
    """
    Images with channels first or last, as the space wants them; everything else as it is.

    :param observations: (B, *observation shape), or a dictionary of such
    :param space: of one observation, or None: as they are
    """
    if isinstance(space, spaces.Dict):
        return {key: to_space(value, space.spaces.get(key)) for key, value in observations.items()}
    return maybe_transpose(observations, space) if space is not None and is_image_space(space) else observations
