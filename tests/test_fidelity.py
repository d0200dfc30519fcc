"""Known densities with any number of modes: the bench, what is measured on it, and what the networks see of a latent."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from scipy.stats import multivariate_normal
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.networks import StepConditionedMLP
from sb3_diffusion.envs import BoltzmannBandit
from sb3_diffusion.envs.boltzmann_bandit import BINS, generated_bumps
from sb3_diffusion.evaluation import fidelity
from sb3_diffusion.evaluation.density import log_partition, total_variation
from sb3_diffusion.experiments.metrics import boltzmann_fidelity

ALGORITHMS = [DiffSAC, DiffTQC, DiffCrossQ, DiffWPO, DiffPPO]


class Sampler:
    """A model whose actions are drawn from a given density per bin, uniformly within the bins."""

    def __init__(self, env: BoltzmannBandit, shares: list[np.ndarray]) -> None:
        self.env, self.shares, self.policy, self.device = env, shares, None, "cpu"

    def predict(self, observations: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        n_bins, dim = BINS[self.env.action_dim - 1], self.env.action_dim
        generator = np.random.default_rng(0)
        cells = generator.choice(n_bins**dim, len(observations), p=self.shares[int(observations[0].argmax())])
        corner = np.stack(np.unravel_index(cells, [n_bins] * dim), axis=-1)
        return (corner + generator.uniform(0, 1, corner.shape)) * 2 / n_bins - 1, None


@pytest.mark.parametrize("kwargs", [{}, dict(bench_seed=3), dict(bench_seed=1, action_dim=3, n_modes=(1, 5))], ids=str)
@pytest.mark.parametrize("check_env", [gymnasium_check_env, sb3_check_env], ids=["gymnasium", "sb3"])
def test_the_environment_checkers_have_nothing_to_say(kwargs: dict[str, Any], check_env: Any) -> None:
    check_env(gym.make("BoltzmannBandit-v0", **kwargs).unwrapped)


def test_the_three_bumps_have_the_masses_that_quadrature_finds_otherwise() -> None:
    env = BoltzmannBandit()
    masses = env.exact_masses(0)
    assert masses.modes == pytest.approx([0.377, 0.246, 0.377], abs=2e-3)
    assert masses.log_partition == pytest.approx(log_partition(lambda a: env.reward(a[..., None], 0), 0.2), abs=1e-6)
    assert masses.bins.sum() == pytest.approx(1)


@pytest.mark.parametrize("action_dim", [1, 2, 3])
def test_at_a_low_temperature_the_masses_are_those_of_gaussians(action_dim: int) -> None:
    # By Laplace's method exp(r / τ) is near a bump of height h a Gaussian of variance w² τ / h, and the next term of the
    # exponential makes its mass larger by τ d (d + 2) / 8h.
    env = BoltzmannBandit(bench_seed=2, action_dim=action_dim, n_modes=(2, 3), separation=8.0, temperature=0.05)
    for context, (centres, heights, widths) in enumerate(env.contexts):
        variances = widths**2 * env.temperature / heights
        peaks = [multivariate_normal(c, v * np.eye(action_dim)).pdf(c) for c, v in zip(centres, variances, strict=True)]
        masses = np.exp((heights - 1) / env.temperature) / np.array(peaks)
        masses *= 1 + env.temperature * action_dim * (action_dim + 2) / (8 * heights)
        exact = env.exact_masses(context)
        assert exact.modes == pytest.approx(masses / masses.sum(), abs=0.01)
        assert exact.log_partition == pytest.approx(np.log(masses.sum()) + 1 / env.temperature, abs=0.05)


def test_generated_problems_depend_on_the_seed_alone_and_keep_what_was_asked_for() -> None:
    first, again, other = (generated_bumps(seed, 2, (1, 3, 6), 5.0) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(first[1].centres, other[1].centres)
    assert [len(bumps.heights) for bumps in first] == [1, 3, 6]
    for centres, heights, widths in first:
        gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.diag(np.full(len(centres), np.inf))
        assert gaps.min() >= 5.0 * widths.max() / 1.25
        assert (heights >= 0.85).all() and (heights <= 1).all() and (np.abs(centres) <= 0.8).all()


def test_every_generated_problem_of_a_hundred_seeds_can_be_made() -> None:
    for seed in range(100):
        for action_dim in (1, 2, 3):
            for separation in (2.0, 3.0, 8.0):
                generated_bumps(seed, action_dim, (1, 2, 3, 4, 5, 6), separation)


def test_an_exact_sampler_has_all_masses_and_another_has_not() -> None:
    env = BoltzmannBandit(bench_seed=0, n_modes=(1, 3))
    exact = [env.exact_masses(context).bins for context in range(2)]
    found = fidelity(Sampler(env, exact), env, 20_000)  # type: ignore[arg-type]
    assert (found.total_variation < 0.02).all()
    assert all(shares == pytest.approx(1, abs=0.1) for shares in found.mode_shares)
    assert np.isnan(found.path_divergence).all()
    uniform = fidelity(Sampler(env, [np.full(40, 1 / 40)] * 2), env, 20_000)  # type: ignore[arg-type]
    expected = [0.5 * np.abs(shares - 1 / 40).sum() for shares in exact]
    assert uniform.total_variation == pytest.approx(expected, abs=0.02)


def test_of_an_untrained_policy_the_path_divergence_is_the_actions_own() -> None:
    model = DiffSAC("MlpPolicy", BoltzmannBandit(), seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]))
    found = fidelity(model, n_samples=20_000)
    # tanh of a standard Gaussian: the divergence by a sum over a fine grid of its density
    env, grid = BoltzmannBandit(), np.linspace(-0.9999, 0.9999, 200_001)
    density = np.exp(-0.5 * np.arctanh(grid) ** 2) / np.sqrt(2 * np.pi) / (1 - grid**2)
    log_target = env.reward(grid[:, None], 0) / 0.2 - env.exact_masses(0).log_partition
    expected = np.trapezoid(density * (np.log(density) - log_target), grid)
    assert found.path_divergence[0] == pytest.approx(expected, abs=0.05)
    assert found.bound_gap[0] == pytest.approx(0, abs=1e-3)
    reward = lambda a: env.reward(a[..., None], 0)  # noqa: E731
    assert found.total_variation[0] == pytest.approx(total_variation(found.actions[0], reward, 0.2), abs=1e-6)


@pytest.mark.parametrize("model", [SAC, DiffPPO], ids=["SAC", "DiffPPO"])
def test_a_campaign_gets_the_figures_of_any_algorithm(model: Any) -> None:
    env = make_vec_env("BoltzmannBandit-v0", env_kwargs=dict(bench_seed=1, n_modes=(1, 2)))
    found = boltzmann_fidelity(model("MlpPolicy", env, device="cpu", policy_kwargs=dict(net_arch=[8])), env)
    assert {"total_variation", "worst_total_variation", "smallest_mode_share", "path_divergence"} <= found.keys()
    assert ("bound_gap" in found) == (model is DiffPPO)
    with pytest.raises(ValueError, match="is for BoltzmannBandit-v0, not for"):
        boltzmann_fidelity(model("MlpPolicy", env, device="cpu"), make_vec_env("BimodalBandit-v0"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(temperature=0), r"temperature=0 must be a finite number > 0"),
        (dict(n_modes=(2,)), r"n_modes: only with bench_seed"),
        (dict(bench_seed=0, n_modes=()), r"n_modes=\(\) must name one context or more"),
        (dict(bench_seed=0, n_modes=(1, 7)), r"n_modes\[1\]=7 must be an integer >= 1 and <= 6"),
        (dict(bench_seed=0, action_dim=4), r"action_dim=4 must be an integer >= 1 and <= 3"),
        (dict(bench_seed=-1), r"bench_seed=-1 must be an integer >= 0"),
        (dict(bench_seed=0, separation=1), r"separation=1 must be a finite number >= 2 and <= 8"),
    ],
)
def test_bad_arguments_of_the_bench_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoltzmannBandit(**kwargs)


@pytest.mark.parametrize("prior_std", [1.0, 2.5])
def test_the_network_sees_sines_and_cosines_of_every_component(prior_std: float) -> None:
    network = StepConditionedMLP(3, 2, 4, 5, [8], prior_std=prior_std, latent_frequencies=3)
    x = th.randn(7, 2)
    phases = [2.0**j * x[:, i] / prior_std for i in range(2) for j in range(3)]
    expected = th.stack([*x.unbind(1), *(prior_std * p.sin() for p in phases), *(prior_std * p.cos() for p in phases)], 1)
    th.testing.assert_close(network.seen(x), expected)
    condition = network.condition(th.randn(7, 3))
    # The first layer is linear in what it sees.
    hidden = condition + network.step_table.weight[1] + expected / prior_std @ network.latent_weight
    th.testing.assert_close(network(condition, x, 2), network.body(hidden))


def test_without_frequencies_the_weights_are_those_of_a_network_that_has_none() -> None:
    th.manual_seed(0)
    plain = StepConditionedMLP(3, 2, 4, 5, [8])
    th.manual_seed(0)
    other = StepConditionedMLP(3, 2, 4, 5, [8], latent_frequencies=0)
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert all(th.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_network_that_sees_latents_has_the_frequencies_and_they_are_saved(algorithm: Any, tmp_path: Any) -> None:
    policy_kwargs = dict(net_arch=[8], latent_frequencies=2)
    settings = dict(n_steps=32, batch_size=16) if algorithm is DiffPPO else dict(learning_starts=8, batch_size=8)
    model = algorithm("MlpPolicy", "BoltzmannBandit-v0", seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings)
    networks = [module for module in model.policy.modules() if isinstance(module, StepConditionedMLP)]
    assert len(networks) == (3 if algorithm is DiffWPO else 2)
    assert all(len(network.latent_weight) == 1 + 2 * 2 for network in networks)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    observation = np.ones((5, 1), np.float32)
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        algorithm("MlpPolicy", "BoltzmannBandit-v0", policy_kwargs=dict(net_arch=[8]), **settings).set_parameters(
            model.get_parameters(), device="cpu"
        )


@pytest.mark.parametrize("latent_frequencies", [0, 4])
def test_an_untrained_policy_is_sacs_gaussian_with_frequencies_too(latent_frequencies: int) -> None:
    env = BoltzmannBandit()
    policy_kwargs = dict(net_arch=[8], latent_frequencies=latent_frequencies)
    model = SAC(DiffusionSACPolicy, env, device="cpu", policy_kwargs=policy_kwargs)
    actions, log_prob = model.actor.action_log_prob(th.ones(100, 1))
    a = th.atanh(actions.double())
    gaussian = th.distributions.Normal(0.0, 1.0).log_prob(a) - th.log(1 - actions.double() ** 2)
    th.testing.assert_close(log_prob.double(), gaussian.sum(1), rtol=1e-3, atol=1e-3)


def trained_on_the_exact_reward(latent_frequencies: int, updates: int, seed: int = 0) -> DiffusionActor:
    """An actor for the three bumps at τ = 0.2, K = 4, by the whole chain's loss with the reward as critic."""
    th.manual_seed(seed)
    observations = spaces.Box(0.0, 1.0, (1,))
    actor = DiffusionActor(
        observations,
        spaces.Box(-1.0, 1.0, (1,)),
        [64, 64],
        FlattenExtractor(observations),
        1,
        latent_frequencies=latent_frequencies,
    )
    centres, heights, widths = (th.as_tensor(part, dtype=th.float32) for part in BoltzmannBandit().contexts[0])
    optimizer = th.optim.Adam(actor.parameters(), lr=1e-3)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 * (1 - update / updates))
        sample = actor.sample(th.ones(256, 1))
        rewards = (heights * th.exp(-0.5 * ((sample.actions - centres[:, 0]) / widths) ** 2)).sum(dim=1)
        optimizer.zero_grad()
        (0.2 * sample.path_log_prob - rewards).mean().backward()
        optimizer.step()
    return actor


@th.no_grad()
def mode_shares(actor: DiffusionActor) -> tuple[np.ndarray, float]:
    env = BoltzmannBandit()
    actions = actor.sample(th.ones(20_000, 1)).actions.numpy()
    exact = env.exact_masses(0)
    shares = np.bincount(env.mode_of(actions, 0), minlength=3) / len(actions) / exact.modes
    return shares, 0.5 * np.abs(env.bin_shares(actions) - exact.bins).sum()


def test_frequencies_keep_the_middle_one_of_three_modes_that_is_lost_without_them() -> None:
    shares, distance = mode_shares(trained_on_the_exact_reward(4, 600))
    assert shares.min() > 0.7 and distance < 0.12
    shares, distance = mode_shares(trained_on_the_exact_reward(0, 600))
    assert shares.min() < 0.6 and distance > 0.15
