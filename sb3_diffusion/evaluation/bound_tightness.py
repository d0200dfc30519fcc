"""How far the path bound, which the algorithms optimise, lies above the divergence of the actions, which is what counts."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.diffusion import KernelTables, prior_log_prob, reverse_mean, squashed_readout
from sb3_diffusion.evaluation.density import RewardFunction, log_partition

# Of the probability that leaves the grid of latents or falls between its points
MASS_TOLERANCE = 1e-3


class BoundTightness(NamedTuple):
    """What :func:`bound_tightness` finds; divergences in nats."""

    marginal_divergence: float
    """``KL(π(u|s) ‖ exp(Q(s, u) / τ) / Z)`` of the actions."""
    path_divergence: float
    """``E[log p(x^K) + Σ_k ℓ_k - Q(s, u) / τ] + log Z``: the bound on it, never smaller."""
    actions: np.ndarray
    """The actions at the points of the grid, ascending, shape (n_points,)."""
    masses: np.ndarray
    """The policy's probability of each, shape (n_points,); ``masses @ f(actions)`` is the expectation of ``f(u)``."""
    densities: np.ndarray
    """Its density per unit of action at each, shape (n_points,)."""


@th.no_grad()
def bound_tightness(
    actor: DiffusionActor,
    features: th.Tensor,
    q_function: RewardFunction,
    temperature: float,
    n_points: int = 801,
    grid_bound: float = 8.0,
) -> BoundTightness:
    """
    Marginal divergence and path divergence of a policy with one-dimensional actions in one state, without sampling (arXiv
    2512.02019; docs/method.md, "The policy").

    The density of the latents goes down the chain on a grid: ``p(x^{k-1}) = Σ p(x^k) q(x^{k-1} | x^k)``. The
    difference of the two divergences is the slack of the path entropy, ``H(u|s) - H_path(s)``, and does not depend on Q.

    :param actor: actor with d = 1
    :param features: (1, features_dim), the state's
    :param q_function: ``Q(s, u)`` of an array of actions u in [-1, 1], of the same shape
    :param temperature: τ, in units of Q per nat, above 0
    :param n_points: points of the grid
    :param grid_bound: the grid of latents reaches this many prior standard deviations to either side
    :return: both divergences and the distribution of the actions
    :raises ValueError: for d > 1, an argument out of range, or a chain that the grid does not resolve
    """
    check_number("n_points", n_points, 2, integer=True)
    check_number("grid_bound", grid_bound, 0, exclusive=True)
    if actor.action_dim != 1:
        raise ValueError(f"actor has {actor.action_dim}-dimensional actions; allowed: one-dimensional ones")
    log_z = log_partition(q_function, temperature)
    bound = grid_bound * actor.prior_std
    grid = th.linspace(-bound, bound, n_points, dtype=th.float64).unsqueeze(1)
    spacing = 2 * bound / (n_points - 1)
    condition = actor.denoiser.condition(features).expand(n_points, -1)
    prior = prior_log_prob(grid, actor.prior_std)
    masses = spacing * prior.exp()
    path = masses @ prior
    for k in range(actor.diffusion_steps, 0, -1):
        tables = KernelTables(*(table.to(grid) for table in actor.schedule().at(k)))
        drift, log_scale = (head.to(grid) for head in actor.denoise(condition, grid.to(features), k))
        means, stds = reverse_mean(grid, drift, tables), tables.noise_std * log_scale.exp()
        # E[ℓ_k | x^k] over x^{k-1} ~ N(mean, std²): E[ε²] = 1 in each dimension.
        expected_square = (
            (grid - tables.retain * means).square() + (tables.retain * stds).square()
        ) / tables.noise_std.square()
        path = path + masses @ (0.5 * (expected_square - 1) - log_scale).squeeze(1)
        residuals = (grid.T - means) / stds
        masses = masses @ (spacing / stds * th.exp(-0.5 * residuals.square()) / (2 * np.pi) ** 0.5)
    total = float(masses.sum())
    if abs(total - 1) > MASS_TOLERANCE:
        raise ValueError(
            f"n_points={n_points} or grid_bound={grid_bound} is too small: the grid holds {total:.4f} of the probability"
        )
    location, log_scale = (part.to(grid) for part in actor.readout(features))
    actions, readout_log_ratio = squashed_readout(grid, location, log_scale)
    inner = masses > 0
    negative_entropy = float(masses[inner] @ th.log(masses[inner] / spacing))
    actions = actions.squeeze(1)
    mean_q_value = masses.numpy() @ q_function(actions.numpy())
    rest = float(masses @ readout_log_ratio) - mean_q_value / temperature + log_z
    densities = masses / spacing * readout_log_ratio.exp()
    return BoundTightness(
        float(negative_entropy + rest), float(path + rest), actions.numpy(), masses.numpy(), densities.numpy()
    )
