"""DiffPPO: the augmented decision process, its losses, and what users of SB3's PPO expect."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL_ON_POLICY, scatter_weights
from envs_for_tests import (
    AnyActionEnv,
    AnyObservationEnv,
    AsDict,
    BatchNormDropoutExtractor,
    CountingExtractor,
    SmallImageExtractor,
    StrictBoxEnv,
)
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy
from sb3_diffusion.diffppo.actor import ActedDecisions, decisions_of
from sb3_diffusion.diffppo.buffers import ChainRolloutBuffer, ChainRolloutSamples, DictChainRolloutBuffer
from sb3_diffusion.diffppo.diffppo import ENT_COEF_LEARNING_RATE, Coefficients, MinibatchLosses
from sb3_diffusion.diffppo.policies import ActedChains
from sb3_diffusion.envs import AugmentedMDP


def make(env: Any = None, policy: Any = "MlpPolicy", policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> DiffPPO:
    env = StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]) if env is None else env
    return DiffPPO(policy, env, policy_kwargs={"net_arch": [16]} | (policy_kwargs or {}), **(SMALL_ON_POLICY | kwargs))


def weights(model: DiffPPO) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def collect(model: DiffPPO) -> DiffPPO:
    """One rollout with weights far from their start, not yet trained on."""
    scatter_weights(model.policy, 0.2)
    n_epochs, model.n_epochs = model.n_epochs, 1
    train, model.train = model.train, lambda: None  # type: ignore[method-assign]
    model.learn(model.n_steps * model.n_envs)
    model.train, model.n_epochs = train, n_epochs  # type: ignore[method-assign]
    return model


def when_acted(policy: DiffusionActorCriticPolicy, acted: ActedChains) -> list[th.Tensor]:
    """Values and kernels of the decisions as the policy recorded them when it acted."""
    values, *decided = acted
    kernels = policy.actor.kernels_when_acting(ActedDecisions(*(part.unsqueeze(0) for part in decided)))
    return [values, *(part.squeeze(0) for part in kernels)]


def decisions(buffer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of all decisions of a rollout, (n_steps, n_envs, K + 1), as minibatches get them."""
    data = ChainRolloutSamples(th.zeros(0), buffer._packed_decisions())
    n_envs_first = (buffer.n_envs, buffer.buffer_size)
    return tuple(a.unflatten(0, n_envs_first).transpose(0, 1).numpy() for a in (data.advantages, data.returns))  # type: ignore[return-value]


# --- The augmented decision process ---


