"""Deterministic prediction picks a mode (docs/method.md, "The policy")."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor

import sb3_diffusion.envs  # noqa: F401  (registers the environments)
from sb3_diffusion import DiffSAC, DiffusionSACPolicy
from sb3_diffusion.common import DiffusionActor
from sb3_diffusion.diffusion import mode_of_samples, remaining_signal
from sb3_diffusion.diffusion.mode import MAX_UNEXPLAINED_SHARE, cut_share, probe_noise, probe_residual, unexplained_share
from sb3_diffusion.evaluation import sample_actions, total_variation


def mixture_actor(weights: list[float], centres: list[list[float]], std: float, diffusion_steps: int) -> DiffusionActor:
    """An actor whose reverse steps are the exact posterior's mean and standard deviation for a mixture of Gaussians x^0."""
    space = spaces.Box(-1, 1, (len(centres[0]),))
    actor = DiffusionActor(
        spaces.Box(-1, 1, (1,)),
        space,
        [8],
        FlattenExtractor(space),
        1,
        diffusion_steps=diffusion_steps,
        noise_schedule="cosine",
    )
    tables, means, log_weights = actor.schedule(), th.tensor(centres), th.tensor(weights).log()
    signal = remaining_signal(tables).flatten()

    def denoise(condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int) -> tuple[th.Tensor, th.Tensor]:
        k = th.as_tensor(steps).expand(len(latents)).unsqueeze(1)
        retain, noise_std = tables.retain.flatten()[k - 1], tables.noise_std.flatten()[k - 1]
        before, after = signal[k - 1], signal[k]
        variance_before, variance_after = before**2 * std**2 + 1 - before**2, after**2 * std**2 + 1 - after**2
        distance = (latents.unsqueeze(1) - after.unsqueeze(1) * means) ** 2
        responsibility = th.softmax(log_weights - 0.5 * distance.sum(dim=2) / variance_after, dim=1).unsqueeze(2)
        gain = retain * variance_before / variance_after
        component_means = before.unsqueeze(1) * means + (gain * latents).unsqueeze(1) - (gain * after).unsqueeze(1) * means
        mean = (responsibility * component_means).sum(dim=1)
        spread = (responsibility * (component_means - mean.unsqueeze(1)) ** 2).sum(dim=1)
        posterior_std = (variance_before * (1 - gain * retain) + spread).sqrt()
        return (mean - retain * latents) / noise_std, (posterior_std / noise_std).log()

    actor.denoise = denoise  # type: ignore[method-assign]
    return actor


@pytest.mark.parametrize("diffusion_steps", [4, 8, 16])
def test_of_two_equal_modes_one_is_picked_and_not_the_point_between(diffusion_steps) -> None:
    actor = mixture_actor([0.5, 0.5], [[-1.0], [1.0]], 0.15, diffusion_steps)
    sampled = actor.sample(th.zeros(2000, 1)).latents[0].flatten()
    assert 0.4 < (sampled > 0).float().mean() < 0.6  # the policy itself holds both
    assert th.atanh(actor.mode(th.zeros(1, 1))).abs().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("heavier", [0, 1])
def test_of_two_modes_the_heavier_is_picked(heavier) -> None:
    weights = [0.3, 0.3]
    weights[heavier] = 0.7
    actor = mixture_actor(weights, [[-1.0], [0.8]], 0.15, 8)
    assert th.atanh(actor.mode(th.zeros(1, 1))).item() == pytest.approx([-1.0, 0.8][heavier], abs=0.1)


def test_modes_that_differ_in_one_of_six_dimensions_are_told_apart() -> None:
    centre = [0.3, -0.5, 0.0, 0.2, -0.2]
    actor = mixture_actor([0.5, 0.5], [[-0.9, *centre], [0.9, *centre]], 0.2, 8)
    mode = th.atanh(actor.mode(th.zeros(1, 1))).flatten()
    assert mode[0].abs().item() == pytest.approx(0.9, abs=0.15)
    th.testing.assert_close(mode[1:], th.tensor(centre), atol=0.15, rtol=0)


def test_of_four_modes_around_their_mean_one_is_picked() -> None:
    centres = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    actor = mixture_actor([0.25] * 4, centres, 0.15, 8)
    mode = th.atanh(actor.mode(th.zeros(1, 1)))
    assert th.cdist(mode, th.tensor(centres)).min().item() < 0.2


