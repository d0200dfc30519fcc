"""What users of SAC already do works unchanged: policies, buffers, noise, schedules, callbacks, logging."""

import csv
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import (
    BASES,
    SMALL,
    arguments_of,
    coefficients,
    differing,
    flat_tensors,
    full_state,
    observations,
    optimizers,
    scatter_weights,
    scheduled_optimizers,
    with_target_networks,
)
from envs_for_tests import (
    AsDict,
    BatchNormDropoutExtractor,
    CountingExtractor,
    SmallImageExtractor,
    StrictBoxEnv,
)
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common import base_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

MakeModel = Callable[..., Any]


def small_image_env() -> gym.Env:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)


def networks(model: Any) -> dict[str, Any]:
    """The weights of every network, without target networks and optimizers."""
    return {path: leaf for path, leaf in flat_tensors(model.policy.state_dict()).items() if "target" not in path}


# Policies and observations


def test_an_mlp_policy_moves_every_trainable_weight(make_per_step_model: MakeModel) -> None:
    model = make_per_step_model()
    before = networks(model)
    model.learn(40)
    unchanged = [path for path, leaf in networks(model).items() if leaf.numel() and th.equal(leaf, before[path])]
    assert not unchanged
    assert model.num_timesteps == 40
    assert model._n_updates == 32


def test_a_cnn_policy_trains_on_images(make_model: MakeModel) -> None:
    model = make_model(small_image_env(), "CnnPolicy", buffer_size=20, learning_starts=5, batch_size=4)
    before = networks(model)
    model.learn(9)
    assert [path for path in differing(before, networks(model)) if "features_extractor.cnn" in path]
    action, _ = model.predict(model.env.observation_space.sample())
    assert model.action_space.contains(action)


@pytest.mark.parametrize("channel_last", [True, False])
def test_a_multi_input_policy_trains_on_dict_observations(make_model: MakeModel, channel_last: bool) -> None:
    env = SimpleMultiObsEnv(discrete_actions=False, channel_last=channel_last)
    model = make_model(env, "MultiInputPolicy", buffer_size=20, learning_starts=4, batch_size=4)
    assert isinstance(model.replay_buffer, DictReplayBuffer)
    before = networks(model)
    model.learn(6)
    assert differing(before, networks(model))
    assert model.action_space.contains(model.predict(env.observation_space.sample())[0])


def test_a_dict_of_one_box_gives_the_same_run_as_the_box(make_model: MakeModel) -> None:
    flat = make_model(StrictBoxEnv()).learn(20)
    nested = make_model(AsDict(StrictBoxEnv()), "MultiInputPolicy").learn(20)
    obs = observations(flat)
    assert np.allclose(flat.predict(obs, deterministic=True)[0], nested.predict({"only": obs}, deterministic=True)[0])


def test_a_box_observation_with_the_multi_input_policy_is_refused(make_model: MakeModel) -> None:
    with pytest.raises((AssertionError, ValueError), match="MultiInputPolicy"):
        make_model(AsDict(StrictBoxEnv()), "MlpPolicy")


@pytest.mark.parametrize("normalize_images, largest", [(True, 1.0), (False, 255.0)])
def test_normalize_images_decides_whether_pixels_are_divided_by_255(
    make_model: MakeModel, normalize_images: bool, largest: float
) -> None:
    policy_kwargs = dict(features_extractor_class=SmallImageExtractor, normalize_images=normalize_images)
    model = make_model(small_image_env(), "CnnPolicy", policy_kwargs, buffer_size=20, learning_starts=4, batch_size=4)
    model.learn(6)
    model.predict(np.full(model.observation_space.shape, 255, np.uint8))
    assert model.actor.features_extractor.largest_input == largest


# Replay buffers


def bit_flipping_model(make_model: MakeModel, **kwargs: Any) -> Any:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)
    replay_buffer_kwargs = dict(n_sampled_goal=2, goal_selection_strategy="future")
    kwargs = dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=replay_buffer_kwargs) | kwargs
    return make_model(env, "MultiInputPolicy", **kwargs)


