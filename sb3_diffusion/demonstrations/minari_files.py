"""Demonstrations from and to Minari, Farama's standard for offline data."""

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_diffusion.command_line import missing
from sb3_diffusion.demonstrations.columns import ColumnWriter, map_columns, take

if TYPE_CHECKING:
    from minari import MinariDataset

    from sb3_diffusion.demonstrations.demonstrations import Demonstrations

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _import_minari() -> Any:
    try:
        import minari
    except ImportError as error:
        message = missing("a Minari data set", error, "demonstrations")
        raise ImportError(f"{message} (Python 3.11 or newer)", name=error.name) from error
    return minari


def check_minari_spaces(dataset_id: str, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """:raises ValueError: for spaces that SB3 or a diffusion policy has no use for"""
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"dataset {dataset_id!r} has the action space {action_space}; allowed: Box")
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, part in parts.items():
        if not isinstance(part, OBSERVATION_SPACES):
            raise ValueError(
                f"dataset {dataset_id!r} has observations {f'{key!r} ' if key else ''}of the space {part}; allowed: Box, "
                "Discrete, MultiDiscrete, MultiBinary, and a Dict of these"
            )


def read_minari(dataset: "MinariDataset | str", folder: str | Path | None) -> dict[str, Any]:
    """The arguments of ``Demonstrations``; for the parameters see its ``from_minari``."""
    minari = _import_minari()
    if isinstance(dataset, str):
        dataset = minari.load_dataset(dataset)
    if not isinstance(dataset, minari.MinariDataset):
        raise ValueError(f"dataset={dataset!r} must be a MinariDataset or the id of one")
    check_minari_spaces(dataset.id, dataset.observation_space, dataset.action_space)
    if dataset.total_episodes == 0:
        raise ValueError(f"dataset {dataset.id!r} has no episodes")
    lengths = []
    with ColumnWriter(folder) as writer:
        for episode in dataset.iterate_episodes():
            n_steps = len(episode)
            if n_steps == 0:
                continue
            lengths.append(n_steps)
            writer.append("observations", map_columns(lambda rows, n=n_steps: np.asarray(rows)[:n], episode.observations))
            final = map_columns(lambda rows, n=n_steps: np.asarray(rows)[n : n + 1], episode.observations)
            writer.append("final_observations", final)
            writer.append("actions", episode.actions)
            writer.append("rewards", np.asarray(episode.rewards, np.float32))
            terminations = np.zeros(n_steps, dtype=bool)
            terminations[-1] = bool(episode.terminations[-1])
            writer.append("terminations", terminations)
        if not lengths:
            raise ValueError(f"dataset {dataset.id!r} has no steps")
        names = ("observations", "final_observations", "actions", "rewards", "terminations")
        columns: dict[str, Any] = {name: writer.columns(name) for name in names}
    if np.isnan(columns["rewards"]).all():  # as write_minari writes what nobody knows
        columns["rewards"] = None
    return dict(
        **columns,
        episode_ends=np.cumsum(lengths),
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        env_spec=dataset.env_spec,
    )


def write_minari(demonstrations: "Demonstrations", dataset_id: str, **metadata: Any) -> "MinariDataset":
    """For parameters and errors see ``Demonstrations.to_minari``."""
    minari = _import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.storage.datasets_root_dir import get_dataset_path

    for name in ("observation_space", "action_space"):
        if metadata.setdefault(name, getattr(demonstrations, name)) is None:
            raise ValueError(f"{name}=None, and these demonstrations know none: Minari needs it")
    if demonstrations.final_observations is None:
        raise ValueError(
            "these demonstrations have no final_observations: Minari stores the observation after each episode's last step"
        )
    check_minari_spaces(dataset_id, metadata["observation_space"], metadata["action_space"])
    metadata.setdefault("env", _portable(demonstrations.env_spec))
    metadata.setdefault("jpeg_encoding", False)  # which would change images

    def episode_buffer(episode: int) -> Any:
        start, end = int(demonstrations.episode_starts[episode]), int(demonstrations.episode_ends[episode])
        rows = np.arange(start, end)
        return EpisodeBuffer(
            observations=map_columns(
                lambda column, final: np.concatenate([take(column, rows), take(final, np.asarray([episode]))]),
                demonstrations.observations,
                demonstrations.final_observations,
            ),
            actions=take(demonstrations.actions, rows),
            # Not known is not zero.
            rewards=np.full(end - start, np.nan) if demonstrations.rewards is None else demonstrations.rewards[start:end],
            terminations=demonstrations.terminations[start:end],
            truncations=demonstrations.truncations[start:end],
        )

    path = get_dataset_path(dataset_id)
    if path.exists():
        raise ValueError(f"dataset_id={dataset_id!r} exists at {path}: nothing is overwritten; delete it or choose another")
    try:
        dataset = minari.create_dataset_from_buffers(dataset_id, buffer=[episode_buffer(0)], **metadata)
        for episode in range(1, demonstrations.n_episodes):
            dataset.update_dataset_from_buffer([episode_buffer(episode)])
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return dataset


def _portable(env_spec: EnvSpec | None) -> EnvSpec | None:
    """The specification if it can be written down; else None, with a warning."""
    if env_spec is None:
        return None
    try:
        env_spec.to_json()
    except (TypeError, ValueError) as error:
        warnings.warn(f"{env_spec.id} is left out of the data set, which keeps its spaces: {error}", stacklevel=4)
        return None
    return env_spec
