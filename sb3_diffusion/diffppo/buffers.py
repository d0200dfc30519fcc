"""Rollout buffers that store whole chains (docs/method.md, "DiffPPO")."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn import functional as F

from sb3_diffusion.diffppo.policies import DiffusionActorCriticPolicy

# How many environment steps are evaluated at once at the end of a rollout: bounds the memory that images take.
EVALUATED_AT_ONCE = 1024


PER_STEP = ("old_values", "old_log_prob", "advantages", "returns", "old_noising_log_prob", "old_means", "old_log_stds")


class ChainRolloutSamples(NamedTuple):
    """
    A minibatch of B environment steps with all decisions of each: index k - 1 belongs to the reverse step k, index K to the
    first decision ``a^K``. ``chains`` (B, K + 1, d): ``a^0 … a^K``; ``old_values``, ``old_log_prob`` of the decisions,
    ``old_noising_log_prob``, ``advantages`` and ``returns`` (B, K + 1); ``old_means`` and ``old_log_stds`` (B, K + 1, d) of
    their Gaussians; ``path_log_prob`` (B,) of the whole chains.
    """

    observations: th.Tensor | dict[str, th.Tensor]
    chains: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    old_noising_log_prob: th.Tensor
    old_means: th.Tensor
    old_log_stds: th.Tensor
    path_log_prob: th.Tensor

    def at(self, steps: th.Tensor) -> "ChainRolloutSamples":
        """
        :param steps: (B, κ), κ of the reverse steps 1 … K of each row
        :return: the same minibatch with only these and the first decision in all arrays but ``chains`` and ``path_log_prob``
        """
        rows = th.arange(len(steps), device=steps.device).unsqueeze(1)
        columns = F.pad(steps - 1, (0, 1), value=self.old_values.shape[1] - 1)
        return self._replace(**{name: getattr(self, name)[rows, columns] for name in PER_STEP})


class ChainRollouts(RolloutBuffer):
    """
    What the two buffers below share. While a rollout is collected they store chains only; at its end the policy evaluates all
    of them at once. From then on ``values``, ``log_probs``, ``advantages`` and ``returns`` have one entry for each decision,
    shape (n_steps, n_envs, K + 1).

    Advantages and returns are those of the augmented decision process with soft rewards. Nothing is discounted inside a chain,
    so the return of its first decision is that of the environment step with the reward ``r - τ (log p(a^K) + Σ_k ℓ_k)``, and
    the other steps drop what lies behind them.
    """

    # Set by the algorithm before each rollout
    policy: DiffusionActorCriticPolicy
    ent_coef: float = 0.0

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        :param log_prob: the chains (n_envs, K + 1, d); the other parameters are those of SB3's buffer
        :raises ValueError: if no DiffPPO collects
        """
        if not hasattr(self, "policy"):
            raise ValueError("this buffer is filled by DiffPPO alone: load its models with DiffPPO.load, not PPO.load")
        if self.pos == 0:
            self.chains = np.zeros((self.buffer_size, *log_prob.shape), dtype=np.float32)
        self.chains[self.pos] = log_prob.cpu().numpy()
        super().add(obs, action, reward, episode_start, value, th.full_like(value, th.nan).flatten())

    @th.no_grad()
    def _evaluate_chains(self) -> None:
        """Evaluate the rollout under the policy that sampled it."""
        n_at_once = max(1, EVALUATED_AT_ONCE // self.n_envs)
        parts = []
        for start in range(0, self.buffer_size, n_at_once):
            stop = min(start + n_at_once, self.buffer_size)
            chains = self.to_torch(self.chains[start:stop]).flatten(0, 1)
            values, kernels = self.policy.evaluate_chains(self._observations(slice(start, stop), flatten=True), chains)
            path_log_prob = self.policy.actor.path_log_prob(chains, kernels)
            parts.append([array.unflatten(0, (stop - start, -1)) for array in (values, *kernels, path_log_prob)])
        arrays = (th.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        self.values, self.means, self.log_stds, self.log_probs, self.noising_log_probs, self.path_log_probs = arrays

    def _observations(self, rows: Any, flatten: bool = False) -> Any:
        """Observations of the given rows as tensors; ``flatten`` merges time steps and environments."""

        def select(array: np.ndarray) -> th.Tensor:
            tensor = self.to_torch(array[rows])
            return tensor.flatten(0, 1) if flatten else tensor

        if isinstance(self.observations, dict):
            return {key: select(array) for key, array in self.observations.items()}
        return select(self.observations)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        self._evaluate_chains()
        values, rewards, path_log_probs = self.values, self.rewards, self.path_log_probs
        # SB3's recursion for the environment's steps: each is the chain's first decision, with the entropy of the whole path.
        self.values, self.rewards = values[..., -1], rewards - self.ent_coef * path_log_probs[..., -1]
        self.advantages = np.zeros_like(rewards)
        super().compute_returns_and_advantage(last_values, dones)
        self.values, self.rewards = values, rewards
        self.returns = self.returns[..., None] + self.ent_coef * (path_log_probs[..., -1:] - path_log_probs)
        self.advantages = self.returns - values

    def get(self, batch_size: int | None = None) -> Generator[ChainRolloutSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            for name in ("chains", "noising_log_probs", "means", "log_stds", "path_log_probs"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ChainRolloutSamples:  # type: ignore[override]
        arrays = [self.chains, self.values, self.log_probs, self.advantages, self.returns, self.noising_log_probs]
        arrays += [self.means, self.log_stds, self.path_log_probs[:, -1]]
        return ChainRolloutSamples(self._observations(batch_inds), *(self.to_torch(array[batch_inds]) for array in arrays))


class ChainRolloutBuffer(ChainRollouts):
    """:class:`~stable_baselines3.common.buffers.RolloutBuffer` with chains."""


class DictChainRolloutBuffer(ChainRollouts, DictRolloutBuffer):  # type: ignore[misc]  # chains, not actions
    """:class:`~stable_baselines3.common.buffers.DictRolloutBuffer` with chains."""