@pytest.mark.parametrize("squash_output", [True, False])
@pytest.mark.parametrize("learn_schedule", [True, False])
def test_ratios_are_one_on_the_first_minibatch(squash_output: bool, learn_schedule: bool) -> None:
    model = collect(make(policy_kwargs=dict(squash_output=squash_output, learn_schedule=learn_schedule, beta_max=0.5)))
    for data in model.rollout_buffer.get(8):
        values, kernels = model.policy.evaluate_decisions(data.observations, data.decisions)
        th.testing.assert_close(kernels.log_prob, data.old_log_prob, rtol=1e-5, atol=1e-5)
        th.testing.assert_close(kernels.noising_log_prob, data.old_noising_log_prob, rtol=1e-5, atol=1e-5)
        th.testing.assert_close(values, data.old_values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squash_output", [True, False])
def test_chains_are_evaluated_as_their_kernels_define(squash_output: bool) -> None:
    policy_kwargs = dict(squash_output=squash_output, diffusion_steps=3, prior_std=1.5, beta_max=0.6)
    policy = collect(make(policy_kwargs=policy_kwargs)).policy
    observations = th.randn(5, 3)
    features = policy._both_features(observations)
    with th.no_grad():
        actions, state_values, acted = policy(observations)
        chains = acted.chains
        values, kernels = policy.evaluate_chains(observations, chains)
        for when_acting, when_evaluated in zip(when_acted(policy, acted), (values, *kernels), strict=True):
            th.testing.assert_close(when_acting, when_evaluated, rtol=1e-4, atol=1e-4)
        location, log_scale = policy.actor.readout(features[0])
        tables, scale = policy.actor.schedule(), log_scale.exp()
        first = Normal(location, 1.5 * scale)
        to_come = policy.actor.path_log_prob(chains, kernels)
        path_log_prob = -th.log(1 - th.tanh(chains[:, 0]) ** 2).sum(1) if squash_output else th.zeros(5)
        for k in (1, 2, 3):
            latents, previous = (chains[:, k] - location) / scale, (chains[:, k - 1] - location) / scale
            drift, g = policy.actor.denoise(policy.actor.denoiser.condition(features[0]), latents, k)
            retain, std = tables.retain[k - 1], tables.noise_std[k - 1]
            mean = retain * latents + tables.drift_scale[k - 1] * drift
            reverse = Normal(location + scale * mean, scale * std * g.exp())
            noising = Normal(location + scale * retain * previous, scale * std).log_prob(chains[:, k]).sum(1)
            log_prob = reverse.log_prob(chains[:, k - 1]).sum(1)
            path_log_prob += log_prob - noising
            th.testing.assert_close(kernels.mean[:, k - 1], reverse.mean, rtol=1e-4, atol=1e-4)
            th.testing.assert_close(kernels.log_std[:, k - 1].exp(), reverse.stddev, rtol=1e-4, atol=1e-4)
            th.testing.assert_close(kernels.log_prob[:, k - 1], log_prob, rtol=1e-3, atol=1e-3)
            th.testing.assert_close(kernels.noising_log_prob[:, k - 1], noising, rtol=1e-3, atol=1e-3)
            arrived = path_log_prob + first.log_prob(chains[:, k]).sum(1)
            th.testing.assert_close(to_come[:, k - 1], arrived, rtol=1e-3, atol=1e-3)
        th.testing.assert_close(kernels.mean[:, 3], location)
        th.testing.assert_close(kernels.log_std[:, 3].exp(), first.stddev)
        th.testing.assert_close(kernels.log_prob[:, 3], first.log_prob(chains[:, 3]).sum(1), rtol=1e-4, atol=1e-4)
        assert not kernels.noising_log_prob[:, 3].any() and th.equal(to_come[:, 3], to_come[:, 2])
        th.testing.assert_close(actions, th.tanh(chains[:, 0]) if squash_output else chains[:, 0])
        th.testing.assert_close(state_values.flatten(), values[:, -1])
        th.testing.assert_close(policy.predict_values(observations), state_values)
        # The actor's own sampling draws the same chains and knows the same path log-probability.
        th.manual_seed(3)
        chains = policy.actor.act(features[0]).chains
        th.manual_seed(3)
        sample = policy.actor.sample(features[0])
        latents = (chains - location.unsqueeze(1)) / scale.unsqueeze(1)
        th.testing.assert_close(latents, sample.latents.transpose(0, 1), rtol=1e-4, atol=1e-4)
        th.testing.assert_close(policy.actor.squash(chains[:, 0]), sample.actions)
        to_come = policy.actor.path_log_prob(chains, policy.evaluate_chains(observations, chains).kernels)
        th.testing.assert_close(to_come[:, -1], sample.path_log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("squash_output", [True, False])
def test_some_steps_are_evaluated_as_among_all(squash_output: bool) -> None:
    model = collect(make(policy_kwargs=dict(squash_output=squash_output, learn_schedule=True)))
    data = next(model.rollout_buffer.get(8))
    steps = th.tensor([[1, 3], [4, 2], [2, 1], [3, 4], [1, 2], [4, 1], [2, 3], [3, 1]])
    chains = th.cat([data.decisions.taken[:, :-1], data.decisions.before[:, -2:-1]], dim=1)
    everything, some = (model.policy.evaluate_chains(data.observations, chains, which) for which in (None, steps))
    chosen = data.at(steps)
    th.testing.assert_close(model.policy.evaluate_decisions(data.observations, chosen.decisions).values, some.values)
    for row in range(8):
        for column, k in enumerate([*steps[row], 5]):  # and always the first decision
            th.testing.assert_close(some.values[row, column], everything.values[row, k - 1])
            for ours, theirs in zip(some.kernels, everything.kernels, strict=True):
                th.testing.assert_close(ours[row, column], theirs[row, k - 1])
            assert chosen.advantages[row, column] == data.advantages[row, k - 1]
            assert th.equal(chosen.old_means[row, column], data.old_means[row, k - 1])


def test_the_score_of_the_location_is_hardly_noisier_than_a_gaussians() -> None:
    """Zero heads: its variance is the Fisher information of docs/method.md; read out at the end it would be 1 / β_1."""
    policy = make(policy_kwargs=dict(log_std_init=-1.0, prior_std=1.2)).policy
    observations = th.zeros(100, 3)
    location = policy.actor.mu.bias  # type: ignore[union-attr]
    scores = []
    for _ in range(500):
        with th.no_grad():
            chains = policy(observations)[2].chains
        log_prob = policy.evaluate_chains(observations, chains).kernels.log_prob
        # Independent scores: the variance of their sum is the sum of the variances.
        scores.append(th.autograd.grad(log_prob.sum(), location)[0])
    betas = th.linspace(0.05, 0.2, 4)
    information = 1 + ((1 - (1 - betas).sqrt()).square() / betas).sum()
    gaussian = 1 / (1.2 * math.exp(-1)) ** 2
    assert (th.stack(scores).square().mean() / 100 / gaussian).item() == pytest.approx(information.item(), rel=0.15)
    assert information < 1.2


class TerminatingEnv(StrictBoxEnv):
    """Every other episode ends in a termination, the others at the time limit."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.n_steps == 4 and self.point[0] > 0, truncated, info


def terminating_envs() -> Any:
    return make_vec_env(lambda: TerminatingEnv(episode_length=7), n_envs=2)


def test_without_log_ratios_advantages_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(terminating_envs(), ent_coef=0.5)
    monkeypatch.setattr(model.policy.actor, "path_log_prob", lambda chains, _: th.zeros(chains.shape[:-1]))
    # A value of the state alone
    monkeypatch.setattr(model.policy, "_decision_values", lambda features, _: features.sum(dim=1, keepdim=True).expand(-1, 5))
    ours = collect(model).rollout_buffer
    last_values, dones = th.tensor([[0.7], [-0.3]]), np.array([False, True])
    ours.compute_returns_and_advantage(last_values, dones)
    theirs = RolloutBuffer(16, model.observation_space, model.action_space, "cpu", model.gae_lambda, model.gamma, 2)
    theirs.rewards, theirs.episode_starts, theirs.values = ours.rewards, ours.episode_starts, ours.values
    theirs.compute_returns_and_advantage(last_values, dones)
    assert ours.episode_starts[1:].sum() >= 4 and np.ptp(ours.values) > 0.1
    np.testing.assert_allclose(ours.advantages, theirs.advantages, rtol=1e-4, atol=1e-5)
    advantages, returns = decisions(ours)
    for k in range(5):
        np.testing.assert_allclose(advantages[..., k], theirs.advantages, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(returns[..., k], theirs.returns, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("squash_output", [True, False])
def test_advantages_equal_those_of_the_serial_augmented_decision_process(squash_output: bool) -> None:
    ent_coef = 0.5
    policy_kwargs = dict(diffusion_steps=3, squash_output=squash_output, prior_std=1.3)
    model = collect(make(terminating_envs(), ent_coef=ent_coef, policy_kwargs=policy_kwargs))
    buffer = model.rollout_buffer
    last_values = np.array([0.7, -0.3])
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), np.array([True, False]))
    recorded, (advantages, _) = buffer.recorded, decisions(buffer)
    log_ratios = (recorded.log_prob - recorded.noising_log_prob).numpy()
    if squash_output:
        log_ratios[..., 0] -= np.log(1 - np.tanh(recorded.chains[:, :, 0].numpy()) ** 2).sum(axis=-1)
    # The density of the first decision at each later latent, from its own kernel
    first = Normal(recorded.mean[..., -1:, :], recorded.log_std[..., -1:, :].exp())
    log_priors = first.log_prob(recorded.chains[:, :, 1:]).sum(dim=-1).numpy()
    # What the network estimates at a latent includes the entropy of having come there; the value of the definition does not.
    values = recorded.values.numpy().copy()
    values[..., :-1] += ent_coef * log_priors
    for env, alive_at_the_end in ((0, 0.0), (1, 1.0)):
        # One decision after the other, from the end: (t, k) with k = K … 1, and a^K first of all
        next_value, carried, alive = last_values[env], 0.0, alive_at_the_end
        for t in reversed(range(16)):
            for k in (1, 2, 3, 4):
                gamma, decay = (model.gamma * alive, model.gamma * model.gae_lambda * alive) if k == 1 else (1.0, 1.0)
                reward = (buffer.rewards[t, env] if k == 1 else 0.0) - ent_coef * log_ratios[t, env, k - 1]
                carried = reward + gamma * next_value - values[t, env, k - 1] + decay * carried
                next_value = values[t, env, k - 1]
                assert advantages[t, env, k - 1] == pytest.approx(carried, rel=1e-3, abs=1e-3)
            alive = 1.0 - buffer.episode_starts[t, env]


class GivenStarts(AugmentedMDP):
    """The serial process with given prior samples, so that it makes the random numbers of the environment alone."""

    def __init__(self, env: gym.Env, starts: np.ndarray, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self.starts = iter(starts)

    def _begin_chain(self, observation: Any) -> None:
        self._env_observation, self._diffusion_step = observation, self.diffusion_steps
        self._latents = next(self.starts, np.zeros(self.env_action_space.shape))


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "TurningDoubleWell-v0"])
def test_rollouts_and_returns_are_those_of_the_serial_environment(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision by decision in ``AugmentedMDP``: observations, rewards, discounts, ends, and soft returns (λ = 1)."""
    ent_coef, last_value, steps = 0.4, 2.5, 3
    env = gym.make(env_id, max_episode_steps=7)
    # Without the read-out the first decision is a sample of the serial process's prior.
    policy_kwargs = dict(diffusion_steps=steps, prior_std=1.4, state_dependent_readout=False)
    model = make(env, ent_coef=ent_coef, gae_lambda=1.0, gamma=0.9, policy_kwargs=policy_kwargs)
    monkeypatch.setattr(model.policy, "predict_values", lambda obs: th.full((len(obs), 1), last_value))
    buffer, actor = collect(model).rollout_buffer, model.policy.actor
    n_steps, chains, returns = buffer.buffer_size, buffer.recorded.chains[:, 0].numpy(), decisions(buffer)[1]
    tables, prior = actor.schedule(), Normal(0.0, 1.4)

    serial = GivenStarts(gym.make(env_id, max_episode_steps=7), chains[:, -1], diffusion_steps=steps, gamma=0.9)
    observation, _ = serial.reset(seed=0)
    rewards, discounts, ends = np.zeros((3, n_steps, steps))
    for t in range(n_steps):
        np.testing.assert_allclose(observation["observation"], buffer.observations[t, 0], rtol=1e-4, atol=1e-5)
        features = th.as_tensor(observation["observation"]).float().unsqueeze(0)
        for k in range(steps, 0, -1):
            assert observation["diffusion_step"] == k - 1
            latents, decision = (th.as_tensor(x).float().unsqueeze(0) for x in (observation["latents"], chains[t, k - 1]))
            with th.no_grad():
                mean, log_std = actor.reverse_kernel(features, latents, th.tensor([k]))
            squash = float(th.log(1 - th.tanh(decision) ** 2).sum()) if k == 1 else 0.0
            reverse = Normal(mean, log_std.exp()).log_prob(decision).sum()
            noising = Normal(tables.retain[k - 1] * decision, tables.noise_std[k - 1]).log_prob(latents).sum()
            observation, reward, terminated, truncated, info = serial.step(chains[t, k - 1])
            rewards[t, k - 1] = reward - ent_coef * float(reverse - noising - squash)
            discounts[t, k - 1], ends[t, k - 1] = info["discount"], truncated
            assert not terminated and (k == 1 or reward == 0)
        bootstrap = 0.9 * last_value * truncated
        assert buffer.rewards[t, 0] == pytest.approx(reward + bootstrap, rel=1e-4, abs=1e-4)
        if truncated:
            serial.starts = iter(chains[t + 1 :, -1])  # the last state of an episode had one of its own
            observation, _ = serial.reset()
    assert ends.sum() == n_steps // 7 and not ends[:, 1:].any()

    carried = last_value
    for t in reversed(range(n_steps)):
        for k in range(1, steps + 1):
            if ends[t, k - 1]:
                carried = last_value
            carried = rewards[t, k - 1] + discounts[t, k - 1] * carried
            # The network's values count the entropy of having come to x^k.
            entropy = -ent_coef * float(prior.log_prob(th.as_tensor(chains[t, k])).sum())
            assert returns[t, 0, k - 1] == pytest.approx(carried + entropy, rel=1e-3, abs=1e-3)
        carried += entropy
        assert returns[t, 0, steps] == pytest.approx(carried, rel=1e-3, abs=1e-3)


def test_a_temperature_of_zero_leaves_no_entropy_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """DPPO: nothing depends on a log-ratio or on the density of the noising kernel."""
    runs = []
    for ent_coef, changed in ((0.0, False), (0.0, True), (0.3, False)):
        model = make(ent_coef=ent_coef, policy_kwargs=dict(learn_schedule=True))
        evaluate = model.policy.evaluate_decisions

        def without_noising(*args: Any, evaluate: Any = evaluate) -> Any:
            values, kernels = evaluate(*args)
            return values, kernels._replace(noising_log_prob=th.full((), math.nan))

        if changed:
            monkeypatch.setattr(model.policy.actor, "path_log_prob", lambda chains, _: th.full(chains.shape[:-1], 7.0))
        collect(model)
        if changed:
            monkeypatch.setattr(model.policy, "evaluate_decisions", without_noising)
        np.random.seed(0)
        model.train()
        runs.append((weights(model), model.rollout_buffer.advantages))
    assert th.equal(runs[0][0], runs[1][0]) and np.array_equal(runs[0][1], runs[1][1])
    assert not th.equal(runs[0][0], runs[2][0]) and not np.array_equal(runs[0][1], runs[2][1])


def test_the_gradient_is_that_of_the_path_entropy() -> None:
    """
    One state, rewards of zero: the policy gradient with the noising kernel's own part, against finite differences of the mean
    log-ratio on the same random numbers.
    """
    model = make(policy_kwargs=dict(diffusion_steps=2), normalize_advantage=False)
    scatter_weights(model.policy, 0.3)
    policy, n, seeds = model.policy, 100_000, (0, 1, 2, 3)
    observations = th.zeros(n, 3)
    parameters = [policy.actor.mu.bias, policy.actor.denoiser.body[-1].bias]  # type: ignore[union-attr]

    @th.no_grad()
    def path(seed: int) -> tuple[th.Tensor, th.Tensor]:
        """Chains, and what their log-probabilities sum to from each step on."""
        th.manual_seed(seed)
        chains = policy(observations)[2].chains
        return chains, policy.actor.path_log_prob(chains, policy.evaluate_chains(observations, chains).kernels)

    ours = th.zeros(4)
    for seed in seeds:
        chains, to_come = path(seed)
        with th.no_grad():
            values, old = policy.evaluate_chains(observations, chains)
        # Minus the advantage: what is to come from decision k on, with a function of a^k as the baseline
        first = Normal(old.mean[:, -1:], old.log_std[:, -1:].exp())
        cost = to_come - F.pad(first.log_prob(chains[:, 1:]).sum(dim=2), (0, 1))
        advantages = cost.mean(dim=0) - cost
        decided = decisions_of(chains)
        scalars = th.stack([values, old.log_prob, old.noising_log_prob, advantages, values], dim=2)
        packed = th.cat([decided.before, decided.taken, old.mean, old.log_std, scalars], dim=2)
        data = ChainRolloutSamples(observations, packed)
        # A mean over three decisions, of which the path is the sum
        loss = 3 * model._losses(data, Coefficients(*map(th.tensor, (0.2, 0.0)), ent_coef=th.tensor(1.0))).loss
        ours += th.cat([gradient[:2] for gradient in th.autograd.grad(loss, parameters)]) / len(seeds)  # type: ignore[arg-type]
    expected = []
    for parameter in parameters:
        for i in range(2):
            means = []
            for shift in (0.02, -0.04, 0.02):
                with th.no_grad():
                    parameter[i] += shift  # type: ignore[index]
                means.append(float(path(0)[1][:, -1].mean()))
            expected.append((means[0] - means[1]) / 0.04)
    assert ours.tolist() == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("latents_per_state", [None, 2])
@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_the_loss_is_ppos_for_every_chosen_step(latents_per_state: int | None, normalize_advantage: bool) -> None:
    """Value and gradient, written out row by row, after an update that clips some ratios on either side."""
    clip_range, clip_range_vf, ent_coef = 0.1, 0.05, 0.3
    model = make(ent_coef=ent_coef, latents_per_state=latents_per_state, normalize_advantage=normalize_advantage)
    policy = collect(model).policy
    scatter_weights(policy, 0.05, seed=5)
    data = next(model.rollout_buffer.get(16))
    th.manual_seed(6)
    losses = model._losses(data, Coefficients(*map(th.tensor, (clip_range, 0.7, clip_range_vf, ent_coef))))
    th.manual_seed(6)
    chosen = model._choose_steps(16)
    steps = th.arange(1, 5).expand(16, -1) if chosen is None else chosen
    values, kernels = policy.evaluate_decisions(data.observations, data.decisions)
    pairs = [(row, int(k) - 1) for row in range(16) for k in [*steps[row], 5]]
    # The chosen steps stand for all four.
    weight = {i: 1.0 if i[1] == 4 or chosen is None else 2.0 for i in pairs}

    advantages = {}
    for i in pairs:
        log_ratio = (kernels.log_prob[i] - kernels.noising_log_prob[i]).item()
        advantages[i] = data.advantages[i] - ent_coef * (log_ratio - (data.old_log_prob[i] - data.old_noising_log_prob[i]))
    stacked = th.stack(list(advantages.values()))
    shift, scale = (stacked.mean(), stacked.std() + 1e-8) if normalize_advantage else (0.0, 1.0)
    policy_loss = value_loss = th.zeros(())
    seen = set()
    for i in pairs:
        ratio, advantage = (kernels.log_prob[i] - data.old_log_prob[i]).exp(), (advantages[i] - shift) / scale
        outside = "high" if ratio > 1 + clip_range else "low" if ratio < 1 - clip_range else "inside"
        clipped = bool((outside == "high" and advantage > 0) or (outside == "low" and advantage < 0))
        seen.add((outside, clipped))
        if not clipped:
            reward_part = ent_coef / scale * ratio.detach() * kernels.noising_log_prob[i]
            policy_loss = policy_loss - weight[i] * (ratio * advantage + reward_part)
        else:
            policy_loss = policy_loss - weight[i] * (1 + clip_range if outside == "high" else 1 - clip_range) * advantage
        change = (values[i] - data.old_values[i]).clamp(-clip_range_vf, clip_range_vf)
        value_loss = value_loss + weight[i] * (data.old_values[i] + change - data.returns[i]) ** 2
    assert len(seen) >= 4  # all kinds but one, when advantages are not centred
    expected = (policy_loss + 0.7 * value_loss) / (16 * 5)
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = list(policy.parameters())
    ours, theirs = (th.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                    for loss in (losses.loss, expected))  # fmt: skip
    assert max(float(gradient.abs().max()) for gradient in theirs) > 1e-2
    for own, other in zip(ours, theirs, strict=True):
        th.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_steps_that_no_minibatch_has_leave_the_logged_means_finite() -> None:
    model = make(policy_kwargs=dict(diffusion_steps=16), latents_per_state=1, target_kl=1e-9, batch_size=8)
    model.learn(32)
    values = model.logger.name_to_value
    assert math.isfinite(values["train/approx_kl"]) and math.isfinite(values["train/clip_fraction"])


def test_every_learn_starts_its_temperature_anew_and_overshooting_the_end_is_no_error() -> None:
    model = make(ent_coef="lin_0.2")
    seen = []

    class Read(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append(round(self.model.rollout_buffer.ent_coef, 3))  # type: ignore[attr-defined]

    model.learn(20, callback=Read())
    model.learn(48, callback=Read())
    assert seen == [0.2, 0.04, 0.2, 0.133, 0.067]
    make(ent_coef=lambda progress: 0.2 * progress).learn(20).learn(20)


def test_a_time_limit_is_bootstrapped_and_a_termination_is_not() -> None:
    class OneReward(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))

        def __init__(self, truncates: bool) -> None:
            self.truncates = truncates

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 1.0, not self.truncates, self.truncates, {}

    returns = []
    for truncates in (False, True):
        model = make(OneReward(truncates), ent_coef=0.0, n_steps=8)
        with th.no_grad():
            model.policy.critic.body[-1].bias.fill_(10.0)  # type: ignore[union-attr, operator]
            model.policy.critic.body[-1].weight.zero_()  # type: ignore[union-attr, operator]
        model.train = lambda: None  # type: ignore[method-assign]
        model.learn(8)
        returns.append(model.rollout_buffer.returns.mean())
    assert returns == pytest.approx([1.0, 1.0 + 0.99 * 10.0], rel=1e-4)


# --- Temperature ---


def test_a_scheduled_temperature_is_annealed_and_a_learned_one_moves_towards_its_target() -> None:
    seen: list[float] = []

    class Recorder(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append(self.model.rollout_buffer.ent_coef)  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    for ent_coef in (lambda progress: 0.4 * progress, "lin_0.4"):
        seen.clear()
        make(ent_coef=ent_coef).learn(48, callback=Recorder())
        assert seen == pytest.approx([0.4, 0.4 * 2 / 3, 0.4 / 3], rel=1e-5)
    for target_entropy, direction in ((-50.0, -1), (50.0, 1)):
        model = make(ent_coef="auto_0.1", target_entropy=target_entropy, n_epochs=4).learn(48)
        assert model.log_ent_coef is not None
        # One step for each of three updates, however many minibatches they have: the rollout knows one policy's entropy
        assert model.log_ent_coef.item() == pytest.approx(math.log(0.1) + direction * 3 * ENT_COEF_LEARNING_RATE, abs=1e-3)


def test_a_learned_temperature_starts_small_and_has_minus_the_action_dimension_as_its_target() -> None:
    model = make(ent_coef="auto").learn(16)
    assert model.log_ent_coef is not None
    for path_entropy, direction in ((-1.9, -1), (-2.1, 1)):
        with th.no_grad():
            model.log_ent_coef.fill_(math.log(0.01))
        model.rollout_buffer.path_log_probs = np.full((16, 1, 5), -path_entropy)
        model.ent_coef_optimizer.state.clear()  # type: ignore[union-attr]
        model._update_temperature()
        assert direction * (model.log_ent_coef.item() - math.log(0.01)) > 0.01
    start = []
    make(ent_coef="auto").learn(16, callback=lambda local, _: start.append(local["rollout_buffer"].ent_coef) or True)
    assert start == pytest.approx([0.01] * 16)


# --- Callbacks, as SB3 documents them ---


class At(BaseCallback):
    """Calls a function of the model at one of the callback's events, every time."""

    def __init__(self, event: str, function: Any) -> None:
        super().__init__()
        setattr(self, f"_on_{event}", lambda: function(self.model) or True)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("event", ["rollout_start", "step", "rollout_end"])
def test_a_temperature_set_by_a_callback_is_that_of_the_next_update(event: str) -> None:
    """As with PPO: the run is the one that had it from the start."""

    def anneal(model: Any) -> None:
        model.ent_coef = 0.3

    kwargs: dict[str, Any] = dict(policy_kwargs=dict(optimizer_class=th.optim.SGD), learning_rate=0.01)
    given = make(terminating_envs(), ent_coef=0.3, **kwargs).learn(64)
    changed = make(terminating_envs(), ent_coef=0.1, **kwargs).learn(64, callback=At(event, anneal))
    other = make(terminating_envs(), ent_coef=0.1, **kwargs).learn(64)
    assert changed.logger.name_to_value["train/ent_coef"] == 0.3
    th.testing.assert_close(weights(changed), weights(given), rtol=1e-4, atol=1e-6)
    assert (weights(other) - weights(given)).abs().max() > 1e-3


@pytest.mark.parametrize("later", [0.2, "lin_0.2", "auto_0.2", lambda _: 0.2])
def test_a_temperature_of_another_kind_can_be_set_between_updates(later: Any, tmp_path: Path) -> None:
    for first in (0.1, "auto"):
        model = make(ent_coef=first).learn(16)
        model.ent_coef = later
        model.learn(16)
        assert model.rollout_buffer.ent_coef == pytest.approx(0.2)
        model.save(tmp_path / "model.zip")
        DiffPPO.load(tmp_path / "model.zip", device="cpu")
    model.ent_coef = "quick"
    with pytest.raises(ValueError, match="ent_coef='quick'"):
        model.learn(16)


@pytest.mark.parametrize(
    "name, value",
    [
        ("n_epochs", 3), ("batch_size", 4), ("vf_coef", 0.1), ("max_grad_norm", 1e-2), ("normalize_advantage", False),
        ("target_kl", 1e-6), ("clip_range", lambda _: 1e-3), ("clip_range_vf", lambda _: 1e-3), ("latents_per_state", 2),
        ("target_entropy", 40.0), ("lr_schedule", lambda _: 1e-2),
    ],
)  # fmt: skip
def test_whatever_a_callback_sets_before_an_update_is_used_in_it(name: str, value: Any) -> None:
    kwargs: dict[str, Any] = dict(n_epochs=2, learning_rate=3e-3, ent_coef="auto_0.1")
    argument = {"learning_rate" if name == "lr_schedule" else name: value}

    def change(model: Any) -> None:
        setattr(model, name, value)

    runs = ((kwargs | argument, None), (kwargs, At("rollout_end", change)), (kwargs, None))
    models = [make(**given).learn(48, callback=callback) for given, callback in runs]
    state = [th.cat([weights(model), model.log_ent_coef.detach()]) for model in models]  # type: ignore[union-attr]
    assert th.equal(state[0], state[1]) and not th.equal(state[0], state[2])


def test_intrinsic_rewards_that_a_callback_adds_reach_all_decisions() -> None:
    """Of SB3's shape, n_steps × n_envs; as many environments as decisions, so that a wrong axis would not be noticed."""
    model = make(make_vec_env(StrictBoxEnv, n_envs=5), n_steps=5, batch_size=25)
    intrinsic = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    seen = []

    def add(model: Any) -> None:
        buffer = model.rollout_buffer
        before = decisions(buffer)
        buffer.advantages += intrinsic
        buffer.returns += intrinsic
        for earlier, later in zip(before, decisions(buffer), strict=True):
            np.testing.assert_allclose(later - earlier, np.repeat(intrinsic[..., None], 5, axis=2), rtol=1e-3, atol=1e-5)
        seen.append(decisions(buffer)[0][..., -1])
        np.testing.assert_allclose(seen[0], buffer.advantages, rtol=1e-3, atol=1e-5)

    model.learn(25, callback=At("rollout_end", add))
    assert len(seen) == 1 and np.ptp(intrinsic) > 1


def test_log_probabilities_are_those_of_the_policy_that_acted_whatever_a_callback_does_to_its_weights() -> None:
    policies: list[Any] = []

    def disturb(model: Any) -> None:
        policies.append(copy.deepcopy(model.policy))
        scatter_weights(model.policy, 0.05, seed=len(policies))

    model = make(n_epochs=1, policy_kwargs=dict(learn_schedule=True))
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(16, callback=At("step", disturb))
    buffer = model.rollout_buffer
    for t, policy in enumerate(policies):
        with th.no_grad():
            values, kernels = policy.evaluate_chains(th.as_tensor(buffer.observations[t]), buffer.recorded.chains[t])
        for recorded, evaluated in zip(buffer.recorded[1:], (values, *kernels), strict=True):
            th.testing.assert_close(recorded[t], evaluated, rtol=1e-4, atol=1e-4)
    with th.no_grad():
        later = model.policy.evaluate_chains(th.as_tensor(buffer.observations[0]), buffer.recorded.chains[0]).kernels
    assert (later.log_prob - buffer.recorded.log_prob[0]).abs().max() > 0.5


@pytest.mark.parametrize("frozen", ["actor", "critic"])
def test_a_frozen_part_stays_as_it_is_and_the_other_one_learns(frozen: str) -> None:
    model = make(policy_kwargs=dict(share_features_extractor=False, features_extractor_class=CountingExtractor)).learn(16)
    extractors = {"actor": model.policy.pi_features_extractor, "critic": model.policy.vf_features_extractor}
    parts = {name: [*getattr(model.policy, name).parameters(), *extractors[name].parameters()] for name in extractors}
    for parameter in parts[frozen]:
        parameter.requires_grad_(False)
    before = {name: [parameter.clone() for parameter in part] for name, part in parts.items()}
    model.learn(32)
    for name, part in parts.items():
        for parameter, earlier in zip(part, before[name], strict=True):
            assert th.equal(parameter, earlier) == (name == frozen)


# --- Stability ---


@pytest.mark.parametrize("readout", [True, False])
@pytest.mark.parametrize("squash_output", [True, False])
def test_no_decision_is_sharper_than_the_floor_and_ratios_stay_exact(squash_output: bool, readout: bool) -> None:
    """A policy that would be as sharp as the heads' bounds let it be."""
    kwargs = dict(squash_output=squash_output, min_std=0.1, state_dependent_readout=readout, learn_schedule=True)
    model = make(policy_kwargs=kwargs | dict(prior_std=1.3))
    scatter_weights(model.policy, 0.2)
    with th.no_grad():
        model.policy.actor.denoiser.body[-1].bias[2:] = -10.0  # type: ignore[union-attr, index]
        if readout:
            model.policy.log_std = th.full((2,), -12.0)
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(16)
    # Half the width of the box [-3, 5] × [0, 0.5] where nothing squashes
    floor = 0.1 * th.tensor([1.0, 1.0] if squash_output else [4.0, 0.25])
    stds = model.rollout_buffer.recorded.log_std.exp() / floor
    assert stds.min() > 0.999 and stds[:, :, :4].max() < 1.05
    assert (stds[:, :, 4].max() < 1.01) == readout
    for data in model.rollout_buffer.get(8):
        kernels = model.policy.evaluate_decisions(data.observations, data.decisions).kernels
        th.testing.assert_close(kernels.log_prob, data.old_log_prob, rtol=1e-4, atol=1e-4)
        th.testing.assert_close(kernels.noising_log_prob, data.old_noising_log_prob, rtol=1e-4, atol=1e-3)


def test_the_floor_is_in_every_sample_and_not_in_the_mode() -> None:
    without, floored = (collect(make(policy_kwargs=dict(min_std=min_std, log_std_init=-1))).policy for min_std in (0.0, 0.3))
    actor = floored.actor
    floored.load_state_dict(without.state_dict())
    with th.no_grad():
        for policy in (without, floored):
            policy.actor.denoiser.body[-1].bias[2:] = -10.0  # type: ignore[union-attr, index]
            policy.log_std = th.full((2,), -0.5)
    features = th.randn(1, 3)
    with th.no_grad():
        many = features.expand(20_000, -1)
        sampled = actor.act(many).chains[:, 0]
        assert sampled.std(dim=0).min() > without.actor.act(many).chains[:, 0].std(dim=0).min()
        # The three ways of sampling draw the same chains.
        draws = []
        for draw in (lambda: actor.squash(actor.act(many).chains[:, 0]), lambda: actor.sample_actions(many),
                     lambda: actor.sample(many).actions):  # fmt: skip
            th.manual_seed(2)
            draws.append(draw())
        th.testing.assert_close(draws[0], draws[1], rtol=1e-4, atol=1e-5)
        th.testing.assert_close(draws[0], draws[2], rtol=1e-4, atol=1e-5)
        steps = th.full((20_000,), 1)
        latents = th.zeros(20_000, 2)
        mean, log_std = actor.reverse_kernel(many, latents, steps)
        taken = actor.reverse_step(many, latents, steps)[0]
        assert (taken - mean).std(dim=0).tolist() == pytest.approx(log_std[0].exp().tolist(), rel=0.03)
        assert (log_std[0] + actor.readout(many)[1][0]).exp().min() > 0.2999
        # Location and scale of the read-out are those of the mode too: with the scale far above the floor it moves by little.
        th.testing.assert_close(actor.mode(features), without.actor.mode(features), rtol=0, atol=0.1)
        # The chains that it is found with have the noise of the network alone.
        ends = [one._ends(one.denoiser.condition(features), one.mode_noise) for one in (actor, without.actor)]
        th.testing.assert_close(*ends)
        denoise = actor.denoise(actor.denoiser.condition(features), latents[:1], 1)
        assert denoise[1].max() < -9 and actor.reverse_heads(actor.denoiser.condition(features), latents[:1], 1)[1].min() > 0


def test_a_floor_is_a_number_and_part_of_what_a_policy_is_made_of() -> None:
    for wrong in (-0.1, math.nan, "small"):
        with pytest.raises(ValueError, match="min_std"):
            make(policy_kwargs=dict(min_std=wrong))
    policy = make(policy_kwargs=dict(min_std=0.1)).policy
    assert policy._get_constructor_parameters()["min_std"] == 0.1 and policy.actor.min_std == 0.1


def test_the_penalty_is_the_chains_divergence_times_a_multiplier_that_follows_its_bound() -> None:
    model = collect(make(batch_size=16, trust_region="penalty", trust_region_kl=0.05, ent_coef=0.0))
    scatter_weights(model.policy, 0.05, seed=5)
    with th.no_grad():
        model.log_kl_coef.fill_(math.log(3.0))  # type: ignore[union-attr]
    data = next(model.rollout_buffer.get(16))
    numbers = tuple(map(th.tensor, (0.2, 0.5)))
    plain = model._losses(data, Coefficients(*numbers))
    penalised = model._losses(data, Coefficients(*numbers, kl_bound=th.tensor(0.05)))
    kernels = model.policy.evaluate_decisions(data.observations, data.decisions).kernels
    old, new = Normal(data.old_means, data.old_log_stds.exp()), Normal(kernels.mean, kernels.log_std.exp())
    chain_kl = kl_divergence(old, new).sum(dim=(1, 2)).mean()
    assert chain_kl > 0.1
    th.testing.assert_close(penalised.loss - plain.loss, 3 * chain_kl, rtol=1e-4, atol=1e-5)
    parameters = [*model.policy.parameters(), model.log_kl_coef]
    ours, theirs = (
        th.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for loss in (penalised.loss - plain.loss, 3 * chain_kl)
    )
    for own, other in zip(ours[:-1], theirs[:-1], strict=True):
        th.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    assert ours[-1].item() == pytest.approx(-(chain_kl.item() - 0.05), rel=1e-4)


def test_a_trust_region_keeps_the_chain_nearer_than_the_clip_alone() -> None:
    def divergence(**kwargs: Any) -> tuple[DiffPPO, float]:
        model = make(n_steps=64, batch_size=16, n_epochs=10, learning_rate=3e-3, **kwargs).learn(512)
        return model, model.logger.name_to_value["train/approx_kl"]

    plain, far = divergence()
    penalised, near = divergence(trust_region="penalty", trust_region_kl=0.005)
    slowed, slow = divergence(trust_region="learning_rate", trust_region_kl=0.005)
    assert near < 0.5 * far and slow < 0.5 * far
    assert penalised.logger.name_to_value["train/kl_coef"] > 1 and plain.log_kl_coef is None
    assert slowed.learning_rate_factor < 1
    assert slowed.logger.name_to_value["train/learning_rate"] == pytest.approx(slowed.policy.optimizer.param_groups[0]["lr"])


def test_the_learning_rates_factor_follows_the_divergence_within_its_bounds() -> None:
    model = make(trust_region="learning_rate", trust_region_kl=0.02)
    for kl, expected in ((0.05, 1 / 1.5), (0.03, 1 / 1.5), (0.015, 1 / 1.5), (0.009, 1.0), (0.0, 1.5)):
        model._follow_divergence(kl)
        assert model.learning_rate_factor == pytest.approx(expected)
    for kl, bound in ((1.0, 0.01), (0.0, 10.0)):
        for _ in range(20):
            model._follow_divergence(kl)
        assert model.learning_rate_factor == bound


@pytest.mark.parametrize("trust_region", ["penalty", "learning_rate"])
def test_a_trust_region_goes_on_where_it_was_after_loading(trust_region: str, tmp_path: Path) -> None:
    model = make(trust_region=trust_region, learning_rate=3e-3).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = DiffPPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert loaded.learning_rate_factor == model.learning_rate_factor
    runs = []
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn(32)
        runs.append([weights(one), one.learning_rate_factor, one.log_kl_coef])
    assert th.equal(runs[0][0], runs[1][0]) and runs[0][1:] == runs[1][1:]
    assert (runs[0][2] is not None and runs[0][2].item() != 0) == (trust_region == "penalty")


def test_a_trust_region_can_be_changed_between_updates_and_bad_ones_are_refused() -> None:
    model = make().learn(16)
    for kind in ("penalty", None, "learning_rate", "penalty"):
        model.trust_region = kind
        model.learn(16)
        assert (model.log_kl_coef is not None) == (kind == "penalty")
    for name, value in (("trust_region", "clip"), ("trust_region_kl", 0.0), ("trust_region_kl", math.nan)):
        with pytest.raises(ValueError, match=name):
            make(**{name: value})


@pytest.mark.parametrize("trust_region", ["penalty", "learning_rate"])
def test_a_trust_region_waits_while_only_the_value_function_learns(trust_region: str) -> None:
    model = make(trust_region=trust_region, value_warmup=1, learning_rate=3e-3).learn(16)
    assert model.learning_rate_factor == 1 and (model.log_kl_coef is None or model.log_kl_coef.item() == 0)
    model.learn(16)
    assert model.learning_rate_factor != 1 or model.log_kl_coef.item() != 0  # type: ignore[union-attr]


@pytest.mark.parametrize("finetune_steps", [None, 2])
def test_a_chain_through_the_network_is_the_network_at_each_step(finetune_steps: int | None) -> None:
    actor = collect(make(policy_kwargs=dict(finetune_steps=finetune_steps))).policy.actor
    features, latents = th.randn(6, 3), th.randn(6, 2)
    with th.no_grad(), actor.all_steps_learn():
        thawed = [actor.denoiser.along_chains(features)(latents, k) for k in (1, 2, 3, 4)]
        for k, output in enumerate(thawed, start=1):
            th.testing.assert_close(output, actor.denoiser(actor.denoiser.condition(features), latents, k))
    scatter_weights(actor.denoiser, 0.3)
    with th.no_grad():
        at_step = actor.denoiser.along_chains(features)
        for k in (1, 2, 3, 4):
            th.testing.assert_close(at_step(latents, k), actor.denoiser(actor.denoiser.condition(features), latents, k))


@pytest.mark.parametrize("part", ["denoiser", "denoiser.body", "denoiser.body.1"])
def test_hooks_on_the_denoiser_see_every_step_of_acting(part: str) -> None:
    policy, calls = make().policy, []
    policy.actor.get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    with th.no_grad():
        policy(th.zeros(2, 3))
    assert len(calls) == 4


@pytest.mark.parametrize("squash_output", [True, False])
def test_sharpness_and_saturation_are_logged(squash_output: bool) -> None:
    model = make(policy_kwargs=dict(squash_output=squash_output, log_std_init=1.0), n_steps=64).learn(64)
    recorded, values = model.rollout_buffer.recorded, model.logger.name_to_value
    actions = recorded.chains[:, :, 0].numpy()
    if squash_output:
        share = np.mean(np.abs(np.tanh(actions)) > 0.99)
    else:
        share = np.mean((actions < model.action_space.low) | (actions > model.action_space.high))
    assert values["train/saturated_actions"] == pytest.approx(share) and 0 < share < 1
    assert values["train/smallest_std"] == pytest.approx(recorded.log_std.exp().min().item())
    # of the first reverse step of an untrained chain, √β_1 c
    assert values["train/smallest_std"] == pytest.approx(math.sqrt(0.05) * math.e, rel=1e-3)


# --- SB3's surface ---


def test_the_same_seed_gives_the_identical_run_and_another_one_does_not() -> None:
    runs = [weights(make(seed=seed).learn(32)) for seed in (0, 0, 1)]
    assert th.equal(runs[0], runs[1]) and not th.equal(runs[0], runs[2])


def test_every_weight_is_trained() -> None:
    model = make()
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    model.learn(64)
    assert all(not th.equal(before[name], value) for name, value in model.policy.named_parameters())


@pytest.mark.parametrize("latents_per_state", [1, 2, None])
@pytest.mark.parametrize("diffusion_steps", [2, 5])
def test_as_many_optimizer_steps_as_in_ppo(
    latents_per_state: int | None, diffusion_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(latents_per_state=latents_per_state, policy_kwargs=dict(diffusion_steps=diffusion_steps))
    steps = []
    step = model.policy.optimizer.step
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: (steps.append(1), step()))
    model.learn(32)
    assert len(steps) == 2 * 2 * 2  # rollouts, epochs, minibatches
    chosen = model._choose_steps(50)
    if latents_per_state in (None, diffusion_steps):
        assert chosen is None
        return
    assert chosen.shape == (50, latents_per_state)
    assert all(len(set(row)) == len(row) and set(row) <= set(range(1, diffusion_steps + 1)) for row in chosen.tolist())


def test_several_normalized_environments_train() -> None:
    env = VecNormalize(make_vec_env(StrictBoxEnv, n_envs=3))
    model = make(env, batch_size=12).learn(96)
    assert model.num_timesteps == 96 and th.isfinite(weights(model)).all()


def test_rewards_are_those_that_vec_normalize_scales() -> None:
    env = VecNormalize(make_vec_env(lambda: StrictBoxEnv(episode_length=50), n_envs=2), norm_obs=False)
    model = make(env, ent_coef=0.5)
    seen = []

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.locals["rewards"].copy())
            return True

    model.learn(32, callback=Recorder())
    np.testing.assert_allclose(model.rollout_buffer.rewards, np.array(seen), rtol=1e-6)
    assert not np.allclose(seen, env.get_original_reward())


def test_a_dict_of_one_box_gives_the_same_run_as_the_box() -> None:
    flat, nested = make(StrictBoxEnv()).learn(32), make(AsDict(StrictBoxEnv()), "MultiInputPolicy").learn(32)
    assert th.equal(weights(flat), weights(nested))


@pytest.mark.parametrize("share", [True, False])
def test_the_features_extractor_is_shared_or_not_and_evaluated_once_a_minibatch(share: bool) -> None:
    model = make(policy_kwargs=dict(features_extractor_class=CountingExtractor, share_features_extractor=share))
    policy = model.policy
    assert (policy.pi_features_extractor is policy.vf_features_extractor) == share
    assert policy.actor.features_extractor is policy.pi_features_extractor
    optimized = [id(p) for group in policy.optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted({id(p) for p in policy.parameters()})
    collect(model)
    before = policy.pi_features_extractor.n_calls
    model.train()
    assert policy.pi_features_extractor.n_calls - before == 4  # two epochs of two minibatches
    assert policy.vf_features_extractor.n_calls >= 4


def test_without_a_net_arch_images_get_hidden_layers_too() -> None:
    image = AnyObservationEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8))
    policy = DiffPPO("CnnPolicy", image, n_steps=8, batch_size=8, seed=0, device="cpu").policy
    assert [layer.out_features for layer in policy.actor.denoiser.body if hasattr(layer, "out_features")] == [64, 2]


def test_dict_and_image_observations_train() -> None:
    image = AnyObservationEnv(spaces.Box(0, 255, (12, 12, 3), np.uint8))
    extractor = dict(features_extractor_class=SmallImageExtractor)
    for share in (True, False):
        model = make(image, "CnnPolicy", policy_kwargs=extractor | dict(share_features_extractor=share)).learn(32)
        assert th.isfinite(weights(model)).all()
    model = make(AsDict(StrictBoxEnv()), "MultiInputPolicy").learn(32)
    assert model.predict(model.observation_space.sample())[0].shape == model.action_space.shape


def test_divergence_and_clipped_ratios_are_those_of_each_decision() -> None:
    model = collect(make(batch_size=16))
    scatter_weights(model.policy, 0.05, seed=5)
    data = next(model.rollout_buffer.get(16))
    losses = model._losses(data, Coefficients(*map(th.tensor, (0.1, 0.5))))
    kernels = model.policy.evaluate_decisions(data.observations, data.decisions)[1]
    old, new = Normal(data.old_means, data.old_log_stds.exp()), Normal(kernels.mean, kernels.log_std.exp())
    th.testing.assert_close(losses.kl, kl_divergence(old, new).sum(dim=2).mean(dim=0), rtol=1e-4, atol=1e-5)
    ratios = th.exp(new.log_prob(data.decisions.taken) - old.log_prob(data.decisions.taken)).prod(dim=2)
    clipped = ((ratios < 0.9) | (ratios > 1.1)).float().mean(dim=0)
    th.testing.assert_close(losses.clip_fraction, clipped)
    assert len(set(clipped.tolist())) > 1 and 0 < clipped.mean() < 1


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_an_update_stops_where_the_divergence_of_the_whole_chain_exceeds_the_target(factor: float) -> None:
    model = collect(make(batch_size=16, n_epochs=3))
    scatter_weights(model.policy, 0.05, seed=5)
    data = next(model.rollout_buffer.get(16))
    model.target_kl = factor * model._losses(data, Coefficients(*map(th.tensor, (0.2, 0.5)))).kl.sum().item() / 1.5
    before = weights(model)
    model.train()
    assert th.equal(weights(model), before) == (factor < 1)


class RecordedUpdates:
    """What the losses of each minibatch got and gave, and with which rates and gradients each optimizer step was made."""

    def __init__(self, model: DiffPPO) -> None:
        self.coefficients: list[Coefficients] = []
        self.losses: list[MinibatchLosses] = []
        self.learning_rates: list[float] = []
        self.gradient_norms: list[float] = []
        minibatch_step, step = model._minibatch_step, model.policy.optimizer.step

        def recorded(model: DiffPPO, data: ChainRolloutSamples, coefficients: Coefficients, parameters: Any) -> Any:
            losses, gradients = minibatch_step(model, data, coefficients, parameters)
            self.coefficients.append(coefficients)
            self.losses.append(losses)
            return losses, gradients

        def recorded_step() -> None:
            self.learning_rates.append(model.policy.optimizer.param_groups[0]["lr"])
            gradients = [parameter.grad for parameter in model.policy.parameters() if parameter.grad is not None]
            self.gradient_norms.append(float(th.stack([gradient.norm() for gradient in gradients]).norm()))
            step()

        model._minibatch_step = recorded
        model.policy.optimizer.step = recorded_step  # type: ignore[assignment]


def test_clip_ranges_and_learning_rates_follow_their_schedules() -> None:
    model = make(
        clip_range=lambda progress: 0.3 * progress,
        clip_range_vf=lambda progress: 0.6 * progress,
        learning_rate=lambda progress: 3e-3 * progress,
        ent_coef="auto",
    )
    updates = RecordedUpdates(model)
    model.learn(48)
    for name, factor in (("clip_range", 0.3), ("clip_range_vf", 0.6)):
        expected = [factor * left for left in (2 / 3, 1 / 3, 0) for _ in range(4)]
        assert [getattr(given, name).item() for given in updates.coefficients] == pytest.approx(expected, abs=1e-6)
        assert model.logger.name_to_value[f"train/{name}"] == pytest.approx(0, abs=1e-9)
    assert updates.learning_rates == pytest.approx([3e-3 * left for left in (2 / 3, 1 / 3, 0) for _ in range(4)], abs=1e-9)
    fixed = make(clip_range=0.15)
    updates = RecordedUpdates(fixed)
    fixed.learn(32)
    assert {round(given.clip_range.item(), 6) for given in updates.coefficients} == {0.15}
    assert fixed.logger.name_to_value["train/clip_range"] == pytest.approx(0.15)


def test_gradients_are_clipped_to_the_norm() -> None:
    norms = {}
    for largest in (1e-3, math.inf):
        model = make(max_grad_norm=largest)
        updates = RecordedUpdates(model)
        model.learn(16)
        norms[largest] = updates.gradient_norms
    assert norms[1e-3] == pytest.approx([1e-3] * 4, rel=1e-2) and min(norms[math.inf]) > 1e-2


def test_the_logged_numbers_are_means_over_the_update() -> None:
    model = make(n_epochs=3, learning_rate=3e-3, ent_coef=0.1)
    updates = RecordedUpdates(model)
    model.learn(16)
    logged = {name.removeprefix("train/"): value for name, value in model.logger.name_to_value.items()}
    assert len(updates.losses) == 6
    for name in ("loss", "policy_gradient_loss", "value_loss"):
        mean = np.mean([getattr(losses, name).item() for losses in updates.losses])
        assert logged[name] == pytest.approx(mean, rel=1e-4, abs=1e-6)
    kl = th.stack([losses.kl for losses in updates.losses[4:]]).mean(dim=0).tolist()  # of the last epoch, as in PPO
    clip_fraction = th.stack([losses.clip_fraction for losses in updates.losses]).mean(dim=0).tolist()
    for i, name in enumerate((1, 2, 3, 4, "prior")):
        assert logged[f"approx_kl_{name}"] == pytest.approx(kl[i], rel=1e-4)
        assert logged[f"clip_fraction_{name}"] == pytest.approx(clip_fraction[i], rel=1e-4)
    assert logged["approx_kl"] == pytest.approx(sum(kl), rel=1e-4) and len(set(kl)) == 5
    assert logged["clip_fraction"] == pytest.approx(np.mean(clip_fraction), rel=1e-4)
    buffer = model.rollout_buffer
    assert logged["path_entropy"] == pytest.approx(-buffer.path_log_probs[:, -1].mean(), rel=1e-4)
    unexplained = np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    assert logged["explained_variance"] == pytest.approx(1 - unexplained, rel=1e-3, abs=1e-4)
    assert logged["n_updates"] == 3 and logged["ent_coef"] == 0.1


@pytest.mark.parametrize("beyond", [2.5, -20.5])
def test_the_scale_of_the_readout_never_leaves_the_range_in_which_it_has_a_gradient(beyond: float) -> None:
    model = make()
    scale = model.policy.actor.log_std
    assert isinstance(scale, th.nn.Parameter)
    model.learn(16)
    with th.no_grad():
        scale.fill_(beyond)
    model.train()
    assert scale.min() >= -20 and scale.max() <= 2
    log_std = model.policy.actor.readout(th.zeros(1, 3))[1]
    assert th.autograd.grad(log_std.sum(), scale)[0].tolist() == [1.0, 1.0]


def test_the_policy_can_be_traced_for_deployment() -> None:
    """SB3's documented export of PPO: actions, values and, in the place of log-probabilities, chains with their kernels."""
    policy = collect(make()).policy

    class Exported(th.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, obs: th.Tensor) -> Any:
            return self.policy(obs, deterministic=True)

    observations = th.randn(6, 3)
    actions, values, recorded = th.jit.trace(Exported().eval(), observations[:1], check_trace=False)(observations)
    np.testing.assert_allclose(
        policy.unscale_action(actions.detach().numpy()), policy.predict(observations.numpy(), deterministic=True)[0], atol=1e-4
    )
    th.testing.assert_close(values, policy.predict_values(observations))
    assert recorded[1].shape == (6, 5, 2) and all(part.isnan().all() for part in recorded)


def test_the_logger_gets_the_keys_of_ppo_and_ours(tmp_path: Path) -> None:
    keys: set[str] = set()

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            values = {key: value for key, value in self.logger.name_to_value.items() if key.startswith("train/")}
            assert all(math.isfinite(value) for value in values.values()), values
            keys.update(values)
            return True

    model = make(clip_range_vf=0.2, ent_coef="auto", trust_region="penalty")
    model.learn(48, callback=Recorder(), log_interval=100, progress_bar=False)
    expected = {
        "policy_gradient_loss",
        "value_loss",
        "approx_kl",
        "clip_fraction",
        "loss",
        "explained_variance",
    }
    expected |= {
        "n_updates",
        "clip_range",
        "clip_range_vf",
        "path_entropy",
        "ent_coef",
        "learning_rate",
        "entropy_loss",
        "std",
    }
    expected |= {"smallest_std", "saturated_actions", "kl_coef"}
    expected |= {f"{name}_{k}" for name in ("approx_kl", "clip_fraction") for k in (1, 2, 3, 4, "prior")}
    assert keys == {f"train/{key}" for key in expected}


def test_tensorboard_and_callbacks_work(tmp_path: Path) -> None:
    callbacks = [
        EvalCallback(
            StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]), best_model_save_path=str(tmp_path), eval_freq=16, verbose=0
        ),
        CheckpointCallback(16, str(tmp_path)),
    ]
    make(tensorboard_log=str(tmp_path)).learn(32, callback=callbacks)  # type: ignore[arg-type]
    assert (tmp_path / "best_model.zip").exists() and (tmp_path / "rl_model_32_steps.zip").exists()
    assert list((tmp_path / "DiffPPO_1").glob("events*"))
    assert th.isfinite(weights(DiffPPO.load(tmp_path / "best_model.zip", device="cpu"))).all()


