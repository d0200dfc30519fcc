"""Demonstrations: what somebody did in an environment, as data to learn from."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv, PolicyPredictor

from sb3_diffusion.demonstrations.checks import check_fits, check_model
from sb3_diffusion.demonstrations.columns import (
    Column,
    Columns,
    as_column,
    in_pieces,
    map_columns,
    named_columns,
    take,
    to_space,
    with_data,
    without_data,
)
from sb3_diffusion.demonstrations.minari_files import read_minari, write_minari
from sb3_diffusion.demonstrations.recording import Controller, copy_episodes, record_episodes
from sb3_diffusion.demonstrations.replay import read_replay_buffer

if TYPE_CHECKING:
    from minari import MinariDataset


class Transitions(NamedTuple):
    """
    B steps of demonstrations, copies. ``observations`` and ``next_observations`` (B, *observation shape), or dictionaries of
    such; ``actions`` (B, *action shape) in the environment's units; ``rewards`` (B,) float32; ``terminations`` and
    ``truncations`` (B,) bool. Nothing depends on which the next observation is after a termination.
    """

    observations: Any
    actions: np.ndarray
    next_observations: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def number_of(actions: Column) -> int:
    """:raises ValueError: for no rows of actions"""
    if actions.ndim == 0:
        raise ValueError(f"actions={actions!r} must be rows, one for each step")
    if len(actions) == 0:
        raise ValueError("actions are empty: demonstrations need at least one step")
    return len(actions)


def whole_numbers(name: str, values: Any) -> np.ndarray:
    """
    :return: int64
    :raises ValueError: for something else
    """
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}={values!r} must be integers")
    return array.astype(np.int64)


def check_rows(name: str, columns: Columns, n_steps: int) -> None:
    """:raises ValueError: unless every column has a row for each step"""
    if isinstance(columns, dict) and not columns:
        raise ValueError(f"{name} are an empty dictionary")
    for column_name, column in named_columns(name, columns):
        if column.ndim == 0 or len(column) != n_steps:
            raise ValueError(
                f"{column_name} of shape {column.shape}: there are {n_steps} actions, and so many rows are wanted"
            )


def check_ends(episode_ends: np.ndarray, n_steps: int) -> None:
    """:raises ValueError: unless they are the ends of episodes that fill all rows"""
    ends = episode_ends
    if ends.ndim != 1 or len(ends) == 0 or ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != n_steps:
        raise ValueError(
            f"episode_ends={ends!r} must ascend from at least 1 to {n_steps}, the number of steps: each is one more than the "
            "last row of its episode"
        )


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
      episode, finite also where it terminated; None if nobody knows. All other next observations are the next row's;
    * ``episode_sources`` (E,) int64: episodes with the same number are made of the same one, as those of action chunks are,
      and stay together where data is split; by default all differ;
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
        episode_sources: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.observations = map_columns(as_column, observations)
        self.actions = as_column(actions)
        n_steps = number_of(self.actions)
        self.episode_ends = whole_numbers("episode_ends", episode_ends)
        sources = np.arange(len(self.episode_ends)) if episode_sources is None else episode_sources
        self.episode_sources = whole_numbers("episode_sources", sources)
        self.rewards = None if rewards is None else np.asarray(rewards, dtype=np.float32)
        self.terminations = np.zeros(n_steps, dtype=bool) if terminations is None else np.asarray(terminations, dtype=bool)
        self.final_observations = None if final_observations is None else map_columns(as_column, final_observations)
        self.observation_space = observation_space
        self.action_space = action_space
        self.env_spec = env_spec
        self._check_arrays()
        self.truncations = np.zeros(n_steps, dtype=bool)
        self.truncations[self.episode_ends - 1] = ~self.terminations[self.episode_ends - 1]

    @classmethod
    def from_arrays(
        cls,
        observations: Columns,
        actions: Column,
        rewards: Column | None = None,
        next_observations: Columns | None = None,
        terminations: Column | None = None,
        truncations: Column | None = None,
        episode_ends: Sequence[int] | np.ndarray | None = None,
        final_observations: Columns | None = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        env_spec: EnvSpec | None = None,
        clip_actions: bool = False,
    ) -> "Demonstrations":
        """
        From arrays, ``np.memmap`` or ``h5py.Dataset`` of N steps in the order in which they were made, episode after episode.
        Maps are not copied, but for the actions with ``clip_actions``. An episode ends where ``episode_ends`` says so; without
        it, where something terminates or is truncated, and where a next observation is not the next row's observation. So
        steps in any order may be given as well, if they come with next observations.

        :param observations: (N, *observation shape), or a dictionary of such, as the environment gives them
        :param actions: (N, *action shape), in the environment's units
        :param rewards: (N,)
        :param next_observations: as ``observations``
        :param terminations: (N,) bool, where an episode ended for good
        :param truncations: (N,) bool, where a time limit or the end of the record ended it
        :param episode_ends: (E,), ascending: one more than the last row of each episode
        :param final_observations: (E, *observation shape), or a dictionary of such: seen after the last step of each episode;
            an alternative to ``next_observations``
        :param observation_space: of the environment, if known
        :param action_space: of the environment, if known
        :param env_spec: how to make the environment again (Gymnasium), if known
        :param clip_actions: clip actions to the bounds of ``action_space``, for environments that do so themselves
        :raises ValueError: for arrays that do not fit together, naming which
        """
        observations, actions = map_columns(as_column, observations), as_column(actions)
        n_steps = number_of(actions)
        check_rows("observations", observations, n_steps)
        breaks = np.zeros(n_steps, dtype=bool)
        if next_observations is not None:
            if final_observations is not None:
                raise ValueError("next_observations and final_observations are two ways to say one thing: give one of them")
            next_observations = map_columns(as_column, next_observations)
            breaks = discontinuities(observations, next_observations)
        ends = np.zeros(n_steps, dtype=bool)
        for name, flags in (("terminations", terminations), ("truncations", truncations)):
            if flags is None:
                continue
            if np.shape(flags) != (n_steps,):
                raise ValueError(f"{name} of shape {np.shape(flags)} must have the shape ({n_steps},)")
            ends |= np.asarray(flags, dtype=bool)
        if episode_ends is None:
            ends |= breaks
            ends[-1:] = True
            episode_ends = np.flatnonzero(ends) + 1
        else:
            episode_ends = whole_numbers("episode_ends", episode_ends)
            check_ends(episode_ends, n_steps)
            given = np.zeros(n_steps + 1, dtype=bool)
            given[episode_ends] = True
            for name, flags in (("truncations", ends), ("next_observations", breaks)):
                if (stray := flags & ~given[1:]).any():
                    raise ValueError(f"{name} end an episode at row {int(stray.argmax())}, but episode_ends does not")
        if next_observations is not None:
            rows = np.asarray(episode_ends) - 1
            whole = len(rows) == n_steps
            final_observations = map_columns(lambda column: column if whole else take(column, rows), next_observations)
        if clip_actions:
            if not isinstance(action_space, spaces.Box):
                raise ValueError(f"action_space={action_space!r} must be a Box for clip_actions=True")
            actions = np.clip(take(actions, np.arange(n_steps)), action_space.low, action_space.high)
        return cls(
            observations,
            actions,
            episode_ends,
            rewards,
            terminations,
            final_observations,
            observation_space,
            action_space,
            env_spec,
        )

    @classmethod
    def from_minari(
        cls, dataset: "MinariDataset | str", folder: str | Path | None = None, clip_actions: bool = False
    ) -> "Demonstrations":
        """
        From a Minari data set (extra ``demonstrations``). An id is looked for among the local ones (``MINARI_DATASETS_PATH``);
        nothing is downloaded.

        :param dataset: a ``MinariDataset``, whose episodes may be filtered, or the id of one
        :param folder: a new or empty folder for maps of the data, which then need not fit into memory; it is read one episode
            at a time
        :param clip_actions: clip actions to the bounds of the action space, for environments that do so themselves
        :raises ImportError: without Minari
        :raises FileNotFoundError: for an id that is not there
        :raises ValueError: for spaces other than SB3's, for a data set without episodes, for a folder that is not empty
        """
        return cls.from_arrays(**read_minari(dataset, folder), clip_actions=clip_actions)

    @classmethod
    def from_policy(
        cls,
        policy: PolicyPredictor | Controller,
        env: GymEnv | str,
        n_episodes: int,
        seed: int | None = None,
        deterministic: bool = False,
        folder: str | Path | None = None,
    ) -> "Demonstrations":
        """
        Let somebody act. Observations and rewards are recorded as the environment gives them, below a ``VecNormalize``, whose
        statistics the policy gets but does not change. Actions are clipped to the bounds before they are executed and
        recorded. Of several environments each records its share of the episodes.

        :param policy: a model, a policy, anything with SB3's ``predict``; or a controller, ``policy(observation) -> action``
            for one observation. A controller's method ``reset(seed=…)``, if it has one, is called with another seed before
            each episode; for several environments such a controller is copied
        :param env: an environment, a ``VecEnv``, or an id
        :param n_episodes: how many episodes
        :param seed: of environments, controllers and the global generators, which afterwards are as before
        :param deterministic: passed to ``predict``
        :param folder: a new or empty folder for maps of the data, which then need not fit into memory; one episode has to
        :raises ValueError: for an argument out of range, and for actions that are not finite
        """
        return cls(**record_episodes(policy, env, n_episodes, seed, deterministic, folder))

    @classmethod
    def from_replay_buffer(cls, source: BaseAlgorithm | ReplayBuffer | str | Path) -> "Demonstrations":
        """
        From what an off-policy algorithm of SB3 has seen, in the environment's units again. Rows of one environment are
        brought together; where the buffer has forgotten the start of an episode, the rest is an episode. A buffer with
        ``handle_timeout_termination=False`` took time limits for terminations, and so they are here, with a warning.

        :param source: a model, a ``ReplayBuffer``, or a file of ``save_replay_buffer``
        :raises ValueError: where there is no replay buffer, or an empty one, or one of discrete actions
        """
        return cls.from_arrays(**read_replay_buffer(source))

    def to_minari(self, dataset_id: str, **metadata: Any) -> "MinariDataset":
        """
        Write a local Minari data set (``MINARI_DATASETS_PATH``), episode after episode. Nothing is overwritten, and after a
        failure nothing is left. Unknown rewards are written as nan.

        :param dataset_id: ``[namespace/]name[-v<version>]``
        :param metadata: other arguments of ``minari.create_dataset_from_buffers``, such as ``author``, ``description``,
            ``observation_space``, ``action_space`` and ``env``. Images are stored without loss unless ``jpeg_encoding=True``
        :raises ImportError: without Minari
        :raises ValueError: for an id that exists, without spaces, and without ``final_observations``
        """
        return write_minari(self, dataset_id, **metadata)

    def select(self, episodes: Sequence[int] | np.ndarray, folder: str | Path | None = None) -> "Demonstrations":
        """
        Copies of some episodes, for instance of those with the best ``episode_returns``.

        :param episodes: their numbers, or (E,) bool
        :param folder: a new or empty folder for maps of the copies; None: in memory
        :raises ValueError: for none, and for numbers of no episode
        """
        numbers = np.arange(self.n_episodes)
        try:
            chosen = numbers[np.asarray(episodes)] if np.size(episodes) else numbers[:0]
        except IndexError:
            chosen = numbers[:0]
        if np.ndim(chosen) != 1 or len(chosen) == 0:
            raise ValueError(f"episodes={episodes!r} must be numbers from 0 to {self.n_episodes - 1}, at least one")
        names = ("observations", "actions", "rewards", "terminations", "final_observations")
        data = copy_episodes({name: getattr(self, name) for name in names}, self.episode_ends, chosen, folder)
        spaces_and_spec = {name: getattr(self, name) for name in ("observation_space", "action_space", "env_spec")}
        return type(self)(**data, **spaces_and_spec, episode_sources=self.episode_sources[chosen])

    def check_spaces(self, observation_space: spaces.Space, action_space: spaces.Space, name: str = "the environment") -> None:
        """
        Refuse what does not fit: keys, shapes, types, values that are not finite, actions outside the bounds by more than
        rounding, observations of which more than one in a hundred lies outside the bounds (fewer give a warning).

        :param observation_space: of raw observations; images with channels first or last
        :param action_space: in whose units the actions should be
        :param name: whose spaces these are, for messages
        :raises ValueError: naming what does not fit
        """
        check_fits(self, observation_space, action_space, name)

    def check(self, model: BaseAlgorithm) -> None:
        """
        :meth:`check_spaces` with a model's environment; and its ``VecNormalize``, if there is one and it has statistics, must
        not clip more than one in a hundred observations.

        :param model: an algorithm
        :raises ValueError: naming what does not fit
        """
        check_model(self, model)

    def _check_arrays(self) -> None:
        n_steps = len(self.actions)
        check_rows("observations", self.observations, n_steps)
        check_rows("terminations", self.terminations, n_steps)
        columns: dict[str, Column] = {"terminations": self.terminations}
        if self.rewards is not None:
            columns["rewards"] = self.rewards
            check_rows("rewards", self.rewards, n_steps)
        for name in ("rewards", "terminations"):
            if name in columns and columns[name].ndim != 1:
                raise ValueError(f"{name} of shape {columns[name].shape} must have the shape ({n_steps},)")
        ends = self.episode_ends
        check_ends(ends, n_steps)
        if self.episode_sources.shape != ends.shape:
            raise ValueError(f"episode_sources of shape {self.episode_sources.shape} must have the shape {ends.shape}")
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

    def running_returns(self, gamma: float) -> np.ndarray:
        """
        What ``VecNormalize`` scales rewards by the standard deviation of: ``R_t = γ R_{t-1} + r_t``, from 0 at each start.

        :param gamma: γ
        :return: (N,) float64
        :raises ValueError: without rewards
        """
        if self.rewards is None:
            raise ValueError("these demonstrations have no rewards")
        returns = self.rewards.astype(np.float64)
        starts, lengths = self.episode_starts, self.episode_lengths
        for time in range(1, int(lengths.max())):
            rows = starts[lengths > time] + time
            returns[rows] += gamma * returns[rows - 1]
        return returns

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
        """Maps of files and HDF5 data sets are pickled as places: what they hold may be larger than memory."""
        return {name: map_columns(without_data, value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles that are older than the attribute
        self.episode_sources = np.arange(len(state["episode_ends"]))
        self.__dict__.update({name: map_columns(with_data, value) for name, value in state.items()})


def discontinuities(observations: Columns, next_observations: Columns) -> np.ndarray:
    """
    :param observations: (N, …), or a dictionary of such
    :param next_observations: of the same shape
    :return: (N,) bool, True where a next observation is not the next row's observation; not at the last row
    :raises ValueError: for different shapes
    """
    expected = dict(named_columns("observations", observations))
    found = {name.removeprefix("next_"): column for name, column in named_columns("next_observations", next_observations)}
    if {name: column.shape for name, column in expected.items()} != {name: column.shape for name, column in found.items()}:
        raise ValueError(
            f"next_observations of shape {map_columns(np.shape, next_observations)} must have the shape of the observations, "
            f"{map_columns(np.shape, observations)}"
        )
    n_steps = len(next(iter(expected.values())))
    broken = np.zeros(n_steps, dtype=bool)
    for name, column in expected.items():
        for piece in in_pieces(n_steps - 1):
            following = np.asarray(column[piece.start + 1 : piece.stop + 1])
            same = following == np.asarray(found[name][piece], following.dtype)
            if np.issubdtype(following.dtype, np.floating):
                same |= np.isnan(following)
            broken[piece] |= ~same.reshape(len(following), -1).all(axis=1)
    return broken
