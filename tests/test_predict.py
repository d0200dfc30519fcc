"""Predictions: what deterministic and stochastic ones depend on."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import differing, flat_tensors, observations, scatter_weights
from envs_for_tests import BatchNormDropoutExtractor, StrictBoxEnv
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_diffusion import DiffPPO

MakeModel = Callable[..., Any]


def test_deterministic_predictions_do_not_depend_on_random_numbers(scattered: Any) -> None:
    obs = observations(scattered)
    predictions = []
    for seed in range(5):
        th.manual_seed(seed)
        np.random.seed(seed)
        predictions.append(scattered.predict(obs, deterministic=True)[0])
    assert all(np.array_equal(prediction, predictions[0]) for prediction in predictions)


@pytest.mark.parametrize("deterministic, moves", [(True, False), (False, True)])
def test_only_stochastic_predictions_advance_the_torch_generator(scattered: Any, deterministic: bool, moves: bool) -> None:
    obs = observations(scattered)
    th.manual_seed(123)
    before = th.get_rng_state(), np.random.get_state(), random.getstate()
    scattered.predict(obs, deterministic=deterministic)
    assert th.equal(th.get_rng_state(), before[0]) != moves
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate() == before[2]


def test_deterministic_predictions_do_not_depend_on_the_rest_of_the_batch(scattered: Any) -> None:
    obs = observations(scattered, 16)
    together = scattered.predict(obs, deterministic=True)[0]
    order = np.random.default_rng(0).permutation(16)
    assert np.allclose(scattered.predict(obs[order], deterministic=True)[0], together[order], atol=1e-5)
    assert np.allclose(scattered.predict(obs[5:8], deterministic=True)[0], together[5:8], atol=1e-5)
    one_by_one = np.stack([scattered.predict(one, deterministic=True)[0] for one in obs])
    assert np.allclose(one_by_one, together, atol=1e-5)
    repeated = scattered.predict(np.repeat(obs[:1], 6, axis=0), deterministic=True)[0]
    assert np.allclose(repeated, repeated[:1], atol=1e-6)


def test_deterministic_predictions_depend_on_the_observation(scattered: Any) -> None:
    predicted = scattered.predict(observations(scattered, 16), deterministic=True)[0]
    assert predicted.std(axis=0).min() > 1e-3


def test_one_observation_gives_one_action_and_a_batch_gives_a_batch(make_model: MakeModel) -> None:
    model = make_model(StrictBoxEnv(low=-np.ones((2, 3)), high=np.ones((2, 3))))
    obs = observations(model, 4)
    for deterministic in (True, False):
        assert model.predict(obs[0], deterministic=deterministic)[0].shape == (2, 3)
        assert model.predict(obs[:1], deterministic=deterministic)[0].shape == (1, 2, 3)
        assert model.predict(obs, deterministic=deterministic)[0].shape == (4, 2, 3)


def test_stochastic_predictions_differ_from_call_to_call_and_within_a_batch(scattered: Any) -> None:
    obs = observations(scattered)
    assert not np.allclose(scattered.predict(obs)[0], scattered.predict(obs)[0])
    same = scattered.predict(np.repeat(obs[:1], 8, axis=0))[0]
    assert len(np.unique(same, axis=0)) == 8


def test_stochastic_predictions_repeat_after_seeding_torch(scattered: Any) -> None:
    obs = observations(scattered)
    drawn = []
    for _ in range(2):
        th.manual_seed(11)
        drawn.append(scattered.predict(obs)[0])
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("diffusion_steps", [1, 3])
@pytest.mark.parametrize("deterministic", [True, False])
def test_model_policy_and_actor_predict_the_same(make_model: MakeModel, diffusion_steps: int, deterministic: bool) -> None:
    model = make_model(policy_kwargs=dict(diffusion_steps=diffusion_steps))
    scatter_weights(model.policy)
    obs = observations(model)
    predictions = []
    for predictor in (model, model.policy, model.actor):
        th.manual_seed(2)
        predictions.append(predictor.predict(obs, deterministic=deterministic)[0])
    assert all(np.array_equal(prediction, predictions[0]) for prediction in predictions)


def test_calling_the_actor_gives_actions_scaled_to_minus_one_and_one(scattered: Any) -> None:
    obs = th.as_tensor(observations(scattered, 64))
    for deterministic in (True, False):
        with th.no_grad():
            actions = scattered.actor(obs, deterministic=deterministic)
        assert actions.shape == (64, 2)
        assert actions.abs().max() <= 1.0
    scaled = scattered.actor(obs, deterministic=True).detach().numpy()
    predicted = scattered.predict(obs.numpy(), deterministic=True)[0]
    assert np.allclose(scattered.policy.unscale_action(scaled), predicted, atol=1e-5)


def test_prediction_leaves_the_policy_in_evaluation_mode_and_unchanged(make_model: MakeModel) -> None:
    model = make_model(policy_kwargs=dict(features_extractor_class=BatchNormDropoutExtractor)).learn(12)
    before = flat_tensors(model.get_parameters())
    model.policy.set_training_mode(True)
    for deterministic in (True, False):
        model.predict(observations(model), deterministic=deterministic)
    assert not model.actor.training
    assert not differing(before, flat_tensors(model.get_parameters()))


def test_dropout_and_batch_norm_do_not_make_deterministic_predictions_random(make_model: MakeModel) -> None:
    policy_kwargs = dict(features_extractor_class=BatchNormDropoutExtractor, net_arch=[16, 16])
    model = make_model(policy_kwargs=policy_kwargs).learn(14)
    obs = observations(model)
    predictions = [model.predict(obs, deterministic=True)[0] for _ in range(5)]
    assert all(np.array_equal(prediction, predictions[0]) for prediction in predictions)
    assert np.allclose(model.predict(obs[0], deterministic=True)[0], predictions[0][0], atol=1e-5)
    model.train(2, 8)
    assert not np.array_equal(model.predict(obs, deterministic=True)[0], predictions[0])


def test_images_and_dict_observations_predict_batched_as_alone(make_model: MakeModel) -> None:
    image_env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    dict_env = SimpleMultiObsEnv(discrete_actions=False)
    for env, policy in ((image_env, "CnnPolicy"), (dict_env, "MultiInputPolicy")):
        model = make_model(env, policy, buffer_size=2)
        scatter_weights(model.policy, scale=0.02)
        singles = [env.observation_space.sample() for _ in range(3)]
        if isinstance(singles[0], dict):
            batch: Any = {key: np.stack([single[key] for single in singles]) for key in singles[0]}
        else:
            batch = np.stack(singles)
        alone = np.stack([model.predict(single, deterministic=True)[0] for single in singles])
        assert np.allclose(model.predict(batch, deterministic=True)[0], alone, atol=1e-4)


def test_predictions_stay_finite_and_inside_for_extreme_weights_and_observations(make_model: MakeModel) -> None:
    model = make_model(policy_kwargs=dict(diffusion_steps=8))
    obs = observations(model)
    for scale in (10.0, 1e4):
        scatter_weights(model.policy, scale=scale)
        for magnitude in (0.0, 1.0, 1e3):
            for deterministic in (True, False):
                actions, _ = model.predict((magnitude * obs).astype(np.float32), deterministic=deterministic)
                assert np.isfinite(actions).all()
                assert all(model.action_space.contains(action) for action in actions)


def test_an_observation_of_the_wrong_shape_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="observation shape"):
        make_model().predict(np.zeros(5, np.float32))


class RememberingExtractor(FlattenExtractor):
    """Keeps a tensor from its first call, which is a prediction, for its training."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = super().forward(observations)
        if not hasattr(self, "scale"):
            self.scale = th.full_like(features[:1], 2.0)
            self.weight = th.nn.Parameter(th.ones_like(self.scale))
        return self.weight * self.scale * features


