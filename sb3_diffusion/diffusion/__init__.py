"""The mathematics of diffusion policies on tensors. Knows torch, not Stable-Baselines3."""

from sb3_diffusion.diffusion.chain import Chain, Denoiser, sample_chain, sample_end, sample_latents
from sb3_diffusion.diffusion.kernels import (
    gaussian_kl,
    gaussian_log_prob,
    log_det_tanh,
    log_ratio,
    noising_step,
    prior_log_prob,
    read_out,
    reverse_mean,
    reverse_sample,
    reverse_step,
    squashed_readout,
    telescoped_log_ratio,
)
from sb3_diffusion.diffusion.schedule import (
    KERNELS,
    NOISE_SCHEDULES,
    KernelTables,
    NoiseSchedule,
    make_betas,
    make_kernel_tables,
    remaining_signal,
)

__all__ = [
    "KERNELS",
    "NOISE_SCHEDULES",
    "Chain",
    "Denoiser",
    "KernelTables",
    "NoiseSchedule",
    "gaussian_kl",
    "gaussian_log_prob",
    "log_det_tanh",
    "log_ratio",
    "make_betas",
    "make_kernel_tables",
    "noising_step",
    "prior_log_prob",
    "read_out",
    "remaining_signal",
    "reverse_mean",
    "reverse_sample",
    "reverse_step",
    "sample_chain",
    "sample_end",
    "sample_latents",
    "squashed_readout",
    "telescoped_log_ratio",
]
