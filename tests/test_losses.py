"""DiffSAC's losses for K > 1, row by row against explicit densities; its targets against SAC's; which states are trained."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.distributions import Normal

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.chains import SampledChains, Transitions, chain_states
from sb3_diffusion.common.critics import CriticStates
from sb3_diffusion.common.networks import PartlyFrozenMLP, StepConditionedMLP
from sb3_diffusion.common.objectives.reverse_kl import mean_over_steps

STEPS, STATES, PRIOR_STD, ENT_COEF = 3, 12, 1.7, 0.3


def build(kernel: str) -> DiffSAC:
    """K = 3, κ = 2, ν = 1.7, a learned schedule, and weights far from their start."""
    diffusion = dict(diffusion_steps=STEPS, prior_std=PRIOR_STD, kernel=kernel, learn_schedule=True, beta_max=0.5)
    model = DiffSAC(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", buffer_size=100, latents_per_state=2,
        policy_kwargs=dict(net_arch=[16], noise_schedule="geometric", **diffusion),
    )  # fmt: skip
    th.manual_seed(1)
    for parameter in model.policy.parameters():
        parameter.data.add_(0.15 * th.randn_like(parameter))
    return model


class Reference:
    """The policy written out from the definitions of its kernels."""

    def __init__(self, model: DiffSAC, kernel: str, features: th.Tensor) -> None:
        self.actor, self.features = model.actor, features
        betas = model.actor.schedule.betas().detach()
        self.retain = (1 - betas).sqrt() if kernel == "vp" else 1 - betas / 2
        self.std = PRIOR_STD * betas.sqrt()
        self.drift_scale = self.std if kernel == "vp" else PRIOR_STD**2 * betas
        self.location, self.log_scale = model.actor.readout(features)

    def step(self, latents: th.Tensor, k: int, rows: slice, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """x^{k-1} and ℓ_k, the latter with the read-out's term for k = 1."""
        drift, log_scale = self.actor.denoise(self.actor.denoiser.condition(self.features[rows]), latents, k)
        reverse = Normal(self.retain[k - 1] * latents + self.drift_scale[k - 1] * drift, self.std[k - 1] * log_scale.exp())
        previous = reverse.mean + reverse.stddev * noise
        noising = Normal(self.retain[k - 1] * previous, self.std[k - 1])
        log_ratio = (reverse.log_prob(previous) - noising.log_prob(latents)).sum(dim=1)
        return previous, log_ratio + (self.readout_term(previous, rows) if k == 1 else 0)

    def action(self, end: th.Tensor, rows: slice) -> th.Tensor:
        return th.tanh(self.location[rows] + self.log_scale[rows].exp() * end)

    def readout_term(self, end: th.Tensor, rows: slice) -> th.Tensor:
        pre_tanh = self.location[rows] + self.log_scale[rows].exp() * end
        return (2 * th.log(th.cosh(pre_tanh)) - self.log_scale[rows]).sum(dim=1)


