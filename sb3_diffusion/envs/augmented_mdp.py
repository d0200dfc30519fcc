"""The diffusion-augmented decision process as an environment: one environment step becomes K steps."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.validation import check_choice, check_number

# Gymnasium and Stable-Baselines3 want finite action spaces. No Gaussian gets this many prior standard deviations away.
LATENT_BOUND = 10.0


class AugmentedMDP(gym.Wrapper[dict[str, Any], np.ndarray, Any, np.ndarray], gym.utils.RecordConstructorArgs):
    """
    Turns an environment with continuous actions into the diffusion-augmented decision process of arXiv 2512.02019
    (docs/method.md, "The augmented decision process"), in which any policy over single steps is a diffusion policy:

    * state ``(s, a^k, k)``, action ``a^{k-1}``; a chain starts with ``a^K`` from the prior ``N(0, ν² I)``
    * k > 1: reward 0, discount 1, next state ``(s, a^{k-1}, k - 1)``
    * k = 1: the environment steps with ``a^0``; its reward, discount γ, next state ``(s', a'^K, K)`` with a fresh ``a'^K``

    So an episode ends at k = 1 only, and its last observation holds a prior sample: the value of the last observation of a
    truncated episode is ``V_K(s', a'^K)``, what bootstrapping needs. Time limits belong inside this wrapper, where they count
    environment steps. This is the serial form of the process, K environment steps with one network evaluation each.

    The observation is a Dict: the environment's own observation (under "observation", or with its own keys if it is a Dict
    itself), ``latents``: ``a^k``, float32 of the action's shape, and ``diffusion_step``: ``k - 1``, a Discrete(K). SB3 turns
    the step into K indicators, so that the first layer has weights for each step by itself; as one number, neighbouring steps
    would look almost the same to a network. A Dict and not one vector, because so images stay images and
    ``VecNormalize(norm_obs_keys=["observation"])`` leaves alone the latents, whose scale ν is known. For ``MlpPolicy``,
    :class:`gymnasium.wrappers.FlattenObservation` puts the same numbers, indicators included, into one vector. The action,
    ``a^{k-1}``, is float32 of the environment's action shape too; its bounds ``± 10 ν`` are a formality.

    ``info["discount"]`` is the discount of the step, 1 or γ. Algorithms that know only one discount get γ^(1/K) for it.
    Prior samples come from the environment's own ``np_random``.

    :param env: environment whose action space is a bounded Box
    :param diffusion_steps: K ≥ 1
    :param prior_std: ν, from 1e-6 to 1e6
    :param gamma: γ, discount of an environment step, in [0, 1]
    :param squash: take ``tanh(a^0)`` and rescale it to the action space; else clip ``a^0``, in the units of the action, to it
    :raises ValueError: for an argument out of range, an action space that is not a bounded Box or, without ``squash``, reaches
        beyond ``10 ν``, and an observation space with a key "latents" or "diffusion_step"
    """

    def __init__(
        self,
        env: gym.Env[Any, np.ndarray],
        diffusion_steps: int = 4,
        prior_std: float = 1.0,
        gamma: float = 0.99,
        squash: bool = True,
    ) -> None:
        check_number("diffusion_steps", diffusion_steps, 1, integer=True)
        check_number("prior_std", prior_std, 1e-6, 1e6)
        check_number("gamma", gamma, 0, 1)
        check_choice("squash", squash, (False, True))
        gym.utils.RecordConstructorArgs.__init__(
            self, diffusion_steps=diffusion_steps, prior_std=prior_std, gamma=gamma, squash=squash
        )
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, spaces.Box) or not box.is_bounded():
            raise ValueError(f"env has the action space {box}; allowed: a bounded Box")
        largest = LATENT_BOUND * prior_std
        if not squash and max(-box.low.min(), box.high.max()) > largest:
            raise ValueError(
                f"prior_std={prior_std!r} leaves part of the action space {box} out of reach (10 prior_std); allowed: a "
                "larger one, squash=True, or an environment in gymnasium.wrappers.RescaleAction"
            )
        self.env_action_space = box
        self.diffusion_steps = diffusion_steps
        self.prior_std = prior_std
        self.gamma = gamma
        self.squash = squash
        own = env.observation_space
        parts = dict(own.spaces) if isinstance(own, spaces.Dict) else {"observation": own}
        added = {
            "latents": spaces.Box(-largest, largest, box.shape),
            "diffusion_step": spaces.Discrete(diffusion_steps),
        }
        if parts.keys() & added.keys():
            raise ValueError(f"env has observations {sorted(parts)}; {sorted(added)} must not be among them")
        self.observation_space = spaces.Dict(parts | added)
        self.action_space = spaces.Box(-largest, largest, box.shape)
        # k; 0: no episode has begun
        self._diffusion_step = 0

    def _begin_chain(self, observation: Any) -> None:
        self._env_observation = observation
        self._latents = self.prior_std * self.np_random.standard_normal(self.env_action_space.shape)
        self._diffusion_step = self.diffusion_steps

    def _observation(self) -> dict[str, Any]:
        own = deepcopy(self._env_observation)  # it is shown K times, and its receiver may change it
        if not isinstance(self.env.observation_space, spaces.Dict):
            own = {"observation": own}
        return {**own, "latents": self._latents.astype(np.float32), "diffusion_step": np.int64(self._diffusion_step - 1)}

    def env_action(self, latents: np.ndarray) -> np.ndarray:
        """
        :param latents: ``a^0``, of the action's shape
        :return: the action that the environment executes, of its action space's shape and dtype
        """
        low, high = self.env_action_space.low, self.env_action_space.high
        action = low + 0.5 * (np.tanh(latents) + 1) * (high - low) if self.squash else latents
        return np.clip(action, low, high).astype(self.env_action_space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """:return: ``(s, a^K, K)`` and the environment's info"""
        observation, info = self.env.reset(seed=seed, options=options)
        self._begin_chain(observation)
        return self._observation(), info

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        :param action: ``a^{k-1}``, of the action's shape
        :return: next observation, reward, terminated, truncated, info
        :raises gymnasium.error.ResetNeeded: before the first reset and after the end of an episode
        :raises ValueError: for an action of another shape, or one that is not finite
        """
        if self._diffusion_step == 0:
            raise gym.error.ResetNeeded("Cannot call env.step() before calling env.reset(), nor after the end of an episode")
        action = np.asarray(action)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(f"action={action!r} must be finite and have the shape {self.action_space.shape}")
        if self._diffusion_step > 1:
            self._latents = action
            self._diffusion_step -= 1
            return self._observation(), 0.0, False, False, {"discount": 1.0}
        observation, reward, terminated, truncated, info = self.env.step(self.env_action(action))
        self._begin_chain(observation)
        last = self._observation()
        if terminated or truncated:
            self._diffusion_step = 0
        return last, float(reward), terminated, truncated, {**info, "discount": self.gamma}
