"""
Checkpoints of a training that a process can be killed over at any moment.

At a checkpoint the training is reduced to what the checkpoint holds, whether or not the process goes on: environments are made
anew and seeded from the run's seed and the number of steps, as are the global generators, and the unfinished episodes in the
replay buffer count as truncated. So a training that was killed and continued has the same numbers as one that was not.
"""

import copy
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

PREFIX = "checkpoint-"


def replay_buffer_of(model: BaseAlgorithm) -> ReplayBuffer | None:
    """:return: its replay buffer, which on-policy algorithms have none of"""
    return getattr(model, "replay_buffer", None)


def end_trajectories(model: BaseAlgorithm) -> None:
    """Let the unfinished episodes in the replay buffer count as truncated: what comes next does not continue them."""
    buffer = replay_buffer_of(model)
    if buffer is None or (buffer.pos == 0 and not buffer.full):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it truncates
            buffer.truncate_last_trajectory()
        return
    unfinished = buffer.dones[buffer.pos - 1] == 0
    buffer.dones[buffer.pos - 1, unfinished] = True
    if buffer.handle_timeout_termination:
        buffer.timeouts[buffer.pos - 1, unfinished] = True


def filled_part(buffer: ReplayBuffer) -> ReplayBuffer:
    """:return: the buffer without the rows that nothing was written to yet; arrays are views of the same memory"""
    part = copy.copy(buffer)
    if buffer.full:
        return part

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        is_table = isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == buffer.buffer_size
        return value[: buffer.pos] if is_table else value

    part.__dict__.update({name: cut(value) for name, value in buffer.__dict__.items()})
    return part


def fill(buffer: ReplayBuffer, part: ReplayBuffer) -> None:
    """
    :param buffer: an empty one
    :param part: what :func:`filled_part` returned of one that was made alike
    """

    def filled(empty: Any, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(empty, dict):
            return {key: filled(empty.get(key), item) for key, item in value.items()}
        if isinstance(value, np.ndarray) and isinstance(empty, np.ndarray) and value.shape != empty.shape:
            empty[: len(value)] = value
            return empty
        return value

    kept = ("device", "env")
    state = part.__dict__.items()
    buffer.__dict__.update({name: filled(buffer.__dict__.get(name), value) for name, value in state if name not in kept})


def checkpoints_in(folder: Path) -> list[Path]:
    """:return: the complete checkpoints, the latest last"""
    return sorted(folder.glob(f"{PREFIX}*"))


def timesteps_kept(folder: Path) -> int:
    """:return: environment steps in the latest checkpoint"""
    checkpoints = checkpoints_in(folder)
    return int(checkpoints[-1].name.removeprefix(PREFIX)) if checkpoints else 0


def save_checkpoint(folder: Path, model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """
    Write all that the training needs to go on, then remove the previous checkpoint.

    :param folder: the run's
    :param model: at the start of a rollout
    :param state: more, as JSON has it
    """
    earlier = checkpoints_in(folder)
    temporary = folder / f".{PREFIX}{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save(temporary / "model.zip")
    buffer = replay_buffer_of(model)
    if buffer is not None:
        with (temporary / "replay_buffer.pkl").open("wb") as file:
            pickle.dump(filled_part(buffer), file, protocol=pickle.HIGHEST_PROTOCOL)
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        normalization.save(str(temporary / "vecnormalize.pkl"))
    (temporary / "state.json").write_text(json.dumps(state))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the rename must not outlive what it names
    os.replace(temporary, folder / f"{PREFIX}{model.num_timesteps:012d}")
    for path in earlier:
        shutil.rmtree(path)


def load_checkpoint(folder: Path, model: BaseAlgorithm, env: VecEnv) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
    """
    :param folder: the run's
    :param model: an untrained one with the run's settings
    :param env: its environment
    :return: the model as it was saved and the state that was saved with it; None if there is no checkpoint
    """
    # A checkpoint's folder has its name only since it is complete; what has another is left from a process that was killed.
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path)
    checkpoints = checkpoints_in(folder)
    if not checkpoints:
        return None
    latest = checkpoints[-1]
    loaded = type(model).load(latest / "model.zip", env=env, device=model.device)
    buffer = replay_buffer_of(loaded)
    if buffer is not None:
        with (latest / "replay_buffer.pkl").open("rb") as file:
            fill(buffer, pickle.load(file))
    normalization = loaded.get_vec_normalize_env()
    if normalization is not None:
        with (latest / "vecnormalize.pkl").open("rb") as file:
            saved: VecNormalize = pickle.load(file)
        normalization.obs_rms, normalization.ret_rms = saved.obs_rms, saved.ret_rms
    return loaded, json.loads((latest / "state.json").read_text())


def remove_checkpoints(folder: Path) -> None:
    """Of a run that is done."""
    for path in checkpoints_in(folder):
        shutil.rmtree(path)


def replace_environment(model: BaseAlgorithm, env: VecEnv) -> None:
    """
    Give the model a new environment, with the old one's normalisation statistics.

    :param model: at a checkpoint
    :param env: made as its present one was
    """
    old, new = model.get_vec_normalize_env(), None
    assert model.env is not None
    model.env.close()
    model.set_env(env)
    new = model.get_vec_normalize_env()
    if old is not None and new is not None:
        new.obs_rms, new.ret_rms = old.obs_rms, old.ret_rms
    buffer = replay_buffer_of(model)
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = env
