"""From the imitator to reinforcement learning: critics warmed up, values warmed up, frozen steps, the pull to a reference."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SMALL_ON_POLICY, full_state, observations, scatter_weights
from envs_for_tests import BatchNormDropoutExtractor, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.distributions import Normal

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.common.networks import PartlyFrozenMLP
from sb3_diffusion.common.objectives.wasserstein import DecisionKernel, chain_kl
from sb3_diffusion.demonstrations import DemonstrationReplayBuffer, Demonstrations

OFF_POLICY = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO]
ALGORITHMS = [*OFF_POLICY, DiffPPO]
off_policy = pytest.mark.parametrize("algorithm", OFF_POLICY, ids=lambda algorithm: algorithm.__name__)
by_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)


class ThreeSteps(gym.Env):
    """Terminates after three steps, the last of which is worth 1. Actions do nothing."""

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(-1, 1, (1,))

    def _observe(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.time % 3]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self._observe(), float(self.time == 3), self.time == 3, False, {}


class Recorded(KVWriter):
    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.entries.append(dict(key_values))

    def close(self) -> None:
        pass

    def all(self, name: str) -> list[Any]:
        return [entry[name] for entry in self.entries if name in entry]


def build(algorithm: Any, env: Any = None, policy_kwargs: Any = None, **kwargs: Any) -> Any:
    settings = SMALL_ON_POLICY if issubclass(algorithm, DiffPPO) else SMALL
    env = StrictBoxEnv() if env is None else env
    model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [16]} | (policy_kwargs or {}), **settings | kwargs)
    model.set_logger(Logger(None, [Recorded()]))
    return model


def logged(model: Any) -> Recorded:
    return model.logger.output_formats[0]


def shown(env: Any = None, n: int = 5) -> Demonstrations:
    return Demonstrations.from_policy(lambda observation: 0.3 * observation[:1], env or StrictBoxEnv(), n, seed=0)


def weights(module: Any) -> dict[str, th.Tensor]:
    return copy.deepcopy(module.state_dict())


def changed(before: dict[str, th.Tensor], module: Any) -> list[str]:
    return [name for name, value in module.state_dict().items() if not th.equal(value, before[name])]


@off_policy
@pytest.mark.parametrize("n_steps", [1, 2])
def test_warmed_up_critics_know_the_demonstrations_values_and_nothing_else_has_moved(algorithm: Any, n_steps: int) -> None:
    settings: dict[str, Any] = dict(learning_rate=3e-3, gamma=0.5, ent_coef="auto_1e-9", batch_size=32)
    if algorithm is not DiffCrossQ:
        settings |= dict(tau=0.05)
    model = build(algorithm, ThreeSteps(), dict(net_arch=[32]), n_steps=n_steps, **settings)
    own_buffer, log_ent_coef, critic = model.replay_buffer, model.log_ent_coef.item(), weights(model.critic)
    model.pretrain(shown(ThreeSteps(), 20), n_epochs=1, critic_warmup_steps=500, seed=0)
    assert model.log_ent_coef.item() == log_ent_coef
    assert model.replay_buffer is own_buffer and own_buffer.size() == 0
    assert model.num_timesteps == 0 and changed(critic, model.critic)
    model.policy.set_training_mode(False)
    with th.no_grad():
        outputs = model.critic(th.eye(3), th.tensor([[0.3], [0.0], [0.0]]))
    # DiffTQC's critics give quantiles, (B, n_critics, n_quantiles), the others one value each.
    values = outputs.flatten(1) if algorithm is DiffTQC else th.cat(outputs, dim=1)
    np.testing.assert_allclose(values.mean(dim=1), [0.25, 0.5, 1.0], atol=0.2)
    losses = logged(model).all("pretrain/critic_loss")
    assert len(losses) == 1 and np.isfinite(losses[0])


def test_the_warm_up_has_the_returns_and_time_limits_of_the_trainings_buffer() -> None:
    kwargs = dict(demonstrations=shown(), n_steps=3, gamma=0.9, handle_timeout_termination=False)
    model = build(DiffSAC, replay_buffer_class=DemonstrationReplayBuffer, replay_buffer_kwargs=kwargs)
    buffer = model._demonstration_buffer(shown())
    assert (buffer.n_steps, buffer.gamma, buffer.handle_timeout_termination, buffer.share) == (3, 0.9, False, 1)


@off_policy
def test_the_actor_stays_as_it_is_while_critics_warm_up(algorithm: Any) -> None:
    extractor = dict(features_extractor_class=BatchNormDropoutExtractor)
    alone, warmed = build(algorithm, None, extractor), build(algorithm, None, extractor)
    alone.pretrain(shown(), n_epochs=2, seed=0)
    warmed.pretrain(shown(), n_epochs=2, seed=0, critic_warmup_steps=5)
    assert changed(weights(alone.actor), warmed.actor) == []
    assert changed(weights(alone.critic), warmed.critic)


@off_policy
def test_a_warm_up_with_normalised_rewards_and_learning_afterwards(algorithm: Any) -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]))
    model = build(algorithm, env)
    model.pretrain(shown(), n_epochs=1, critic_warmup_steps=3)
    assert env.ret_rms.count >= 1
    model.learn(20)
    assert model.num_timesteps == 20


@off_policy
def test_a_failed_warm_up_leaves_the_model_as_it_was(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(algorithm)
    before, own_buffer = full_state(model), model.replay_buffer

    def broken(gradient_step: int) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "_update_targets", broken)
    with pytest.raises(RuntimeError, match="broken"):
        model.pretrain(shown(), n_epochs=1, critic_warmup_steps=3)
    after = full_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.replay_buffer is own_buffer


def test_a_warm_up_without_what_it_takes_is_refused_before_anything_starts() -> None:
    demonstrations = shown()
    with pytest.raises(ValueError, match="DiffPPO has no critics"):
        build(DiffPPO).pretrain(demonstrations, critic_warmup_steps=1)
    with pytest.raises(ValueError, match="critic_warmup_steps=-1"):
        build(DiffSAC).pretrain(demonstrations, critic_warmup_steps=-1)
    bare = Demonstrations.from_arrays(demonstrations.observations, demonstrations.actions)
    with pytest.raises(ValueError, match="no rewards"):
        build(DiffSAC).pretrain(bare, critic_warmup_steps=1)
    build(DiffSAC).pretrain(bare, n_epochs=1)


def drift(model: Any, reference: Any) -> float:
    """How far the mean of the policy has gone."""
    seen = observations(model, 64)
    before, after = (np.stack([m.predict(seen)[0] for _ in range(50)]).mean(axis=0) for m in (reference, model))
    return float(np.abs(after - before).mean())


@by_algorithm
def test_the_pull_keeps_the_policy_near_the_reference(algorithm: Any) -> None:
    kwargs = dict(learning_rate=1e-2) | (dict(target_kl=None) if algorithm is DiffWPO else {})
    free, held = build(algorithm, **kwargs), build(algorithm, **kwargs)
    for model in (free, held):
        scatter_weights(model.policy.actor, 0.2)
        model.reference = copy.deepcopy(model.policy)
    held.set_reference(1000.0)
    for model in (free, held):
        model.learn(160)
    assert drift(held, held.reference) < 0.6 * drift(free, free.reference)
    # The reference itself does not move.
    assert changed(weights(held.reference.actor), held.reference_actor) == []


@by_algorithm
def test_the_divergence_is_logged_and_starts_at_zero(algorithm: Any) -> None:
    model = build(algorithm, learning_rate=0.0)
    model.set_reference(0.1)
    model.learn(32)
    model.logger.dump()
    name = "train/reference_kl"
    assert logged(model).all(name) and max(map(abs, logged(model).all(name))) < 1e-5
    free = build(algorithm)
    free.learn(32)
    free.logger.dump()
    assert logged(free).all(name) == []


@by_algorithm
def test_a_coefficient_of_zero_changes_nothing_and_a_schedule_is_followed(algorithm: Any) -> None:
    plain = build(algorithm).learn(48)
    zero = build(algorithm)
    zero.set_reference(lambda progress: 0.0)
    zero.learn(48)
    for name, value in plain.policy.actor.state_dict().items():
        th.testing.assert_close(zero.policy.actor.state_dict()[name], value)
    zero.set_reference(lambda progress: 2 * progress)
    zero._current_progress_remaining = 0.25
    assert zero._current_reference_kl_coef() == 0.5
    zero.set_reference(None)
    assert zero.reference_actor is None and zero._current_reference_kl_coef() == 0


@th.no_grad()
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_the_divergence_in_closed_form_is_that_of_samples(algorithm: Any) -> None:
    model = build(algorithm, StrictBoxEnv([-1.0, -1.0], [1.0, 1.0]), dict(diffusion_steps=3))
    scatter_weights(model.policy.actor, 0.15, seed=1)
    model.set_reference(1.0)
    scatter_weights(model.policy.actor, 0.1, seed=2)
    actor, reference = model.policy.actor, model.reference_actor
    n = 60_000
    states = th.full((n, 3), 0.5)
    if algorithm is DiffSAC:
        levels = model._levels(n, 0)
        chains = model._sample_chains(states, levels)
        closed = chain_kl(reference, states, DecisionKernel(actor, states, chains.kept), chains.kept).item()
        latents = actor.sample(states).latents
        sampled = 0.0
        for k in range(1, 4):
            steps = th.full((n,), k)
            (mean, log_std), (other_mean, other_log_std) = (
                a.reverse_kernel(states, latents[k], steps) for a in (actor, reference)
            )
            decided = th.addcmul(other_mean, other_log_std.exp(), th.randn_like(other_mean))
            own_readout, other_readout = actor.readout(states), reference.readout(states)
            log_prob = Normal(other_mean, other_log_std.exp()).log_prob(decided)
            if k == 1:
                action = other_readout[0] + other_readout[1].exp() * decided
                log_prob = log_prob - other_readout[1]
                decided = (action - own_readout[0]) * (-own_readout[1]).exp()
                log_prob = log_prob + own_readout[1]
            sampled += (log_prob - Normal(mean, log_std.exp()).log_prob(decided)).sum(1).mean().item()
    else:
        from sb3_diffusion.diffppo.actor import decisions_of
        from sb3_diffusion.diffusion import gaussian_kl

        decisions = decisions_of(actor.act(states).chains)
        kernels, fixed = actor.evaluate_decisions(states, decisions), reference.evaluate_decisions(states, decisions)
        closed = gaussian_kl(fixed.mean, fixed.log_std, kernels.mean, kernels.log_std).sum(dim=1).mean().item()
        decided = th.addcmul(fixed.mean, fixed.log_std.exp(), th.randn_like(fixed.mean))
        log_prob = Normal(fixed.mean, fixed.log_std.exp()).log_prob(decided)
        sampled = (log_prob - Normal(kernels.mean, kernels.log_std.exp()).log_prob(decided)).sum(dim=(1, 2)).mean().item()
    assert closed > 0.05
    assert closed == pytest.approx(sampled, rel=0.06)


@by_algorithm
def test_a_model_with_a_reference_is_saved_and_loaded_with_it(algorithm: Any, tmp_path: Path) -> None:
    model = build(algorithm)
    model.pretrain(shown(), n_epochs=1)
    model.set_reference(lambda progress: 0.5 * progress)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=StrictBoxEnv(), device="cpu")
    assert changed(weights(model.reference_actor), loaded.reference_actor) == []
    assert changed(weights(model.policy), loaded.policy) == []
    assert changed(weights(model.policy.actor), loaded.reference_actor)
    assert loaded._current_reference_kl_coef() == model._current_reference_kl_coef()
    loaded.learn(32)
    loaded.set_reference(None)
    loaded.save(tmp_path / "free")
    assert algorithm.load(tmp_path / "free", device="cpu").reference_actor is None


def test_a_pull_is_dropped_where_the_other_model_has_none_and_missed_before_anything_is_written(tmp_path: Path) -> None:
    pulled, free = build(DiffSAC), build(DiffSAC)
    pulled.set_reference(0.1)
    free.set_parameters(pulled.get_parameters())
    assert free.reference_actor is None and changed(weights(pulled.actor), free.actor) == []
    pulled.save(tmp_path / "pulled")
    assert DiffSAC.load(tmp_path / "pulled", custom_objects=dict(reference_kl_coef=None)).reference_actor is None
    scatter_weights(free.policy)
    before = weights(pulled.policy)
    with pytest.raises(ValueError, match=r"this model is pulled to one.*set_reference\(None\)"):
        pulled.set_parameters(free.get_parameters())
    assert changed(before, pulled.policy) == []


@pytest.mark.parametrize("kl_coef", [-0.1, "much", lambda progress: -progress])
def test_a_bad_coefficient_is_refused(kl_coef: Any) -> None:
    model = build(DiffSAC)
    with pytest.raises(ValueError, match="kl_coef"):
        model.set_reference(kl_coef)
    assert model.reference_kl_coef is None


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_during_the_value_warm_up_only_the_critic_moves(share_features_extractor: bool, tmp_path: Path) -> None:
    extractor = dict(features_extractor_class=BatchNormDropoutExtractor, share_features_extractor=share_features_extractor)
    model = build(DiffPPO, None, extractor, value_warmup=2, ent_coef="auto", learning_rate=1e-2)
    before, ent_coef = {name: value.clone() for name, value in model.policy.named_parameters()}, model.log_ent_coef.item()

    def moved() -> set[str]:
        now = dict(model.policy.named_parameters())
        return {name.split(".")[0] for name, value in before.items() if not th.equal(value, now[name])}

    model.learn(16)
    own = set() if share_features_extractor else {"vf_features_extractor"}
    assert moved() == {"critic"} | own
    assert model.log_ent_coef.item() == ent_coef
    model.save(tmp_path / "model")
    model = DiffPPO.load(tmp_path / "model", env=StrictBoxEnv(), device="cpu")
    model.learn(16, reset_num_timesteps=False)
    assert moved() == {"critic"} | own
    model.learn(16, reset_num_timesteps=False)
    assert "actor" in moved() and model.log_ent_coef.item() != ent_coef
    # And again after another imitation
    model.pretrain(shown(), n_epochs=1)
    imitator = {name: value.clone() for name, value in model.policy.actor.named_parameters()}
    model.learn(32)
    assert all(th.equal(value, imitator[name]) for name, value in model.policy.actor.named_parameters())


def heads(model: Any, k: int) -> th.Tensor:
    actor = model.policy.actor
    generator = th.Generator().manual_seed(0)
    features, latents = (th.randn(8, size, generator=generator) for size in (actor.features_dim, actor.action_dim))
    with th.no_grad():
        by_tensor = th.cat(actor.denoise(actor.denoiser.condition(features), latents, th.full((8,), k)))
        th.testing.assert_close(by_tensor, th.cat(actor.denoise(actor.denoiser.condition(features), latents, k)))
        th.testing.assert_close(by_tensor, th.cat(actor._chain_denoiser(features)(latents, k)))
        of_all = actor.denoise(
            actor.denoiser.condition(features).unsqueeze(1), latents.unsqueeze(1).expand(-1, actor.diffusion_steps, -1), None
        )
        th.testing.assert_close(by_tensor, th.cat([head[:, k - 1] for head in of_all]))
    return by_tensor


@pytest.mark.parametrize("latents_per_state", [None, 2])
def test_only_the_last_steps_are_fine_tuned(latents_per_state: int | None, tmp_path: Path) -> None:
    model = build(DiffPPO, policy_kwargs=dict(finetune_steps=2), learning_rate=1e-2, latents_per_state=latents_per_state)
    model.pretrain(shown(), n_epochs=3, learning_rate=1e-2)
    before = [heads(model, k) for k in range(1, 5)]
    assert all(values.abs().max() > 0 for values in before)
    others = {
        name: value.clone() for name, value in model.policy.actor.state_dict().items() if not name.startswith("denoiser")
    }
    model.learn(48)
    same = [th.equal(values, heads(model, k)) for k, values in enumerate(before, start=1)]
    assert same == [False, False, True, True]
    assert all(th.equal(value, model.policy.actor.state_dict()[name]) for name, value in others.items())

    model.save(tmp_path / "model")
    loaded = DiffPPO.load(tmp_path / "model", env=StrictBoxEnv(), device="cpu")
    assert [th.equal(heads(loaded, k), heads(model, k)) for k in range(1, 5)] == [True] * 4
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    seen = observations(model)
    np.testing.assert_array_equal(policy.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
    loaded.learn(16)
    assert th.equal(heads(loaded, 3), before[2]) and not th.equal(heads(loaded, 1), heads(model, 1))
    # Imitation trains all of it, and then the earlier steps are frozen anew.
    loaded.pretrain(shown(), n_epochs=1, learning_rate=1e-2)
    again = heads(loaded, 3)
    assert not th.equal(again, before[2])
    loaded.learn(16)
    assert th.equal(heads(loaded, 3), again)


def test_frozen_steps_are_those_of_the_whole_imitator() -> None:
    whole, parted = build(DiffPPO), build(DiffPPO, policy_kwargs=dict(finetune_steps=1))
    parted.policy.actor.load_state_dict(whole.policy.actor.state_dict(), strict=False)
    parted.policy.actor.denoiser.freeze()
    for model in (whole, parted):
        scatter = {name: value for name, value in model.policy.actor.named_parameters() if "frozen" not in name}
        th.manual_seed(0)
        with th.no_grad():
            for name in sorted(scatter):
                scatter[name].add_(0.1 * th.randn_like(scatter[name]))
    parted.policy.actor.denoiser.freeze()
    assert isinstance(parted.policy.actor.denoiser, PartlyFrozenMLP)
    seen = observations(whole)
    np.testing.assert_array_equal(whole.predict(seen, deterministic=True)[0], parted.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("finetune_steps", [0, 5, 1.5])
def test_a_number_of_fine_tuned_steps_out_of_range_is_refused(finetune_steps: Any) -> None:
    with pytest.raises(ValueError, match="finetune_steps="):
        build(DiffPPO, policy_kwargs=dict(finetune_steps=finetune_steps))
    with pytest.raises(ValueError, match="value_warmup=-1"):
        build(DiffPPO, value_warmup=-1)
