"""The three kinds of critics: their targets against the bases' own, what actor and diffusion value see of them, the delay."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import BASES, SMALL, differing, flat_tensors, observations, per_step
from envs_for_tests import StrictBoxEnv
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQCritic
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ContinuousCritic
from torch.nn import functional as F

from sb3_diffusion import (
    DiffCrossQ,
    DiffSAC,
    DiffTQC,
    DiffusionCrossQPolicy,
    DiffusionSACPolicy,
    DiffusionTQCPolicy,
    DiffWPO,
)
from sb3_diffusion.common.chains import chain_levels
from sb3_diffusion.common.critics.batch_renorm import BranchlessBatchRenorm1d

POLICIES = {SAC: DiffusionSACPolicy, TQC: DiffusionTQCPolicy, CrossQ: DiffusionCrossQPolicy}


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffTQC, DiffCrossQ])
def test_one_update_of_the_critics_equals_the_bases_where_the_policies_are_deterministic(algorithm: Any, n_steps: int) -> None:
    kwargs: dict[str, Any] = dict(env="Pendulum-v1", learning_starts=80, buffer_size=100, seed=0, device="cpu")
    kwargs |= dict(ent_coef=0.0, n_steps=n_steps)
    policy_kwargs = dict(net_arch=[16], optimizer_class=th.optim.SGD)
    base_kwargs = policy_kwargs | (dict(batch_norm=True) if algorithm is DiffCrossQ else {})
    base = BASES[algorithm]("MlpPolicy", policy_kwargs=base_kwargs, **kwargs)
    ours = algorithm("MlpPolicy", policy_kwargs=dict(policy_kwargs, diffusion_steps=4), **kwargs)
    for model in (base, ours):
        model.learn(60)
    # The same deterministic actions of both: the read-out's location is 0, its scale is tiny.
    for actor in (base.actor, ours.actor):
        for parameter in actor.mu.parameters():
            th.nn.init.zeros_(parameter)
        th.nn.init.zeros_(actor.log_std.weight)
        th.nn.init.constant_(actor.log_std.bias, -20.0)
    ours.replay_buffer = base.replay_buffer
    # Chains start at the row's own state where an episode ends, which joint statistics would see.
    base.replay_buffer.dones[::5] = 0.0 if algorithm is DiffCrossQ else 1.0
    for name in ("critic", "critic_target"):
        if hasattr(base, name):
            getattr(ours, name).load_state_dict(getattr(base, name).state_dict())
    before = [parameter.clone() for parameter in base.critic.parameters()]
    for model in (base, ours):
        np.random.seed(4)
        model.train(1, batch_size=64)
    for own, other, start in zip(ours.critic.parameters(), base.critic.parameters(), before, strict=True):
        assert (other - start).abs().max() > 0
        th.testing.assert_close(own - start, other - start, rtol=1e-3, atol=1e-6)
    if algorithm is DiffCrossQ:
        statistics = {name: value for name, value in base.critic.state_dict().items() if "ra_" in name}
        assert statistics and all((value != 0).any() for value in statistics.values())
        for name, value in statistics.items():
            th.testing.assert_close(ours.critic.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", POLICIES, ids=lambda base: base.__name__)
def test_the_policy_trains_in_the_unchanged_base_through_the_whole_chain(base: Any) -> None:
    model = base(POLICIES[base], StrictBoxEnv(), policy_kwargs=dict(net_arch=[16], diffusion_steps=3), **SMALL)
    before = flat_tensors(model.actor.state_dict())
    model.learn(20)
    assert len(differing(before, flat_tensors(model.actor.state_dict()))) == len(before)
    assert type(model).train is base.train


@pytest.mark.parametrize("warm", [False, True])
def test_the_branchless_layer_equals_sb3_contribs(warm: bool) -> None:
    theirs, ours = BatchRenorm1d(3, warmup_steps=2), BranchlessBatchRenorm1d(3, warmup_steps=2)
    generator = th.Generator().manual_seed(0)
    for layer in (theirs, ours):
        layer.ra_mean.copy_(th.tensor([0.5, -1.0, 2.0]))
        layer.ra_var.copy_(th.tensor([0.5, 2.0, 9.0]))
        layer.steps.fill_(3 if warm else 0)
    for _ in range(3):
        rows = 1 + 2 * th.randn(20, 3, generator=generator)
        inputs = [rows.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(rows) for layer, rows in zip((theirs, ours), inputs, strict=True)]
        th.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.pow(3).sum().backward()
        th.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    th.testing.assert_close(ours(rows), theirs(rows))


@pytest.mark.parametrize("warm", [False, True])
def test_a_dead_unit_gives_the_branchless_layer_no_infinite_gradient(warm: bool) -> None:
    layer = BranchlessBatchRenorm1d(2, warmup_steps=2)
    layer.steps.fill_(5 if warm else 0)
    rows = th.stack([th.zeros(8), th.randn(8)], dim=1).requires_grad_()
    layer(rows).sum().backward()
    assert th.isfinite(rows.grad).all()


def small(algorithm: Any, env: Any = None, **kwargs: Any) -> Any:
    policy_kwargs = dict(net_arch=[16], diffusion_steps=4) | kwargs.pop("policy_kwargs", {})
    return algorithm("MlpPolicy", env or StrictBoxEnv(), policy_kwargs=policy_kwargs, **(SMALL | kwargs))


def test_crossqs_critics_are_in_training_mode_for_the_joint_pass_alone() -> None:
    model = small(DiffCrossQ, policy_delay=1, batch_size=16).learn(12)
    seen: list[tuple[bool, int]] = []
    layer = next(module for module in model.critic.modules() if isinstance(module, BatchRenorm1d))
    layer.register_forward_hook(lambda module, inputs, output: seen.append((module.training, len(inputs[0]))))
    model.train(2, 16)
    joint = [n_rows for training, n_rows in seen if training]
    assert joint == [32, 32]
    assert len(seen) > 4 and not layer.training


def test_a_joint_pass_updates_the_statistics_once_a_gradient_step_and_nothing_else_does() -> None:
    model = small(DiffCrossQ).learn(12)
    layer = next(module for module in model.critic.modules() if isinstance(module, BatchRenorm1d))
    before = layer.steps.item()
    model.train(5, 8)
    assert layer.steps.item() == before + 5
    model.predict(observations(model))
    assert layer.steps.item() == before + 5


def test_tqcs_targets_are_the_smallest_of_all_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_diffusion.common.critics import quantiles as module

    model = small(DiffTQC, top_quantiles_to_drop_per_net=3, policy_kwargs=dict(n_quantiles=5), ent_coef=0.3).learn(12)
    seen: dict[str, Any] = {}
    evaluate, loss = model._critic_evaluation, module.quantile_huber_loss

    def record_loss(current: th.Tensor, targets: th.Tensor, **kwargs: Any) -> th.Tensor:
        seen["targets"] = targets
        return loss(current, targets, **kwargs)

    def record(transitions: Any, states: Any, chains: Any, ent_coef: th.Tensor) -> Any:
        seen.update(transitions=transitions, states=states, chains=chains)
        # Before the update of the target networks
        seen["quantiles"] = model.critic_target(states, chains.actions).flatten(1)
        seen["result"] = evaluate(transitions, states, chains, ent_coef)
        return seen["result"]

    monkeypatch.setattr(module, "quantile_huber_loss", record_loss)
    monkeypatch.setattr(model, "_critic_evaluation", record)
    model.train(1, 8)
    transitions, chains = seen["transitions"], seen["chains"]
    kept = np.sort(seen["quantiles"].detach().numpy(), axis=1)[:, : 2 * (5 - 3)]
    soft = kept[:8] - 0.3 * chains.path_log_prob.numpy()[:8, None]
    expected = transitions.rewards.numpy() + (1 - transitions.dones.numpy()) * 0.99 * soft
    assert seen["targets"].squeeze(1).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert seen["result"].end_values.numpy() == pytest.approx(kept.mean(axis=1), rel=1e-4, abs=1e-4)
    states = model._critic_states(model.critic, seen["states"])
    climbed = model._action_values(model.critic, states, chains.actions)
    th.testing.assert_close(climbed, model.critic(seen["states"], chains.actions).mean(dim=(1, 2)))


# The delay of the actor


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffCrossQ, DiffTQC])
def test_actor_value_and_temperature_move_every_so_many_gradient_steps(algorithm: Any) -> None:
    model = small(algorithm, policy_delay=3, **per_step(algorithm)).learn(12)
    start = model._n_updates
    moved = []
    for _ in range(6):
        before = flat_tensors(
            dict(actor=model.actor.state_dict(), value=model.diffusion_value.state_dict(), tau=model.log_ent_coef)
        )
        critic = flat_tensors(model.critic.state_dict())
        model.train(1, 8)
        after = flat_tensors(
            dict(actor=model.actor.state_dict(), value=model.diffusion_value.state_dict(), tau=model.log_ent_coef)
        )
        moved.append(len(differing(before, after)) > 0)
        assert not moved[-1] or len(differing(before, after)) == len(before)
        assert differing(critic, flat_tensors(model.critic.state_dict()))
    assert moved == [(start + i + 1) % 3 == 0 for i in range(6)]


def test_on_the_other_steps_a_chain_keeps_its_end_only_and_starts_at_next_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(DiffSAC, policy_delay=2, own_states=1 / 16).learn(12)
    kept, sample_chains = [], model._sample_chains

    def record(features: th.Tensor, levels: Any) -> Any:
        chains = sample_chains(features, levels)
        kept.append((len(features), chains.kept is not None))
        return chains

    monkeypatch.setattr(model, "_sample_chains", record)
    model.train(4, 16)
    assert sorted(kept) == [(16, False), (16, False), (17, True), (17, True)]


@pytest.mark.parametrize("policy_delay", [1, 2, 3, 4])
def test_with_any_delay_every_state_gets_every_diffusion_step(monkeypatch: pytest.MonkeyPatch, policy_delay: int) -> None:
    model = small(DiffSAC, policy_delay=policy_delay).learn(12)
    seen: set[tuple[int, int]] = set()
    losses = model._actor_losses

    def record(states: Any, chains: Any, ent_coef: th.Tensor) -> Any:
        steps, rows, _ = chains.kept.actor_levels
        seen.update(zip(rows.tolist(), steps.tolist(), strict=True))
        return losses(states, chains, ent_coef)

    monkeypatch.setattr(model, "_actor_losses", record)
    model.train(6 * policy_delay, 8)
    assert seen == {(row, step) for row in range(9) for step in range(1, 5)}


def test_levels_of_one_diffusion_step_have_no_value() -> None:
    levels = chain_levels(5, 1, 1, 7, th.device("cpu"))
    assert levels.value is None and levels.actor.steps.tolist() == [1] * 5


# Users' critics


class ScaledCritic(ContinuousCritic):
    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(10 * value for value in super().forward(obs, actions))


class ScaledPolicy(DiffusionSACPolicy):
    def make_critic(self, features_extractor: Any = None) -> ScaledCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return ScaledCritic(**kwargs).to(self.device)


class ConstantReward(gym.Env):
    """The reward is 1, always: values go to 1 / (1 - γ)."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO])