def test_hindsight_replay_trains(make_model: MakeModel) -> None:
    model = bit_flipping_model(make_model)
    before = networks(model)
    model.learn(20)
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert differing(before, networks(model))


def test_hindsight_replay_survives_saving_and_loading(make_model: MakeModel, tmp_path: Path) -> None:
    model = bit_flipping_model(make_model).learn(20)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", env=model.env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == model.replay_buffer.size()
    obs = model.env.reset()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(6, reset_num_timesteps=False)
    assert loaded.num_timesteps == 26


def test_n_step_returns_use_the_discounts_of_the_n_step_buffer(make_model: MakeModel) -> None:
    model = make_model(n_steps=3, ent_coef=0.2).learn(30)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    start = model.get_parameters()
    start = {name: {**state} for name, state in start.items()}
    start["policy"] = {name: tensor.clone() for name, tensor in start["policy"].items()}
    sample = model.replay_buffer.sample

    def critic_after_training(discount_factor: float, gamma: float) -> dict[str, Any]:
        def with_scaled_discounts(*args: Any, **kwargs: Any) -> Any:
            data = sample(*args, **kwargs)
            assert data.discounts is not None
            return data._replace(discounts=data.discounts * discount_factor)

        model.set_parameters({"policy": start["policy"]}, exact_match=False)
        model.replay_buffer.sample = with_scaled_discounts
        for optimizer in optimizers(model).values():
            optimizer.state.clear()
        model.gamma = gamma
        model._n_updates = 0
        model.set_random_seed(0)
        model.train(2, 8)
        return flat_tensors(model.critic.state_dict())

    reference = critic_after_training(discount_factor=1.0, gamma=0.99)
    assert not differing(reference, critic_after_training(discount_factor=1.0, gamma=0.5))
    assert differing(reference, critic_after_training(discount_factor=0.5, gamma=0.99))


def test_n_step_returns_train_with_several_environments(make_model: MakeModel) -> None:
    model = make_model(make_vec_env(StrictBoxEnv, 2), n_steps=3, gradient_steps=-1)
    before = networks(model)
    model.learn(30)
    assert differing(before, networks(model))


def test_a_memory_optimised_buffer_trains_past_its_capacity(make_model: MakeModel) -> None:
    replay_buffer_kwargs = dict(handle_timeout_termination=False)
    model = make_model(buffer_size=12, optimize_memory_usage=True, replay_buffer_kwargs=replay_buffer_kwargs)
    model.learn(20)
    assert model.replay_buffer.full and model.replay_buffer.optimize_memory_usage
    assert model._n_updates == 12


def test_a_custom_replay_buffer_class_is_used(make_model: MakeModel) -> None:
    class Counting(ReplayBuffer):
        n_samples = 0

        def sample(self, *args: Any, **kwargs: Any) -> Any:
            self.n_samples += 1
            return super().sample(*args, **kwargs)

    model = make_model(replay_buffer_class=Counting).learn(14)
    assert model.replay_buffer.n_samples == model._n_updates == 6


# When and how much to train


def test_several_environments_with_minus_one_gradient_steps_make_one_update_per_transition(make_model: MakeModel) -> None:
    model = make_model(make_vec_env(StrictBoxEnv, 2), gradient_steps=-1, train_freq=2).learn(24)
    # Rollouts of 2 steps in 2 environments end at 4, 8, 12, 16, 20, 24 transitions, those after 8 train.
    # As in SAC, an update is made for every transition.
    assert model._n_updates == 16
    assert model.replay_buffer.size() * 2 == 24


def test_a_train_frequency_in_episodes_trains_between_episodes(make_model: MakeModel) -> None:
    model = make_model(StrictBoxEnv(episode_length=7), train_freq=(2, "episode"), gradient_steps=-1).learn(28)
    assert model._n_updates == 28
    model = make_model(StrictBoxEnv(episode_length=7), train_freq=(1, "episode"), gradient_steps=3).learn(28)
    # The first episode ends before learning starts.
    assert model._n_updates == 3 * 3


