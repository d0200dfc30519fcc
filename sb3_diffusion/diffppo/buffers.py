"""Rollout buffers that store whole chains (docs/method.md, "DiffPPO")."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize


class ChainRecord(NamedTuple):
    """
    A batch of sampled chains with what their decisions, ``x^{k-1}`` for k > 1 and ``a^0`` for k = 1, were drawn from; index
    k - 1 belongs to step k. ``chains`` (B, K + 1, d): ``a^0, x^1 … x^K``; ``log_prob`` (B, K) of the decisions; ``log_ratios``
    (B, K), ``ℓ_k``; ``means`` and ``log_stds`` (B, K, d) of the reverse kernels.
    """

    chains: th.Tensor
    log_prob: th.Tensor
    log_ratios: th.Tensor
    means: th.Tensor
    log_stds: th.Tensor


class ChainRolloutSamples(NamedTuple):
    """A minibatch of B environment transitions with all K diffusion steps of each; shapes as in :class:`ChainRecord`."""

    observations: th.Tensor | dict[str, th.Tensor]
    old: ChainRecord
    old_values: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


class ChainRollouts(RolloutBuffer):
    """
    What the two buffers below share. Rewards become soft, and advantages and returns are those of the augmented decision
    process: nothing is discounted inside a chain, so that of step K is the environment's, and each further step drops the
    log-ratios that lie behind it.
    """

    # Set by the algorithm before each rollout: τ, and the entropy of the prior in nats
    ent_coef: float = 0.0
    prior_entropy: float = 0.0
    fields = ("chains", "log_prob", "log_ratios", "means", "log_stds")

    def add(  # type: ignore[override]
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: ChainRecord,
    ) -> None:
        """
        :param value: (n_envs, K), ``V(s, x^k, k)``
        :param log_prob: the chains; the other parameters are those of SB3's buffer
        """
        if self.pos == 0:
            shape = (self.buffer_size, self.n_envs)
            self.record = {
                name: np.zeros((*shape, *array.shape[1:]), dtype=np.float32)
                for name, array in zip(self.fields, log_prob, strict=True)
            }
            self.chain_values = np.zeros((*shape, *value.shape[1:]), dtype=np.float32)
        for name, array in zip(self.fields, log_prob, strict=True):
            self.record[name][self.pos] = array.cpu().numpy()
        self.chain_values[self.pos] = value.cpu().numpy()
        # The environment's own transition: its value is that of the chain's first state.
        super().add(obs, action, reward, episode_start, value[:, -1], log_prob.log_prob.sum(dim=1))

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        log_ratios = self.record["log_ratios"]
        # One entropy bonus for an environment step: that of the path
        self.rewards = self.rewards + self.ent_coef * (self.prior_entropy - log_ratios.sum(axis=-1))
        super().compute_returns_and_advantage(last_values, dones)
        behind = log_ratios.sum(axis=-1, keepdims=True) - log_ratios.cumsum(axis=-1)
        self.returns = (self.returns[..., None] + self.ent_coef * behind).astype(np.float32)
        self.values = self.chain_values
        self.advantages = self.returns - self.values

    def get(self, batch_size: int | None = None) -> Generator[ChainRolloutSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            self.record = {name: self.swap_and_flatten(array) for name, array in self.record.items()}
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ChainRolloutSamples:  # type: ignore[override]
        if isinstance(self.observations, dict):
            observations: Any = {key: self.to_torch(array[batch_inds]) for key, array in self.observations.items()}
        else:
            observations = self.to_torch(self.observations[batch_inds])
        old = ChainRecord(*(self.to_torch(self.record[name][batch_inds]) for name in self.fields))
        rest = (self.to_torch(array[batch_inds]) for array in (self.values, self.advantages, self.returns))
        return ChainRolloutSamples(observations, old, *rest)


class ChainRolloutBuffer(ChainRollouts):
    """:class:`~stable_baselines3.common.buffers.RolloutBuffer` with chains."""


class DictChainRolloutBuffer(ChainRollouts, DictRolloutBuffer):  # type: ignore[misc]  # chains, not actions
    """:class:`~stable_baselines3.common.buffers.DictRolloutBuffer` with chains."""
