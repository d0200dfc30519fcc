"""
The chains of a trained policy, taken apart: where they are after each step, what each step costs, how tight their bound is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.chains import TensorOrDict, map_observations
from sb3_diffusion.common.finite import NotFinite, Observation, first_not_finite, weights_not_finite
from sb3_diffusion.common.validation import LARGEST_SEED, check_number
from sb3_diffusion.diffusion import gaussian_log_prob, noising_log_prob, prior_log_prob, read_out, readout_log_ratio


class PolicyChains(NamedTuple):
    """n chains of a policy at each of S states; d counts the entries of an action, whatever its shape."""

    actions: np.ndarray
    """What each latent ``x^k`` would be as an action, in the units of the action space, shape (S, K + 1, n, d): ``[:, 0]``
    are the actions, ``[:, K]`` the Gaussian that the chains start from."""
    latents: np.ndarray
    """``x^0 … x^K``, shape (S, K + 1, n, d)."""
    log_ratios: np.ndarray
    """``ℓ_1 … ℓ_K`` in nats, without the read-out's term, shape (S, K, n)."""
    path_log_prob: np.ndarray
    """``log p(x^K) + Σ_k ℓ_k`` in nats, of actions in [-1, 1] where they are squashed, shape (S, n)."""


class EntropyBounds(NamedTuple):
    """Entropies of the actions at S states, in nats; shape (S,) each, of actions in [-1, 1] where they are squashed."""

    path: np.ndarray
    """The path entropy ``H_path``, which the algorithms use: never above the others but for the noise of sampling."""
    low: np.ndarray
    """A lower bound of the entropy that the more noisings tighten."""
    high: np.ndarray
    """An upper bound of it."""


def diffusion_actor(model: BaseAlgorithm) -> DiffusionActor:
    """
    :param model: of any algorithm
    :return: its actor
    :raises ValueError: if its policy is no diffusion
    """
    actor = getattr(getattr(model, "policy", None), "actor", None)
    if not isinstance(actor, DiffusionActor):
        raise ValueError(
            f"model={type(model).__name__} has no diffusion policy; allowed: DiffSAC, DiffTQC, DiffCrossQ, DiffWPO, "
            "DiffPPO, or a base of theirs with a diffusion policy"
        )
    return actor


@contextmanager
def evaluation_mode(policy: th.nn.Module) -> Iterator[None]:
    """Batch normalisation and dropout of a policy as in predictions, without gradients; afterwards as before."""
    modes = {module: module.training for module in policy.modules()}
    policy.train(False)
    try:
        with th.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def observation_tensors(model: BaseAlgorithm, observations: Observation) -> TensorOrDict:
    """
    :param model: whose policy sees them
    :param observations: one, or a batch
    :return: (S, …), or such a dictionary
    :raises ValueError: if they are not of the model's observation space, or not finite
    """
    space = model.observation_space
    keys = set(space.spaces) if isinstance(space, spaces.Dict) else None
    if (set(observations) if isinstance(observations, dict) else None) != keys:
        wanted = "no dictionary" if keys is None else f"a dictionary with the keys {sorted(keys)}"
        raise ValueError(f"observations={observations!r} are none of {space}; allowed: {wanted}")
    if not isinstance(observations, dict):
        observations = np.asarray(observations)
    problem = first_not_finite("observation", observations)
    if problem is not None:
        raise NotFinite(problem)
    return model.policy.obs_to_tensor(observations)[0]


def number_of(observations: TensorOrDict) -> int:
    """:return: S"""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def one_of(observations: TensorOrDict, index: int) -> TensorOrDict:
    """:return: a batch of one"""
    return map_observations(lambda batch: batch[index : index + 1], observations)


def in_units(model: BaseAlgorithm, actions: np.ndarray) -> np.ndarray:
    """
    :param actions: (…, d) as the policy's network gives them
    :return: the same in the units of the action space
    """
    policy: Any = model.policy
    if not policy.squash_output:
        return actions
    shape = model.action_space.shape or ()
    return policy.unscale_action(actions.reshape(*actions.shape[:-1], *shape)).reshape(actions.shape)


