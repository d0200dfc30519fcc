"""How near a policy comes to the optimal maximum-entropy policies of BoltzmannBandit, context by context."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.boltzmann_bandit import BoltzmannBandit
from sb3_diffusion.evaluation.bound_tightness import bound_tightness
from sb3_diffusion.evaluation.mode_coverage import sample_actions


class Fidelity(NamedTuple):
    """What :func:`fidelity` finds, one entry for each context."""

    total_variation: np.ndarray
    """``½ Σ_bins |share of the samples - exact mass|``, over equal bins, shape (contexts,)."""
    mode_shares: list[np.ndarray]
    """Of each mode, its share of the samples over its exact mass: 1 is right, 0 a lost mode. Shape (n,) each."""
    path_divergence: np.ndarray
    """``E[log p(x^K) + Σ_k ℓ_k - r / τ] + log Z`` in nats, shape (contexts,); NaN for other policies than ours and SAC's."""
    bound_gap: np.ndarray
    """By how many nats it lies above the divergence of the actions, shape (contexts,); NaN where that is not known."""
    actions: np.ndarray
    """The samples, shape (contexts, n_samples, d)."""


def fidelity(model: BaseAlgorithm, env: BoltzmannBandit | None = None, n_samples: int = 50_000) -> Fidelity:
    """
    Samples of a policy against the exact densities of BoltzmannBandit at its temperature.

    Even exact samples have a total variation above 0: at most ``0.4 sqrt(bins / n_samples)``, with the defaults 0.011, 0.036
    and 0.041 in one, two and three dimensions (of a flat density).

    :param model: a model trained on it
    :param env: the problem; ``BoltzmannBandit()`` if not given
    :param n_samples: actions drawn in each context
    :return: one entry for each context
    :raises ValueError: if ``n_samples`` is not a positive integer
    """
    check_number("n_samples", n_samples, 1, integer=True)
    env = env or BoltzmannBandit()
    actor: Any = getattr(model, "actor", getattr(model.policy, "actor", None))
    distances, shares, paths, gaps, samples = [], [], [], [], []
    for context, observation in enumerate(env.observations):
        exact = env.exact_masses(context)
        actions = sample_actions(model, observation, n_samples)
        n_modes = len(exact.modes)
        found = np.bincount(env.mode_of(actions, context), minlength=n_modes) / n_samples
        distances.append(0.5 * np.abs(env.bin_shares(actions) - exact.bins).sum())
        shares.append(found / exact.modes)
        path = gap = np.nan
        if hasattr(actor, "action_log_prob"):
            features = th.as_tensor(observation, device=model.device).expand(n_samples, -1)
            with th.no_grad():
                drawn, log_prob = actor.action_log_prob(features)
            path = float(log_prob.mean()) - env.reward(drawn.cpu(), context).mean() / env.temperature + exact.log_partition
        if isinstance(actor, DiffusionActor) and env.action_dim == 1:
            gap = _bound_gap(actor, observation)
        paths.append(path)
        gaps.append(gap)
        samples.append(actions)
    return Fidelity(np.array(distances), shares, np.array(paths), np.array(gaps), np.stack(samples))


@th.no_grad()
def _bound_gap(actor: DiffusionActor, observation: np.ndarray) -> float:
    """Path divergence minus marginal divergence, for any Q; NaN for a chain that is too sharp for the grid."""
    state = th.as_tensor(observation, device=actor.device).unsqueeze(0)
    features = actor.extract_features(state, actor.features_extractor)
    try:
        tightness = bound_tightness(actor, features, lambda actions: np.zeros_like(actions), 1.0)
    except ValueError:
        return np.nan
    return tightness.path_divergence - tightness.marginal_divergence