@pytest.mark.parametrize("diffusion_steps", [8, 16])
@pytest.mark.parametrize(("action_dim", "weight"), [(2, 0.5), (6, 0.5), (6, 0.8), (17, 0.5), (17, 0.8), (64, 0.5)])
def test_modes_ten_standard_deviations_apart_are_told_apart_in_any_dimension(diffusion_steps, action_dim, weight) -> None:
    rest = [0.0] * (action_dim - 1)
    actor = mixture_actor([weight, 1 - weight], [[-0.5, *rest], [0.5, *rest]], 0.1, diffusion_steps)
    mode = th.atanh(actor.mode(th.zeros(1, 1))).flatten()
    assert mode[0].abs().item() == pytest.approx(0.5, abs=0.07)
    assert weight == 0.5 or mode[0] < 0
    assert mode[1:].abs().max() < 0.12


def test_the_share_left_by_a_cut_is_the_smallest_of_all_cuts() -> None:
    values = th.randn(5, 20, dtype=th.float64)
    values[:, :6] += th.linspace(0, 10, 5, dtype=th.float64).unsqueeze(1)
    for row, share in zip(values, cut_share(values), strict=True):
        parts = [(row.sort().values[:n], row.sort().values[n:]) for n in range(4, 17)]
        left = [sum(((part - part.mean()) ** 2).sum() for part in pair) / ((row - row.mean()) ** 2).sum() for pair in parts]
        assert share == pytest.approx(min(left))


def test_nothing_is_left_unexplained_of_ends_that_are_affine_in_the_noise_and_a_quarter_of_signs() -> None:
    noise, residual = probe_noise(4, 3), probe_residual()
    affine = 2.0 + th.einsum("knd,kde->ne", noise, th.randn(5, 3, 3))
    assert unexplained_share(affine.unsqueeze(1).expand(-1, 7, -1), residual).abs().max() < 1e-9
    signs = noise[-1].sign().unsqueeze(1)
    near, far = 0.35, 1.37
    left = 1 - (near + far) ** 2 / 2 / (near**2 + far**2)  # by least squares along each direction
    assert unexplained_share(signs, residual).item() == pytest.approx(left / 1.3, rel=1e-3)


@pytest.mark.parametrize("action_dim", [1, 6])
def test_the_mode_is_searched_only_where_the_policy_is_no_gaussian(action_dim) -> None:
    actor = mixture_actor([0.5, 0.5], [[-1.0] * action_dim, [1.0] * action_dim], 0.15, 8)
    two_modes = actor.denoise
    gaussian = actor.denoiser.condition(th.zeros(1, 1))[0, 0]
    n_chains = []

    def denoise(condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int) -> tuple[th.Tensor, th.Tensor]:
        n_chains.append(len(latents))
        heads = two_modes(condition, latents, steps)
        one_mode = th.isclose(condition[:, :1], gaussian)
        return th.where(one_mode, 0.0, heads[0]), th.where(one_mode, 0.0, heads[1])

    actor.denoise = denoise  # type: ignore[method-assign]
    features = th.tensor([[0.0], [1.0], [0.0], [0.0]])
    modes = th.atanh(actor.mode(features))
    assert n_chains == [4 * 8] * 8 + [64] * 8
    assert modes[[0, 2, 3]].abs().max() < 1e-5
    th.testing.assert_close(modes[1].abs(), th.ones(action_dim), atol=0.15, rtol=0)


