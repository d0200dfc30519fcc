"""
A mode of a policy from samples of ``x^0``, without random numbers (docs/method.md, "Deterministic prediction").

Most states have a policy with one mode, where ``x^0`` is nearly an affine function of the chain's noise; eight chains tell
(:func:`unexplained_share`). Only where they do not, is the mode searched for among more (:func:`mode_of_samples`).
"""

from collections.abc import Callable

import numpy as np
import torch as th

# Chains that tell whether there may be more than one mode: antithetic, along two directions of the noise, at two radii whose
# mean square is 1. Near and far ends then differ where the noise does not decide by how much, but on which side.
N_PROBE_DIRECTIONS = 2
PROBE_RADII = (0.35, 1.37)
N_PROBES = 2 * N_PROBE_DIRECTIONS * len(PROBE_RADII)
# Of the variance of their ends in some dimension, an affine function of the noise leaves 0 for a Gaussian, and a quarter where
# the noise picks one of two points.
MAX_UNEXPLAINED_SHARE = 0.05
# A dimension counts by the sum of its own variance and this share of the dimensions' mean: chains along two directions may
# happen to hardly move in one.
UNEXPLAINED_DAMPING = 0.3
# The search: antithetic pairs of chains, and how many of them count as a point's neighbours.
N_MODE_PAIRS = 32
N_MODE_NEIGHBOURS = 8
# The policy counts as multimodal if the mean's neighbours are further away than those of a typical sample, by a factor that
# falls from 2 in one action dimension to 0.75. For a Gaussian it is 0.7, but up to 1.8 by chance in one dimension.
MODE_RADIUS_RATIO, MODE_RADIUS_MARGIN = 0.75, 1.25
# Or if a cut between two groups of some size leaves little of the variance; of a Gaussian's it leaves 0.36, rarely below 0.2.
MODE_CUT_SHARE = 0.16
MODE_CUT_SMALLEST = 4
# A mode reaches some times as far from its centre as the neighbours, a factor that falls from 6 to 1; in many dimensions all
# distances are alike.
MODE_REACH_RATIO, MODE_REACH_MARGIN = 1.0, 5.0
# States whose chains run together: enough to keep the processor busy, few enough for their activations to stay in its cache.
PROBED_STATES, SEARCHED_STATES = 64, 16


