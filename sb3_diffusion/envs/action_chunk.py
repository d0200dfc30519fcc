"""Action chunks: one decision is several actions, executed one after the other."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffusion.common.validation import check_number


class ActionChunk(gym.Wrapper[Any, np.ndarray, Any, np.ndarray], gym.utils.RecordConstructorArgs):
    """
    The policy decides on several actions at once, as is usual where a diffusion policy imitates (Diffusion Policy,
    arXiv 2303.04137): a chunk keeps to the way that it chose, where single actions would waver between two.

    The action is the chunk, of shape (length, \\*shape). Its actions are executed in order; n of them, fewer than ``length``
    only where the episode ends before. The rest of the chunk is then dropped, and termination and truncation are those of
    the environment. Observation and info are those after the last executed action; ``info`` has besides ``n_env_steps``: n,
    and ``discount``: γ^n.

    **Rewards and discount.** The reward of a chunk is ``Σ_{i<n} γ^i r_i``, and what follows it is worth γ^length:

        env = make_vec_env(env_id, wrapper_class=ActionChunk, wrapper_kwargs=dict(length=4, gamma=0.99))
        model = DiffSAC("MlpPolicy", env, gamma=0.99**4)

    and the same for ``VecNormalize(..., gamma=0.99**4)``. Then the values are those of the environment's steps with γ. Only
    after a chunk that a time limit cuts short is the value of the last observation discounted with γ^length in place of
    γ^n; a limit that is a multiple of ``length`` avoids it.

    **What counts steps.** ``total_timesteps``, ``learning_starts``, buffers and n-step returns count chunks. A time limit
    belongs inside, as in ``gym.make``, where it counts the environment's steps. So does ``Monitor``, to report episode
    lengths in environment steps and undiscounted returns; ``make_vec_env`` has it there. Outside, where an algorithm puts it
    around an environment without one, it reports chunks and the sum of their rewards. ``VecFrameStack`` outside stacks the
    observations at which decisions are made, :class:`gymnasium.wrappers.FrameStackObservation` inside those of all steps; a
    video recorder inside films them all.

    Demonstrations of single actions become demonstrations of chunks with :func:`sb3_diffusion.demonstrations.in_chunks`.

    :param env: environment whose action space is a Box
    :param length: actions in a chunk, ≥ 1
    :param gamma: γ, discount of an environment step, in [0, 1]
    :raises ValueError: for an argument out of range, and an action space that is not a Box
    """

    def __init__(self, env: gym.Env[Any, np.ndarray], length: int, gamma: float = 0.99) -> None:
        check_number("length", length, 1, integer=True)
        check_number("gamma", gamma, 0, 1)
        gym.utils.RecordConstructorArgs.__init__(self, length=length, gamma=gamma)
        super().__init__(env)
        box = env.action_space
        if not isinstance(box, spaces.Box):
            raise ValueError(f"env has the action space {box}; allowed: a Box")
        self.length = int(length)
        self.gamma = float(gamma)
        low, high = (np.repeat(bound[None], self.length, axis=0) for bound in (box.low, box.high))
        self.action_space = spaces.Box(low, high, dtype=box.dtype.type)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: the chunk, (length, \\*shape)
        :return: observation, discounted sum of the rewards, terminated, truncated, info
        :raises ValueError: for an action of another shape
        """
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action has the shape {np.shape(action)}; allowed: {self.action_space.shape}")
        total, discount = 0.0, 1.0
        for n_env_steps, single in enumerate(action, 1):  # noqa: B007  # needed after the loop
            observation, reward, terminated, truncated, info = self.env.step(single)
            total += discount * float(reward)
            discount *= self.gamma
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, "n_env_steps": n_env_steps, "discount": discount}