def denoising_modes(policy: Any, function: Callable[[], th.Tensor]) -> tuple[th.Tensor, set[bool]]:
    """The result of a function, and whether the denoiser ran in inference mode."""
    modes = set()
    hook = policy.actor.denoiser.body.register_forward_hook(lambda *_: modes.add(th.is_inference_mode_enabled()))
    result = function()
    hook.remove()
    return result, modes


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_chains_without_gradients_run_in_inference_mode(make_model: MakeModel, deterministic: bool) -> None:
    model = make_model(policy_kwargs=dict(features_extractor_class=RememberingExtractor))
    scatter_weights(model.policy)
    obs = th.as_tensor(observations(model))
    with th.no_grad():
        actions, modes = denoising_modes(model.policy, lambda: model.actor(obs, deterministic))
    assert modes == {True}
    assert not actions.is_inference()
    _, modes = denoising_modes(model.policy, lambda: model.predict(observations(model), deterministic=deterministic))
    assert modes == {True}
    actions, modes = denoising_modes(model.policy, lambda: model.actor(obs, deterministic))
    assert modes == {False}
    actions.sum().backward()
    assert not model.actor.features_extractor.scale.is_inference()


def test_the_chains_of_a_rollout_are_sampled_in_inference_mode_and_can_be_trained_on() -> None:
    policy = DiffPPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8).policy
    obs = th.randn(4, 3)
    with th.no_grad():
        (_, _, record), modes = denoising_modes(policy, lambda: policy(obs))
    assert modes == {True}
    policy.evaluate_actions(obs, record.chains)[1].sum().backward()