@pytest.mark.parametrize("ent_coef", [0.01, "auto_0.1", "lin_0.1"])
def test_a_loaded_model_predicts_the_same_and_goes_on_training(tmp_path: Path, ent_coef: Any) -> None:
    model = make(ent_coef=ent_coef).learn(32)
    model.save(tmp_path / "model.zip")
    loaded = DiffPPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    observation = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    runs = []
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn(32, reset_num_timesteps=True)
        runs.append(weights(one))
    assert th.equal(*runs)
    if ent_coef == "auto_0.1":
        assert loaded.log_ent_coef.item() == model.log_ent_coef.item() != math.log(0.1)  # type: ignore[union-attr]


def test_ppo_cannot_train_what_diffppo_saved(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"DiffPPO\.load"):
        PPO.load(tmp_path / "model.zip", env=model.get_env(), device="cpu").learn(16)


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    earlier = (tmp_path / "model.zip").read_bytes()
    monkeypatch.setattr(PPO, "get_parameters", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == earlier and len(list(tmp_path.iterdir())) == 1


def test_the_policy_survives_cloudpickle_and_its_own_save(tmp_path: Path) -> None:
    policy = make(policy_kwargs=dict(diffusion_steps=3, squash_output=False, share_features_extractor=False)).learn(16).policy
    observation = np.ones((4, 3), np.float32)
    expected = policy.predict(observation, deterministic=True)[0]
    policy.save(str(tmp_path / "policy.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what SB3's file leaves out
        loaded = DiffusionActorCriticPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    for other in (loaded, cloudpickle.loads(cloudpickle.dumps(policy))):
        np.testing.assert_array_equal(other.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize("squash_output", [True, False])
def test_actions_lie_in_boxes_of_any_bounds_and_shape(squash_output: bool) -> None:
    space = spaces.Box(np.array([[-1.0, 2.0], [0.0, -7.0]], np.float32), np.array([[1.0, 3.0], [0.1, 7.0]], np.float32))
    model = make(AnyActionEnv(space), policy_kwargs=dict(squash_output=squash_output)).learn(32)
    for deterministic in (True, False):
        actions = model.predict(np.stack([model.observation_space.sample() for _ in range(20)]), deterministic=deterministic)[
            0
        ]
        assert actions.shape == (20, 2, 2) and all(space.contains(action) for action in actions)


@pytest.mark.parametrize("squash_output", [True, False])
@pytest.mark.parametrize(
    "dtype, low, high",
    [
        (np.float32, np.finfo(np.float32).min, np.finfo(np.float32).max),
        (np.float64, np.finfo(np.float64).min, np.finfo(np.float64).max),
        (np.float64, 0.0, np.finfo(np.float64).max),
        (np.float16, -60000, 60000),
        (np.int8, -128, 127),
    ],
)
def test_boxes_that_span_more_than_their_dtype_holds_get_finite_actions_inside(
    dtype: Any, low: Any, high: Any, squash_output: bool
) -> None:
    space = spaces.Box(low, high, (2,), dtype)
    sent = []

    class Recording(AnyActionEnv):
        def step(self, action: np.ndarray) -> Any:
            sent.append(np.array(action, np.float64))
            self.n_steps += 1
            return self._observation(), 0.0, False, self.n_steps >= 10, {}

    model = make(Recording(space), policy_kwargs=dict(squash_output=squash_output)).learn(16)
    sent.append(model.predict(np.zeros((64, 3), np.float32))[0].astype(np.float64))
    sent.append(model.policy.actor.predict(np.zeros((64, 3), np.float32))[0].astype(np.float64))
    for action in sent:
        assert np.isfinite(action).all() and (action >= space.low).all() and (action <= space.high).all()
    policy = model.policy
    scaled = np.linspace(-1, 1, 2001, dtype=np.float32).reshape(-1, 1).repeat(2, axis=1)
    actions = policy.unscale_action(scaled)
    assert np.isfinite(actions).all() and (actions >= space.low).all() and (actions <= space.high).all()
    assert (np.diff(actions.astype(np.float64) / 2, axis=0) >= 0).all()
    np.testing.assert_array_equal(actions[[0, -1]].astype(np.float64), [space.low, space.high])
    np.testing.assert_allclose(policy.scale_action(actions), scaled, atol=2e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("squash_output", [True, False])
def test_the_actor_alone_acts_as_the_policy_does(squash_output: bool) -> None:
    model = collect(make(policy_kwargs=dict(squash_output=squash_output)))
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    for deterministic in (True, False):
        predictions = []
        for predictor in (model, model.policy, model.policy.actor):
            th.manual_seed(1)
            predictions.append(predictor.predict(observations, deterministic=deterministic)[0])
        assert all(np.array_equal(prediction, predictions[0]) for prediction in predictions)
    with th.no_grad():
        actions, log_prob = model.policy.actor.action_log_prob(th.as_tensor(observations))
    assert th.isfinite(log_prob).all() and bool((actions.abs() <= 1).all()) == squash_output


@pytest.mark.parametrize("squash_output", [True, False])
def test_float64_spaces_keep_their_dtypes(squash_output: bool) -> None:
    env = StrictBoxEnv([-3.0, 0.0], [5.0, 0.5], action_dtype=np.float64, observation_dtype=np.float64)
    model = make(env, policy_kwargs=dict(squash_output=squash_output)).learn(16)
    assert model.predict(np.zeros(3))[0].dtype == np.float64 and model.rollout_buffer.observations.dtype == np.float64


def test_a_deterministic_prediction_depends_on_its_observation_alone() -> None:
    model = collect(make())
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    together = model.predict(observations, deterministic=True)[0]
    state = th.get_rng_state()
    alone = np.stack([model.predict(observation, deterministic=True)[0] for observation in observations])
    assert th.equal(state, th.get_rng_state())
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-3


# --- What cannot be given ---


def test_what_a_diffusion_policy_cannot_give_raises_and_names_the_alternative() -> None:
    policy = make().policy
    observations = th.zeros(4, 3)
    with pytest.raises(NotImplementedError, match="evaluate_actions"):
        policy.get_distribution(observations)
    with pytest.raises(ValueError, match=r"\(4, 2\).*chains of shape \(4, 5, 2\)"):
        policy.evaluate_actions(observations, th.zeros(4, 2))
    with pytest.raises(ValueError, match=r"for 4 observations .* chains of shape \(4, 5, 2\)"):
        policy.evaluate_actions(observations, th.zeros(3, 5, 2))
    assert policy(observations, deterministic=True)[2].chains.isnan().all()  # a mode has no chain
    values, log_prob, entropy = policy.evaluate_actions(observations, policy(observations)[2].chains)
    assert values.shape == log_prob.shape == (4, 5) and entropy is None


@pytest.mark.parametrize(
    "name, value",
    [
        ("ent_coef", -0.1), ("ent_coef", "linear"), ("ent_coef", "lin_"), ("ent_coef", "auto_0"), ("ent_coef", float("nan")),
        ("target_entropy", "low"), ("latents_per_state", 0), ("latents_per_state", 5), ("latents_per_state", 1.5),
        ("n_steps", 0), ("n_epochs", 0), ("batch_size", 0), ("batch_size", 2.5),
        ("clip_range", float("nan")), ("gamma", 1.5), ("gae_lambda", -0.1), ("clip_range", 0.0), ("target_kl", 0.0),
        ("vf_coef", -1.0), ("max_grad_norm", 0.0), ("learning_rate", -1.0), ("use_sde", True),
        ("rollout_buffer_class", RolloutBuffer), ("torch_compile", None), ("torch_compile", 2),
        ("seed", -1), ("stats_window_size", 0), ("n_steps", "16"), ("n_steps", None), ("normalize_advantage", "no"),
        ("clip_range", lambda _: math.nan), ("clip_range", lambda progress: progress - 0.5), ("clip_range", lambda _: "x"),
        ("clip_range_vf", lambda _: math.nan), ("clip_range_vf", True), ("clip_range_vf", math.inf), ("clip_range_vf", "x"),
        ("rollout_buffer_class", "x"), ("rollout_buffer_class", DictChainRolloutBuffer), ("rollout_buffer_kwargs", 3),
    ],
)  # fmt: skip
def test_an_argument_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((ValueError, AssertionError), match=name):  # SB3 itself asserts for n_steps
        make(**{name: value})


def test_spaces_and_policies_without_a_diffusion_are_refused() -> None:
    class Discrete(StrictBoxEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(3)

    with pytest.raises(AssertionError, match=r"only supports .*Box.* as action spaces but Discrete"):
        make(Discrete())
    with pytest.raises(ValueError, match=r"policy=.*ActorCriticPolicy.*allowed: subclasses of DiffusionActorCriticPolicy"):
        from stable_baselines3.common.policies import ActorCriticPolicy

        make(policy=ActorCriticPolicy)
    policy_kwargs = [("diffusion_steps", 0), ("prior_std", -1.0), ("noise_schedule", "square"), ("use_sde", True)]
    policy_kwargs += [("log_std_init", 2.5), ("log_std_init", -25), ("ortho_init", "no")]
    policy_kwargs += [("net_arch", {"p": [8]}), ("net_arch", {"pi": [8], "qf": [8]})]
    for name, value in policy_kwargs:
        with pytest.raises(ValueError, match=name):
            make(policy_kwargs={name: value})
    with pytest.raises(ValueError, match=r"rollout_buffer_class=.*DictChainRolloutBuffer"):
        make(AsDict(StrictBoxEnv()), "MultiInputPolicy", rollout_buffer_class=ChainRolloutBuffer)
    with pytest.raises(ValueError, match=r"log_std_init=-1.*state_dependent_readout"):
        make(policy_kwargs=dict(log_std_init=-1, state_dependent_readout=False))


@pytest.mark.parametrize("name", ["_build_mlp_extractor", "_get_action_dist_from_latent"])
def test_a_subclass_with_a_hook_that_has_no_effect_is_refused(name: str) -> None:
    subclass = type("OwnPolicy", (DiffusionActorCriticPolicy,), {name: lambda self, *args: None})
    with pytest.raises(TypeError, match=rf"OwnPolicy\.{name} would have no effect.*instead"):
        make(policy=subclass)


@pytest.mark.parametrize("name", ["mlp_extractor", "action_net", "value_net"])
def test_an_assigned_network_that_has_no_effect_is_refused(name: str) -> None:
    policy = make().policy
    with pytest.raises(AttributeError, match=f"{name} would have no effect.*instead"):
        setattr(policy, name, th.nn.Linear(3, 3))
    assert not hasattr(policy, name)


def test_the_log_std_of_ppo_is_the_log_scale_of_the_read_out() -> None:
    model = make(policy_kwargs=dict(log_std_init=-0.5))
    policy = model.policy
    assert policy.log_std.tolist() == [-0.5, -0.5]
    policy.log_std = th.nn.Parameter(th.tensor([-1.0, -2.0]))
    assert policy.actor.log_std.tolist() == [-1.0, -2.0]
    spread = policy.actor.act(th.zeros(20_000, 3)).chains[:, 0].std(dim=0)
    assert spread.tolist() == pytest.approx([math.exp(-1), math.exp(-2)], rel=0.03)
    model.learn(16)
    assert policy.log_std.tolist() != [-1.0, -2.0] and "log_std" not in policy.state_dict()
    policy.log_std = th.nn.Parameter(th.tensor([-1.0, -2.0]), requires_grad=False)
    model.learn(16)
    assert policy.actor.log_std.tolist() == [-1.0, -2.0]
    with pytest.raises(ValueError, match=r"log_std of shape \(3,\) must have shape \(2,\)"):
        policy.log_std = th.zeros(3)
    without = make(policy_kwargs=dict(state_dependent_readout=False)).policy
    assert not hasattr(without, "log_std")
    with pytest.raises(AttributeError, match="state_dependent_readout"):
        without.log_std = th.zeros(2)


def test_a_net_arch_in_a_list_is_unpacked_with_sb3s_warning() -> None:
    with pytest.warns(UserWarning, match="pass directly a dictionary"):
        policy = make(policy_kwargs=dict(net_arch=[dict(pi=[8], vf=[12])])).policy
    assert policy.actor.denoiser.step_table.weight.shape[1] == 8 and policy.critic.step_table.weight.shape[1] == 12
    for wrong in ([dict(pi=[8], qf=[8])], [dict(pi=[8]), 8], [8, dict(pi=[8])]):
        with pytest.raises(ValueError, match="net_arch"):
            make(policy_kwargs=dict(net_arch=wrong))


@pytest.mark.parametrize("name", ["ent_coef", "learning_rate", "clip_range", "clip_range_vf", "vf_coef", "gamma", "target_kl"])
def test_numbers_may_be_numpys(name: str) -> None:
    given, plain = (make(**{name: number}).learn(16) for number in (np.float32(0.25), 0.25))
    assert th.equal(weights(given), weights(plain))


# --- Networks of its own ---


@pytest.mark.parametrize("share", [True, False])
def test_actor_and_critic_each_see_the_features_of_their_own_extractor(share: bool) -> None:
    policy = collect(
        make(policy_kwargs=dict(features_extractor_class=CountingExtractor, share_features_extractor=share))
    ).policy
    observations = th.randn(6, 3)
    with th.no_grad():
        chains = policy(observations)[2].chains

    def seen() -> dict[str, list[th.Tensor]]:
        th.manual_seed(0)
        actions, state_values, acted = policy(observations)
        evaluated = policy.evaluate_chains(observations, chains)
        predicted = policy.predict_values(observations)
        actor = [actions, policy._predict(observations, deterministic=True), *evaluated.kernels, acted.drift]
        return {"actor": actor, "critic": [state_values, predicted, evaluated.values]}

    extractors = {"actor": policy.pi_features_extractor, "critic": policy.vf_features_extractor}
    for name, extractor in extractors.items():
        with th.no_grad():
            before = seen()
            extractor.linear[1].weight.mul_(-1.0)
            after = seen()
        for part in extractors:
            for earlier, later in zip(before[part], after[part], strict=True):
                assert (share or part == name) != th.allclose(earlier, later)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("trained", ["actor", "critic"])
def test_the_losses_of_actor_and_critic_train_their_own_extractor(
    share: bool, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the loss of one of them alone, the other's extractor stays as it is, unless both have one."""
    policy_kwargs = dict(features_extractor_class=CountingExtractor, share_features_extractor=share)
    kwargs: dict[str, Any] = dict(ent_coef=0.0, vf_coef=0.0) if trained == "actor" else dict(ent_coef=0.0)
    model = collect(make(policy_kwargs=policy_kwargs, normalize_advantage=False, **kwargs))
    if trained == "critic":
        monkeypatch.setattr(ChainRolloutSamples, "advantages", property(lambda data: th.zeros_like(data.returns)))
    extractors = {"actor": model.policy.pi_features_extractor, "critic": model.policy.vf_features_extractor}
    before = {name: extractor.linear[1].weight.clone() for name, extractor in extractors.items()}
    model.train()
    for name, extractor in extractors.items():
        assert th.equal(extractor.linear[1].weight, before[name]) != (share or name == trained)


def test_extractors_are_in_training_mode_while_training_and_in_evaluation_mode_while_acting() -> None:
    model = make(policy_kwargs=dict(features_extractor_class=BatchNormDropoutExtractor))
    extractor = model.policy.pi_features_extractor
    modes: list[tuple[bool, bool]] = []
    extractor.register_forward_hook(lambda module, *_: modes.append((module.training, th.is_grad_enabled())))
    model.learn(32)
    assert len(modes) > 32 and {training for training, _ in modes} == {True, False}
    assert all(training == with_gradients for training, with_gradients in modes)
    assert extractor.batch_norm.num_batches_tracked == 2 * 2 * 2  # rollouts, epochs, minibatches
    assert extractor.batch_norm.running_mean.abs().max() > 1e-3


# --- Learning ---


@pytest.mark.slow
def test_both_modes_of_the_bandit_are_kept_at_the_exact_density() -> None:
    from sb3_diffusion.envs import BimodalBandit
    from sb3_diffusion.evaluation import sample_actions, total_variation

    env = make_vec_env("BimodalBandit-v0", n_envs=8, seed=0, vec_env_cls=DummyVecEnv)
    model = DiffPPO(
        "MlpPolicy", env, n_steps=64, batch_size=128, n_epochs=5, learning_rate=1e-3, seed=0, device="cpu",
        ent_coef=lambda progress: max(0.1, 0.1 ** (1.5 * (1 - progress))),
    ).learn(60_000)  # fmt: skip
    actions = sample_actions(model, np.zeros(1, np.float32), 20_000)[:, 0]
    assert 0.3 < (actions > 0).mean() < 0.7
    assert total_variation(actions, BimodalBandit().reward, 0.1) < 0.2
