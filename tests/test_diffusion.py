"""The diffusion core: kernels, log-ratios, schedules, path entropy (docs/method.md, "Identities")."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from sb3_diffusion.diffusion import (
    KernelTables,
    NoiseSchedule,
    log_ratio,
    make_betas,
    make_kernel_tables,
    prior_log_prob,
    remaining_signal,
    reverse_step,
    sample_chain,
    squashed_readout,
    telescoped_log_ratio,
)

SCHEDULES = ["linear", "geometric", "cosine"]


def tables_of(diffusion_steps: int, noise_schedule="linear", prior_std: float = 1.0, kernel: str = "vp") -> KernelTables:
    return make_kernel_tables(make_betas(noise_schedule, diffusion_steps).double().unsqueeze(1), prior_std, kernel)


def zero_denoiser(latents: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
    return th.zeros_like(latents), th.zeros_like(latents)


@pytest.mark.parametrize("kernel", ["vp", "euler"])
@given(seed=st.integers(0, 2**31 - 1), prior_std=st.floats(0.3, 3), k=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_log_ratio_is_the_difference_of_the_two_kernels_log_densities(kernel, seed, prior_std, k) -> None:
    generator = th.Generator().manual_seed(seed)
    latents, drift, log_scale, noise = th.randn(4, 7, 3, dtype=th.float64, generator=generator).unbind()
    beta = make_betas("linear", 5)[k - 1].double()
    tables = KernelTables(*(table[k - 1] for table in tables_of(5, prior_std=prior_std, kernel=kernel)))
    previous, ratio = reverse_step(latents, drift, log_scale, tables, noise)
    # Written out from the definitions, not from the tables.
    if kernel == "vp":
        reverse_mean = (1 - beta).sqrt() * latents + prior_std * beta.sqrt() * drift
        noising_mean = (1 - beta).sqrt() * previous
    else:
        reverse_mean = (1 - beta / 2) * latents + prior_std**2 * beta * drift
        noising_mean = (1 - beta / 2) * previous
    std = prior_std * beta.sqrt()
    log_q = Normal(reverse_mean, std * log_scale.exp()).log_prob(previous)
    log_pi = Normal(noising_mean, std).log_prob(latents)
    th.testing.assert_close(ratio, (log_q - log_pi).sum(dim=1), rtol=1e-9, atol=1e-9)
    th.testing.assert_close(previous, reverse_mean + std * log_scale.exp() * noise)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@pytest.mark.parametrize("diffusion_steps", [1, 4, 16])
@pytest.mark.parametrize("prior_std", [1.0, 2.5])
def test_zero_heads_give_zero_mean_log_ratio_and_the_prior_as_marginal(noise_schedule, diffusion_steps, prior_std) -> None:
    th.manual_seed(0)
    n = 100_000
    noise = th.randn(diffusion_steps + 1, n, 1, dtype=th.float64)
    chain = sample_chain(zero_denoiser, tables_of(diffusion_steps, noise_schedule, prior_std), prior_std, noise)
    sums = chain.log_ratios.sum(dim=0)
    assert abs(sums.mean()) < 5 * sums.std() / math.sqrt(n)
    standardised = chain.latents[0].flatten() / prior_std
    assert abs(standardised.mean()) < 5 / math.sqrt(n)
    assert abs(standardised.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((standardised**4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@given(diffusion_steps=st.integers(1, 64), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=15, deadline=None)
def test_with_zero_heads_the_path_log_prob_is_the_squashed_gaussians_on_every_sample(noise_schedule, diffusion_steps, seed):
    generator = th.Generator().manual_seed(seed)
    noise = th.randn(diffusion_steps + 1, 5, 2, dtype=th.float64, generator=generator)
    location, log_scale = th.randn(2, 5, 2, dtype=th.float64, generator=generator).unbind()
    chain = sample_chain(zero_denoiser, tables_of(diffusion_steps, noise_schedule), 1.0, noise)
    actions, readout_log_ratio = squashed_readout(chain.latents[0], location, log_scale)
    path_log_prob = chain.prior_log_prob + chain.log_ratios.sum(dim=0) + readout_log_ratio
    pre_tanh = location + log_scale.exp() * chain.latents[0]
    gaussian = Normal(location, log_scale.exp()).log_prob(pre_tanh).sum(dim=1)
    squash = (2 * (math.log(2) - th.logaddexp(pre_tanh, -pre_tanh))).sum(dim=1)  # log 1/cosh²
    th.testing.assert_close(path_log_prob, gaussian - squash, rtol=1e-6, atol=1e-6)
    th.testing.assert_close(actions, th.tanh(pre_tanh))


def test_path_entropy_bounds_the_entropy_and_the_gap_falls_with_the_number_of_steps() -> None:
    # A linear reverse process, the exact time reversal of noising N(mean, std²): its marginals are Gaussian in closed form, so
    # the entropy of tanh(x^0) is known by quadrature. The bound's gap is then the mismatch between prior and x^K.
    target_mean, target_std = 0.8, 0.3
    gaps = []
    for diffusion_steps in (1, 2, 4, 8, 16):
        tables = tables_of(diffusion_steps)
        signal = th.cat([th.ones(1, 1, dtype=th.float64), tables.retain.cumprod(dim=0)]).flatten()

        def posterior(k: int, tables=tables, signal=signal) -> tuple[float, float, float]:
            """Slope, intercept and std of q(x^{k-1} | x^k) for noising started in N(target_mean, target_std²)."""
            a, noise_std = float(tables.retain[k - 1]), float(tables.noise_std[k - 1])
            mean = float(signal[k - 1]) * target_mean
            variance = float(signal[k - 1]) ** 2 * target_std**2 + 1 - float(signal[k - 1]) ** 2
            gain = a * variance / (a**2 * variance + noise_std**2)
            return gain, mean - gain * a * mean, math.sqrt(variance * (1 - gain * a))

        def denoiser(latents: th.Tensor, k: int, tables=tables, posterior=posterior) -> tuple[th.Tensor, th.Tensor]:
            gain, intercept, std = posterior(k)
            mean = gain * latents + intercept
            drift = (mean - tables.retain[k - 1] * latents) / tables.drift_scale[k - 1]
            return drift, th.full_like(latents, math.log(std / float(tables.noise_std[k - 1])))

        th.manual_seed(1)
        noise = th.randn(diffusion_steps + 1, 200_000, 1, dtype=th.float64)
        chain = sample_chain(denoiser, tables, 1.0, noise)
        zero = th.zeros(1, 1, dtype=th.float64)
        path_log_prob = chain.prior_log_prob + chain.log_ratios.sum(dim=0) + squashed_readout(chain.latents[0], zero, zero)[1]
        path_entropy, error = -path_log_prob.mean(), path_log_prob.std() / math.sqrt(len(path_log_prob))

        mean, variance = 0.0, 1.0
        for k in range(diffusion_steps, 0, -1):
            gain, intercept, std = posterior(k)
            mean, variance = gain * mean + intercept, gain**2 * variance + std**2
        grid = np.linspace(mean - 9 * math.sqrt(variance), mean + 9 * math.sqrt(variance), 20_001)
        density = np.exp(-0.5 * (grid - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)
        log_det = 2 * (math.log(2) - grid - np.logaddexp(0, -2 * grid))
        entropy = np.trapezoid(density * (0.5 * (grid - mean) ** 2 / variance + log_det), grid)
        entropy += 0.5 * math.log(2 * math.pi * variance)
        assert path_entropy <= entropy + 5 * error
        gaps.append(float(entropy - path_entropy))
    assert np.all(np.diff(gaps) < 0), gaps
    assert gaps[-1] < 0.25 * gaps[0]


@pytest.mark.parametrize("diffusion_steps", [1, 64])
@pytest.mark.parametrize("size", [0.0, 50.0])
@pytest.mark.parametrize("log_scale", [-10.0, 2.0])
def test_extreme_heads_give_finite_float32_values_and_gradients(diffusion_steps, size, log_scale) -> None:
    th.manual_seed(0)
    drift = th.full((1,), size, requires_grad=True)
    scale = th.full((1,), log_scale, requires_grad=True)
    location = th.full((1, 3), 1e3, requires_grad=True)
    readout_log_scale = th.full((1, 3), 2.0, requires_grad=True)
    schedule = NoiseSchedule(make_betas("cosine", diffusion_steps), 3, 1.0, "vp", learn=True)
    noise = 4 * th.randn(diffusion_steps + 1, 8, 3)
    chain = sample_chain(lambda x, k: (drift.expand_as(x), scale.expand_as(x)), schedule(), 1.0, noise)
    actions, readout_log_ratio = squashed_readout(chain.latents[0], location, readout_log_scale)
    path_log_prob = chain.prior_log_prob + chain.log_ratios.sum(dim=0) + readout_log_ratio
    assert th.isfinite(path_log_prob).all()
    assert actions.abs().max() <= 1
    (path_log_prob.mean() + actions.sum()).backward()
    for parameter in (drift, scale, location, readout_log_scale, schedule.beta_logits):
        assert th.isfinite(parameter.grad).all()


@given(x=st.floats(-1e4, 1e4))
@settings(max_examples=50, deadline=None)
def test_the_readouts_jacobian_term_is_finite_and_right_for_any_action(x) -> None:
    value = squashed_readout(th.tensor([[x]]), th.zeros(1, 1), th.zeros(1, 1))[1]
    assert th.isfinite(value).all()
    if abs(x) < 5:
        assert value.item() == pytest.approx(-math.log(1 - math.tanh(x) ** 2), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@given(diffusion_steps=st.integers(1, 64))
@settings(max_examples=20, deadline=None)
def test_every_schedule_gives_betas_in_the_open_unit_interval(noise_schedule, diffusion_steps) -> None:
    betas = make_betas(noise_schedule, diffusion_steps)
    assert betas.shape == (diffusion_steps,)
    assert ((betas > 0) & (betas < 1)).all()
    assert (betas.diff() >= 0).all()


def test_named_schedules_run_from_beta_min_at_the_action_to_beta_max_at_the_prior() -> None:
    for noise_schedule in ("linear", "geometric"):
        betas = make_betas(noise_schedule, 5, 0.01, 0.5)
        assert betas[0].item() == pytest.approx(0.01) and betas[-1].item() == pytest.approx(0.5)
    assert make_betas("geometric", 3, 0.01, 0.25)[1].item() == pytest.approx(0.05)
    signal = (1 - make_betas("cosine", 8)).prod()
    assert signal < 0.01
    assert make_betas([0.1, 0.2], 2).tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quadratic", 4), "noise_schedule='quadratic'"),
        (([0.1, 0.2], 3), "allowed: 3"),
        (([0.1, 1.0], 2), "from 1e-08 on and below 1 only"),
        (("linear", 4, 0.0, 0.2), "beta_min=0.0"),
        (("linear", 4, 0.1, 1.0), "beta_max=1.0"),
        (("linear", 4, float("nan"), 0.5), "beta_min=nan"),
    ],
)
def test_a_wrong_schedule_is_refused_by_name(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_betas(*arguments)


def test_a_learned_schedule_starts_at_the_given_betas_and_passes_gradients_to_them() -> None:
    betas = make_betas("linear", 4)
    fixed, learned = (NoiseSchedule(betas, 2, 1.5, "vp", learn=learn) for learn in (False, True))
    for ours, theirs in zip(fixed(), learned(), strict=True):
        th.testing.assert_close(ours.expand_as(theirs), theirs, rtol=1e-4, atol=1e-5)
    assert not list(fixed.parameters()) and not fixed.state_dict()
    latents, previous, noise = th.randn(3, 6, 2).unbind()
    tables = KernelTables(*(table[2] for table in learned()))
    log_ratio(latents, previous, noise, th.zeros(6, 2), tables).sum().backward()
    assert learned.beta_logits.grad[2].abs().min() > 0
    assert learned.beta_logits.grad[[0, 1, 3]].abs().max() == 0


def test_the_prior_log_prob_averages_to_minus_the_priors_entropy() -> None:
    th.manual_seed(0)
    values = prior_log_prob(2.0 * th.randn(200_000, 3), 2.0)
    entropy = 1.5 * math.log(2 * math.pi * math.e * 4)
    assert values.mean().item() == pytest.approx(-entropy, abs=5 * values.std().item() / math.sqrt(200_000))


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_telescoped_log_ratio_is_the_mean_log_ratio_of_the_untrained_rest_of_the_chain(noise_schedule, k) -> None:
    th.manual_seed(0)
    n, prior_std = 200_000, 1.7
    tables = tables_of(4, noise_schedule, prior_std)
    start = th.tensor([[2.0, -0.4]], dtype=th.float64)
    latents, total = start.expand(n, -1), th.zeros(n, dtype=th.float64)
    for step in range(k, 0, -1):
        step_tables = KernelTables(*(table[step - 1] for table in tables))
        latents, ratio = reverse_step(latents, *zero_denoiser(latents, step), step_tables, th.randn_like(latents))
        total += ratio
    expected = telescoped_log_ratio(start, remaining_signal(tables)[k], prior_std)
    assert total.mean().item() == pytest.approx(expected.item(), abs=5 * total.std().item() / math.sqrt(n) + 1e-12)
    if k:
        assert latents.mean(dim=0).tolist() == pytest.approx(
            (remaining_signal(tables)[k] * start).flatten().tolist(), abs=0.03
        )


@pytest.mark.parametrize("learn", [False, True])
def test_the_rows_of_a_schedule_are_those_of_its_current_tables(learn) -> None:
    schedule = NoiseSchedule(make_betas("linear", 5), 2, 1.5, "vp", learn)
    with th.inference_mode():
        schedule.rows()
    schedule.double()
    if learn:
        with th.no_grad():
            schedule.beta_logits.add_(0.5)
    for row, expected in zip(schedule.rows(), schedule().rows(), strict=True):
        for tensor, other in zip(row, expected, strict=True):
            assert not tensor.is_inference()
            assert tensor.dtype == th.float64
            assert th.equal(tensor, other)
