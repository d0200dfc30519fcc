"""Rollout buffers that store whole chains (docs/method.md, "DiffPPO")."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn import functional as F

from sb3_diffusion.diffppo.actor import ActedDecisions, DecisionKernels, Decisions, decisions_of
from sb3_diffusion.diffppo.policies import ActedChains, DiffusionActorCriticPolicy

# Of each decision: four vectors (before, taken, mean, log-std of its Gaussian) and these
SCALARS = ("old_values", "old_log_prob", "old_noising_log_prob", "advantages", "returns")


class RecordedChains(NamedTuple):
    """
    The ``chains`` (n_steps, n_envs, K + 1, d), ``a^0 … a^K``, of a rollout, with what the policy that sampled them made of all
    their decisions: ``values`` (n_steps, n_envs, K + 1), ``V(s, a^k, k)`` and in the last column ``V(s)``; and the fields of
    :class:`~sb3_diffusion.diffppo.actor.DecisionKernels`.
    """

    chains: th.Tensor
    values: th.Tensor
    mean: th.Tensor
    log_std: th.Tensor
    log_prob: th.Tensor
    noising_log_prob: th.Tensor


class ChainRolloutSamples(NamedTuple):
    """
    A minibatch of B environment steps with κ + 1 decisions of each: the reverse steps ``steps`` (B, κ + 1), or None for all in
    their order, and in the last column, as step K + 1, the first decision ``a^K``. ``packed`` (B, κ + 1, 4 d + 5) holds all
    numbers of a decision side by side, so that a minibatch is one look-up; the properties are its parts, as of the policy that
    decided: ``decisions``; ``old_means`` and ``old_log_stds`` (B, κ + 1, d) of their Gaussians; ``old_log_prob``,
    ``old_noising_log_prob``, ``old_values``, ``advantages`` and ``returns`` (B, κ + 1).
    """

    observations: th.Tensor | dict[str, th.Tensor]
    packed: th.Tensor
    steps: th.Tensor | None = None

    def at(self, steps: th.Tensor) -> "ChainRolloutSamples":
        """
        :param steps: (B, κ), κ of the reverse steps 1 … K of each row; this minibatch has all of them
        :return: the same minibatch with only these and the first decision
        """
        steps = F.pad(steps, (0, 1), value=self.packed.shape[1])
        rows = th.arange(len(steps), device=steps.device).unsqueeze(1)
        return self._replace(packed=self.packed[rows, steps - 1], steps=steps)

    def _vectors(self, index: int) -> th.Tensor:
        width = (self.packed.shape[-1] - len(SCALARS)) // 4
        return self.packed[..., index * width : (index + 1) * width]

    @property
    def decisions(self) -> Decisions:
        return Decisions(self._vectors(0), self._vectors(1), self.steps)

    @property
    def old_means(self) -> th.Tensor:
        return self._vectors(2)

    @property
    def old_log_stds(self) -> th.Tensor:
        return self._vectors(3)

    @property
    def old_values(self) -> th.Tensor:
        return self.packed[..., -5]

    @property
    def old_log_prob(self) -> th.Tensor:
        return self.packed[..., -4]

    @property
    def old_noising_log_prob(self) -> th.Tensor:
        return self.packed[..., -3]

    @property
    def advantages(self) -> th.Tensor:
        return self.packed[..., -2]

    @property
    def returns(self) -> th.Tensor:
        return self.packed[..., -1]


class ChainRollouts(RolloutBuffer):
    """
    What the two buffers below share: whole chains, with what the policy that sampled them made of each decision.

    ``values``, ``log_probs`` (of whole chains), ``advantages`` and ``returns`` are those of environment steps,
    (n_steps, n_envs) as in SB3. What a callback adds to the last two when a rollout ends, intrinsic rewards say, is added to
    those of all decisions. ``recorded`` holds the decisions, ``path_log_probs`` (n_steps, n_envs, K + 1) the path
    log-probability from each on.

    Advantages and returns are those of the augmented decision process with soft rewards. Nothing is discounted inside a chain,
    so the return of its first decision is that of the environment step with the reward ``r - τ (log p(a^K) + Σ_k ℓ_k)``, and
    the other steps drop what lies behind them.
    """

    # Set by the algorithm before each rollout
    policy: DiffusionActorCriticPolicy
    ent_coef: float = 0.0

    def reset(self) -> None:
        super().reset()
        self.acted: list[ActedChains] = []

    def add(  # type: ignore[override]
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: ActedChains,
    ) -> None:
        """
        :param log_prob: the chains, as the policy's ``forward`` returns them; the other parameters are those of SB3's buffer
        :raises ValueError: if no DiffPPO collects
        """
        if not hasattr(self, "policy"):
            raise ValueError("this buffer is filled by DiffPPO alone: load its models with DiffPPO.load, not PPO.load")
        self.acted.append(log_prob)
        super().add(obs, action, reward, episode_start, value, value.flatten())  # the log-probabilities follow

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        if self.acted:
            values, *decided = (th.stack(parts) for parts in zip(*self.acted, strict=True))
            kernels = self.policy.actor.kernels_when_acting(ActedDecisions(*decided))
            self.recorded = RecordedChains(decided[0], values, *kernels)
            self.acted = []
        self.last_dones = dones
        kernels = DecisionKernels(*self.recorded[2:])
        self.log_probs = kernels.log_prob.sum(dim=-1).cpu().numpy()
        self.path_log_probs = self.policy.actor.path_log_prob(self.recorded.chains, kernels).cpu().numpy()
        # SB3's recursion for the environment's steps: each is the chain's first decision, with the entropy of the whole path.
        rewards = self.rewards
        self.rewards = rewards - self.ent_coef * self.path_log_probs[..., -1]
        super().compute_returns_and_advantage(last_values, dones)
        self.rewards = rewards

    def change_ent_coef(self, ent_coef: float) -> None:
        """
        Advantages and returns of a full rollout for another temperature: both are linear in it, so that what a callback added
        to them stays.

        :param ent_coef: τ
        """
        if ent_coef == self.ent_coef:
            return
        names = ("advantages", "returns", "values", "rewards")
        kept = {name: getattr(self, name) for name in names}
        self.advantages, self.values = np.zeros_like(self.rewards), np.zeros_like(self.rewards)
        self.rewards = -self.path_log_probs[..., -1]
        super().compute_returns_and_advantage(th.zeros(self.n_envs), self.last_dones)
        entropies = self.advantages
        for name in names:
            change = (ent_coef - self.ent_coef) * entropies if name in ("advantages", "returns") else 0
            setattr(self, name, kept[name] + change)
        self.ent_coef = ent_coef

    def _packed_decisions(self) -> th.Tensor:
        """All decisions of all environment steps, (n_steps · n_envs, K + 1, 4 d + 5), in SB3's order of rows."""
        recorded = self.recorded
        before, taken, _ = decisions_of(recorded.chains)
        advantages, returns, values, path_log_probs = (
            th.as_tensor(array, device=self.device)
            for array in (self.advantages, self.returns, self.values, self.path_log_probs)
        )
        to_come = self.ent_coef * (path_log_probs[..., -1:] - path_log_probs)
        # A_k = G_k - W_k, with G_k the return from there on
        advantages = (advantages + values).unsqueeze(-1) - recorded.values + to_come
        scalars = [recorded.values, recorded.log_prob, recorded.noising_log_prob, advantages, returns.unsqueeze(-1) + to_come]
        packed = th.cat([before, taken, recorded.mean, recorded.log_std, th.stack(scalars, dim=-1)], dim=-1)
        return packed.transpose(0, 1).flatten(0, 1)

    def _observations(self, rows: np.ndarray) -> th.Tensor | dict[str, th.Tensor]:
        if isinstance(self.observations, dict):
            return {key: self.to_torch(array[rows]) for key, array in self.observations.items()}
        return self.to_torch(self.observations[rows])

    def get(self, batch_size: int | None = None) -> Generator[ChainRolloutSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            self.packed = self._packed_decisions()
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ChainRolloutSamples:  # type: ignore[override]
        packed = self.packed[th.as_tensor(batch_inds, device=self.device)]
        return ChainRolloutSamples(self._observations(batch_inds), packed)


class ChainRolloutBuffer(ChainRollouts):
    """:class:`~stable_baselines3.common.buffers.RolloutBuffer` with chains."""


class DictChainRolloutBuffer(ChainRollouts, DictRolloutBuffer):  # type: ignore[misc]  # chains, not actions
    """:class:`~stable_baselines3.common.buffers.DictRolloutBuffer` with chains."""
