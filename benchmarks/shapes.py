"""An environment that has shapes and costs nothing."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ShapesEnv(gym.Env):
    """
    Constant observations, no reward, no end.

    :param observation_dim: of the observations; HalfCheetah-v5's by default
    :param action_dim: of the actions, in [-1, 1]
    """

    def __init__(self, observation_dim: int = 17, action_dim: int = 6) -> None:
        self.observation_space = spaces.Box(-1, 1, (observation_dim,))
        self.action_space = spaces.Box(-1, 1, (action_dim,))
        self.observation = np.zeros(observation_dim, dtype=np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        return self.observation, {}

    def step(self, action):  # type: ignore[no-untyped-def]
        return self.observation, 0.0, False, False, {}
