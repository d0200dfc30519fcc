"""Noise schedules: how much noise each diffusion step adds, as tables made once (docs/method.md, "Noise schedules")."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch as th
from torch import nn

NOISE_SCHEDULES = ("linear", "geometric", "cosine")
KERNELS = ("vp", "euler")
# Below it, what a step takes from the latent is lost in float32, and the log-ratios with it.
SMALLEST_BETA = 1e-8
# A learned beta stays inside these bounds: both kernels degenerate at 0 and at 1.
LEARNED_BETA_MIN, LEARNED_BETA_MAX = 1e-3, 1 - 1e-3


class KernelTables(NamedTuple):
    """
    The coefficients of both kernels, one row per diffusion step, each of shape (K, d) or (K, 1); row ``k - 1`` belongs to
    step k. Noising kernel: ``N(retain x, noise_std²)``; reverse kernel: ``N(retain x + drift_scale f, (noise_std e^g)²)``.
    """

    retain: th.Tensor
    noise_std: th.Tensor
    drift_scale: th.Tensor

    def at(self, steps: th.Tensor | int) -> "KernelTables":
        """
        :param steps: k, (N,) integers in 1 … K or one
        :return: the tables' rows for these steps
        """
        return KernelTables(*(table[steps - 1] for table in self))

    def rows(self) -> list["KernelTables"]:
        """:return: the K rows one by one, for k = 1 … K"""
        return [KernelTables(*row) for row in zip(*(table.unbind() for table in self), strict=True)]


def _allowed(betas: th.Tensor) -> bool:
    return bool(((betas >= SMALLEST_BETA) & (betas < 1)).all())


def make_betas(
    noise_schedule: str | Sequence[float], diffusion_steps: int, beta_min: float = 0.05, beta_max: float = 0.2
) -> th.Tensor:
    """
    The noise ``β_1 … β_K`` of a named or explicit schedule.

    :param noise_schedule: "linear" or "geometric" interpolation from ``beta_min`` at k = 1 to ``beta_max`` at k = K;
        "cosine" (Nichol & Dhariwal, 2021), which ends in nearly pure noise for every K and has no other parameter;
        or the K values ``β_1 … β_K`` themselves.
    :param diffusion_steps: K ≥ 1
    :param beta_min: β_1, from 1e-8 on and below 1
    :param beta_max: β_K, the same
    :return: (K,) tensor
    :raises ValueError: for an unknown name, a sequence that is not K values, or a β out of range
    """
    for name, beta in (("beta_min", beta_min), ("beta_max", beta_max)):
        # As the float32 that it will be
        if isinstance(beta, bool) or not isinstance(beta, Real) or not _allowed(th.tensor(beta, dtype=th.float32)):
            raise ValueError(f"{name}={beta!r} must be a number from {SMALLEST_BETA:g} on and below 1")
    if beta_min > beta_max:
        raise ValueError(f"beta_min={beta_min!r} must be <= beta_max={beta_max!r}")
    if isinstance(noise_schedule, str):
        if noise_schedule not in NOISE_SCHEDULES:
            raise ValueError(
                f"noise_schedule={noise_schedule!r} is unknown; allowed: {NOISE_SCHEDULES} or a sequence of K betas"
            )
        # From the noisy end, so that the only step of K = 1 is the one next to the prior.
        fraction = th.linspace(1, 0, diffusion_steps, dtype=th.float64).flip(0)
        if noise_schedule == "linear":
            betas = beta_min + (beta_max - beta_min) * fraction
        elif noise_schedule == "geometric":
            betas = beta_min * (beta_max / beta_min) ** fraction
        else:
            time = th.arange(diffusion_steps + 1, dtype=th.float64) / diffusion_steps
            signal = th.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    else:
        try:
            betas = th.as_tensor([float(beta) for beta in noise_schedule], dtype=th.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"noise_schedule={noise_schedule!r} must be one of {NOISE_SCHEDULES} or a sequence of K betas"
            ) from None
        if betas.shape != (diffusion_steps,):
            raise ValueError(
                f"noise_schedule={noise_schedule!r} has {betas.numel()} values; allowed: {diffusion_steps} (diffusion_steps)"
            )
        if not _allowed(betas):
            raise ValueError(f"noise_schedule={noise_schedule!r} must hold values from {SMALLEST_BETA:g} on and below 1 only")
    return betas.float()


def make_kernel_tables(betas: th.Tensor, prior_std: float, kernel: str) -> KernelTables:
    """
    The kernels' coefficients (docs/method.md, "The two kernels").

    :param betas: (K, d) or (K, 1), the β_k (called δ_k in the Euler form)
    :param prior_std: ν, the standard deviation of the prior
    :param kernel: "vp", the exact variance-preserving form, or "euler", the form of the paper (arXiv 2512.02019)
    :return: the tables
    :raises ValueError: for an unknown kernel
    """
    noise_std = prior_std * betas.sqrt()
    if kernel == "vp":
        return KernelTables((1 - betas).sqrt(), noise_std, noise_std)
    if kernel == "euler":
        return KernelTables(1 - betas / 2, noise_std, prior_std**2 * betas)
    raise ValueError(f"kernel={kernel!r} is unknown; allowed: {KERNELS}")


def remaining_signal(tables: KernelTables) -> th.Tensor:
    """
    How much of ``x^0`` the mean of the noising process leaves in ``x^k``: ``ρ_k = Π_{j≤k} retain_j``.

    :param tables: the kernel tables
    :return: ρ_0 … ρ_K, (K + 1, d) or (K + 1, 1); ρ_0 = 1
    """
    return th.cat([th.ones_like(tables.retain[:1]), tables.retain.cumprod(dim=0)])


class NoisingMoments(NamedTuple):
    """
    What the noising process makes of ``x^0`` until step k and of ``x^k`` until the end, for k = 0 … K; each (K + 1, d) or
    (K + 1, 1): ``x^k`` given ``x^0`` is ``N(signal x^0, variance)``, and ``x^K`` given ``x^k`` is
    ``N(signal_left x^k, variance_left)``.
    """

    signal: th.Tensor
    variance: th.Tensor
    signal_left: th.Tensor
    variance_left: th.Tensor


def noising_moments(tables: KernelTables) -> NoisingMoments:
    """
    :param tables: the kernel tables
    :return: the moments of the noising process, differentiable if the tables are
    """
    variance = [th.zeros_like(tables.retain[0])]
    for row in tables.rows():
        variance.append(row.retain.square() * variance[-1] + row.noise_std.square())
    left = [(th.ones_like(tables.retain[0]), th.zeros_like(tables.retain[0]))]
    for row in tables.rows()[::-1]:
        signal_left, variance_left = left[-1]
        left.append((signal_left * row.retain, variance_left + (signal_left * row.noise_std).square()))
    signals_left, variances_left = zip(*left[::-1], strict=True)
    return NoisingMoments(remaining_signal(tables), th.stack(variance), th.stack(signals_left), th.stack(variances_left))


class NoiseSchedule(nn.Module):
    """
    The kernel tables of a schedule, fixed (no state) or learned (one β per step and action dimension). State dicts say what
    was chosen in their metadata, beside the tensors: networks trained with one schedule act differently with another.

    :param betas: (K,) initial β_1 … β_K
    :param latent_dim: d
    :param prior_std: ν
    :param kernel: "vp" or "euler"
    :param learn: whether the β are parameters; they then stay within [1e-3, 1 - 1e-3] through a sigmoid
    :raises ValueError: for betas outside these bounds that are to be learned
    """

    retain: th.Tensor
    noise_std: th.Tensor
    drift_scale: th.Tensor

    def __init__(self, betas: th.Tensor, latent_dim: int, prior_std: float, kernel: str, learn: bool = False) -> None:
        super().__init__()
        self.prior_std = prior_std
        self.kernel = kernel
        self.learn = learn
        self.fixed_betas = betas.tolist()
        self.known_rows: tuple[th.Tensor, list[KernelTables]] | None = None
        fixed = make_kernel_tables(betas.unsqueeze(1), prior_std, kernel)
        if learn:
            if betas.min() < LEARNED_BETA_MIN or betas.max() > LEARNED_BETA_MAX:
                raise ValueError(
                    f"learn_schedule=True with β from {betas.min():g} to {betas.max():g}; allowed: a schedule within "
                    f"[{LEARNED_BETA_MIN:g}, {LEARNED_BETA_MAX:g}], where learned β stay"
                )
            span = LEARNED_BETA_MAX - LEARNED_BETA_MIN
            fraction = ((betas - LEARNED_BETA_MIN) / span).clamp(1e-4, 1 - 1e-4)
            self.beta_logits = nn.Parameter(th.logit(fraction).unsqueeze(1).repeat(1, latent_dim))
        else:
            # Not persistent: a schedule is an argument, not a weight, so it has no place in a state dict.
            for name, table in fixed._asdict().items():
                # Cloned: torch.jit.trace refuses two names for one tensor.
                self.register_buffer(name, table.clone(), persistent=False)

    def choices(self) -> dict[str, Any]:
        """:return: what networks are trained for, as numbers and strings; the β only where they are not learned"""
        choices: dict[str, Any] = dict(kernel=self.kernel, prior_std=float(self.prior_std))
        if not self.learn:
            choices["noise_schedule"] = [float(f"{beta:.6g}") for beta in self.fixed_betas]
        return choices

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]].update(self.choices())

    def betas(self) -> th.Tensor:
        """:return: the current learned β, (K, d)"""
        return LEARNED_BETA_MIN + (LEARNED_BETA_MAX - LEARNED_BETA_MIN) * th.sigmoid(self.beta_logits)

    def forward(self) -> KernelTables:
        """:return: the current tables; differentiable if learned"""
        if self.learn:
            return make_kernel_tables(self.betas(), self.prior_std, self.kernel)
        return KernelTables(self.retain, self.noise_std, self.drift_scale)

    def rows(self) -> list[KernelTables]:
        """
        :return: the rows of the current tables one by one, for k = 1 … K; of a fixed schedule made only once, because taking
            tables apart is a tenth of the time of a prediction
        """
        if self.learn or th.jit.is_tracing() or th.compiler.is_compiling():
            return self().rows()
        # Moving a module to another device puts other tensors in the place of its buffers.
        if self.known_rows is None or self.known_rows[0] is not self.retain:
            with th.inference_mode(False):
                self.known_rows = self.retain, self().rows()
        return self.known_rows[1]
