"""Action boxes of any bounds, shape and dtype; observations of every kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import observations
from envs_for_tests import AnyObservationEnv, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

MakeModel = Callable[..., Any]

BOXES = {
    "symmetric": (np.array([-1.0]), np.array([1.0])),
    "asymmetric": (np.array([-3.0, 0.0]), np.array([5.0, 0.5])),
    "excluding zero": (np.array([2.0]), np.array([3.0])),
    "tiny": (np.array([-1e-3]), np.array([1e-3])),
    "huge": (np.array([-1e4]), np.array([1e4])),
    "matrix": (np.array([[-1.0, -2.0], [-3.0, 0.0]]), np.array([[1.0, 2.0], [5.0, 0.5]])),
    "three-dimensional": (-np.ones((1, 2, 2)), np.full((1, 2, 2), 2.0)),
    "scalar": (np.array(-2.0), np.array(2.0)),
}


@pytest.mark.parametrize("low, high", BOXES.values(), ids=BOXES)
def test_training_and_prediction_stay_inside_any_box(make_model: MakeModel, low: np.ndarray, high: np.ndarray) -> None:
    # The environment refuses actions outside its space, in training too.
    model = make_model(StrictBoxEnv(low=low, high=high)).learn(16)
    stored = model.replay_buffer.actions[: model.replay_buffer.pos]
    assert stored.shape == (16, 1, low.size)
    assert np.abs(stored).max() <= 1.0
    for deterministic in (True, False):
        actions, _ = model.predict(observations(model), deterministic=deterministic)
        assert actions.shape == (8, *low.shape)
        assert all(model.action_space.contains(np.asarray(action)) for action in actions)


@pytest.mark.parametrize("name", ["asymmetric", "excluding zero", "matrix"])
def test_the_untrained_policy_reaches_every_part_of_the_box(make_model: MakeModel, name: str) -> None:
    low, high = BOXES[name]
    model = make_model(StrictBoxEnv(low=low, high=high))
    actions, _ = model.predict(np.zeros((500, 3), np.float32))
    relative = (actions - low) / (high - low)
    assert np.all(np.histogram(relative, bins=5, range=(0.0, 1.0))[0] > 0)
    assert np.all(np.abs(relative.mean(axis=0) - 0.5) < 0.1)
    assert np.all(relative.min(axis=0) < 0.1) and np.all(relative.max(axis=0) > 0.9)


@pytest.mark.parametrize("observation_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("action_dtype", [np.float32, np.float64])
def test_dtypes_of_observations_and_actions_are_kept(
    make_model: MakeModel, observation_dtype: type, action_dtype: type
) -> None:
    env = StrictBoxEnv([-3.0, 0.0], [5.0, 0.5], action_dtype=action_dtype, observation_dtype=observation_dtype)
    model = make_model(env).learn(14)
    for deterministic in (True, False):
        action, _ = model.predict(observations(model)[0], deterministic=deterministic)
        assert action.dtype == action_dtype
    assert model.replay_buffer.observations.dtype == observation_dtype


def test_float64_and_float32_observations_of_the_same_values_predict_the_same(make_model: MakeModel) -> None:
    model = make_model(StrictBoxEnv(observation_dtype=np.float64))
    obs = observations(model).astype(np.float32)
    single, double = (model.predict(obs.astype(dtype), deterministic=True)[0] for dtype in (np.float32, np.float64))
    assert np.array_equal(single, double)


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, 255, (4,), dtype=np.uint8),
    ],
    ids=str,
)
def test_every_kind_of_flat_observation_trains(make_model: MakeModel, observation_space: spaces.Space) -> None:
    model = make_model(AnyObservationEnv(observation_space)).learn(12)
    action, _ = model.predict(observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)


def test_a_dict_of_every_kind_of_observation_trains(make_model: MakeModel) -> None:
    parts = dict(number=spaces.Discrete(3), vector=spaces.Box(-1.0, 1.0, (2,), np.float64), bits=spaces.MultiBinary(2))
    env = AnyObservationEnv(spaces.Dict(parts))
    model = make_model(env, "MultiInputPolicy").learn(12)
    action, _ = model.predict(env.observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)


def test_several_environments_with_matrix_actions_train(make_model: MakeModel) -> None:
    low, high = BOXES["matrix"]
    model = make_model(make_vec_env(lambda: StrictBoxEnv(low, high), 3), gradient_steps=-1).learn(18)
    assert model.replay_buffer.actions.shape[1:] == (3, 4)
    assert model.predict(observations(model, 3))[0].shape == (3, 2, 2)