@pytest.mark.parametrize("searched", [False, True])
def test_many_states_are_worked_off_in_chunks_with_the_same_result(searched) -> None:
    actor = mixture_actor([0.5, 0.5], [[-1.0], [1.0]], 0.15 if searched else 3.0, 4)
    largest = []
    denoise = actor.denoise
    actor.denoise = lambda *args: largest.append(len(args[1])) or denoise(*args)  # type: ignore
    modes = actor.mode(th.zeros(500, 1))
    assert max(largest) <= 1024
    th.testing.assert_close(modes, actor.mode(th.zeros(1, 1)).expand(500, 1), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_of_random_mixtures_eight_chains_leave_none_unsearched_whose_mean_is_no_mode() -> None:
    generator = np.random.default_rng(1)
    n_needed = n_missed = 0
    for trial in range(600):
        action_dim, diffusion_steps = (1, 2, 3, 6, 17, 64)[trial % 6], (4, 8)[trial % 2]
        weight, std, distance = generator.uniform(0.15, 0.5), 0.15, 0.15 * generator.uniform(7, 12)
        direction = generator.standard_normal(action_dim)
        direction /= np.linalg.norm(direction)
        heavy = 0.2 * generator.standard_normal(action_dim) - weight * distance * direction
        centres = [heavy.tolist(), (heavy + distance * direction).tolist()]
        actor = mixture_actor([1 - weight, weight], centres, std, diffusion_steps)
        features = th.zeros(1, 1)
        ends = actor._ends(features, actor.probe_noise)
        far = max(1.5, 0.4 * action_dim**0.5) * std
        distances = [th.cdist(point, th.tensor(centres)).min() for point in (ends.mean(dim=0), mode_by_search(actor))]
        if distances[0] > far and distances[1] < far:
            n_needed += 1
            n_missed += unexplained_share(ends, actor.probe_residual).item() <= MAX_UNEXPLAINED_SHARE
    assert n_needed > 200
    assert n_missed <= 0.02 * n_needed


def mode_by_search(actor: DiffusionActor) -> th.Tensor:
    return mode_of_samples(actor._ends(th.zeros(1, 1), actor.mode_noise).transpose(0, 1))


@pytest.mark.parametrize("action_dim", [1, 2, 3, 6, 17, 64])
@pytest.mark.parametrize("diffusion_steps", [1, 2, 3, 4, 8, 16, 32])
def test_the_mode_of_an_untrained_diffusion_is_sacs_deterministic_action(action_dim, diffusion_steps) -> None:
    space = spaces.Box(-1, 1, (action_dim,))
    observations = spaces.Box(-1, 1, (3,))
    actor = DiffusionActor(observations, space, [8], FlattenExtractor(observations), 3, diffusion_steps=diffusion_steps)
    th.nn.init.normal_(actor.mu.weight)
    features = th.randn(32, 3)
    location, _ = actor.readout(features)
    th.testing.assert_close(actor.mode(features), th.tanh(location), atol=1e-5, rtol=0)


@pytest.mark.parametrize("action_dim", [1, 6])
def test_the_mode_of_a_unimodal_policy_is_its_mean_whether_or_not_it_reverses_the_noising_process(action_dim) -> None:
    space = spaces.Box(-1, 1, (action_dim,))
    observations = spaces.Box(-1, 1, (3,))
    actor = DiffusionActor(observations, space, [8], FlattenExtractor(observations), 3)
    direction = th.linspace(-1, 1, 3 * action_dim).reshape(3, action_dim)

    def denoise(condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int) -> tuple[th.Tensor, th.Tensor]:
        drift = 0.5 + direction.sum(dim=0) - 2 * th.tanh(latents)  # whatever the noising process would do
        return drift, th.full_like(drift, -1.0)

    actor.denoise = denoise  # type: ignore[method-assign]
    features = th.zeros(1, 3)
    mean = actor.sample(features.expand(20_000, -1)).latents[0].mean(dim=0)
    std = actor.sample(features.expand(20_000, -1)).latents[0].std(dim=0)
    assert (((th.atanh(actor.mode(features)) - mean) / std).abs() < 0.1).all()


def cooling(progress_remaining: float) -> float:
    """Temperature from 1 to 0.1 within two thirds of training."""
    return max(0.1, 10 ** (-1.5 * (1 - progress_remaining)))


class Cooling(BaseCallback):
    """The same for SB3's SAC, which knows no schedule of the temperature."""

    def _on_step(self) -> bool:
        self.model.ent_coef_tensor.fill_(cooling(1 - self.num_timesteps / self.locals["total_timesteps"]))  # type: ignore
        return True


@pytest.mark.slow
@pytest.mark.parametrize("full_chain", [False, True])
def test_trained_on_the_bandit_both_modes_are_kept_and_the_deterministic_action_is_one_of_them(full_chain) -> None:
    env = gym.make("BimodalBandit-v0")
    kwargs = dict(learning_rate=1e-3, policy_kwargs=dict(net_arch=[64, 64]), seed=0, device="cpu")
    if full_chain:
        model: SAC = SAC(DiffusionSACPolicy, env, ent_coef=1.0, **kwargs).learn(3000, callback=Cooling())
    else:
        model = DiffSAC("MlpPolicy", env, ent_coef=cooling, **kwargs).learn(3000)
    observation = np.zeros(1, dtype=np.float32)
    reward = env.unwrapped.reward  # type: ignore[attr-defined]
    assert total_variation(sample_actions(model, observation, 20_000), reward, 0.1) <= 0.15
    best = reward(np.linspace(-1, 1, 201)).max()
    action, _ = model.predict(observation, deterministic=True)
    assert reward(action)[0] >= 0.98 * best