def test_zero_gradient_steps_collect_without_training(make_model: MakeModel) -> None:
    model = make_model(gradient_steps=0)
    before = full_state(model)
    model.learn(20)
    assert model._n_updates == 0
    assert not differing(before, full_state(model))
    assert model.replay_buffer.size() == 20


def test_train_can_be_called_directly(trained: Any) -> None:
    before, n_updates = networks(trained), trained._n_updates
    trained.train(gradient_steps=2)
    assert differing(before, networks(trained))
    assert trained._n_updates == n_updates + 2


@with_target_networks
def test_target_networks_follow_only_by_polyak_averaging(make_model: MakeModel) -> None:
    model = make_model(tau=0.0, batch_size=8)
    before = flat_tensors(model.critic_target.state_dict())
    model.learn(14)
    assert not differing(before, flat_tensors(model.critic_target.state_dict()))
    model.tau = 1.0
    model.train(1, 8)
    assert not differing(flat_tensors(model.critic.state_dict()), flat_tensors(model.critic_target.state_dict()))


@with_target_networks
def test_the_target_is_updated_every_target_update_interval(make_model: MakeModel) -> None:
    model = make_model(tau=0.5).learn(12)
    for interval, expected in ((1, 4), (3, 2), (1000, 2)):
        model.target_update_interval = interval
        seen = []
        hook = model.critic_target.features_extractor.register_forward_hook(
            lambda *_, seen=seen: seen.append(flat_tensors(model.critic_target.state_dict()))
        )
        model.train(4, 8)
        hook.remove()
        # The steps 0, interval, 2 interval ... update after their forward pass, so the update of the last step is not seen.
        distinct = [state for i, state in enumerate(seen) if i == 0 or differing(seen[i - 1], state)]
        assert len(distinct) == expected


@pytest.mark.parametrize("n_more, reset, expected", [(10, False, 30), (10, True, 10)])
def test_learning_continues_with_or_without_resetting_the_step_count(
    trained: Any, n_more: int, reset: bool, expected: int
) -> None:
    n_updates = trained._n_updates
    trained.learn(n_more, reset_num_timesteps=reset)
    assert trained.num_timesteps == expected
    assert trained._n_updates > n_updates


# Action noise


@pytest.mark.parametrize("n_envs", [1, 2])
def test_action_noise_is_added_to_the_stored_actions(make_model: MakeModel, n_envs: int) -> None:
    env = make_vec_env(partial(StrictBoxEnv, low=[-3.0, 0.0], high=[5.0, 0.5]), n_envs)
    model = make_model(env, action_noise=NormalActionNoise(np.full(2, 100.0), np.full(2, 0.1)), gradient_steps=-1).learn(20)
    assert isinstance(model.action_noise, VectorizedActionNoise) == (n_envs > 1)
    assert np.all(model.replay_buffer.actions[: model.replay_buffer.pos] == 1.0)


def test_vectorized_and_ornstein_uhlenbeck_noise_train(make_model: MakeModel) -> None:
    noise = VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)), 2)
    model = make_model(make_vec_env(StrictBoxEnv, 2), action_noise=noise, gradient_steps=-1).learn(18)
    assert model._n_updates == 10
    assert all(np.any(one.noise_prev != 0) for one in model.action_noise.noises)


# Learning-rate schedules