def probe_noise(diffusion_steps: int, latent_dim: int) -> th.Tensor:
    """
    The noise of the chains for :func:`unexplained_share`, always the same.

    :param diffusion_steps: K
    :param latent_dim: d
    :return: (K + 1, 8, d)
    """
    directions = np.random.default_rng(0).standard_normal((diffusion_steps + 1, N_PROBE_DIRECTIONS, 1, latent_dim))
    directions /= np.sqrt(np.square(directions).mean(axis=0))
    noise = (directions * np.reshape(PROBE_RADII, (-1, 1))).reshape(diffusion_steps + 1, N_PROBES // 2, latent_dim)
    return th.as_tensor(np.concatenate([noise, -noise], axis=1), dtype=th.float32)


def probe_residual() -> th.Tensor:
    """
    :return: (8, 8), the projection that leaves of the ends of these chains what no affine function of their noise explains
    """
    along = np.kron(np.eye(N_PROBE_DIRECTIONS), np.reshape(PROBE_RADII, (-1, 1)))
    design = np.concatenate([np.ones((N_PROBES, 1)), np.concatenate([along, -along])], axis=1)
    return th.as_tensor(np.eye(N_PROBES) - design @ np.linalg.pinv(design), dtype=th.float32)


def mode_noise(diffusion_steps: int, latent_dim: int) -> th.Tensor:
    """
    The noise of the chains whose ends :func:`mode_of_samples` takes, always the same.

    :param diffusion_steps: K
    :param latent_dim: d
    :return: (K + 1, 64, d)
    """
    noise = np.random.default_rng(0).standard_normal((diffusion_steps + 1, N_MODE_PAIRS, latent_dim))
    return th.as_tensor(np.concatenate([noise, -noise], axis=1), dtype=th.float32)


def unexplained_share(ends: th.Tensor, residual: th.Tensor) -> th.Tensor:
    """
    The largest share, over the dimensions, of the variance of ``x^0`` that no affine function of the noise explains.

    :param ends: (8, B, d), ``x^0`` of the chains with :func:`probe_noise`
    :param residual: (8, 8), :func:`probe_residual`
    :return: (B,), from 0 for a Gaussian policy to about 1; nan where all ends are the same
    """
    unexplained = (residual @ ends.flatten(1)).square().mean(dim=0).view_as(ends[0])
    variance = ends.var(dim=0, correction=0)
    return (unexplained / (variance + UNEXPLAINED_DAMPING * variance.mean(dim=1, keepdim=True))).amax(dim=1)


def cut_share(values: th.Tensor) -> th.Tensor:
    """
    The smallest share of the variance that is left by a cut of the values into a lower and an upper group.

    :param values: (B, n)
    :return: (B,)
    """
    values = (values - values.mean(dim=1, keepdim=True)).sort(dim=1).values
    n = values.shape[1]
    counts = th.arange(1, n, device=values.device)
    between = values.cumsum(dim=1)[:, :-1].square() * n / (counts * (n - counts))
    return 1 - between[:, MODE_CUT_SMALLEST - 1 : n - MODE_CUT_SMALLEST].amax(dim=1) / values.square().sum(dim=1)


def neighbour_distance(distances: th.Tensor, n: int) -> th.Tensor:
    """
    :param distances: (…, N)
    :param n: from 1 to N
    :return: (…, 1), the n-th smallest
    """
    return distances.topk(n, dim=-1, largest=False).values[..., -1:]


def distances(points: th.Tensor, others: th.Tensor) -> th.Tensor:
    """
    ``torch.cdist`` in operations that every exporter knows.

    :param points: (B, m, d)
    :param others: (B, n, d)
    :return: (B, m, n)
    """
    squares = points.square().sum(dim=2, keepdim=True) + others.square().sum(dim=2).unsqueeze(1)
    return (squares - 2 * points @ others.transpose(1, 2)).clamp(min=0).sqrt()


def mode_of_samples(ends: th.Tensor) -> th.Tensor:
    """
    The centre of a mode of what the samples are drawn from.

    Where they are unimodal, their mean is the answer: it varies as smoothly with the state as the policy does. Where the mean
    lies between modes, the answer is the mean of the mode around the densest of the points. Two signs tell: the mean's
    neighbours are further away than those of these points (plain in few dimensions), or the sample falls into two groups along
    the line from the mean to that mode.

    :param ends: (B, n, d), n > 8 samples of ``x^0`` for each state
    :return: (B, d)
    """
    dim = ends.shape[2]
    mean = ends.mean(dim=1, keepdim=True)
    ends = ends - mean  # also for the precision of the distances
    # Of a point of the sample, its own distance of zero comes first.
    radii = neighbour_distance(distances(ends, ends), N_MODE_NEIGHBOURS + 1)[..., 0]
    mean_radius = neighbour_distance(distances(th.zeros_like(mean), ends), N_MODE_NEIGHBOURS)[:, 0, 0]
    centre = ends.gather(1, radii.argmin(dim=1).reshape(-1, 1, 1).expand_as(mean))
    reach = MODE_REACH_RATIO + MODE_REACH_MARGIN / dim
    for _ in range(3):
        away = distances(centre, ends)
        within = (away <= reach * neighbour_distance(away, N_MODE_NEIGHBOURS)).to(ends.dtype)
        centre = within @ ends / within.sum(dim=2, keepdim=True)
    ratio = MODE_RADIUS_RATIO + MODE_RADIUS_MARGIN / dim
    median_radius = neighbour_distance(radii, (radii.shape[1] + 1) // 2)[:, 0]
    lonely = mean_radius > ratio * median_radius
    between_modes = lonely | (cut_share((ends @ centre.transpose(1, 2))[..., 0]) < MODE_CUT_SHARE)
    return (mean + th.where(between_modes.reshape(-1, 1, 1), centre, 0.0))[:, 0]


def find_mode(
    sample: Callable[[th.Tensor, th.Tensor], th.Tensor],
    states: th.Tensor,
    probes: th.Tensor,
    residual: th.Tensor,
    noise: th.Tensor,
) -> th.Tensor:
    """
    The centre of a mode of the policy at each state: the mean of eight chains where they look like a Gaussian's, else
    :func:`mode_of_samples` of 64. Row by row a function of the state alone. Works in chunks, but for tracing, where their
    number would become a constant.

    :param sample: the ends (n, B, d) of chains at states (B, …) with noise (K + 1, n, d)
    :param states: (B, …), whatever ``sample`` takes
    :param probes: (K + 1, 8, d), :func:`probe_noise`
    :param residual: (8, 8), :func:`probe_residual`
    :param noise: (K + 1, 64, d), :func:`mode_noise`
    :return: (B, d)
    """
    tracing = th.jit.is_tracing() or th.compiler.is_exporting()

    def in_chunks(function: Callable[[th.Tensor], th.Tensor], rows: th.Tensor, size: int) -> th.Tensor:
        if tracing or len(rows) <= size:
            return function(rows)
        return th.cat([function(chunk) for chunk in rows.split(size)])

    def probe(chunk: th.Tensor) -> th.Tensor:
        ends = sample(chunk, probes)
        # By pairs, which cancel exactly where the policy is symmetric
        mean = (ends[: N_PROBES // 2] + ends[N_PROBES // 2 :]).mean(dim=0) / 2
        return th.cat([mean, unexplained_share(ends, residual).unsqueeze(1)], dim=1)

    probed = in_chunks(probe, states, PROBED_STATES)
    centre, unexplained = probed[:, :-1], probed[:, -1]
    doubtful = (unexplained > MAX_UNEXPLAINED_SHARE).nonzero()[:, 0]
    if not tracing and len(doubtful) == 0:
        return centre
    found = in_chunks(lambda chunk: mode_of_samples(sample(chunk, noise).transpose(0, 1)), states[doubtful], SEARCHED_STATES)
    return centre.index_put((doubtful,), found)
