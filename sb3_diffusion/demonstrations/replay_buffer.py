"""A replay buffer that draws a share of each batch from demonstrations."""

import math
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.demonstrations.columns import WITHOUT_DEMONSTRATIONS, map_columns
from sb3_diffusion.demonstrations.demonstrations import Demonstrations

Samples = TypeVar("Samples", ReplayBufferSamples, DictReplayBufferSamples)


def mixed(first: Samples, second: Samples) -> Samples:
    """
    :param first: n transitions
    :param second: m transitions, with the same fields
    :return: all n + m in random order, drawn from NumPy's global generator as SB3's samples are
    """
    order = np.random.permutation(len(first.rewards) + len(second.rewards))

    def mix(one: Any, other: Any) -> Any:
        return None if one is None else th.cat([one, other])[th.as_tensor(order, device=one.device)]

    return type(first)(*(map_columns(mix, one, other) for one, other in zip(first, second, strict=True)))


class DemonstrationReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer, of whose batches a given share are demonstrations (RLPD, arXiv 2302.02948: one half):

        SAC("MlpPolicy", env, replay_buffer_class=DemonstrationReplayBuffer,
            replay_buffer_kwargs=dict(demonstrations=demonstrations, share=0.5))

    For any off-policy algorithm with continuous actions. What the agent does is stored and drawn by SB3's own buffers:
    ``DictReplayBuffer`` for Dict observations, ``NStepReplayBuffer`` for ``n_steps`` > 1, which have to be asked for in
    ``replay_buffer_kwargs``. The demonstrations stay where they are and are read batch by batch; to them the same is done:
    actions scaled to [-1, 1], the present statistics of ``VecNormalize``, n-step returns, bootstrapping after a time limit.
    With ``handle_timeout_termination=False``, which ``optimize_memory_usage`` needs, an episode ends at a time limit for good,
    theirs as the agent's.

    Of each batch ``share · batch_size`` transitions are demonstrations; what the division leaves over is made up for in later
    batches. As long as the agent has done nothing, all of them are. Agent's and demonstrated transitions come in random order.

    **Saving.** ``model.save`` keeps the arguments of the buffer and ``model.save_replay_buffer`` the buffer, so both files
    hold the demonstrations, unless they are given as the id of a Minari data set or are maps of files
    (``Demonstrations.from_minari(…, folder=…)``): then only where they lie.

    :param buffer_size: transitions of the agent that are kept
    :param observation_space: as in SB3's buffers, like the next five
    :param action_space: a Box
    :param device: of the samples
    :param n_envs: of the agent
    :param optimize_memory_usage: store next observations once; not for Dict observations and n-step returns
    :param handle_timeout_termination: bootstrap where a time limit ended an episode
    :param demonstrations: with rewards; or the id of a local Minari data set
    :param share: of the demonstrations in each batch, 0 … 1; may be changed at any time
    :param n_steps: of the returns, ≥ 1; above 1 not for Dict observations
    :param gamma: discount of n-step returns, the algorithm's
    :raises ValueError: for an argument out of range, and for demonstrations that do not fit the spaces or lack rewards
    """

    n_steps: int
    gamma: float

    def __new__(
        cls,
        buffer_size: Any = None,
        observation_space: Any = None,
        *args: Any,
        n_steps: int = 1,
        optimize_memory_usage: bool = False,
        **kwargs: Any,
    ) -> "DemonstrationReplayBuffer":
        check_number("n_steps", n_steps, 1, integer=True)
        if optimize_memory_usage and (n_steps > 1 or isinstance(observation_space, spaces.Dict)):
            raise ValueError(
                "optimize_memory_usage=True must be False for Dict observations and for n_steps > 1: SB3's buffers of those "
                f"have no such thing (n_steps={n_steps!r})"
            )
        if cls is not DemonstrationReplayBuffer:  # also when a pickle is read, without arguments
            return super().__new__(cls)
        if isinstance(observation_space, spaces.Dict):
            if n_steps > 1:
                raise ValueError(f"n_steps={n_steps!r} must be 1 for Dict observations: SB3 has no n-step returns of those")
            return super().__new__(DictDemonstrationReplayBuffer)
        return super().__new__(NStepDemonstrationReplayBuffer if n_steps > 1 else cls)

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        demonstrations: Demonstrations | str,
        share: float = 0.5,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        check_number("share", share, 0, 1)
        check_number("gamma", gamma, 0, 1)
        self._dataset_id = demonstrations if isinstance(demonstrations, str) else None
        self._set_demonstrations(demonstrations)
        self.demonstrations.check_spaces(observation_space, action_space)
        self.share = share
        # Demonstrated transitions that rounding has left out so far
        self._owed = 0.0
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
            **(dict(n_steps=n_steps, gamma=gamma) if n_steps > 1 else {}),
        )
        self.n_steps, self.gamma = n_steps, gamma

    def _set_demonstrations(self, demonstrations: Any) -> None:
        """:raises ValueError: unless there are transitions with rewards"""
        if isinstance(demonstrations, str):
            try:
                demonstrations = Demonstrations.from_minari(demonstrations)
            except FileNotFoundError as error:
                message = f"demonstrations={demonstrations!r}: there is no such local Minari data set"
                raise FileNotFoundError(f"{message}; {WITHOUT_DEMONSTRATIONS}") from error
        if not isinstance(demonstrations, Demonstrations):
            raise ValueError(f"demonstrations={demonstrations!r} must be Demonstrations or the id of a Minari data set")
        if demonstrations.rewards is None:
            raise ValueError(f"demonstrations={demonstrations!r} have no rewards, and a replay buffer needs them")
        self.demonstrations, self._usable_rows = demonstrations, demonstrations.transition_rows
        if not len(self._usable_rows):
            raise ValueError(
                f"demonstrations={demonstrations!r} have no step whose next observation is known: no final_observations"
            )

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        :param batch_size: B
        :param env: with the statistics to normalise observations and rewards with
        :return: B transitions
        """
        check_number("share", self.share, 0, 1)
        n_demonstrated = batch_size
        if self.size() > 0:
            wanted = self.share * batch_size + self._owed
            # Sums of shares that are whole numbers may be a rounding error less.
            n_demonstrated = min(batch_size, math.floor(wanted + 1e-6))
            self._owed = wanted - n_demonstrated
        if n_demonstrated == 0:
            return super().sample(batch_size, env)
        demonstrated = self._demonstrated(n_demonstrated, env)
        if n_demonstrated == batch_size:
            return demonstrated
        return mixed(super().sample(batch_size - n_demonstrated, env), demonstrated)  # type: ignore[type-var]

    def _demonstrated(self, n: int, env: VecNormalize | None) -> ReplayBufferSamples | DictReplayBufferSamples:
        """:return: n demonstrated transitions, as SB3's buffers would give them"""
        data = self.demonstrations
        assert data.rewards is not None
        rows = self._usable_rows[np.random.randint(len(self._usable_rows), size=n)]
        ends = data.episode_ends[data.episodes_of(rows)]
        if data.final_observations is None:
            # The step before a truncation is the last one whose next observation is known.
            ends = ends - data.truncations[ends - 1]
        last = np.minimum(rows + self.n_steps, ends) - 1
        steps = np.arange(self.n_steps)
        window = rows[:, None] + steps
        counted = window <= last[:, None]
        rewards = self._normalize_reward(data.rewards[np.minimum(window, last[:, None])], env)
        returns = (rewards * counted * self.gamma**steps).sum(axis=1, keepdims=True).astype(np.float32)
        dones = data.terminations[last]
        if not self.handle_timeout_termination:
            dones = dones | data.truncations[last]
        discounts = self.gamma ** (last - rows + 1)
        assert isinstance(self.action_space, spaces.Box)
        kind = DictReplayBufferSamples if isinstance(self.observation_space, spaces.Dict) else ReplayBufferSamples
        return kind(
            observations=self._as_stored(data.observations_at(rows, self.observation_space), env),
            actions=self.to_torch(data.scaled_actions_at(rows, self.action_space)),
            next_observations=self._as_stored(data.next_observations_at(last, self.observation_space), env),
            dones=self.to_torch(dones.astype(np.float32)[:, None]),
            rewards=self.to_torch(returns),
            discounts=self.to_torch(discounts.astype(np.float32)[:, None]) if self.n_steps > 1 else None,
        )

    def _as_stored(self, observations: Any, env: VecNormalize | None) -> Any:
        """Tensors of the shape and type that SB3's buffers give, normalised."""
        space = self.observation_space
        parts: Any = space.spaces if isinstance(space, spaces.Dict) else space
        # Discrete observations are rows of one number there.
        shaped = map_columns(
            lambda rows, part, shape: rows.reshape(-1, *shape).astype(part.dtype, copy=False),
            observations,
            parts,
            self.obs_shape,
        )
        return map_columns(self.to_torch, self._normalize_obs(shaped, env))

    def __getstate__(self) -> dict[str, Any]:
        """A data set that has a name is not written a second time."""
        state = {name: value for name, value in self.__dict__.items() if name != "_usable_rows"}
        return state | {"demonstrations": self._dataset_id or self.demonstrations}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_demonstrations(self.demonstrations)


class DictDemonstrationReplayBuffer(DemonstrationReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """What a :class:`DemonstrationReplayBuffer` for Dict observations is."""


class NStepDemonstrationReplayBuffer(DemonstrationReplayBuffer, NStepReplayBuffer):
    """What a :class:`DemonstrationReplayBuffer` with ``n_steps`` > 1 is."""