def test_a_critic_with_a_forward_of_its_own_is_used_through_it(algorithm: Any) -> None:
    class Policy(ScaledPolicy, algorithm.policy_aliases["MlpPolicy"]):
        pass

    settings: dict[str, Any] = dict(seed=0, device="cpu", gamma=0.5, ent_coef=0.0, learning_rate=3e-3, learning_starts=20)
    settings |= dict(batch_size=32, tau=0.05, policy_kwargs=dict(net_arch=[16]))
    settings |= dict(target_kl=None) if algorithm is DiffWPO else {}
    model = algorithm(Policy, ConstantReward(), **settings)
    model.learn(1_500)
    values = th.cat(model.critic(th.zeros(1, 2), th.zeros(1, 1)), dim=1)
    # Past its forward the critic would be trained to 20.
    assert values.flatten().tolist() == pytest.approx([2.0, 2.0], abs=0.2)
    # The anchor and what the actor climbs are the same critic's.
    states = model._critic_states(model.critic, th.zeros(2, 2))
    for function in (model._action_values, model._anchor_values):
        assert function(model.critic, states, th.zeros(2, 1)).tolist() == pytest.approx([2.0, 2.0], abs=0.2)


class ForeignPolicy(DiffusionSACPolicy):
    def make_critic(self, features_extractor: Any = None) -> Any:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return CrossQCritic(**kwargs).to(self.device)