class ReadLearningRates(BaseCallback):
    """Records the learning rate of every optimizer beside the schedule's value."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[tuple[float, set[float]]] = []

    def _on_rollout_start(self) -> None:
        if self.model._n_updates > 0:
            rates = {group["lr"] for optimizer in scheduled_optimizers(self.model) for group in optimizer.param_groups}
            self.rates.append((self.model.lr_schedule(self.model._current_progress_remaining), rates))

    def _on_step(self) -> bool:
        return True


def test_every_optimizer_follows_the_learning_rate_schedule(make_model: MakeModel) -> None:
    callback = ReadLearningRates()
    make_model(learning_rate=lambda remaining: 1e-3 * (0.1 + remaining)).learn(20, callback)
    assert len({rate for rate, _ in callback.rates}) > 5
    assert all(rates == {rate} for rate, rates in callback.rates)


def test_a_learning_rate_of_zero_leaves_every_trained_parameter_unchanged(make_model: MakeModel, algorithm: Any) -> None:
    model = make_model(**arguments_of(algorithm, tau=0.0)).learn(14)
    # Not the running statistics of CrossQ's critics
    before = flat_tensors(dict(model.policy.named_parameters())), model.log_ent_coef.item()
    model.lr_schedule = lambda _: 0.0
    model.train(3, 8)
    assert not differing(before[0], flat_tensors(dict(model.policy.named_parameters())))
    assert model.log_ent_coef.item() == before[1]


def test_every_trainable_parameter_belongs_to_exactly_one_saved_optimizer(make_model: MakeModel) -> None:
    for share_features_extractor in (True, False):
        for policy_kwargs in ({}, {"diffusion_steps": 1}, {"learn_schedule": True}):
            policy_kwargs = dict(
                features_extractor_class=CountingExtractor, share_features_extractor=share_features_extractor, **policy_kwargs
            )
            model = make_model(policy_kwargs=policy_kwargs)
            optimized = [
                id(parameter)
                for optimizer in optimizers(model).values()
                for group in optimizer.param_groups
                for parameter in group["params"]
            ]
            trainable = {
                id(parameter)
                for name, parameter in model.policy.named_parameters()
                if "target" not in name and parameter.requires_grad
            }
            assert len(optimized) == len(set(optimized))
            assert trainable <= set(optimized)
            assert set(optimized) - trainable == {id(value) for value in coefficients(model).values()}


# Wrappers and callbacks


def test_vec_normalize_statistics_reach_the_sampled_transitions(make_model: MakeModel) -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]), clip_obs=0.5, clip_reward=0.25)
    model = make_model(env)
    largest = []
    sample = model.replay_buffer.sample

    def recording(*args: Any, **kwargs: Any) -> Any:
        data = sample(*args, **kwargs)
        largest.append((data.observations.abs().max().item(), data.rewards.abs().max().item()))
        return data

    model.replay_buffer.sample = recording
    model.learn(20)
    assert max(obs for obs, _ in largest) == 0.5
    assert max(reward for _, reward in largest) == 0.25
    env.training = False
    mean_reward, _ = evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    assert np.isfinite(mean_reward)


def test_an_eval_callback_saves_the_best_model_and_its_scores(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    callback = EvalCallback(
        make_vec_env(StrictBoxEnv, 1),
        n_eval_episodes=2,
        eval_freq=10,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model.learn(20, callback)
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (2, 2)
    best = type(model).load(tmp_path / "best_model")
    assert best.num_timesteps in (10, 20)


def test_evaluation_during_training_does_not_change_the_run(make_model: MakeModel) -> None:
    alone = make_model().learn(20)
    callback = EvalCallback(make_vec_env(StrictBoxEnv, 1, seed=5), n_eval_episodes=1, eval_freq=5, verbose=0)
    evaluated = make_model().learn(20, callback)
    assert not differing(full_state(alone), full_state(evaluated))


def test_a_checkpoint_callback_saves_models_and_buffers_that_load(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.learn(20, CheckpointCallback(10, str(tmp_path), save_replay_buffer=True))
    first = type(model).load(tmp_path / "rl_model_10_steps", env=model.env)
    first.load_replay_buffer(tmp_path / "rl_model_replay_buffer_10_steps.pkl")
    # As with SAC, the callback runs before the tenth transition is stored.
    assert (first.num_timesteps, first.replay_buffer.size()) == (10, 9)
    assert first._n_updates == 1
    assert type(model).load(tmp_path / "rl_model_20_steps").num_timesteps == 20


def test_training_stops_at_a_reward_threshold(make_model: MakeModel) -> None:
    stop = StopTrainingOnRewardThreshold(-1e6)
    callback = EvalCallback(
        make_vec_env(StrictBoxEnv, 1), callback_on_new_best=stop, n_eval_episodes=1, eval_freq=5, verbose=0
    )
    assert make_model().learn(30, callback).num_timesteps == 5


@pytest.mark.parametrize("answer", [False, np.bool_(False)])
def test_a_callback_that_returns_false_stops_training(make_model: MakeModel, answer: Any) -> None:
    model = make_model()
    model.learn(30, lambda local, _: answer if model.num_timesteps >= 11 else True)
    assert model.num_timesteps == 11


def test_a_buffer_and_a_batch_of_one_can_be_cancelled_by_a_callback(make_model: MakeModel) -> None:
    model = make_model(buffer_size=1, batch_size=1, learning_starts=0)
    model.learn(30, lambda *_: model.num_timesteps < 4)
    assert model.num_timesteps == 4
    assert model._n_updates == 3
    assert all(th.isfinite(leaf).all() for leaf in networks(model).values())


def test_a_callback_sees_the_locals_of_sac(make_model: MakeModel) -> None:
    seen: set[str] = set()
    make_model().learn(3, lambda local, _: bool(seen.update(local) or True))
    assert {"total_timesteps", "new_obs", "rewards", "dones", "infos", "actions", "buffer_actions", "replay_buffer"} <= seen


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_reaches_the_total(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    class Recording(ProgressBarCallback):
        def _on_training_end(self) -> None:
            shown.append((self.pbar.n, self.pbar.total))
            super()._on_training_end()

    monkeypatch.setattr(base_class, "ProgressBarCallback", Recording)
    make_model().learn(12, progress_bar=True)
    assert shown == [(12, 12)]


# Logging


SAC_KEYS = {"train/ent_coef", "train/actor_loss", "train/critic_loss", "train/ent_coef_loss", "train/learning_rate"}
OUR_KEYS = {"train/path_entropy", "train/diffusion_value_loss"}
EPISODE_KEYS = {"rollout/ep_len_mean", "rollout/ep_rew_mean"}


def test_tensorboard_gets_the_keys_of_sac_and_ours(make_per_step_model: MakeModel, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make_per_step_model(tensorboard_log=str(tmp_path))
    model.learn(25, log_interval=1)
    folder = tmp_path / f"{type(model).__name__}_1"
    events = EventAccumulator(str(folder)).Reload()
    assert (SAC_KEYS | OUR_KEYS | EPISODE_KEYS | {"time/fps"}) <= set(events.Tags()["scalars"])
    assert "train/n_updates" not in events.Tags()["scalars"], "SAC keeps it out of TensorBoard"
    model.learn(25, log_interval=1, tb_log_name="other")
    assert (tmp_path / "other_1").is_dir()


def test_the_logger_gets_finite_values_under_the_keys_of_sac_and_ours(make_per_step_model: MakeModel, tmp_path: Path) -> None:
    model = make_per_step_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(20, log_interval=1)
    with open(tmp_path / "progress.csv") as file:
        last = list(csv.DictReader(file))[-1]
    expected = SAC_KEYS | OUR_KEYS | EPISODE_KEYS | {"train/n_updates"}
    assert expected <= set(last)
    assert all(np.isfinite(float(last[key])) for key in expected)
    assert int(last["train/n_updates"]) == model._n_updates - 1


def test_nothing_is_logged_for_a_temperature_that_is_not_learned(make_model: MakeModel) -> None:
    model = make_model(ent_coef=0.2).learn(12, log_interval=None)
    values = model.logger.name_to_value
    assert values["train/ent_coef"] == pytest.approx(0.2)
    assert "train/ent_coef_loss" not in values
    assert model.log_ent_coef is None
    assert "ent_coef_optimizer" not in model.get_parameters()


def test_evaluate_policy_scores_a_model(trained: Any) -> None:
    rewards, lengths = evaluate_policy(trained, trained.env, 3, return_episode_rewards=True, warn=False)
    assert lengths == [10, 10, 10]
    assert np.all(np.isfinite(rewards))


# Temperature


def test_an_automatic_temperature_starts_at_its_initial_value_and_is_learned(make_model: MakeModel) -> None:
    for ent_coef, initial in (("auto", 1.0), ("auto_0.1", 0.1)):
        model = make_model(ent_coef=ent_coef)
        assert model.log_ent_coef.exp().item() == pytest.approx(initial)
        model.learn(14)
        assert model.log_ent_coef.exp().item() != pytest.approx(initial, abs=1e-6)


def falling(remaining: float) -> float:
    return 0.1 + remaining


def test_a_scheduled_temperature_follows_its_schedule(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(ent_coef=falling)
    logged = []

    class Read(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.model._n_updates > 0:
                logged.append((falling(self.model._current_progress_remaining), self.logger.name_to_value["train/ent_coef"]))

    model.learn(20, Read(), log_interval=None)
    expected, seen = zip(*logged, strict=True)
    assert len(set(expected)) > 5
    assert seen == pytest.approx(expected, rel=1e-5)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.env)
    loaded.learn(10, reset_num_timesteps=False, log_interval=None)
    assert 0.1 <= loaded.logger.name_to_value["train/ent_coef"] < 0.5


def test_a_temperature_that_ends_at_zero_survives_steps_beyond_the_end(make_model: MakeModel) -> None:
    model = make_model(ent_coef=lambda progress: 0.2 * progress, train_freq=16).learn(30)
    assert model._current_progress_remaining < 0 and model.ent_coef_tensor.item() == 0


def test_a_copy_trains_its_own_networks(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda function, **_: function)
    model = make_model(torch_compile=True).learn(12)
    copy = deepcopy(model)
    before = networks(model), networks(copy)
    copy.train(2, batch_size=8)
    assert not differing(before[0], networks(model)) and differing(before[1], networks(copy))


def test_the_automatic_target_entropy_is_minus_the_number_of_action_dimensions(make_model: MakeModel) -> None:
    assert make_model(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5])).target_entropy == -2.0
    assert make_model(StrictBoxEnv(low=-np.ones((2, 2)), high=np.ones((2, 2)))).target_entropy == -4.0
    assert make_model(target_entropy=-0.3).target_entropy == -0.3


# Network options


@pytest.mark.parametrize("n_critics", [1, 2, 3])
def test_the_number_of_critics_is_free(make_model: MakeModel, n_critics: int) -> None:
    model = make_model(policy_kwargs=dict(n_critics=n_critics)).learn(14)
    assert len(model.critic.q_networks) == model.critic.n_critics == n_critics
    if hasattr(model, "critic_target"):
        assert len(model.critic_target.q_networks) == n_critics


@pytest.mark.parametrize("net_arch", [[], [8], [8, 8], dict(pi=[], qf=[]), dict(pi=[8], qf=[12, 12]), dict(pi=[8, 8], qf=[])])
def test_any_net_arch_trains(make_model: MakeModel, net_arch: Any) -> None:
    model = make_model(policy_kwargs=dict(net_arch=net_arch))
    before = networks(model)
    model.learn(12)
    assert differing(before, networks(model))
    assert np.isfinite(model.predict(observations(model))[0]).all()


def test_the_default_net_arch_is_that_of_the_base(algorithm: type[BaseAlgorithm]) -> None:
    model, base = (each("MlpPolicy", StrictBoxEnv(), **SMALL) for each in (algorithm, BASES[algorithm]))
    assert model.policy.net_arch == base.policy.net_arch
    assert model.critic.q_networks[0][-1].in_features == base.critic.q_networks[0][-1].in_features


def test_activation_and_optimizer_classes_are_used_everywhere(make_model: MakeModel) -> None:
    policy_kwargs = dict(
        activation_fn=th.nn.ELU, optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.125), diffusion_steps=3
    )
    model = make_model(policy_kwargs=policy_kwargs).learn(12)
    for network in model.policy.children():
        activations = [module for module in network.modules() if isinstance(module, (th.nn.ReLU, th.nn.ELU))]
        assert activations and all(isinstance(module, th.nn.ELU) for module in activations)
    for name, optimizer in optimizers(model).items():
        if name not in ("ent_coef_optimizer", "kl_coef_optimizer"):
            assert isinstance(optimizer, th.optim.AdamW)
            assert all(group["weight_decay"] == 0.125 for group in optimizer.param_groups)


@pytest.mark.parametrize("share", [True, False])
def test_a_custom_features_extractor_is_shared_or_not_as_asked(make_per_step_model: MakeModel, share: bool) -> None:
    policy_kwargs = dict(
        features_extractor_class=CountingExtractor,
        features_extractor_kwargs=dict(features_dim=4),
        share_features_extractor=share,
    )
    model = make_per_step_model(policy_kwargs=policy_kwargs)
    assert (model.actor.features_extractor is model.critic.features_extractor) == share
    if hasattr(model, "critic_target"):
        assert model.critic_target.features_extractor is not model.critic.features_extractor
    assert model.actor.features_dim == 4
    before = networks(model)
    model.learn(30)
    unchanged = [path for path, leaf in networks(model).items() if leaf.numel() and th.equal(leaf, before[path])]
    assert not unchanged


def test_features_are_extracted_once_per_action_however_long_the_chain(make_model: MakeModel) -> None:
    model = make_model(policy_kwargs=dict(features_extractor_class=CountingExtractor, diffusion_steps=8))
    extractor = model.actor.features_extractor
    for use in (
        lambda: model.predict(observations(model)),
        lambda: model.predict(observations(model), deterministic=True),
        lambda: model.actor.action_log_prob(th.zeros(4, 3)),
    ):
        extractor.n_calls = 0
        use()
        assert extractor.n_calls == 1


@with_target_networks
def test_batch_norm_statistics_follow_training_and_reach_the_target(make_model: MakeModel) -> None:
    policy_kwargs = dict(features_extractor_class=BatchNormDropoutExtractor)
    model = make_model(policy_kwargs=policy_kwargs).learn(14)
    actor_mean, critic_mean, target_mean = (
        network.features_extractor.batch_norm.running_mean for network in (model.actor, model.critic, model.critic_target)
    )
    assert actor_mean.abs().sum() > 0
    assert critic_mean.abs().sum() > 0
    assert th.equal(critic_mean, target_mean)


# Diffusion options


@pytest.mark.parametrize("diffusion_steps", [1, 2, 4, 8])
def test_any_number_of_diffusion_steps_trains_and_survives_saving(
    make_model: MakeModel, tmp_path: Path, diffusion_steps: int
) -> None:
    model = make_model(policy_kwargs=dict(diffusion_steps=diffusion_steps)).learn(20)
    assert (model.policy.diffusion_value is None) == (diffusion_steps == 1)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.env)
    obs = observations(model)
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(5, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        dict(diffusion_steps=1),
        dict(kernel="vp"),
        dict(kernel="euler"),
        dict(prior_std=2.5),
        dict(noise_schedule="linear", beta_min=0.1, beta_max=0.4),
        dict(noise_schedule="geometric", beta_min=0.1, beta_max=0.4),
        dict(noise_schedule="cosine"),
        dict(noise_schedule=[0.1, 0.2, 0.3, 0.9]),
        dict(diffusion_steps=np.int64(2), noise_schedule=(0.1, 0.2)),
        dict(learn_schedule=True),
        dict(learn_schedule=True, kernel="euler", state_dependent_readout=False),
        dict(learn_variance=False),
        dict(latent_frequencies=4, prior_std=0.5),
        dict(state_dependent_readout=False),
        dict(learn_variance=False, state_dependent_readout=False, kernel="euler"),
    ],
    ids=str,
)
def test_every_diffusion_option_trains_to_finite_values(make_per_step_model: MakeModel, policy_kwargs: dict[str, Any]) -> None:
    model = make_per_step_model(policy_kwargs=policy_kwargs)
    before = networks(model)
    model.learn(20, log_interval=None)
    after = networks(model)
    assert not [path for path in before if th.equal(before[path], after[path])]
    assert all(th.isfinite(leaf).all() for leaf in after.values())
    assert all(np.isfinite(value) for key, value in model.logger.name_to_value.items() if key.startswith("train/"))


@pytest.mark.parametrize("latents_per_state", [1, 2, 4])
def test_any_number_of_latents_up_to_the_diffusion_steps_trains(make_model: MakeModel, latents_per_state: int) -> None:
    model = make_model(latents_per_state=latents_per_state, policy_kwargs=dict(diffusion_steps=4))
    assert model.latents_per_state == latents_per_state
    before = networks(model)
    model.learn(14)
    assert differing(before, networks(model))


def test_different_numbers_of_latents_give_different_updates(make_per_step_model: MakeModel) -> None:
    first, second = (make_per_step_model(latents_per_state=kappa).learn(12) for kappa in (1, 4))
    assert differing(networks(first), networks(second))


# Reproducibility


def test_the_same_seed_gives_the_identical_run(make_model: MakeModel) -> None:
    first, second = make_model(seed=4).learn(25), make_model(seed=4).learn(25)
    assert not differing(full_state(first), full_state(second))
    obs = observations(first)
    th.manual_seed(7)
    drawn = first.predict(obs)[0]
    th.manual_seed(7)
    assert np.array_equal(drawn, second.predict(obs)[0])


def test_a_different_seed_gives_a_different_run(make_model: MakeModel) -> None:
    first, second = (make_model(seed=seed).learn(12) for seed in (4, 5))
    assert differing(networks(first), networks(second))
    assert not np.array_equal(first.replay_buffer.actions, second.replay_buffer.actions)


# SB3's own SAC with the diffusion policy


def plain_sac(env: gym.Env | None = None, **policy_kwargs: Any) -> SAC:
    from sb3_diffusion import DiffusionSACPolicy

    policy_kwargs = {"net_arch": [16]} | policy_kwargs
    return SAC(DiffusionSACPolicy, env or StrictBoxEnv(), policy_kwargs=policy_kwargs, **SMALL)


@pytest.mark.parametrize("diffusion_steps", [1, 3])
def test_unchanged_sac_trains_every_actor_weight_of_the_diffusion_policy(diffusion_steps: int) -> None:
    model = plain_sac(diffusion_steps=diffusion_steps)
    before = flat_tensors(model.actor.state_dict()), flat_tensors(model.critic.state_dict())
    model.learn(25)
    after = flat_tensors(model.actor.state_dict()), flat_tensors(model.critic.state_dict())
    for old, new in zip(before, after, strict=True):
        assert not [path for path in old if th.equal(old[path], new[path])]
        assert all(th.isfinite(leaf).all() for leaf in new.values())


def test_unchanged_sac_saves_and_loads_the_diffusion_policy(tmp_path: Path) -> None:
    model = plain_sac(diffusion_steps=3, prior_std=0.7).learn(14)
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model", env=model.env)
    assert type(loaded.policy) is type(model.policy)
    obs = observations(model)
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert not differing(full_state(model), full_state(loaded))
    loaded.learn(5, reset_num_timesteps=False)


def test_the_action_log_prob_of_the_actor_carries_a_gradient_through_the_whole_chain() -> None:
    model = plain_sac(diffusion_steps=3)
    scatter_weights(model.policy)
    actions, log_prob = model.actor.action_log_prob(th.randn(5, 3))
    assert actions.shape == (5, 1)
    assert log_prob.shape in ((5,), (5, 1))
    assert actions.abs().max() <= 1.0
    for output in (actions, log_prob):
        # One row per step: the last is of the first step that was taken.
        (gradient,) = th.autograd.grad(output.sum(), model.actor.denoiser.step_table.weight, retain_graph=True)
        assert gradient.abs().amax(dim=1).min() > 0


def test_unchanged_sac_trains_the_diffusion_policy_on_several_environments() -> None:
    model = plain_sac(make_vec_env(StrictBoxEnv, 2), diffusion_steps=2).learn(20)
    assert model._n_updates == 6


def test_the_observation_space_of_a_subclass_is_kept(make_model: MakeModel) -> None:
    model = make_model(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]))
    assert model.policy.observation_space == model.observation_space
    assert model.policy.action_space == model.action_space == spaces.Box(np.float32([-3.0, 0.0]), np.float32([5.0, 0.5]))
