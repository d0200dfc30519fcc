"""Recording demonstrations: a policy or a scripted controller acts in an environment."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, PolicyPredictor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_diffusion.common.validation import LARGEST_SEED, check_choice, check_number
from sb3_diffusion.demonstrations.columns import Columns, ColumnWriter, map_columns, take

# Wrappers around VecNormalize that leave observations what VecNormalize made of them, but for the order of an image's axes
HARMLESS_WRAPPERS = (VecTransposeImage, VecMonitor, VecCheckNan)

Controller = Callable[[Any], Any]


class Actor(Protocol):
    """Whoever decides in all environments at once."""

    def __call__(self, observations: Any, episode_starts: np.ndarray) -> np.ndarray: ...


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """
    The global generators (PyTorch, NumPy, Python) start from a seed, and afterwards are where they were before.

    :param seed: None: they go on as they are
    """
    if seed is None:
        yield
        return
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with th.random.fork_rng():
            th.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class PredictingActor:
    """
    A model or policy of SB3's kind.

    :param policy: with a method ``predict``
    :param deterministic: passed on to it
    :param vec_normalize: whose statistics the policy expects to be applied, if any
    """

    def __init__(self, policy: PolicyPredictor, deterministic: bool, vec_normalize: VecNormalize | None) -> None:
        self.policy = policy
        self.deterministic = deterministic
        self.vec_normalize = vec_normalize
        self.states: Any = None

    def __call__(self, observations: Any, episode_starts: np.ndarray) -> np.ndarray:
        if self.vec_normalize is not None:
            observations = self.vec_normalize.normalize_obs(observations)
        actions, self.states = self.policy.predict(observations, self.states, episode_starts, self.deterministic)
        return np.asarray(actions)


class ControllingActor:
    """
    A scripted controller, one copy for each environment where there are several.

    :param controller: ``controller(observation) -> action``, of one environment; its method ``reset(seed=…)``, if it has one,
        is called before the first step of an episode
    :param n_envs: how many environments
    :param seed: of the seeds that ``reset`` gets
    """

    def __init__(self, controller: Controller, n_envs: int, seed: int | None) -> None:
        has_state = n_envs > 1 and hasattr(controller, "reset")
        self.controllers = [copy.deepcopy(controller) if has_state else controller for _ in range(n_envs)]
        self.rng = np.random.default_rng(seed)

    def __call__(self, observations: Any, episode_starts: np.ndarray) -> np.ndarray:
        actions = []
        for i, (controller, starts) in enumerate(zip(self.controllers, episode_starts, strict=True)):
            if starts and hasattr(controller, "reset"):
                controller.reset(seed=int(self.rng.integers(LARGEST_SEED)))
            actions.append(np.asarray(controller(map_columns(lambda rows, i=i: rows[i], observations))))
        return np.stack(actions)


def as_vec_env(env: GymEnv | str) -> tuple[VecEnv, VecNormalize | None]:
    """
    :param env: an environment, several of them, or the id of one
    :return: environments that give raw observations and rewards, and the ``VecNormalize`` around them, if any
    :raises ValueError: for something else, and for wrappers around ``VecNormalize`` that change observations
    """
    env = gym.make(env) if isinstance(env, str) else env
    if isinstance(env, gym.Env):
        single = env
        return DummyVecEnv([lambda: single]), None
    if not isinstance(env, VecEnv):
        raise ValueError(f"env={env!r} must be an environment of Gymnasium, a VecEnv, or an id")
    vec_normalize = unwrap_vec_normalize(env)
    if vec_normalize is None:
        return env, None
    while env is not vec_normalize:
        assert isinstance(env, VecEnvWrapper)
        if not isinstance(env, HARMLESS_WRAPPERS):
            raise ValueError(
                f"env has {type(env).__name__} around VecNormalize: raw observations would not be what the policy sees; "
                "allowed: VecNormalize around all wrappers that change observations"
            )
        env = env.venv
    # Acting below VecNormalize leaves its statistics alone, and loses nothing to its clipping.
    return vec_normalize.venv, vec_normalize


def spec_of(env: VecEnv) -> Any:
    """How to make one of the environments again, or None."""
    try:
        return env.get_attr("spec", [0])[0]
    except AttributeError:
        return None


def record_episodes(
    policy: PolicyPredictor | Controller,
    env: GymEnv | str,
    n_episodes: int,
    seed: int | None,
    deterministic: bool,
    folder: str | Path | None,
) -> dict[str, Any]:
    """The arguments of ``Demonstrations``; for the parameters see its ``from_policy``."""
    check_number("n_episodes", n_episodes, 1, integer=True)
    if seed is not None:
        check_number("seed", seed, 0, LARGEST_SEED, integer=True)
    check_choice("deterministic", deterministic, (False, True))
    if not (hasattr(policy, "predict") or callable(policy)):
        raise ValueError(f"policy={policy!r} must have a method predict or be callable")
    venv, vec_normalize = as_vec_env(env)
    env_spec = spec_of(venv)
    action_space = venv.action_space
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"env has the action space {action_space}; allowed: Box")
    actor: Actor
    if hasattr(policy, "predict"):
        actor = PredictingActor(policy, deterministic, vec_normalize)
    else:
        actor = ControllingActor(policy, venv.num_envs, seed)
    try:
        with seeded(seed), ColumnWriter(folder) as writer:
            if seed is not None:
                venv.seed(seed)
            episode_lengths = _record(actor, venv, action_space, n_episodes, writer)
            columns = {name: writer.columns(name) for name in ("observations", "actions", "rewards", "terminations")}
            final_observations = writer.columns("final_observations")
    finally:
        if isinstance(env, str):
            venv.close()
    return dict(
        **columns,
        final_observations=final_observations,
        episode_ends=np.cumsum(episode_lengths),
        observation_space=venv.observation_space,
        action_space=action_space,
        env_spec=env_spec,
    )


def _record(actor: Actor, env: VecEnv, action_space: spaces.Box, n_episodes: int, writer: ColumnWriter) -> list[int]:
    """:return: the lengths of the episodes"""
    n_envs = env.num_envs
    # Each environment has its share, as in SB3's evaluation: who ends first would favour short episodes.
    wanted = [(n_episodes + i) // n_envs for i in range(n_envs)]
    steps: list[list[tuple[Any, np.ndarray, float]]] = [[] for _ in range(n_envs)]
    lengths = []
    size = int(np.prod(action_space.shape))
    shapes: set[tuple[int, ...]] = {action_space.shape, (size,)} | ({()} if size == 1 else set())
    observations, starts = env.reset(), np.ones(n_envs, dtype=bool)
    while any(wanted):
        actions = np.asarray(actor(observations, starts), dtype=action_space.dtype)
        if actions.shape[1:] not in shapes:
            raise ValueError(f"policy gave an action of the shape {actions.shape[1:]}; allowed: {action_space.shape}")
        actions = actions.reshape(n_envs, *action_space.shape)
        if not np.isfinite(actions).all():
            raise ValueError(f"policy gave the action {actions.tolist()}; allowed: finite numbers")
        actions = np.clip(actions, action_space.low, action_space.high)
        next_observations, rewards, dones, infos = env.step(actions)
        for i in np.flatnonzero(wanted):
            steps[i].append((map_columns(lambda rows, i=i: np.array(rows[i]), observations), actions[i], float(rewards[i])))
            if dones[i]:
                terminated = not infos[i].get("TimeLimit.truncated", False)
                _write_episode(writer, steps[i], infos[i]["terminal_observation"], terminated)
                lengths.append(len(steps[i]))
                steps[i] = []
                wanted[i] -= 1
        observations, starts = next_observations, np.asarray(dones, dtype=bool)
    return lengths


def _write_episode(writer: ColumnWriter, steps: list[tuple[Any, np.ndarray, float]], last: Any, terminated: bool) -> None:
    observations, actions, rewards = zip(*steps, strict=True)
    stacked = map_columns(lambda *rows: np.stack(rows), *observations)
    writer.append("observations", stacked)
    writer.append("final_observations", map_columns(lambda row, rows: np.asarray(row, rows.dtype)[None], last, stacked))
    writer.append("actions", np.stack(actions))
    writer.append("rewards", np.asarray(rewards, np.float32))
    terminations = np.zeros(len(steps), dtype=bool)
    terminations[-1] = terminated
    writer.append("terminations", terminations)


def copy_episodes(
    data: dict[str, Columns | None], episode_ends: np.ndarray, episodes: np.ndarray, folder: Any
) -> dict[str, Any]:
    """
    :param data: the columns of demonstrations by their names; ``final_observations`` has one row an episode, the others one a
        step
    :param episode_ends: (E,)
    :param episodes: which, in this order
    :param folder: as in ``ColumnWriter``
    :return: the columns of these episodes, with their ``episode_ends``
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    present = {name: columns for name, columns in data.items() if columns is not None}
    with ColumnWriter(folder) as writer:
        for episode in episodes:
            steps = np.arange(starts[episode], episode_ends[episode])
            for name, columns in present.items():
                rows = np.asarray([episode]) if name == "final_observations" else steps
                writer.append(name, map_columns(lambda column, rows=rows: take(column, rows), columns))
        copied: dict[str, Any] = {name: writer.columns(name) for name in present}
    return copied | dict(episode_ends=np.cumsum((episode_ends - starts)[episodes]))
