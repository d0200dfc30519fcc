"""DiffSAC with ``objective="forward_kl"``: the likelihood bound, the weights, and what is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import scatter_weights
from envs_for_tests import StrictBoxEnv
from torch.distributions import Normal

import sb3_diffusion.common.objectives.forward_kl as forward_kl
from sb3_diffusion import DiffSAC
from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import sample_actions, total_variation


def build(low: Sequence[float] = (-1.0,), policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> DiffSAC:
    settings = dict(seed=0, device="cpu", buffer_size=200, learning_starts=8, batch_size=32, objective="forward_kl") | kwargs
    env = StrictBoxEnv(low=low, high=[1.0] * len(low))
    return DiffSAC("MlpPolicy", env, policy_kwargs={"net_arch": [16]} | (policy_kwargs or {}), **settings)


def all_steps(n: int, diffusion_steps: int) -> th.Tensor:
    return th.arange(n) % diffusion_steps + 1


@th.no_grad()
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("diffusion_steps", [1, 3, 16])
def test_for_an_untrained_diffusion_the_likelihood_bound_is_the_gaussians_log_density(
    diffusion_steps: int, noise_schedule: str
) -> None:
    policy_kwargs = dict(diffusion_steps=diffusion_steps, prior_std=1.5, noise_schedule=noise_schedule)
    actor = build([-1.0, -1.0], policy_kwargs=policy_kwargs).actor
    for layer in (actor.mu, actor.log_std):
        th.nn.init.constant_(layer.bias, 0.4)  # type: ignore[union-attr, arg-type]
    n = 200_000
    actions = th.tensor([[0.9, -0.5]]).expand(n, -1)
    bound = actor.log_likelihood_bound(th.zeros(n, 3), actions, all_steps(n, diffusion_steps))
    expected = Normal(0.4, 1.5 * np.exp(0.4)).log_prob(actions[0]).sum().item()
    assert bound.mean().item() == pytest.approx(expected, abs=0.02)
    if diffusion_steps == 1:
        th.testing.assert_close(bound, th.full((n,), expected), rtol=0, atol=1e-4)


@th.no_grad()
@pytest.mark.parametrize("learn_schedule", [False, True])
@pytest.mark.parametrize("kernel", ["vp", "euler"])
def test_for_a_trained_diffusion_the_bound_is_below_the_log_density_and_near_it(kernel: str, learn_schedule: bool) -> None:
    actor = build([-1.0, -1.0], policy_kwargs=dict(kernel=kernel, learn_schedule=learn_schedule, prior_std=1.2)).actor
    scatter_weights(actor, 0.15)
    n = 100_000
    features, end = th.zeros(1, 3), th.tensor([[0.3, -0.6]])
    location, log_scale = actor.readout(features)
    actions = location + log_scale.exp() * end
    paths = features.expand(n, -1), actions.expand(n, -1)
    bounds = actor.log_likelihood_bound(*paths, all_steps(n, 4)).mean()
    # The density by importance sampling over whole noising paths: E exp of what the bound is the mean of
    chains = []
    for _ in range(4):
        latents = [end.expand(n, -1)]
        log_weight = th.zeros(n)
        for k, tables in enumerate(actor.schedule().rows(), start=1):
            latents.append(tables.retain * latents[-1] + tables.noise_std * th.randn(n, 2))
            mean, log_std = actor.reverse_kernel(paths[0], latents[-1], th.full((n,), k))
            log_weight += Normal(mean, log_std.exp()).log_prob(latents[-2]).sum(1)
            log_weight -= Normal(tables.retain * latents[-2], tables.noise_std).log_prob(latents[-1]).sum(1)
        chains.append(log_weight + Normal(0.0, actor.prior_std).log_prob(latents[-1]).sum(1))
    weights = th.cat(chains)
    exact = weights.logsumexp(0) - np.log(len(weights)) - log_scale.sum()
    mean_of_logs = weights.mean() - log_scale.sum()
    assert bounds.item() == pytest.approx(mean_of_logs.item(), abs=0.03)
    assert bounds < exact - 0.01


@pytest.mark.parametrize("uniform_proposals", [0.0, 0.5])
def test_proposals_are_weighted_to_the_optimal_policys_means(
    uniform_proposals: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(batch_size=16, uniform_proposals=uniform_proposals)
    scatter_weights(model.actor, 0.1)
    ent_coef, n = 0.4, 20_000
    q_function = lambda u: th.sin(3 * u).squeeze(-1)  # noqa: E731
    monkeypatch.setattr(forward_kl, "N_PROPOSALS", n)
    monkeypatch.setattr(model, "_action_values", lambda critic, states, actions: q_function(actions))
    seen = []

    def statistic(features: th.Tensor, actions: th.Tensor, steps: th.Tensor) -> th.Tensor:
        seen.append(steps)
        return th.tanh(actions).squeeze(1) ** 2

    monkeypatch.setattr(model.actor, "log_likelihood_bound", statistic)
    states = th.zeros(2, 3)  # of which the first is taken
    loss = model._actor_losses(states, None, th.tensor(ent_coef))["actor_loss"]  # type: ignore[arg-type]
    grid = th.linspace(-1, 1, 10_001)
    density = (q_function(grid.unsqueeze(1)) / ent_coef).exp()
    expected = float((density * grid**2).sum() / density.sum())
    assert loss.item() == pytest.approx(-expected, rel=0.03)
    assert th.equal(seen[0].bincount()[1:], th.full((4,), n // 4))


@th.no_grad()
def test_the_path_of_a_noised_action_has_the_mean_log_probability_that_the_bound_estimates() -> None:
    actor = build([-1.0, -1.0], policy_kwargs=dict(prior_std=1.2, learn_schedule=True)).actor
    scatter_weights(actor, 0.15)
    n = 100_000
    features, actions = th.zeros(n, 3), th.tensor([[0.3, -0.6]]).expand(n, -1)
    of_actions = (
        actor.log_likelihood_bound(features, actions, all_steps(n, 4)).mean() - th.log(1 - actions[0].tanh() ** 2).sum()
    )
    assert actor.noised_path_log_prob(features, actions).mean().item() == pytest.approx(of_actions.item(), abs=0.03)


@th.no_grad()
def test_for_an_untrained_diffusion_every_path_of_an_action_has_its_log_density() -> None:
    actor = build(policy_kwargs=dict(diffusion_steps=3)).actor
    actions = th.linspace(-2, 2, 50).unsqueeze(1)
    density = Normal(0.0, 1.0).log_prob(actions) - th.log(1 - actions.tanh() ** 2)
    paths = actor.noised_path_log_prob(th.zeros(50, 3), actions)
    th.testing.assert_close(paths, density.squeeze(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("uniform_proposals", [0.0, 0.5])
def test_uniform_proposals_find_a_mode_that_the_policy_has_lost(
    uniform_proposals: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(batch_size=16, uniform_proposals=uniform_proposals)
    scatter_weights(model.actor, 0.05)
    th.nn.init.constant_(model.actor.mu.bias, 0.6)  # type: ignore[union-attr, arg-type]
    th.nn.init.constant_(model.actor.log_std.bias, -2.5)  # type: ignore[union-attr, arg-type]
    n = 20_000
    q_function = lambda u: (th.exp(-(((u - 0.6) / 0.1) ** 2)) + th.exp(-(((u + 0.6) / 0.1) ** 2))).squeeze(-1)  # noqa: E731
    monkeypatch.setattr(forward_kl, "N_PROPOSALS", n)
    monkeypatch.setattr(model, "_action_values", lambda critic, states, actions: q_function(actions))
    monkeypatch.setattr(model.actor, "log_likelihood_bound", lambda features, actions, steps: (actions[:, 0] < 0).float())
    loss = model._actor_losses(th.zeros(2, 3), None, th.tensor(0.2))["actor_loss"]  # type: ignore[arg-type]
    assert -loss.item() == pytest.approx(0.5 if uniform_proposals else 0.0, abs=0.03)


def test_all_steps_are_trained_where_there_are_more_steps_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(batch_size=8, policy_kwargs=dict(diffusion_steps=32))
    seen: list[int] = []
    bound = model.actor.log_likelihood_bound

    def record(features: th.Tensor, actions: th.Tensor, steps: th.Tensor) -> th.Tensor:
        seen.extend(steps.tolist())
        return bound(features, actions, steps)

    monkeypatch.setattr(model.actor, "log_likelihood_bound", record)
    model.learn(40)
    assert set(seen) == set(range(1, 33))


def test_it_trains_the_actor_and_not_the_diffusion_value() -> None:
    model = build()
    model.learn(10)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train(3, batch_size=32)
    after = model.policy.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not th.equal(value, before[name])}
    assert changed == {"actor", "critic", "critic_target"}
    assert all(not th.equal(after[name], before[name]) for name in after if name.startswith("actor.denoiser"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(uniform_proposals=1.0), r"uniform_proposals=1.0 must be a finite number >= 0 and <= 0.9"),
        (dict(uniform_proposals=0.5, objective="reverse_kl"), r"uniform_proposals=0.5 needs objective='forward_kl'"),
        (dict(objective="kl"), r"objective='kl' .*'reverse_kl', 'forward_kl'"),
        (dict(ent_coef=0.0), r"ent_coef=0.0 must be a finite number > 0"),
        (dict(ent_coef=lambda progress: 0.1 * progress), r"ent_coef\(0\)=0.0 must be a finite number > 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.slow
def test_both_modes_of_the_bandit_are_kept() -> None:
    model = DiffSAC(
        "MlpPolicy", "BimodalBandit-v0", learning_rate=1e-3, learning_starts=200, seed=0, device="cpu",
        objective="forward_kl", ent_coef=0.1, policy_kwargs=dict(net_arch=[64, 64]),
    ).learn(5000)  # fmt: skip
    actions = sample_actions(model, np.zeros(1, np.float32), 20_000)[:, 0]
    assert 0.3 < (actions > 0).mean() < 0.7
    assert total_variation(actions, BimodalBandit().reward, 0.1) < 0.2
