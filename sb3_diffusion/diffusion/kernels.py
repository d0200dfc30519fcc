"""
The two kernels of a diffusion policy and their log-ratio, as functions of tensors (docs/method.md, "The two kernels").

``x^K`` is drawn from the prior ``N(0, ν²)``; the reverse kernel (the policy) takes ``x^k`` to ``x^{k-1}``; the noising kernel
goes back. Both share ``noise_std`` up to the learned factor ``e^g``, so normalisation constants cancel in the log-ratio.
"""

import math

import torch as th
from torch.nn import functional as F

from sb3_diffusion.diffusion.schedule import KernelTables


def reverse_mean(latents: th.Tensor, drift: th.Tensor, tables: KernelTables) -> th.Tensor:
    """
    Mean of the reverse kernel, ``retain x^k + drift_scale f``.

    :param latents: (B, d), ``x^k``
    :param drift: (B, d), ``f``
    :param tables: the rows of step k, each broadcastable to (B, d)
    :return: (B, d)
    """
    return th.addcmul(tables.retain * latents, tables.drift_scale, drift)


def reverse_sample(
    latents: th.Tensor, drift: th.Tensor, log_scale: th.Tensor, tables: KernelTables, noise: th.Tensor
) -> th.Tensor:
    """
    One step of the reverse kernel, ``x^{k-1} = retain x^k + drift_scale f + noise_std e^g ε``.

    :param latents: (B, d), ``x^k``
    :param drift: (B, d), ``f``
    :param log_scale: (B, d), ``g``; zero is the paper's fixed variance
    :param tables: the rows of step k, each broadcastable to (B, d)
    :param noise: (B, d), ``ε``, standard normal (zero: the mean)
    :return: (B, d), ``x^{k-1}``
    """
    return th.addcmul(reverse_mean(latents, drift, tables), tables.noise_std * log_scale.exp(), noise)


