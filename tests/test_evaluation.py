"""The yardsticks: exact densities, total variation, mode coverage, pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_diffusion.envs import BimodalBandit, TurningDoubleWell
from sb3_diffusion.evaluation import (
    boltzmann_density,
    histogram_entropy,
    plot_density,
    plot_turns,
    sample_actions,
    total_variation,
    turn_mass,
)

BANDIT = BimodalBandit().reward


def exact_samples(n: int, temperature: float = 0.1, seed: int = 0) -> np.ndarray:
    """Rejection sampling, which shares nothing with the quadrature."""
    rng = np.random.default_rng(seed)
    proposals = rng.uniform(-1, 1, 20 * n)
    largest = BANDIT(np.linspace(-1, 1, 2001)).max()
    accepted = proposals[rng.uniform(size=20 * n) < np.exp((BANDIT(proposals) - largest) / temperature)]
    assert len(accepted) >= n
    return accepted[:n]


@pytest.fixture(scope="module")
def sac_on_turns() -> SAC:
    return SAC("MlpPolicy", TurningDoubleWell(), policy_kwargs={"net_arch": [8]}, buffer_size=10, seed=0, device="cpu")


@pytest.mark.parametrize("reward_fn", [BANDIT, TurningDoubleWell.reward], ids=["bandit", "turning"])
@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0, 100.0])
def test_the_density_integrates_to_one_at_every_temperature(reward_fn, temperature: float) -> None:  # type: ignore[no-untyped-def]
    grid = np.linspace(-1, 1, 40_001)
    assert np.trapezoid(boltzmann_density(reward_fn, temperature, grid), grid) == pytest.approx(1, abs=1e-4)


def test_the_density_of_a_quadratic_reward_is_a_truncated_gaussian() -> None:
    grid = np.linspace(-0.5, 0.5, 11)
    density = boltzmann_density(lambda a: -0.5 * (a / 0.1) ** 2, 1.0, grid)
    assert density == pytest.approx(np.exp(-0.5 * (grid / 0.1) ** 2) / (0.1 * np.sqrt(2 * np.pi)), rel=1e-6)


def test_the_density_does_not_change_when_a_constant_is_added_to_the_reward() -> None:
    grid = np.linspace(-1, 1, 11)
    shifted = boltzmann_density(lambda a: BANDIT(a) + 1000.0, 0.01, grid)
    assert shifted == pytest.approx(boltzmann_density(BANDIT, 0.01, grid), rel=1e-6)


def test_the_total_variation_of_20000_exact_samples_is_far_below_003() -> None:
    distances = [total_variation(exact_samples(20_000, seed=seed), BANDIT, 0.1) for seed in range(3)]
    assert 0 < max(distances) < 0.02


def test_the_total_variation_of_a_policy_that_lost_a_mode_is_one_half() -> None:
    assert total_variation(np.abs(exact_samples(20_000)), BANDIT, 0.1) == pytest.approx(0.5, abs=0.02)


def test_the_total_variation_of_uniform_samples_and_of_a_gaussian_between_the_modes_is_large() -> None:
    rng = np.random.default_rng(0)
    assert total_variation(rng.uniform(-1, 1, 20_000), BANDIT, 0.1) > 0.4
    assert total_variation(np.tanh(0.3 * rng.standard_normal(20_000)), BANDIT, 0.1) > 0.4


def test_the_total_variation_at_the_wrong_temperature_is_visible() -> None:
    assert total_variation(exact_samples(20_000, temperature=0.2), BANDIT, 0.1) > 0.1


def test_the_histogram_entropy_is_that_of_the_density() -> None:
    assert histogram_entropy(np.random.default_rng(0).uniform(-1, 1, 100_000)) == pytest.approx(np.log(2), abs=2e-3)
    grid = np.linspace(-1, 1, 4001)
    density = boltzmann_density(BANDIT, 0.1, grid)
    entropy = -np.trapezoid(density * np.log(density), grid)
    assert histogram_entropy(exact_samples(100_000)) == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize("samples", [[], [0.0, 1.5], [float("nan")]])
def test_samples_that_are_no_actions_are_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        total_variation(samples, BANDIT, 0.1)
    with pytest.raises(ValueError, match="samples"):
        histogram_entropy(samples)


def test_numbers_out_of_range_are_refused_by_name(sac_on_turns: SAC) -> None:
    with pytest.raises(ValueError, match=r"temperature=0 must be .* > 0"):
        boltzmann_density(BANDIT, 0, np.zeros(1))
    with pytest.raises(ValueError, match="n_bins=0 must be an integer >= 1"):
        total_variation([0.0], BANDIT, 0.1, n_bins=0)
    with pytest.raises(ValueError, match="n_samples=0 must be an integer >= 1"):
        sample_actions(sac_on_turns, TurningDoubleWell.HEADINGS[0], 0)
    with pytest.raises(ValueError, match=r"actions\['SAC'\] has shape \(7, 5\); allowed: \(8, n\)"):
        plot_turns({"SAC": np.zeros((7, 5))})


def test_sampled_actions_are_stochastic_and_those_of_the_observation(sac_on_turns: SAC) -> None:
    observation = TurningDoubleWell.HEADINGS[3]
    actions = sample_actions(sac_on_turns, observation, 4000)
    assert actions.shape == (4000, 1) and len(np.unique(actions)) > 3000
    middle = sac_on_turns.predict(observation, deterministic=True)[0]
    assert np.median(actions) == pytest.approx(middle[0], abs=0.1)


def test_turn_mass_tells_the_headings_apart(sac_on_turns: SAC, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(observation: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        assert not deterministic
        heading = np.abs(observation[0] - TurningDoubleWell.HEADINGS).sum(axis=1).argmin()
        return np.where(np.arange(len(observation)) % 8 < heading, 0.5, -0.5).astype(np.float32)[:, None], None

    monkeypatch.setattr(sac_on_turns, "predict", predict)
    mass = turn_mass(sac_on_turns, 80)
    assert mass.positive == pytest.approx(np.arange(8) / 8)
    assert mass.mean_reward == pytest.approx(1)
    assert mass.actions.shape == (8, 80)


def test_turn_mass_of_an_untrained_gaussian_is_balanced_but_its_reward_is_not_good(sac_on_turns: SAC) -> None:
    th.manual_seed(0)
    mass = turn_mass(sac_on_turns, 1000)
    assert 0.3 < mass.positive.min() and mass.positive.max() < 0.7
    assert mass.mean_reward < 0.85
    assert mass.mean_reward == pytest.approx(TurningDoubleWell.reward(mass.actions).mean())


def test_pictures_show_every_policy_beside_the_exact_curve(tmp_path: Path) -> None:
    samples = {"DiffSAC": exact_samples(500), "SAC": np.random.default_rng(0).uniform(-1, 1, 500)}
    figure = plot_density(samples, BANDIT, 0.1)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["DiffSAC", "SAC"]
    grid, curve = figure.axes[1].lines[0].get_data()
    assert curve == pytest.approx(boltzmann_density(BANDIT, 0.1, np.asarray(grid)))
    turns = plot_turns({name: np.resize(actions, (8, 60)) for name, actions in samples.items()})
    assert sum(axes.get_title().startswith("heading") for axes in turns.axes) == 8
    assert [text.get_text() for text in turns.legends[0].get_texts()] == ["DiffSAC", "SAC", "exact reward"]
    for name, picture in {"density.png": figure, "turns.png": turns}.items():
        picture.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
