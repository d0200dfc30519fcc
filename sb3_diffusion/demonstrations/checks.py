"""Whether demonstrations fit a model, before anything starts."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_diffusion.demonstrations.columns import Column, in_pieces, named_columns, to_space

if TYPE_CHECKING:
    from sb3_diffusion.demonstrations.demonstrations import Demonstrations

# Share of a box's width by which actions may lie outside: rounding, not other units
ROUNDING = 1e-5
# Larger shares of strange observations are taken for other units, smaller ones for outliers.
OUTLIERS = 0.01


def outside(values: np.ndarray, space: spaces.Box, tolerance: float) -> np.ndarray:
    """
    :param values: (B, *shape of the space)
    :param tolerance: share of the box's width
    :return: like ``values``, True where outside the bounds
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        margin = np.where(np.isfinite(high - low), tolerance * (high - low), 0)
    return (values < low - margin) | (values > high + margin)


def beyond(values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param values: (B, *shape of the space)
    :param space: any but a Dict
    :return: like ``values``, True where the space has no such value
    """
    if isinstance(space, spaces.Box):
        return outside(values, space, ROUNDING)
    if isinstance(space, spaces.Discrete):
        first, last = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        first, last = space.start, space.start + space.nvec - 1
    else:
        first, last = 0, 1
    return np.asarray((values < first) | (values > last))


def check_actions(actions: Column, action_space: spaces.Box) -> None:
    """
    :raises ValueError: for actions of another shape, not finite, or outside the bounds by more than rounding
    """
    check_numbers("actions", actions)
    if actions.shape[1:] != action_space.shape:
        raise ValueError(f"actions have the shape {actions.shape[1:]}, but the action space is {action_space}")
    n_outside, furthest = 0, 0.0
    for piece in in_pieces(len(actions)):
        values = np.asarray(actions[piece], dtype=np.float64)
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            row = piece.start + int((~finite).argmax())
            raise ValueError(f"actions are not finite at row {row}: {actions[row]}")
        far = outside(values, action_space, ROUNDING)
        n_outside += int(far.reshape(len(values), -1).any(axis=1).sum())
        furthest = max(furthest, float(np.maximum(values - action_space.high, action_space.low - values).max()))
    if n_outside:
        raise ValueError(
            f"actions: {n_outside} of {len(actions)} lie outside {action_space}, by up to {furthest:g}. Other units than the "
            "environment's? If the environment itself clips them, make the demonstrations with clip_actions=True"
        )


def check_same_actions(demonstrated: spaces.Space | None, action_space: spaces.Box) -> None:
    """:raises ValueError: if demonstrations come from an environment whose actions have other bounds"""
    if demonstrated is None:
        return
    if not (
        isinstance(demonstrated, spaces.Box)
        and demonstrated.shape == action_space.shape
        and np.allclose(demonstrated.low, action_space.low)
        and np.allclose(demonstrated.high, action_space.high)
    ):
        raise ValueError(
            f"the actions were recorded in {demonstrated}, but the model's action space is {action_space}: other units or "
            "another environment"
        )


def check_numbers(name: str, column: Column) -> None:
    """:raises ValueError: unless it holds real numbers"""
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{name} are {column.dtype}; allowed: real numbers")


def check_observations(name: str, column: Column, space: spaces.Space, ends: bool = False) -> None:
    """
    :param name: as messages call it
    :param column: (N, …)
    :param space: of one observation; an image's axes may be in another order
    :param ends: seen when an episode ended, maybe because a bound was left: outside the bounds they are a warning
    :raises ValueError: for another shape or type, not finite, or for the most part outside the bounds
    """
    check_numbers(name, column)
    shape = column.shape[1:]
    if is_image_space(space) and len(shape) == len(space.shape or ()):
        shape = to_space(np.asarray(column[:1]), space).shape[1:]
    if shape != space.shape:
        raise ValueError(
            f"{name} have the shape {column.shape[1:]}, but the observation space is {space}. Demonstrations must be made "
            "with the wrappers of the model's environment"
        )
    if isinstance(space, spaces.Box) and is_image_space(space) and column.dtype != np.uint8:
        raise ValueError(f"{name} are {column.dtype}, but the observation space holds images: uint8, 0 … 255")
    n_outside, example = 0, None
    transposed = shape != column.shape[1:]
    for piece in in_pieces(len(column)):
        values = np.asarray(column[piece])
        if np.issubdtype(values.dtype, np.floating) and not (finite := np.isfinite(values)).all():
            row_number = piece.start + int((~finite.reshape(len(values), -1).all(axis=1)).argmax())
            raise ValueError(f"{name} are not finite at row {row_number}")
        # An image's bounds are the same for all pixels, and its type keeps them.
        outliers = np.zeros(values.shape, dtype=bool) if transposed else beyond(values, space)
        wrong = outliers.reshape(len(values), -1).any(axis=1)
        n_outside += int(wrong.sum())
        if example is None and wrong.any():
            example = values[wrong.argmax()].tolist()
    message = f"{name}: {n_outside} of {len(column)} rows lie outside {space}, the first is {example}"
    if n_outside and (not isinstance(space, spaces.Box) or (n_outside > OUTLIERS * len(column) and not ends)):
        raise ValueError(f"{message}. Other units than the environment's, or already normalised?")
    if n_outside:
        warnings.warn(message, stacklevel=5)


def check_rewards(rewards: np.ndarray | None) -> None:
    """:raises ValueError: for rewards that are not finite"""
    if rewards is not None and not (finite := np.isfinite(rewards)).all():
        row = int(finite.argmin())
        raise ValueError(f"the reward at row {row} is {rewards[row]}; rewards that nobody knows are None, all of them")


def check_fits(
    demonstrations: "Demonstrations", observation_space: spaces.Space, action_space: spaces.Space, name: str
) -> None:
    """For parameters and errors see ``Demonstrations.check_spaces``."""
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"{name} has the action space {action_space}; allowed: Box")
    check_same_actions(demonstrations.action_space, action_space)
    check_actions(demonstrations.actions, action_space)
    check_rewards(demonstrations.rewards)
    columns: Any = demonstrations.observations
    if isinstance(observation_space, spaces.Dict):
        if not isinstance(columns, dict) or columns.keys() != observation_space.spaces.keys():
            keys = sorted(columns) if isinstance(columns, dict) else f"an array of shape {columns.shape}"
            raise ValueError(f"observations are {keys}, but {name} observes {sorted(observation_space.spaces)}")
    elif isinstance(columns, dict):
        raise ValueError(f"observations are a dictionary, but the observation space of {name} is {observation_space}")
    parts: Any = observation_space.spaces if isinstance(observation_space, spaces.Dict) else observation_space
    for kind, given in (("observations", columns), ("final_observations", demonstrations.final_observations)):
        space_of = dict(named_columns(kind, parts))
        for column_name, column in named_columns(kind, given) if given is not None else ():
            check_observations(column_name, column, space_of[column_name], ends=kind == "final_observations")


def statistics(vec_normalize: VecNormalize) -> dict[str, Any]:
    """The observation statistics by key; of observations that are no dictionary under ``""``; none without ``norm_obs``."""
    if not vec_normalize.norm_obs:
        return {}
    rms = vec_normalize.obs_rms
    return rms if isinstance(rms, dict) else {"": rms}


def has_statistics(vec_normalize: VecNormalize) -> bool:
    """Whether more has been seen than what resets show: a new ``VecNormalize`` counts a fraction of an observation."""
    return all(rms.count > 2 * vec_normalize.num_envs + 1 for rms in statistics(vec_normalize).values())


def check_not_stacked(env: VecEnv | None, vec_normalize: VecNormalize) -> None:
    """:raises ValueError: for frames that are stacked around ``VecNormalize``"""
    while isinstance(env, VecEnvWrapper) and env is not vec_normalize:
        if isinstance(env, VecFrameStack):
            raise ValueError(
                "env has VecFrameStack around VecNormalize: raw observations would not be what the policy sees; allowed: "
                "VecNormalize around all wrappers that change observations"
            )
        env = env.venv


def check_normalization(demonstrations: "Demonstrations", vec_normalize: VecNormalize) -> None:
    """:raises ValueError: for observations that the statistics make nothing but outliers of"""
    if not has_statistics(vec_normalize):
        return
    columns: Any = demonstrations.observations
    for key, rms in statistics(vec_normalize).items():
        column = columns[key] if key else columns
        if rms.mean.shape != column.shape[1:]:
            continue  # images with the axes in another order
        n_clipped = 0
        for piece in in_pieces(len(column)):
            values = (np.asarray(column[piece]) - rms.mean) / np.sqrt(rms.var + vec_normalize.epsilon)
            n_clipped += int((np.abs(values) > vec_normalize.clip_obs).reshape(len(values), -1).any(axis=1).sum())
        if n_clipped > OUTLIERS * len(column):
            raise ValueError(
                f"observations{f'[{key!r}]' if key else ''}: VecNormalize clips {n_clipped} of {len(column)} rows to "
                f"±{vec_normalize.clip_obs:g}: its statistics belong to other states or units. A VecNormalize that has seen "
                "nothing yet is fitted to the demonstrations"
            )


def check_model(demonstrations: "Demonstrations", model: BaseAlgorithm) -> None:
    """For parameters and errors see ``Demonstrations.check``."""
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is not None:
        check_not_stacked(model.get_env(), vec_normalize)
    # What lies below VecNormalize are the raw observations.
    space = model.observation_space if vec_normalize is None else vec_normalize.venv.observation_space
    check_fits(demonstrations, space, model.action_space, type(model).__name__)
    if vec_normalize is not None:
        check_normalization(demonstrations, vec_normalize)
