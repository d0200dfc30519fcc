"""The yardsticks: exact densities, total variation, mode coverage, pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC

from sb3_diffusion.envs import BimodalBandit, MultiGoal2D, TurningDoubleWell, TurningGMM
from sb3_diffusion.evaluation import (
    boltzmann_density,
    goal_coverage,
    histogram_entropy,
    kl_divergence,
    mixture_divergence,
    normalised_entropy,
    plot_density,
    plot_goals,
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


class ScriptedModel:
    """
    The part of a model that the evaluation uses.

    :param policy: observations (n, ...) and a generator -> actions (n, ...)
    """

    def __init__(self, policy: Any):
        self.policy = policy
        self.rng = np.random.default_rng(0)

    def predict(self, observation: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        assert not deterministic and observation.dtype == np.float32
        return self.policy(observation, self.rng).astype(np.float32), None


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
    with pytest.raises(ValueError, match="n_rollouts=0 must be an integer >= 1"):
        goal_coverage(sac_on_turns, 0)
    with pytest.raises(ValueError, match="headings_per_sector=0 must be an integer >= 1"):
        mixture_divergence(sac_on_turns, headings_per_sector=0)
    for counts in ([3.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"counts=.* must be two or more numbers >= 0"):
            normalised_entropy(counts)
    with pytest.raises(ValueError, match=r"actions\['SAC'\] has shape \(7, 5\); allowed: \(8, n\)"):
        plot_turns({"SAC": np.zeros((7, 5))}, 0.1)
    with pytest.raises(ValueError, match=r"temperature has 'sac', which actions lacks; it has \['SAC'\]"):
        plot_turns({"SAC": np.zeros((8, 5))}, {"sac": 0.1})
    with pytest.raises(ValueError, match=r"trajectories\['SAC'\] has shape \(7, 2\); allowed: \(n, steps, 2\)"):
        plot_goals({"SAC": np.zeros((7, 2))})


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


def gaussian_reward(actions: np.ndarray, mean: float = 0.0, std: float = 0.05) -> np.ndarray:
    return -0.5 * ((actions - mean) / std) ** 2


@pytest.mark.parametrize("n_bins", [50, 100, 200])
def test_the_divergence_between_gaussians_is_the_closed_form_up_to_the_biases_that_are_documented(n_bins: int) -> None:
    n, shift, std = 200_000, 0.1, 0.05
    samples = std * np.random.default_rng(0).standard_normal(n) + shift
    exact = 0.5 * (shift / std) ** 2
    occupied = np.unique(np.floor(samples * n_bins / 2)).size
    expected = exact * (1 - (2 / n_bins) ** 2 / 12 / std**2) + (occupied - 1) / (2 * n)
    # The mean of the log-ratio has standard deviation shift / std / sqrt(n) = 0.0045.
    assert kl_divergence(samples, gaussian_reward, 1.0, n_bins) == pytest.approx(expected, abs=0.018)


def test_the_divergence_of_exact_samples_is_the_noise_of_the_occupied_bins() -> None:
    n, n_repetitions = 2000, 40
    rng = np.random.default_rng(1)
    estimates = [
        kl_divergence(np.clip(0.1 * rng.standard_normal(n), -1, 1), lambda a: gaussian_reward(a, std=0.1), 1.0)
        for _ in range(n_repetitions)
    ]
    # About 38 bins of width 0.02 hold the samples; χ²/2N has standard deviation sqrt(2 · 37) / 2N = 0.002.
    assert np.mean(estimates) == pytest.approx(37 / (2 * n), abs=0.002)
    assert 0 <= min(estimates) and max(estimates) < 0.02


def test_the_divergence_of_a_policy_that_lost_half_of_the_modes_is_log_2_and_of_a_wrong_temperature_visible() -> None:
    assert kl_divergence(np.abs(exact_samples(50_000)), BANDIT, 0.1) == pytest.approx(np.log(2), abs=0.02)
    assert kl_divergence(exact_samples(50_000, temperature=0.2), BANDIT, 0.1) > 0.1


def mixture_policy(env: TurningGMM, n_modes: int = 5):  # type: ignore[no-untyped-def]
    """Exact samples of the first ``n_modes`` modes of each sector's mixture."""

    def policy(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        degrees = np.rad2deg(np.arctan2(observations[:, 1], observations[:, 0])) % 360
        means = env.means[TurningGMM.sector(degrees), rng.integers(n_modes, size=len(observations))]
        return (means + env.STD * rng.standard_normal(len(observations)))[:, None]

    return policy


@pytest.mark.parametrize("mixture_seed", [0, 5])
def test_the_exact_mixture_has_no_divergence_but_that_of_the_histogram(mixture_seed: int) -> None:
    env = TurningGMM(mixture_seed)
    found = mixture_divergence(ScriptedModel(mixture_policy(env)), env)  # type: ignore[arg-type]
    assert found.by_heading.shape == (8, 4) and found.actions.shape == (8, 4, 5000)
    assert 0 < found.mean < 0.01
    assert found.by_heading.max() < 0.02
    grid = np.linspace(-1, 1, 4001)
    log_densities = env.reward(grid, np.arange(8)[:, None])
    negative_entropy = np.trapezoid(np.exp(log_densities) * log_densities, grid).mean()
    assert found.mean_reward == pytest.approx(negative_entropy, abs=0.01)


def test_the_mixture_of_another_seed_is_told_apart() -> None:
    model = ScriptedModel(mixture_policy(TurningGMM(1)))
    assert mixture_divergence(model, n_samples=1000).mean > 1  # type: ignore[arg-type]


def test_the_divergence_from_a_mixture_counts_the_modes_that_are_left() -> None:
    env = TurningGMM()
    env.means = np.tile([-0.7, -0.35, 0.0, 0.35, 0.7], (8, 1))
    for n_modes in (1, 2, 4):
        found = mixture_divergence(ScriptedModel(mixture_policy(env, n_modes)), env)  # type: ignore[arg-type]
        assert found.by_heading == pytest.approx(np.full((8, 4), np.log(5 / n_modes)), abs=0.03)


def test_the_divergence_of_a_uniform_policy_is_that_by_quadrature() -> None:
    env = TurningGMM()
    model = ScriptedModel(lambda observations, rng: rng.uniform(-1, 1, (len(observations), 1)))
    grid = np.linspace(-1, 1, 20_001)
    exact = -np.log(2) - np.trapezoid(env.reward(grid, np.arange(8)[:, None]), grid).mean() / 2
    found = mixture_divergence(model, env, headings_per_sector=1)  # type: ignore[arg-type]
    assert found.mean == pytest.approx(exact, rel=0.05)


def test_the_entropy_of_a_goal_histogram_is_between_one_goal_and_all() -> None:
    assert normalised_entropy([0, 0, 0, 0]) == normalised_entropy([0, 7, 0, 0]) == 0
    assert normalised_entropy([9, 9, 9, 9]) == pytest.approx(1)
    assert normalised_entropy([5, 0, 5, 0]) == pytest.approx(0.5)
    assert normalised_entropy([1, 2, 1, 0]) == pytest.approx(1.5 * np.log(2) / np.log(4))


def test_the_entropy_of_200_equally_likely_goals_is_low_by_0005() -> None:
    counts = np.random.default_rng(0).multinomial(200, [0.25] * 4, size=2000)
    assert np.mean([normalised_entropy(row) for row in counts]) == pytest.approx(1 - 3 / (400 * np.log(4)), abs=1e-3)


def test_a_policy_that_goes_everywhere_reaches_every_goal_and_one_that_goes_right_reaches_one() -> None:
    def to_a_goal(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nearest = MultiGoal2D.squared_distances(observations).argmin(axis=1)
        at_origin = np.abs(observations).max(axis=1) == 0
        goals = MultiGoal2D.GOALS[np.where(at_origin, rng.integers(4, size=len(observations)), nearest)]
        return 0.5 * (goals - observations) / np.linalg.norm(goals - observations, axis=1, keepdims=True)

    found = goal_coverage(ScriptedModel(to_a_goal), 400)  # type: ignore[arg-type]
    assert found.n_goals == 4 and found.counts.sum() == 400
    assert found.counts.min() > 60 and found.entropy > 0.97
    # Nine moves of 0.5: the ninth, to 4.5, is the first within 1 of the goal (4.0 is at a distance of exactly 1).
    distances = 5 - 0.5 * np.arange(1, 10)
    assert found.mean_return == pytest.approx(-9 * 7.5 - np.sum(distances**2) + 10, abs=1e-3)
    assert found.trajectories.shape == (400, 31, 2)
    assert np.isfinite(found.trajectories[:, :10]).all() and np.isnan(found.trajectories[:, 10:]).all()

    right = goal_coverage(ScriptedModel(lambda observations, rng: np.tile([0.4, 0.0], (len(observations), 1))), 50)  # type: ignore[arg-type]
    assert (right.n_goals, right.entropy, right.counts.tolist()) == (1, 0, [50, 0, 0, 0])


def test_a_policy_that_stays_reaches_no_goal_and_pays_for_thirty_steps() -> None:
    found = goal_coverage(ScriptedModel(lambda observations, rng: np.zeros((len(observations), 2))), 10)  # type: ignore[arg-type]
    assert (found.n_goals, found.entropy, found.counts.tolist()) == (0, 0, [0, 0, 0, 0])
    assert found.mean_return == pytest.approx(-750)


def test_the_return_of_a_rollout_is_that_of_the_environment_itself() -> None:
    model = ScriptedModel(lambda observations, rng: rng.uniform(-0.9, 0.9, (len(observations), 2)))
    found = goal_coverage(model, 1)  # type: ignore[arg-type]
    actions = np.diff(found.trajectories[0], axis=0)
    env = MultiGoal2D()
    env.reset(options={"position": (0.0, 0.0)})
    total = sum(env.step(action)[1] for action in actions[np.isfinite(actions[:, 0])])
    assert total == pytest.approx(found.mean_return, rel=1e-5)


def test_every_algorithm_of_sb3_can_be_evaluated() -> None:
    for algorithm in (SAC, PPO):
        model = algorithm("MlpPolicy", "MultiGoal2D-v0", policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
        assert 0 <= goal_coverage(model, 20).n_goals <= 4
        turning = algorithm("MlpPolicy", "TurningGMM-v0", policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
        assert mixture_divergence(turning, n_samples=200).mean > 0.5


def test_pictures_show_every_policy_beside_the_exact_curve(tmp_path: Path) -> None:
    samples = {"DiffSAC": exact_samples(500), "SAC": np.random.default_rng(0).uniform(-1, 1, 500)}
    figure = plot_density(samples, BANDIT, 0.1)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["DiffSAC", "SAC"]
    grid, curve = figure.axes[1].lines[0].get_data()
    assert curve == pytest.approx(boltzmann_density(BANDIT, 0.1, np.asarray(grid)))
    turns = plot_turns({name: np.resize(actions, (8, 500)) for name, actions in samples.items()}, 0.1)
    assert [axes.get_title() for axes in turns.axes] == ["DiffSAC\nτ = 0.1", "SAC\nτ = 0.1"]
    assert [text.get_text() for text in turns.legends[0].get_texts()] == ["sampled turns", "exact, exp(r / τ) / Z"]
    degrees, height = turns.axes[1].lines[3].get_data()
    exact = boltzmann_density(TurningDoubleWell.reward, 0.1, np.asarray(degrees) / 90)
    assert height == pytest.approx(3 + 0.9 * exact / exact.max())
    stairs = turns.axes[0].patches[3].get_data()
    share = np.histogram(np.resize(samples["DiffSAC"], (8, 500))[3], bins=60, range=(-1, 1), density=True)[0]
    assert stairs.values == pytest.approx(3 + 0.9 * share / exact.max())
    spike = plot_turns({"DiffPPO": np.full((8, 60), 0.51)}, 0.1)
    assert spike.legends[0].get_texts()[0].get_text() == "sampled turns, peaks cut"
    assert max(spike.axes[0].patches[7].get_data().values) == 7 + 3
    each = plot_turns({name: np.zeros((8, 60)) for name in ("PPO", "DiffPPO", "SAC")}, {"DiffPPO": 0.05, "SAC": 0.1})
    assert [axes.get_title() for axes in each.axes] == ["PPO\nno temperature", "DiffPPO\nτ = 0.05", "SAC\nτ = 0.1"]
    assert not each.axes[0].lines
    for axes, tau in ((each.axes[1], 0.05), (each.axes[2], 0.1)):
        degrees, height = axes.lines[0].get_data()
        densities = {t: boltzmann_density(TurningDoubleWell.reward, t, np.asarray(degrees) / 90) for t in (tau, 0.05)}
        assert height == pytest.approx(0.9 * densities[tau] / densities[0.05].max())  # one scale for all
    walks = np.random.default_rng(0).normal(size=(80, 31, 2)).cumsum(axis=1)
    goals = plot_goals({name: walks for name in "abcde"}, n_shown=7)
    titled = [axes for axes in goals.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == list("abcde") and all(len(axes.lines) == 7 for axes in titled)
    for name, picture in {"density.png": figure, "turns.png": turns, "goals.png": goals}.items():
        picture.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
