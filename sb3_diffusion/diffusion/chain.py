"""Sampling whole chains ``x^K … x^0`` of a diffusion policy."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch as th

from sb3_diffusion.diffusion.kernels import prior_log_prob, reverse_sample, reverse_step
from sb3_diffusion.diffusion.schedule import KernelTables

# (x^k (B, d), k) -> drift f and log-scale g, each (B, d)
Denoiser = Callable[[th.Tensor, int], tuple[th.Tensor, th.Tensor]]


class TableRows(Protocol):
    """Kernel tables, or a schedule."""

    def rows(self) -> list[KernelTables]:
        """:return: the K rows one by one, for k = 1 … K"""


class Chain(NamedTuple):
    """
    A batch of chains: ``latents[k]`` is ``x^k``, (K + 1, B, d); ``log_ratios[k - 1]`` is ``ℓ_k`` before the read-out, (K, B);
    ``prior_log_prob`` (B,) belongs to ``x^K``. In nats.
    """

    latents: th.Tensor
    log_ratios: th.Tensor
    prior_log_prob: th.Tensor


def sample_chain(denoiser: Denoiser, tables: TableRows, prior_std: float, noise: th.Tensor) -> Chain:
    """
    Run the reverse process from the prior.

    :param denoiser: the network heads ``f`` and ``g`` at (``x^k``, k)
    :param tables: kernel tables with K rows
    :param prior_std: ν
    :param noise: (K + 1, B, d) standard normal; row K makes ``x^K``, row k - 1 makes ``x^{k-1}``
    :return: the chains, differentiable in whatever ``denoiser`` and ``tables`` depend on
    """
    noise_rows, rows = noise.unbind(), tables.rows()
    latents = prior_std * noise_rows[-1]
    chain = [latents]
    log_ratios = []
    for k in range(len(rows), 0, -1):
        drift, log_scale = denoiser(latents, k)
        latents, step_log_ratio = reverse_step(latents, drift, log_scale, rows[k - 1], noise_rows[k - 1])
        chain.append(latents)
        log_ratios.append(step_log_ratio)
    return Chain(th.stack(chain[::-1]), th.stack(log_ratios[::-1]), prior_log_prob(chain[0], prior_std))


def sample_latents(denoiser: Denoiser, tables: TableRows, prior_std: float, noise: th.Tensor) -> list[th.Tensor]:
    """
    The latents ``x^0 … x^K`` of :func:`sample_chain`, with its parameters, where the log-ratios are not wanted.

    :return: K + 1 of shape (B, d)
    """
    noise_rows, rows = noise.unbind(), tables.rows()
    latents = [prior_std * noise_rows[-1]]
    for k in range(len(rows), 0, -1):
        latents.append(reverse_sample(latents[-1], *denoiser(latents[-1], k), rows[k - 1], noise_rows[k - 1]))
    return latents[::-1]


def sample_end(denoiser: Denoiser, tables: TableRows, prior_std: float, noise: th.Tensor) -> th.Tensor:
    """
    The end ``x^0`` of :func:`sample_chain`, with its parameters, where nothing else is wanted.

    :return: (B, d)
    """
    return sample_latents(denoiser, tables, prior_std, noise)[0]
