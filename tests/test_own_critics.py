"""A user's critic whose ``forward`` does more than its ``q_networks`` is trained as what it is."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import SACPolicy

from sb3_diffusion import DiffSAC, DiffusionSACPolicy, DiffusionWPOPolicy, DiffWPO

SCALE = 10.0
DISCOUNT = 0.8


class AlwaysOne(gym.Env):
    """A reward of 1 at every step of an endless episode: without an entropy bonus every action is worth 1 / (1 - γ)."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, False, {}


class ScaledCritic(ContinuousCritic):
    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(SCALE * value for value in super().forward(obs, actions))


class MeanCritic(ContinuousCritic):
    """One value: the mean over the ensemble, with a bound."""

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        values = th.cat(super().forward(obs, actions), dim=1)
        return (20 * th.tanh(values.mean(dim=1, keepdim=True) / 2),)


def policy_with(critic_class: type[ContinuousCritic], base: Any) -> Any:
    class Policy(base):  # type: ignore[misc]
        def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
            critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
            return critic_class(**critic_kwargs).to(self.device)

    return Policy


@pytest.mark.parametrize("critic_class", [ScaledCritic, MeanCritic, ContinuousCritic])
@pytest.mark.parametrize("algorithm", [SAC, DiffSAC, DiffWPO])
def test_a_critic_of_ones_own_learns_the_value_or_is_refused(algorithm: Any, critic_class: Any) -> None:
    base = {SAC: SACPolicy, DiffSAC: DiffusionSACPolicy, DiffWPO: DiffusionWPOPolicy}[algorithm]
    arguments: dict[str, Any] = dict(learning_rate=3e-3, gamma=DISCOUNT, tau=0.2, ent_coef=0.0, batch_size=64)
    arguments |= dict(policy_kwargs=dict(net_arch=[16]), learning_starts=100, buffer_size=1_000, seed=0, device="cpu")
    try:
        model = algorithm(policy_with(critic_class, base), AlwaysOne(), **arguments)
    except ValueError as error:
        assert "critic" in str(error)
        return
    model.learn(400)
    obs = np.zeros((5, 2), np.float32)
    with th.no_grad():
        values = model.critic(th.as_tensor(obs), th.as_tensor(model.predict(obs)[0]))[0]
    assert np.allclose(values.numpy(), 1 / (1 - DISCOUNT), atol=1.0), values