@th.no_grad()
@pytest.mark.parametrize("kernel", ["vp", "euler"])
def test_chains_and_losses_are_those_of_the_definitions(kernel: str) -> None:
    model = build(kernel)
    features = th.randn(STATES, 3)
    reference = Reference(model, kernel, features)
    th.manual_seed(5)
    chains = model._sample_chains(features, model._levels(STATES, 4))
    th.manual_seed(5)
    noise = th.randn(STEPS + 1, STATES, 1)
    latents, log_ratios = {STEPS: PRIOR_STD * noise[STEPS]}, {}
    for k in range(STEPS, 0, -1):
        latents[k - 1], log_ratios[k] = reference.step(latents[k], k, slice(None), noise[k - 1])
    path_log_prob = Normal(0, PRIOR_STD).log_prob(latents[STEPS]).sum(dim=1) + sum(log_ratios.values())
    th.testing.assert_close(chains.path_log_prob, path_log_prob, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(chains.actions, reference.action(latents[0], slice(None)))

    # The diffusion value's rows: levels 1 … K - 1, and what the log-ratios from there on sum to
    assert chains.kept.value_levels is not None and chains.kept.log_ratios_to_come is not None
    pairs = list(zip(chains.kept.value_levels.steps.tolist(), chains.kept.value_levels.rows.tolist(), strict=True))
    assert {k for k, _ in pairs} == {1, 2} and sorted(row for _, row in pairs) == list(range(STATES))
    to_come = th.stack([sum(log_ratios[j][row] for j in range(1, k + 1)) for k, row in pairs])
    th.testing.assert_close(chains.kept.log_ratios_to_come, to_come, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(chains.kept.value_latents, th.stack([latents[k][row] for k, row in pairs]))

    def forecast(previous: th.Tensor, k: int, row: slice) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """R_k, L_k and x̂⁰ with the network's heads and ρ_k written out."""
        assert model.diffusion_value is not None
        heads = model.diffusion_value(model.diffusion_value.condition(features[row]), previous, k)
        signal = reference.retain[:k].prod(dim=0)
        end = signal * previous + PRIOR_STD * heads[:, 2:]
        telescoped = (0.5 * (1 - signal**2) * (previous**2 / PRIOR_STD**2 - 1)).sum(dim=1)
        return heads[:, 0], telescoped + heads[:, 1] + reference.readout_term(end, row), end

    def q_values(critic: th.nn.Module, end: th.Tensor, row: slice) -> th.Tensor:
        return th.cat(critic(features[row], reference.action(end, row)), dim=1).squeeze(0)

    # Actor: τ ℓ_k - Q_k with Q_k = V_{k-1} for k > 1
    steps, rows, n_last = chains.kept.actor_levels
    assert sorted(zip(rows.tolist(), steps.tolist(), strict=True)) == sorted(
        set(zip(rows.tolist(), steps.tolist(), strict=True))
    )
    assert len(rows) == 2 * STATES and n_last == STATES and (steps[:n_last] == 1).all() and (steps[n_last:] > 1).all()
    th.manual_seed(9)
    loss = model._actor_losses(features, chains, th.tensor(ENT_COEF))["actor_loss"]
    th.manual_seed(9)
    fresh = th.randn_like(chains.kept.actor_latents)
    total = 0.0
    for i, (k, index) in enumerate(zip(steps.tolist(), rows.tolist(), strict=True)):
        row = slice(index, index + 1)
        previous, log_ratio = reference.step(latents[k][row], k, row, fresh[i : i + 1])
        if k == 1:
            value = q_values(model.critic, previous, row).min()
        else:
            residual, come, end = forecast(previous, k - 1, row)
            # The anchors' critics take turns.
            value = q_values(model.critic, end, row)[(i - n_last) % 2] + residual - ENT_COEF * come
        # Every step weighs the same: K = 3, and the first half of the rows has k = 1.
        total += float(ENT_COEF * log_ratio - value) / STATES * (1 / 3 if k == 1 else 2 / 3)
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-4)

    # Diffusion value: each head against what the chain came to
    target_q_values = th.randn(STATES)
    value_loss = model._diffusion_value_loss(
        features, chains.kept, model.critic_target, model._critic_states(model.critic_target, features), target_q_values
    )
    errors = []
    for i, (k, index) in enumerate(pairs):
        row = slice(index, index + 1)
        residual, come, end = forecast(latents[k][row], k, row)
        q_error = q_values(model.critic_target, end, row)[i % 2] + residual - target_q_values[index]
        come_error = come - sum(log_ratios[j][index] for j in range(1, k + 1))
        errors.append(float(q_error**2 + come_error**2 + ((end - latents[0][row]) ** 2).sum() / PRIOR_STD**2))
    assert value_loss.item() == pytest.approx(np.mean(errors), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("diffusion_steps", "per_state"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (7, 1), (7, 3), (4, 4)])
def test_over_a_period_every_state_gets_every_step_and_the_last_always_or_every_second_time(
    diffusion_steps: int, per_state: int
) -> None:
    model = DiffSAC(
        "MlpPolicy", "Pendulum-v1", device="cpu", buffer_size=10, latents_per_state=per_state,
        policy_kwargs=dict(diffusion_steps=diffusion_steps, net_arch=[8]),
    )  # fmt: skip
    counts = np.zeros((16, diffusion_steps), dtype=int)
    period = 2 * diffusion_steps * max(1, diffusion_steps - 1)
    for offset in range(period):
        steps, rows, n_last = model._levels(16, offset)[0]
        assert len(steps) == 16 * per_state and len({*zip(rows.tolist(), steps.tolist(), strict=True)}) == len(steps)
        assert (steps[:n_last] == 1).all() and (steps[n_last:] > 1).all() and (steps.diff() >= 0).all()
        assert n_last == (8 if per_state == 1 < diffusion_steps else 16)
        np.add.at(counts, (rows.numpy(), steps.numpy() - 1), 1)
    others = counts[:, 1:]
    assert (others == others[:1, :1]).all()
    assert (counts.sum(axis=1) == period * per_state).all()


def test_steps_count_alike_however_many_rows_they_have() -> None:
    values = th.tensor([6.0, 6.0, 6.0, 6.0, 1.0, 2.0])
    assert mean_over_steps(values, 4, 3).item() == pytest.approx(6 / 3 + 2 / 3 * 1.5)
    assert mean_over_steps(values, 0, 3).item() == pytest.approx(2 / 3 * 4.5)


def test_the_losses_train_their_own_networks_only() -> None:
    model = build("vp")
    features = th.randn(STATES, 3, requires_grad=True)
    chains = model._sample_chains(features, model._levels(STATES, 0))
    value_loss = model._diffusion_value_loss(
        features, chains.kept, model.critic_target, CriticStates(features, features.detach()), th.randn(STATES)
    )
    actor_parameters = list(model.actor.parameters())
    assert all(g is None for g in th.autograd.grad(value_loss, [features, *actor_parameters], allow_unused=True))
    actor_loss = model._actor_losses(features.detach(), chains, th.tensor(ENT_COEF))["actor_loss"]
    gradients = th.autograd.grad(actor_loss, actor_parameters)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_targets_and_losses_of_an_evaluation_are_those_of_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffSAC(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=40, buffer_size=50, ent_coef=f"auto_{ENT_COEF}",
        target_entropy=-1.5, gamma=0.9, policy_kwargs=dict(net_arch=[16], diffusion_steps=STEPS),
    ).learn(40)  # fmt: skip
    seen: list[th.Tensor] = []
    sampled: list[SampledChains] = []
    sample_chains, value_loss = model._sample_chains, model._diffusion_value_loss

    def record_chains(*args: Any) -> SampledChains:
        sampled.append(sample_chains(*args))
        return sampled[-1]

    def record_q_values(*args: Any) -> th.Tensor:
        seen.append(args[-1])
        return value_loss(*args)

    monkeypatch.setattr(model, "_sample_chains", record_chains)
    monkeypatch.setattr(model, "_diffusion_value_loss", record_q_values)
    data = model.replay_buffer.sample(STATES)
    dones = (th.arange(STATES) % 3 == 0).float().unsqueeze(1)
    data = data._replace(dones=dones, discounts=th.full((STATES, 1), 0.9))
    data = Transitions(data.observations, data.actions, data.next_observations, data.rewards, dones, data.discounts)
    states = chain_states(data, 2)
    parameters = [*model.critic.parameters(), model.log_ent_coef]
    levels = model._levels(len(states), 0)
    _, ent_coef, losses, gradients = model._evaluate(data, states, levels, parameters)

    (chains,), log_prob = sampled, sampled[0].path_log_prob
    assert log_prob.abs().mean() > 0.3
    with th.no_grad():
        q_values = th.cat(model.critic_target(states, chains.actions), dim=1).min(dim=1).values
        soft_values = (q_values - ENT_COEF * log_prob)[:STATES, None]
        targets = data.rewards + 0.9 * (1 - dones) * soft_values
        critic_loss = sum(0.5 * ((q - targets) ** 2).mean() for q in model.critic(data.observations, data.actions))
    assert ent_coef.item() == pytest.approx(ENT_COEF)
    th.testing.assert_close(losses["critic_loss"], critic_loss)
    th.testing.assert_close(seen, [q_values])
    # The temperature rises while the path entropy is below its target.
    shortfall = (log_prob - 1.5).mean()
    th.testing.assert_close(losses["ent_coef_loss"], -np.log(ENT_COEF) * shortfall)
    th.testing.assert_close(gradients[-1], -shortfall.reshape(1))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_one_update_of_the_critics_equals_sacs_where_the_policies_are_deterministic(n_steps: int) -> None:
    kwargs = dict(env="Pendulum-v1", learning_starts=80, buffer_size=100, seed=0, device="cpu", ent_coef=0.0, n_steps=n_steps)
    policy_kwargs = dict(net_arch=[16], optimizer_class=th.optim.SGD)
    sac = SAC("MlpPolicy", policy_kwargs=policy_kwargs, **kwargs)
    ours = DiffSAC("MlpPolicy", policy_kwargs=dict(policy_kwargs, diffusion_steps=4), **kwargs)
    for model in (sac, ours):
        model.learn(60)
    ours.actor.latent_pi.load_state_dict(sac.actor.latent_pi.state_dict())
    ours.actor.mu.load_state_dict(sac.actor.mu.state_dict())
    ours.replay_buffer = sac.replay_buffer
    sac.replay_buffer.dones[::5] = 1.0
    for model in (sac, ours):
        th.nn.init.zeros_(model.actor.log_std.weight)
        th.nn.init.constant_(model.actor.log_std.bias, -20.0)
    ours.critic.load_state_dict(sac.critic.state_dict())
    ours.critic_target.load_state_dict(sac.critic_target.state_dict())
    before = [parameter.clone() for parameter in sac.critic.parameters()]
    for model in (sac, ours):
        np.random.seed(4)
        model.train(1, batch_size=64)
    for ours_after, sac_after, start in zip(ours.critic.parameters(), sac.critic.parameters(), before, strict=True):
        assert (sac_after - start).abs().max() > 0
        th.testing.assert_close(ours_after - start, sac_after - start, rtol=1e-3, atol=1e-7)


def test_chains_start_at_next_states_at_the_last_state_of_an_episode_and_at_some_first_states() -> None:
    observations, next_observations = th.arange(16.0).reshape(16, 1), 100 + th.arange(16.0).reshape(16, 1)
    dones = th.zeros(16, 1)
    dones[3] = 1.0
    data = SimpleNamespace(observations=observations, next_observations=next_observations, dones=dones, rewards=dones)
    states = chain_states(data, 1)  # type: ignore[arg-type]
    expected = next_observations.clone()
    expected[3] = 3.0
    th.testing.assert_close(states, th.cat([expected, observations[:1]]))
    data.observations = {"a": observations, "image": th.zeros(16, 3, 4, 4)}
    data.next_observations = {"a": next_observations, "image": th.ones(16, 3, 4, 4)}
    states = chain_states(data, 1)  # type: ignore[arg-type]
    assert isinstance(states, dict) and states["image"].shape == (17, 3, 4, 4)
    assert states["image"][3].max() == 0 and states["image"][4].min() == 1


class FrozenExtractor(FlattenExtractor):
    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        self.layer = th.nn.Linear(self.features_dim, self.features_dim).requires_grad_(False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(super().forward(observations))


@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_a_frozen_features_extractor_stays_frozen_and_the_rest_trains(share_features_extractor: bool) -> None:
    model = DiffSAC(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=10, buffer_size=100, batch_size=8,
        policy_kwargs=dict(
            net_arch=[8], features_extractor_class=FrozenExtractor, share_features_extractor=share_features_extractor
        ),
    )  # fmt: skip
    frozen = model.actor.features_extractor.layer.weight.clone()
    trained = model.actor.denoiser.state_layer.weight.clone()
    model.learn(16)
    assert th.equal(frozen, model.actor.features_extractor.layer.weight)
    assert not th.equal(trained, model.actor.denoiser.state_layer.weight)


def test_without_hidden_layers_the_diffusion_starts_at_zero_too() -> None:
    model = DiffSAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", buffer_size=10, policy_kwargs=dict(net_arch=[]))
    features = th.randn(5, 3)
    drift, log_scale = model.actor.denoise(model.actor.denoiser.condition(features), th.randn(5, 1), 2)
    assert drift.abs().max() == 0 and log_scale.abs().max() == 0
    assert model.actor.mode(features).abs().max() < 1e-7  # a mean of antithetic chains, in float32


class TwoSteps(gym.Env):
    """Two one-hot states, visited one after the other; the best actions are 0.7 and -0.7."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        reward = -((float(action[0]) - (0.7 if self.state == 0 else -0.7)) ** 2)
        self.state += 1
        return min(self.state, 1), reward, self.state == 2, False, {}


@pytest.mark.slow
def test_the_first_state_of_an_episode_is_trained_although_it_is_nobodys_next_state() -> None:
    model = DiffSAC(
        "MlpPolicy", TwoSteps(), seed=0, device="cpu", learning_rate=3e-3, ent_coef=0.05, policy_kwargs=dict(net_arch=[32, 32])
    ).learn(2500)
    actions = [model.predict(np.array(state), deterministic=True)[0].item() for state in (0, 1)]
    assert actions == pytest.approx([0.7, -0.7], abs=0.15)


def test_of_a_partly_frozen_network_all_steps_at_once_are_those_one_by_one() -> None:
    th.manual_seed(0)
    network = PartlyFrozenMLP(3, 2, 4, 2, [8], learned_steps=2)
    network.freeze()
    with th.no_grad():
        for parameter in network.body.parameters():
            parameter.add_(th.randn_like(parameter))
    latents = th.randn(5, 4, 2)
    condition = network.condition(th.randn(5, 3))
    at_once = network(condition.unsqueeze(1), latents, None)
    for k in range(1, 5):
        th.testing.assert_close(at_once[:, k - 1], network(condition, latents[:, k - 1], k))
    assert not th.allclose(
        network.frozen(condition[:, 8:], latents[:, 3], 4),
        StepConditionedMLP.forward(network, condition[:, :8], latents[:, 3], 4),
    )