class Sampler:
    """
    Draws a model's chains with a generator of its own, so that neither the model's training nor any other random number
    changes.

    :param model: with a diffusion policy
    :param seed: of the generator
    :raises ValueError: if the policy is no diffusion, or for a seed out of range
    """

    def __init__(self, model: BaseAlgorithm, seed: int) -> None:
        check_number("seed", seed, 0, LARGEST_SEED, integer=True)
        self.model, self.actor = model, diffusion_actor(model)
        self.generator = th.Generator().manual_seed(seed)

    def _noise(self, *shape: int) -> th.Tensor:
        return th.randn(*shape, generator=self.generator).to(self.model.device)

    def features(self, observations: TensorOrDict) -> th.Tensor:
        """:return: the actor's, (S, features_dim)"""
        return self.actor.extract_features(observations, self.actor.features_extractor)  # type: ignore[arg-type]

    def chains(self, observations: TensorOrDict, n_chains: int) -> PolicyChains:
        """
        :param observations: S of them
        :param n_chains: n
        """
        actor, found = self.actor, []
        with evaluation_mode(self.model.policy):
            for features in self.features(observations).split(1):
                noise = self._noise(actor.diffusion_steps + 1, n_chains, actor.action_dim)
                sample = actor.sample(features.expand(n_chains, -1), noise)
                actions = read_out(sample.latents, sample.location, sample.log_scale)
                log_ratios = sample.log_ratios.clone()
                log_ratios[0] -= readout_log_ratio(actions[0], sample.log_scale, actor.squash_output)
                if not th.isfinite(actions).all():
                    raise NotFinite(f"No chains: {weights_not_finite(actor) or 'numbers overflow in the networks'}")
                parts = (in_units(self.model, actor.squash(actions).cpu().numpy()), sample.latents, log_ratios)
                found.append((*parts, sample.path_log_prob))
        return PolicyChains(*(np.stack([np.asarray(part) for part in parts]) for parts in zip(*to_numpy(found), strict=True)))

    def entropies(self, observations: TensorOrDict, n_chains: int, n_noisings: int) -> EntropyBounds:
        """
        :param observations: S of them
        :param n_chains: n
        :param n_noisings: L
        """
        actor, found = self.actor, []
        with evaluation_mode(self.model.policy):
            for features in self.features(observations).split(1):
                noise = self._noise(actor.diffusion_steps + 1, n_chains, actor.action_dim)
                sample = actor.sample(features.expand(n_chains, -1), noise)
                others = th.stack([self._weights(features, sample.latents[0]) for _ in range(n_noisings)])
                action = read_out(sample.latents[0], sample.location, sample.log_scale)
                others += readout_log_ratio(action, sample.log_scale, actor.squash_output)
                own = sample.path_log_prob.unsqueeze(0)
                bounds = [own, th.cat([own, others]), others]
                found.append([-float((bound.logsumexp(dim=0) - np.log(len(bound))).mean()) for bound in bounds])
        return EntropyBounds(*np.array(found).T)

    def _weights(self, features: th.Tensor, ends: th.Tensor) -> th.Tensor:
        """
        ``log p(x^K) + Σ_k ℓ_k`` (n,) of latents that the noising process draws from ``x^0`` (n, d) on: its exponential's mean
        is the density of ``x^0``.
        """
        actor, latents, n = self.actor, ends, len(ends)
        total = th.zeros(n, device=ends.device)
        for k in range(1, actor.diffusion_steps + 1):
            tables = actor.schedule().at(k)
            previous, latents = latents, tables.retain * latents + tables.noise_std * self._noise(*ends.shape)
            mean, log_std = actor.reverse_kernel(features.expand(n, -1), latents, th.full((n,), k, device=ends.device))
            log_reverse = gaussian_log_prob((previous - mean) * th.exp(-log_std), log_std)
            total = total + log_reverse - noising_log_prob(latents, previous, tables)
        return total + prior_log_prob(latents, actor.prior_std)


def to_numpy(nested: Any) -> Any:
    """:return: the tensors of lists, tuples and dictionaries as arrays"""
    if isinstance(nested, dict):
        return {key: to_numpy(part) for key, part in nested.items()}
    if isinstance(nested, (list, tuple)):
        return [to_numpy(part) for part in nested]
    return nested.cpu().numpy() if isinstance(nested, th.Tensor) else nested


def policy_chains(model: BaseAlgorithm, observations: Observation, n_chains: int = 1000, seed: int = 0) -> PolicyChains:
    """
    Sample whole chains of a diffusion policy, from noise to actions (docs/method.md, "The policy").

    :param model: with a diffusion policy
    :param observations: S observations as the policy sees them (behind ``VecNormalize`` the normalised ones), or one
    :param n_chains: n, at each state
    :param seed: of a generator of its own; the global ones are not used
    :return: actions, latents and log-ratios after each step
    :raises ValueError: for a model without a diffusion policy, observations that are not of its space or not finite, or a
        number out of range
    """
    check_number("n_chains", n_chains, 1, integer=True)
    sampler = Sampler(model, seed)
    return sampler.chains(observation_tensors(model, observations), n_chains)


def entropy_bounds(
    model: BaseAlgorithm, observations: Observation, n_chains: int = 500, n_noisings: int = 64, seed: int = 0
) -> EntropyBounds:
    """
    How far the path entropy lies below the entropy of the actions, in any number of dimensions: by ``low - path`` to
    ``high - path`` nats.

    The density of an action is the mean over latents that the noising process draws from it on, of ``w = exp(log p(x^K) +
    Σ_k ℓ_k)``. Its logarithm lies, in expectation, above that of a mean over finitely many of them, and below it if one of
    them is the chain that the action came from (Grosse et al., arXiv 1511.02543); with that chain alone it is the path bound.

    :param model: with a diffusion policy
    :param observations: S observations as the policy sees them, or one
    :param n_chains: actions, at each state
    :param n_noisings: L, of each action; the bounds approach the entropy with L, the slower the more dimensions there are
    :param seed: of a generator of its own
    :return: the three entropies at each state
    :raises ValueError: as :func:`policy_chains`
    """
    check_number("n_chains", n_chains, 1, integer=True)
    check_number("n_noisings", n_noisings, 1, integer=True)
    sampler = Sampler(model, seed)
    return sampler.entropies(observation_tensors(model, observations), n_chains, n_noisings)
