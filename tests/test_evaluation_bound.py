"""The slack of the path bound by quadrature, against closed forms and samples."""

from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import scatter_weights
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_diffusion.common import DiffusionActor
from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import bound_tightness, kl_divergence, log_partition

OBSERVATIONS = spaces.Box(-1, 1, (2,))
FEATURES = th.tensor([[0.4, -0.7]])
BANDIT = BimodalBandit().reward
TEMPERATURE = 0.3


def make_actor(action_dim: int = 1, seed: int = 0, **kwargs: Any) -> DiffusionActor:
    th.manual_seed(seed)
    return DiffusionActor(
        OBSERVATIONS, spaces.Box(-1, 1, (action_dim,)), [16], FlattenExtractor(OBSERVATIONS), 2,
        activation_fn=th.nn.Tanh, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("diffusion_steps", [1, 4])
def test_an_untrained_chain_has_no_slack_whatever_its_readout(diffusion_steps: int, noise_schedule: str) -> None:
    actor = make_actor(diffusion_steps=diffusion_steps, noise_schedule=noise_schedule, prior_std=1.5)
    assert actor.mu is not None
    scatter_weights(actor.mu)
    scatter_weights(actor.log_std)  # type: ignore[arg-type]
    found = bound_tightness(actor, FEATURES, BANDIT, TEMPERATURE)
    assert found.path_divergence == pytest.approx(found.marginal_divergence, abs=1e-6)
    location, log_scale = (part.item() for part in actor.readout(FEATURES))
    quantiles = np.random.default_rng(0).standard_normal(100_000)
    samples = np.tanh(location + np.exp(log_scale) * 1.5 * quantiles)
    assert found.marginal_divergence == pytest.approx(kl_divergence(samples, BANDIT, TEMPERATURE), abs=0.02)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"kernel": "euler", "prior_std": 1.5},
        {"learn_variance": False, "noise_schedule": "cosine"},
        {"state_dependent_readout": False, "learn_schedule": True},
    ],
    ids=["defaults", "euler", "fixed-variance", "no-readout"],
)
def test_divergences_and_distribution_are_those_of_samples(kwargs: dict[str, Any]) -> None:
    actor = make_actor(diffusion_steps=3, **kwargs)
    scatter_weights(actor, 0.1)
    found = bound_tightness(actor, FEATURES, BANDIT, TEMPERATURE)
    n = 200_000
    with th.no_grad():
        sample = actor.sample(FEATURES.expand(n, -1))
    actions, path_log_prob = sample.actions[:, 0].double().numpy(), sample.path_log_prob.double().numpy()
    paths = path_log_prob - BANDIT(actions) / TEMPERATURE + log_partition(BANDIT, TEMPERATURE)
    assert found.path_divergence == pytest.approx(paths.mean(), abs=4 * paths.std() / n**0.5)
    # Many bins: the density rises steeply where tanh saturates.
    assert found.marginal_divergence == pytest.approx(kl_divergence(actions, BANDIT, TEMPERATURE, 2000), rel=0.02)
    assert found.path_divergence > found.marginal_divergence + 0.005
    assert found.masses.sum() == pytest.approx(1, abs=1e-3)
    assert found.masses @ found.actions == pytest.approx(actions.mean(), abs=4 * actions.std() / n**0.5)
    assert np.trapezoid(found.densities, found.actions) == pytest.approx(1, abs=2e-3)
    middle = np.histogram(actions, bins=np.linspace(-0.9, 0.9, 19))[0] / n / 0.1
    centres = np.linspace(-0.85, 0.85, 18)
    assert np.interp(centres, found.actions, found.densities) == pytest.approx(middle, abs=0.08)


def test_the_slack_does_not_depend_on_what_is_optimised() -> None:
    actor = make_actor(diffusion_steps=3)
    scatter_weights(actor, 0.3)
    slacks = [
        found.path_divergence - found.marginal_divergence
        for found in (bound_tightness(actor, FEATURES, BANDIT, 0.1), bound_tightness(actor, FEATURES, np.zeros_like, 1.0))
    ]
    assert slacks[0] == pytest.approx(slacks[1], abs=1e-9) and slacks[0] > 0.01


def test_the_log_partition_of_a_gaussian_reward_and_of_a_constant_are_known() -> None:
    assert log_partition(lambda a: -0.5 * (a / 0.1) ** 2, 1.0) == pytest.approx(np.log(0.1 * np.sqrt(2 * np.pi)), abs=1e-6)
    assert log_partition(lambda a: np.full_like(a, 3.0), 0.5) == pytest.approx(6 + np.log(2))


def test_what_the_grid_cannot_hold_is_refused() -> None:
    actor = make_actor(diffusion_steps=2)
    for grid in ({"n_points": 20}, {"grid_bound": 2.0}):
        name, value = next(iter(grid.items()))
        with pytest.raises(ValueError, match=f"{name}={value}.* too small"):
            bound_tightness(actor, FEATURES, BANDIT, TEMPERATURE, **grid)
    with pytest.raises(ValueError, match="grid_bound"):
        bound_tightness(actor, FEATURES, BANDIT, TEMPERATURE, grid_bound=0)
    with pytest.raises(ValueError, match="n_points=1 must be an integer >= 2"):
        bound_tightness(actor, FEATURES, BANDIT, TEMPERATURE, n_points=1)
    with pytest.raises(ValueError, match="temperature=0 must be"):
        bound_tightness(actor, FEATURES, BANDIT, 0)
    with pytest.raises(ValueError, match="actor has 2-dimensional actions; allowed: one-dimensional"):
        bound_tightness(make_actor(2), FEATURES, BANDIT, TEMPERATURE)