def test_a_critic_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"ForeignPolicy.*CrossQCritic.*DiffSAC cannot train.*ContinuousCritic"):
        DiffSAC(ForeignPolicy, StrictBoxEnv(), **SMALL)


# States that get a chain of their own


@pytest.mark.parametrize(("length", "share"), [(1, 1), (2, 1 / 2), (3, 1 / 2), (5, 1 / 4), (40, 1 / 16)])
def test_short_episodes_train_more_of_the_rows_own_states(length: int, share: float) -> None:
    model = small(DiffSAC, StrictBoxEnv(episode_length=length), learning_starts=100)
    assert model._n_own_states(64) == 4
    model.learn(90)
    assert model._n_own_states(64) == 64 * share
    model.own_states = 0.25
    assert model._n_own_states(64) == 16
    model.own_states = 0
    assert model._n_own_states(64) == 0


def test_the_policy_of_the_whole_chain_objective_is_trained_as_sac_trains_it() -> None:
    """One actor update of DiffSAC with ``objective="whole_chain"`` at the states and noise of SAC's own."""
    model = small(DiffSAC, objective="whole_chain").learn(12)
    states = th.randn(8, *model.observation_space.shape)
    chains = model._sample_chains(states, model._levels(8, 0))
    th.manual_seed(3)
    ours = model._actor_losses(states, chains, th.tensor(0.2))["actor_loss"]
    th.manual_seed(3)
    actions, log_prob = model.actor.action_log_prob(states)
    sac = (0.2 * log_prob - th.cat(model.critic(states, actions), dim=1).min(dim=1).values).mean()
    th.testing.assert_close(ours, sac)
    assert F.mse_loss(ours, sac).item() < 1e-10


@pytest.mark.parametrize("objective", ["forward_kl", "whole_chain"])
def test_latents_per_state_warns_where_no_stored_latents_are_trained_on(objective: str) -> None:
    with pytest.warns(UserWarning, match=f"latents_per_state=2 has no effect with objective='{objective}'"):
        small(DiffSAC, objective=objective, latents_per_state=2)
