"""Environments and feature extractors that exist only to exercise the Stable-Baselines3 surface quickly."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class StrictBoxEnv(gym.Env):
    """
    A three-dimensional point that the mean action pushes around. It refuses any action outside its action space
    (bounds, shape and dtype), so that a wrongly rescaled action cannot go unnoticed.

    :param low: lower bounds of the action space, an array of the action's shape
    :param high: upper bounds of the action space
    :param action_dtype: dtype of the action space
    :param observation_dtype: dtype of the observation space
    :param episode_length: number of steps before truncation
    """

    def __init__(
        self,
        low: Any = (-1.0,),
        high: Any = (1.0,),
        action_dtype: type = np.float32,
        observation_dtype: type = np.float32,
        episode_length: int = 10,
    ):
        self.action_space = spaces.Box(np.asarray(low, action_dtype), np.asarray(high, action_dtype), dtype=action_dtype)
        self.observation_space = spaces.Box(-10.0, 10.0, (3,), dtype=observation_dtype)
        self.episode_length = episode_length

    def _observation(self) -> np.ndarray:
        return self.point.astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-1.0, 1.0, 3)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self.action_space.contains(np.asarray(action)):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self.point = 0.9 * self.point + 0.1 * float(np.mean(action)) + 0.01 * self.np_random.standard_normal(3)
        self.point = np.clip(self.point, -10.0, 10.0)
        self.n_steps += 1
        return self._observation(), -float(np.abs(self.point).sum()), False, self.n_steps >= self.episode_length, {}


class AnyObservationEnv(gym.Env):
    """
    Random observations from any space, one-dimensional actions.

    :param observation_space: the observation space to draw from
    """

    def __init__(self, observation_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        return self.observation_space.sample(), float(action[0]), False, self.n_steps >= 10, {}


class AnyActionEnv(StrictBoxEnv):
    """
    :param action_space: the action space to offer, whether or not the algorithm can use it
    """

    def __init__(self, action_space: spaces.Space):
        super().__init__()
        self.action_space = action_space


class AsDict(gym.ObservationWrapper):
    """The same observations under the only key of a Dict space."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"only": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"only": observation}


class BatchNormDropoutExtractor(BaseFeaturesExtractor):
    """Features that depend on the training mode: batch normalisation and dropout."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 6, dropout: float = 0.5):
        super().__init__(observation_space, features_dim)
        self.linear = nn.Linear(int(np.prod(observation_space.shape)), features_dim)
        self.batch_norm = nn.BatchNorm1d(features_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(self.batch_norm(self.linear(observations)))


class CountingExtractor(BaseFeaturesExtractor):
    """A small trainable extractor that counts how often it is evaluated."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 5):
        super().__init__(observation_space, features_dim)
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), features_dim), nn.Tanh())
        self.n_calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.n_calls += 1
        return self.linear(observations)


class SmallImageExtractor(CountingExtractor):
    """The same for images: what it saw last tells whether pixels were divided by 255."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.largest_input = float(observations.max())
        return super().forward(observations)