def reverse_step(
    latents: th.Tensor, drift: th.Tensor, log_scale: th.Tensor, tables: KernelTables, noise: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    One step of the reverse kernel (:func:`reverse_sample`, with its parameters) and its log-ratio.

    :return: ``x^{k-1}`` (B, d), and ``ℓ_k`` (B,) in nats
    """
    previous = reverse_sample(latents, drift, log_scale, tables, noise)
    return previous, log_ratio(latents, previous, noise, log_scale, tables)


def log_ratio(
    latents: th.Tensor, previous: th.Tensor, noise: th.Tensor, log_scale: th.Tensor, tables: KernelTables
) -> th.Tensor:
    """
    ``ℓ_k = Σ_dims log q(x^{k-1} | x^k) - log π(x^k | x^{k-1})``.

    :param latents: (B, d), ``x^k``
    :param previous: (B, d), ``x^{k-1}``
    :param noise: (B, d), the standardised residual of ``x^{k-1}`` under the reverse kernel
    :param log_scale: (B, d), ``g``
    :param tables: the rows of step k
    :return: (B,) in nats
    """
    noising_residual = (latents - tables.retain * previous) / tables.noise_std
    return (0.5 * (noising_residual.square() - noise.square()) - log_scale).sum(dim=-1)


def prior_log_prob(latents: th.Tensor, prior_std: float) -> th.Tensor:
    """
    Log-density of the prior ``N(0, ν² I)``.

    :param latents: (B, d), ``x^K``
    :param prior_std: ν
    :return: (B,) in nats
    """
    constant = latents.shape[-1] * math.log(prior_std * math.sqrt(2 * math.pi))
    return -0.5 * (latents / prior_std).square().sum(dim=-1) - constant


def gaussian_log_prob(residual: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    Log-density of independent Gaussians.

    :param residual: (…, d), the standardised residual, (value - mean) / std
    :param log_std: broadcastable to (…, d)
    :return: (…) in nats
    """
    log_norm = -0.5 * math.log(2 * math.pi) - log_std
    return th.addcmul(log_norm, residual, residual, value=-0.5).sum(dim=-1)


def expected_log_prob(distance: th.Tensor, variance: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """
    Mean log-density of independent Gaussians over a Gaussian value.

    :param distance: (…, d), the value's mean minus theirs
    :param variance: broadcastable to (…, d), the value's
    :param log_std: broadcastable to (…, d), theirs
    :return: (…) in nats
    """
    inverse_std = th.exp(-log_std)
    spread = (variance * inverse_std.square()).expand_as(distance)
    return gaussian_log_prob(distance * inverse_std, log_std) - 0.5 * spread.sum(dim=-1)


def noising_log_prob(latents: th.Tensor, previous: th.Tensor, tables: KernelTables) -> th.Tensor:
    """
    ``log π(x^k | x^{k-1})`` of the noising kernel.

    :param latents: (…, d), ``x^k``
    :param previous: (…, d), ``x^{k-1}``
    :param tables: the rows of step k
    :return: (…) in nats
    """
    return gaussian_log_prob((latents - tables.retain * previous) / tables.noise_std, tables.noise_std.log())


def gaussian_kl(mean: th.Tensor, log_std: th.Tensor, other_mean: th.Tensor, other_log_std: th.Tensor) -> th.Tensor:
    """
    Kullback-Leibler divergence of independent Gaussians from others, in closed form.

    :param mean: (…, d)
    :param log_std: (…, d)
    :param other_mean: (…, d), of the second argument of the divergence
    :param other_log_std: (…, d)
    :return: (…) in nats
    """
    log_ratio = other_log_std - log_std
    # Its square is finite in float32.
    distance = ((mean - other_mean) / other_log_std.exp()).clamp(-1e18, 1e18)
    scaled = th.addcmul(th.exp(-2 * log_ratio), distance, distance)
    return (log_ratio + 0.5 * (scaled - 1)).sum(dim=-1)


def with_floor(log_std: th.Tensor, log_floor: th.Tensor) -> th.Tensor:
    """
    The logarithm of ``√(σ² + floor²)``: never below the floor, and with a gradient everywhere, which a maximum has not.

    :param log_std: ``log σ``
    :param log_floor: broadcastable to the same shape
    """
    return 0.5 * th.logaddexp(2 * log_std, 2 * log_floor)


def telescoped_log_ratio(latents: th.Tensor, signal: th.Tensor, prior_std: float) -> th.Tensor:
    """
    ``E[Σ_{j≤k} ℓ_j | x^k] = Σ_dims ½ (1 - ρ_k²) (x²/ν² - 1)`` of a chain whose heads are zero: by detailed balance the
    log-ratios telescope to ``log p(x^0) - log p(x^k)``, and ``x^0`` given ``x^k`` is ``N(ρ_k x^k, (1 - ρ_k²) ν²)``. Exact for
    "vp".

    :param latents: (B, d), ``x^k``
    :param signal: broadcastable to (B, d), ``ρ_k``, see :func:`remaining_signal`
    :param prior_std: ν
    :return: (B,) in nats, before the read-out's term
    """
    return (0.5 * (1 - signal.square()) * ((latents / prior_std).square() - 1)).sum(dim=-1)


def read_out(latents: th.Tensor, location: th.Tensor, log_scale: th.Tensor) -> th.Tensor:
    """
    The action before it is squashed, ``m + c x^0``.

    :param latents: (B, d), ``x^0``
    :param location: broadcastable to (B, d), ``m``
    :param log_scale: broadcastable to (B, d), ``log c``
    :return: (B, d)
    """
    return th.addcmul(location, log_scale.exp(), latents)


def log_det_tanh(action: th.Tensor) -> th.Tensor:
    """
    ``Σ_dims log(1 - tanh(a)²)``, without cancellation for large ``|a|``.

    :param action: (B, d), before it is squashed
    :return: (B,) in nats
    """
    return (2 * (math.log(2) - action - F.softplus(-2 * action))).sum(dim=-1)


def readout_log_ratio(action: th.Tensor, log_scale: th.Tensor, squashed: bool = True) -> th.Tensor:
    """
    The term that the read-out adds to ``ℓ_1``, ``- Σ_dims log c + log(1 - tanh(a)²)``.

    :param action: (B, d), ``a``, before it is squashed
    :param log_scale: broadcastable to (B, d), ``log c``
    :param squashed: whether the action goes through tanh; else there is only the scale's part
    :return: (B,) in nats
    """
    scale = log_scale.sum(dim=-1)
    return -(scale + log_det_tanh(action)) if squashed else -scale


def squashed_readout(latents: th.Tensor, location: th.Tensor, log_scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Read the action out of the last latent, ``u = tanh(m + c x^0)``, with the term it adds to ``ℓ_1``.

    :param latents: (B, d), ``x^0``
    :param location: broadcastable to (B, d), ``m``
    :param log_scale: broadcastable to (B, d), ``log c``
    :return: ``u`` (B, d) in [-1, 1], and :func:`readout_log_ratio` (B,) in nats
    """
    action = read_out(latents, location, log_scale)
    return th.tanh(action), readout_log_ratio(action, log_scale)
