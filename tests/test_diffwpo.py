"""DiffWPO: its gradient against written-out Wasserstein policy optimisation and against DiffSAC's, and its trust region."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import scatter_weights
from envs_for_tests import BatchNormDropoutExtractor, StrictBoxEnv
from stable_baselines3 import SAC
from torch.distributions import Normal

from sb3_diffusion import DiffSAC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.common.chains import SampledChains
from sb3_diffusion.common.objectives.reverse_kl import mean_over_steps
from sb3_diffusion.envs import BimodalBandit
from sb3_diffusion.evaluation import sample_actions, total_variation

ENT_COEF = 0.3
DIFFUSIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "learned schedule": dict(learn_schedule=True, prior_std=1.7, beta_max=0.5),
    "euler": dict(kernel="euler", state_dependent_readout=False),
    "one step": dict(diffusion_steps=1),
}


def build(algorithm: type[DiffSAC] = DiffWPO, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    settings = dict(seed=0, device="cpu", buffer_size=200, learning_starts=8, batch_size=16) | kwargs
    model = algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs={"net_arch": [16]} | (policy_kwargs or {}), **settings)
    scatter_weights(model.policy, 0.15)
    return model


def sample(model: DiffSAC) -> tuple[th.Tensor, SampledChains]:
    states = th.randn(24, *model.observation_space.shape, generator=th.Generator().manual_seed(2))  # type: ignore[misc]
    th.manual_seed(3)
    return states, model._sample_chains(states, model._levels(len(states), 0))


def gradients(model: DiffSAC, loss: th.Tensor) -> list[th.Tensor]:
    return list(th.autograd.grad(loss, list(model.actor.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_with_the_fisher_factor_the_gradient_is_diffsacs_without_its_score(diffusion: str) -> None:
    """DiffSAC's reparametrised gradient also has ``τ ∇_θ log q_θ(a | x^k)`` at a fixed decision, which is zero in the mean."""
    wpo, sac = (build(algorithm, DIFFUSIONS[diffusion]) for algorithm in (DiffWPO, DiffSAC))
    sac.policy.load_state_dict({k: v for k, v in wpo.policy.state_dict().items() if not k.startswith("actor_target")})
    states, chains = sample(wpo)
    losses = []
    for model in (wpo, sac):
        th.manual_seed(4)
        losses.append(model._actor_losses(states, chains, th.tensor(ENT_COEF))["actor_loss"])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)

    # The density of the decision, by torch.distributions: of a^0 where k = 1
    th.manual_seed(4)
    steps, rows, n_last = chains.kept.actor_levels
    mean, log_std = sac.actor.reverse_kernel(states[rows], chains.kept.actor_latents, steps)
    noise = th.randn_like(mean)
    location, log_scale = sac.actor.readout(states[rows])
    last = (steps == 1).unsqueeze(1)
    mean = th.where(last, location + log_scale.exp() * mean, mean)
    log_std = th.where(last, log_std + log_scale, log_std)
    decision = (mean + log_std.exp() * noise).detach()
    score = ENT_COEF * mean_over_steps(
        Normal(mean, log_std.exp()).log_prob(decision).sum(dim=1), n_last, sac.actor.diffusion_steps
    )
    ours, theirs, scores = gradients(wpo, losses[0]), gradients(sac, losses[1]), gradients(sac, score)
    assert max(float(s.abs().max()) for s in scores) > 1e-3
    for own, other, extra in zip(ours, theirs, scores, strict=True):
        th.testing.assert_close(own + extra, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fisher_rescale", [False, True])
def test_the_sharpest_policy_that_there_can_be_has_finite_gradients(fisher_rescale: bool) -> None:
    model = build(fisher_rescale=fisher_rescale, target_kl=None)
    with th.no_grad():
        model.actor.log_std.bias.fill_(-20.0)
        model.actor.denoiser.body[-1].bias[model.actor.action_dim :] = -10.0
    states, chains = sample(model)
    loss = model._actor_losses(states, chains, th.tensor(ENT_COEF))["actor_loss"]
    of_actor = gradients(model, loss)
    assert loss.isfinite() and any(gradient.any() for gradient in of_actor)
    # Adam squares them.
    assert all(gradient.square().isfinite().all() for gradient in of_actor)


@pytest.mark.parametrize("fisher_rescale", [False, True])
@pytest.mark.parametrize("action_gradient", ["identity", "cube_root"])
def test_one_step_that_forgets_the_latent_is_wasserstein_policy_optimisation_of_a_gaussian(
    fisher_rescale: bool, action_gradient: str
) -> None:
    """K = 1 and β → 1: the policy is a Gaussian N(μ, σ²), its noising kernel does not see the action."""
    policy_kwargs = dict(diffusion_steps=1, noise_schedule=[1 - 1e-7], state_dependent_readout=False)
    model = build(policy_kwargs=policy_kwargs, fisher_rescale=fisher_rescale, action_gradient=action_gradient)
    states, chains = sample(model)
    th.manual_seed(4)
    ours = gradients(model, model._actor_losses(states, chains, th.tensor(ENT_COEF))["actor_loss"])

    th.manual_seed(4)
    rows = chains.kept.actor_levels.rows
    drift, log_scale = model.actor.denoise(model.actor.denoiser.condition(states[rows]), chains.kept.actor_latents, 1)
    mean, std = drift, log_scale.exp()
    fixed_mean, fixed_std = mean.detach().requires_grad_(), std.detach().requires_grad_()
    action = (fixed_mean + fixed_std * th.randn_like(mean)).detach().requires_grad_()
    u = th.tanh(action)
    q_value = th.cat(model.critic(states[rows], u), dim=1).min(dim=1).values.sum()
    g = th.autograd.grad(q_value, action, retain_graph=True)[0]
    if action_gradient == "cube_root":
        g = th.sign(g) * g.abs() ** (1 / 3)
    log_prob = Normal(fixed_mean, fixed_std).log_prob(action)
    score = th.autograd.grad(log_prob.sum(), action, create_graph=True)[0]
    entropy = th.autograd.grad((log_prob - th.log(1 - u**2)).sum(), action, retain_graph=True)[0]
    loss = ((ENT_COEF * entropy - g).detach() * score).sum() / len(rows)
    mean_gradient, std_gradient = th.autograd.grad(loss, [fixed_mean, fixed_std])
    if fisher_rescale:
        variance = fixed_std.detach() ** 2
        mean_gradient, std_gradient = mean_gradient * variance, std_gradient * variance / 2
    expected = th.autograd.grad(
        [mean, std], list(model.actor.parameters()), [mean_gradient, std_gradient], allow_unused=True, materialize_grads=True
    )
    assert max(float(e.abs().max()) for e in expected) > 1e-3
    for own, other in zip(ours, expected, strict=True):
        th.testing.assert_close(own, other, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_without_the_fisher_factor_the_gradient_is_that_of_the_slopes_product(diffusion: str) -> None:
    """``Σ (τ D - g) · ∇_a log q_θ(a)`` by autograd twice, with Q_k as a function of the decision, and the noising part."""
    model = build(policy_kwargs=DIFFUSIONS[diffusion], fisher_rescale=False)
    states, chains = sample(model)
    th.manual_seed(4)
    ours = gradients(model, model._actor_losses(states, chains, th.tensor(ENT_COEF))["actor_loss"])
    th.manual_seed(4)
    steps, rows, n_last = chains.kept.actor_levels
    mean, log_std = model.actor.reverse_kernel(states[rows], chains.kept.actor_latents, steps)
    location, log_scale = model.actor.readout(states[rows])
    last = (steps == 1).unsqueeze(1)
    location, log_scale = location * last, log_scale * last
    decision_kernel = Normal(location + log_scale.exp() * mean, (log_scale + log_std).exp())
    decision = (decision_kernel.mean + decision_kernel.stddev * th.randn_like(mean)).detach().requires_grad_()
    previous = (decision - location) / log_scale.exp()
    tables = model.actor.schedule().at(steps)
    noising = Normal(tables.retain * previous, tables.noise_std).log_prob(chains.kept.actor_latents).sum(dim=1)
    log_prob = decision_kernel.log_prob(decision).sum(dim=1)
    log_ratio = log_prob - noising - (th.log(1 - th.tanh(decision) ** 2) * last).sum(dim=1)
    values = model._decision_values(
        states, model._critic_states(model.critic, states), decision, chains.kept, th.tensor(ENT_COEF)
    )
    (slope,) = th.autograd.grad((ENT_COEF * log_ratio - values).sum(), decision, retain_graph=True)
    (score,) = th.autograd.grad(log_prob.sum(), decision, create_graph=True)
    loss = mean_over_steps((slope * score).sum(dim=1) - ENT_COEF * noising, n_last, model.actor.diffusion_steps)
    expected = gradients(model, loss)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for own, other in zip(ours, expected, strict=True):
        th.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_the_action_gradient_reaches_no_critic() -> None:
    model = build()
    states, chains = sample(model)
    losses = model._actor_losses(states, chains, th.tensor(ENT_COEF))
    others = [*model.critic.parameters(), *model.diffusion_value.parameters(), *model.actor_target.parameters()]
    assert not any(p.requires_grad for p in model.actor_target.parameters())
    found = th.autograd.grad(sum(losses.values()), [p for p in others if p.requires_grad], allow_unused=True)
    assert all(gradient is None for gradient in found)


def chain_kl(model: DiffWPO, states: th.Tensor, chains: SampledChains) -> float:
    """``Σ_k KL(q_old ‖ q_θ)`` of the decisions by torch.distributions, every step of every chain."""
    total = 0.0
    steps, rows, _ = chains.kept.actor_levels
    kernels = []
    for actor in (model.actor_target, model.actor):
        mean, log_std = actor.reverse_kernel(states[rows], chains.kept.actor_latents, steps)
        location, log_scale = actor.readout(states[rows])
        last = (steps == 1).unsqueeze(1)
        mean = th.where(last, location + log_scale.exp() * mean, mean)
        kernels.append(Normal(mean, th.where(last, log_std + log_scale, log_std).exp()))
    total = th.distributions.kl_divergence(*kernels).sum()
    return total.item() / len(states)


def test_the_trust_region_measures_the_divergence_of_whole_chains() -> None:
    model = build(latents_per_state=4)
    model.actor_target.load_state_dict(model.actor.state_dict())
    states, chains = sample(model)
    losses = model._actor_losses(states, chains, th.tensor(ENT_COEF))
    assert losses["kl"].item() == pytest.approx(0, abs=1e-6)
    assert all(g.abs().max() < 1e-5 for g in gradients(model, losses["kl_loss"]))
    scatter_weights(model.actor, 0.05)
    losses = model._actor_losses(states, chains, th.tensor(ENT_COEF))
    assert losses["kl"].item() == pytest.approx(chain_kl(model, states, chains), rel=1e-4)
    assert any(g.abs().max() > 1e-3 for g in gradients(model, losses["kl_loss"]))
    (gradient,) = th.autograd.grad(losses["kl_coef_loss"], model.log_kl_coef)
    assert gradient.item() == pytest.approx(model.target_kl - losses["kl"].item(), rel=1e-4)


def test_the_multiplier_grows_until_the_policy_stays_within_the_bound() -> None:
    divergences = []
    for target_kl in (1e-3, 100.0):
        model = build(target_kl=target_kl, target_actor_interval=10_000, learning_rate=1e-2)
        model.actor_target.load_state_dict(model.actor.state_dict())
        model.learn(400)
        states, chains = sample(model)
        divergences.append(float(model._actor_losses(states, chains, th.tensor(ENT_COEF))["kl"]))
        assert model.log_kl_coef.item() < -3 if target_kl > 1 else model.log_kl_coef.item() > 1
    assert divergences[0] < 0.5 * divergences[1], divergences


def test_the_multiplier_stays_in_its_bounds_and_comes_back() -> None:
    model = build(target_kl=1e-6, target_actor_interval=10_000)
    model.learn(20)
    scatter_weights(model.actor, 0.05)
    for start, bound in ((-50.0, np.log(1e-2)), (50.0, np.log(1e4))):
        with th.no_grad():
            model.log_kl_coef.fill_(start)
        model.train(1, batch_size=8)
        assert model.log_kl_coef.item() == pytest.approx(bound)
    with th.no_grad():
        model.log_kl_coef.fill_(np.log(1e-2))
    model.train(20, batch_size=8)
    assert model.log_kl_coef.item() > np.log(1e-2) + 0.1


def test_the_older_actor_is_copied_at_the_interval() -> None:
    model = build(target_actor_interval=7)
    model.learn(8)

    def differs() -> bool:
        pairs = zip(model.actor.parameters(), model.actor_target.parameters(), strict=True)
        return any(not th.equal(a, b) for a, b in pairs)

    seen = []
    for _ in range(3):
        model.train(5, batch_size=8)
        model.train(2, batch_size=8)
        seen.append(differs())
        model.train(1, batch_size=8)
        assert differs()
        model.train(6, batch_size=8)
        seen.append(differs())
    assert seen == [False] * 6


def test_without_a_trust_region_nothing_of_it_is_left() -> None:
    model = build(target_kl=None)
    model.actor_target = None
    states, chains = sample(model)
    assert set(model._actor_losses(states, chains, th.tensor(ENT_COEF))) == {"actor_loss"}
    before = model.log_kl_coef.item()
    model.actor_target = model.policy.actor_target
    model.learn(20)
    assert model.log_kl_coef.item() == before


def test_a_model_with_a_trust_region_loads_into_one_without_and_back(tmp_path: Path) -> None:
    model = build().learn(12)
    model.save(tmp_path / "model")
    loaded = DiffWPO.load(tmp_path / "model", env=model.env, target_kl=None).learn(12)
    loaded.save(tmp_path / "without")
    again = DiffWPO.load(tmp_path / "without", env=model.env, target_kl=0.5).learn(12)
    assert (loaded.target_kl, again.target_kl) == (None, 0.5)


def test_batch_normalisation_does_not_look_like_a_divergence() -> None:
    extractor = dict(features_extractor_class=BatchNormDropoutExtractor, features_extractor_kwargs=dict(dropout=0.0))
    model = build(policy_kwargs=extractor, learning_rate=0.0)
    model.actor_target.load_state_dict(model.actor.state_dict())
    model.learn(30)
    assert any(isinstance(module, th.nn.BatchNorm1d) for module in model.actor_target.modules())
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-4)
    model.predict(np.zeros(3, np.float32))
    assert not model.actor_target.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(fisher_rescale=1.5), r"fisher_rescale=1.5 .*False, True"),
        (dict(action_gradient="sign"), r"action_gradient='sign' .*'identity', 'cube_root'"),
        (dict(target_kl=0.0), r"target_kl=0.0 must be a finite number > 0"),
        (dict(target_kl="auto"), r"target_kl='auto' must be a finite number > 0"),
        (dict(target_actor_interval=0), r"target_actor_interval=0 must be an integer >= 1"),
        (dict(target_actor_interval=2.5), r"target_actor_interval=2.5 must be an integer >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_policy_without_a_target_actor_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: subclasses of DiffusionWPOPolicy"):
        DiffWPO(DiffusionSACPolicy, StrictBoxEnv(), device="cpu", buffer_size=10)


def test_its_policy_works_in_sac_too() -> None:
    policy = DiffWPO.policy_aliases["MlpPolicy"]
    kwargs: dict[str, Any] = dict(buffer_size=100, learning_starts=8, batch_size=8, seed=0, device="cpu")
    SAC(policy, StrictBoxEnv(), policy_kwargs={"net_arch": [16]}, **kwargs).learn(16)  # type: ignore[arg-type]


@pytest.mark.slow
def test_both_modes_of_the_bandit_are_kept_at_the_exact_density() -> None:
    model = DiffWPO(
        "MlpPolicy", "BimodalBandit-v0", learning_rate=1e-3, learning_starts=200, seed=0, device="cpu",
        ent_coef=lambda progress: max(0.1, 0.1 ** (1.5 * (1 - progress))), policy_kwargs=dict(net_arch=[64, 64]),
    ).learn(5000)  # fmt: skip
    actions = sample_actions(model, np.zeros(1, np.float32), 20_000)[:, 0]
    assert 0.3 < (actions > 0).mean() < 0.7
    assert total_variation(actions, BimodalBandit().reward, 0.1) < 0.2
