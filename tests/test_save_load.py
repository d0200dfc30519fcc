"""Saving, loading, copying: everything that training has changed survives, and nothing else does."""

import io
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from conftest import (
    ALGORITHMS,
    SMALL,
    coefficients,
    differing,
    flat_tensors,
    full_state,
    observations,
    scatter_weights,
    scheduled_optimizers,
)
from envs_for_tests import CountingExtractor, StrictBoxEnv
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO

MakeModel = Callable[..., Any]

# Every option away from its default, so that one that is forgotten in a file changes the predictions or the training.
UNUSUAL_POLICY: dict[str, Any] = dict(
    net_arch=dict(pi=[12, 8], qf=[10]),
    activation_fn=th.nn.Tanh,
    diffusion_steps=3,
    prior_std=0.7,
    kernel="euler",
    noise_schedule="geometric",
    beta_min=0.1,
    beta_max=0.6,
    learn_schedule=True,
    learn_variance=False,
    state_dependent_readout=False,
    latent_frequencies=2,
    n_critics=3,
    features_extractor_class=CountingExtractor,
    features_extractor_kwargs=dict(features_dim=7),
    share_features_extractor=True,
    optimizer_class=th.optim.AdamW,
    optimizer_kwargs=dict(weight_decay=0.01, eps=1e-5),
)


def predictions(predictor: Any, obs: np.ndarray) -> np.ndarray:
    """Deterministic and stochastic predictions, the latter from a fixed seed."""
    deterministic = predictor.predict(obs, deterministic=True)[0]
    th.manual_seed(5)
    return np.concatenate([deterministic, predictor.predict(obs)[0]])


def train_from_the_same_random_state(model: Any, gradient_steps: int = 5) -> dict[str, Any]:
    if getattr(model, "_logger", None) is None:
        model.set_logger(configure(None, [""]))
    model.set_random_seed(9)
    model.train(gradient_steps, 8)
    return full_state(model)


@pytest.fixture(params=[{}, UNUSUAL_POLICY, {"diffusion_steps": 1}], ids=["default", "unusual", "one step"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Any:
    return make_model(StrictBoxEnv([-3.0, 0.0], [5.0, 0.5]), policy_kwargs=request.param).learn(20)


@pytest.fixture
def files(model: Any, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    return tmp_path


def reload(model: Any, files: Path) -> Any:
    loaded = type(model).load(files / "model", env=DummyVecEnv([lambda: StrictBoxEnv([-3.0, 0.0], [5.0, 0.5])]))
    loaded.load_replay_buffer(files / "buffer")
    return loaded


# Whole models


def test_a_loaded_model_has_the_same_parameters_optimizers_and_predictions(model: Any, files: Path) -> None:
    loaded = reload(model, files)
    assert not differing(full_state(model), full_state(loaded))
    assert (loaded.num_timesteps, loaded._n_updates) == (20, 12)
    assert loaded.latents_per_state == model.latents_per_state
    obs = observations(model)
    assert np.array_equal(predictions(model, obs), predictions(loaded, obs))


def test_gradient_steps_after_a_load_equal_those_without_it(model: Any, files: Path) -> None:
    loaded = reload(model, files)
    start = full_state(model)
    uninterrupted = train_from_the_same_random_state(model)
    assert differing(start, uninterrupted)
    assert not differing(uninterrupted, train_from_the_same_random_state(loaded))


def test_learning_continued_after_a_load_equals_uninterrupted_learning(model: Any, files: Path) -> None:
    loaded = reload(model, files)
    for one in (model, loaded):
        # Both arms begin an episode and a random stream here; everything else must come from the file.
        one._last_obs = None
        one.set_random_seed(9)
        one.learn(15, reset_num_timesteps=False)
    assert not differing(full_state(model), full_state(loaded))
    assert np.array_equal(model.replay_buffer.observations, loaded.replay_buffer.observations)
    assert (model.num_timesteps, model._n_updates) == (loaded.num_timesteps, loaded._n_updates) == (35, 27)


OTHER_PROCESS = """
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch as th

th.set_num_threads(1)
from conftest import observations
from test_save_load import predictions, reload, train_from_the_same_random_state

import sb3_diffusion

files = Path(sys.argv[2])
model = getattr(sb3_diffusion, sys.argv[3]).load(files / "model")
loaded = reload(model, files)
before = predictions(loaded, observations(loaded))
th.save((before, train_from_the_same_random_state(loaded)), files / "result.pt")
"""


def test_another_process_predicts_and_trains_the_same(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(StrictBoxEnv([-3.0, 0.0], [5.0, 0.5])).learn(20)
    scatter_weights(model.policy)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    arguments = [str(Path(__file__).parent), str(tmp_path), type(model).__name__]
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, *arguments], check=True, timeout=120)
    predicted, trained = th.load(tmp_path / "result.pt", weights_only=False)
    assert np.array_equal(predicted, predictions(model, observations(model)))
    assert not differing(trained, train_from_the_same_random_state(model))


def test_a_model_can_be_loaded_without_an_environment_and_given_one_later(model: Any, files: Path) -> None:
    loaded = type(model).load(files / "model")
    obs = observations(model)
    assert np.array_equal(predictions(model, obs), predictions(loaded, obs))
    loaded.set_env(StrictBoxEnv([-3.0, 0.0], [5.0, 0.5]))
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded.num_timesteps == 32


def test_a_model_saves_to_any_kind_of_path_and_to_a_stream(trained: Any, tmp_path: Path) -> None:
    for path, expected in (
        (tmp_path / "plain", "plain.zip"),
        (str(tmp_path / "given.zip"), "given.zip"),
        (tmp_path / "run_v1.5", "run_v1.5"),
    ):
        trained.save(path)
        assert (tmp_path / expected).is_file()
        assert type(trained).load(path).num_timesteps == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.zip", "plain.zip", "run_v1.5"]
    stream = io.BytesIO()
    trained.save(stream)
    stream.seek(0)
    assert not differing(full_state(trained), full_state(type(trained).load(stream)))


@pytest.mark.filterwarnings("ignore:Path:UserWarning")
def test_a_missing_folder_is_created_and_a_folder_in_the_way_is_avoided(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "new" / "folder" / "model")
    assert type(trained).load(tmp_path / "new" / "folder" / "model.zip").num_timesteps == 20
    (tmp_path / "taken.zip").mkdir()
    trained.save(tmp_path / "taken.zip")
    assert type(trained).load(tmp_path / "taken.zip_2").num_timesteps == 20


def test_saving_through_a_symbolic_link_writes_its_target(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "target.zip").write_bytes(b"older")
    (tmp_path / "latest.zip").symlink_to("target.zip")
    trained.save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink()
    assert type(trained).load(tmp_path / "target").num_timesteps == 20


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_saving_again_keeps_the_permissions_of_a_file(trained: Any, tmp_path: Path, mode: int) -> None:
    for save, name in ((trained.save, "model.zip"), (trained.save_replay_buffer, "buffer.pkl")):
        save(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask()
        (tmp_path / name).chmod(mode)
        save(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_write_protected_file_is_not_replaced(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained.save(tmp_path / "model")
    earlier = (tmp_path / "model.zip").read_bytes()
    # As for another user than root, whom no permission stops
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"model\.zip"):
        trained.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == earlier


def test_a_hard_link_to_an_earlier_file_keeps_its_content(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    os.link(tmp_path / "model.zip", tmp_path / "backup.zip")
    earlier = (tmp_path / "backup.zip").read_bytes()
    trained.train(1, 8)
    trained.save(tmp_path / "model")
    assert (tmp_path / "backup.zip").read_bytes() == earlier != (tmp_path / "model.zip").read_bytes()


@pytest.mark.parametrize("name", ["a" * 251 + ".zip", "a." + "b" * 253])
def test_any_name_that_the_file_system_takes_can_be_saved_to(trained: Any, tmp_path: Path, name: str) -> None:
    trained.save(tmp_path / name)
    assert type(trained).load(tmp_path / name).num_timesteps == 20
    trained.save_replay_buffer(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_saving_and_loading_need_no_warning(trained: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trained.save(tmp_path / "model")
    type(trained).load(tmp_path / "model", env=trained.env)
    assert not [str(warning.message) for warning in recwarn.list]


def test_the_file_holds_networks_and_optimizers_only_as_state_dicts(model: Any, files: Path) -> None:
    data, parameters, tensors = load_from_zip_file(files / "model")
    assert set(parameters) == set(model.get_parameters())
    assert set(tensors or {}) == set(coefficients(model))
    heavy = [key for key, value in data.items() if isinstance(value, (th.nn.Module, th.Tensor, th.optim.Optimizer))]
    assert not heavy


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def test_a_failed_save_leaves_the_earlier_file_intact(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trained.custom_attribute = Unpicklable()
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        trained.save(tmp_path / "model")
    del trained.custom_attribute

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(th, "save", full_disk)
        with pytest.raises(OSError, match="no space left"):
            trained.save(tmp_path / "model")
    trained.replay_buffer.custom_attribute = Unpicklable()
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        trained.save_replay_buffer(tmp_path / "buffer")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


def test_custom_objects_replace_what_the_file_holds(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(learning_rate=lambda remaining: 1e-3 * remaining).learn(12)
    model.save(tmp_path / "model")
    custom_objects = dict(learning_rate=2e-5, lr_schedule=lambda _: 2e-5, gamma=0.5)
    loaded = type(model).load(tmp_path / "model", env=model.env, custom_objects=custom_objects)
    assert (loaded.learning_rate, loaded.gamma) == (2e-5, 0.5)
    loaded.learn(4, reset_num_timesteps=False)
    loaded.train(1, 4)
    rates = {group["lr"] for optimizer in scheduled_optimizers(loaded) for group in optimizer.param_groups}
    assert rates == {2e-5}


def test_keyword_arguments_of_load_replace_what_the_file_holds(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model().learn(12)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.env, latents_per_state=3, batch_size=4, seed=1)
    assert (loaded.latents_per_state, loaded.batch_size, loaded.seed) == (3, 4, 1)
    loaded.learn(10, reset_num_timesteps=False)


def test_vec_normalize_and_several_environments_survive_saving(make_model: MakeModel, tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env(StrictBoxEnv, 2))
    model = make_model(env, gradient_steps=-1).learn(20)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    env = VecNormalize.load(str(tmp_path / "normalize.pkl"), make_vec_env(StrictBoxEnv, 2))
    loaded = type(model).load(tmp_path / "model", env=env)
    assert loaded.get_vec_normalize_env() is env
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 44


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_image_and_dict_models_survive_saving(make_model: MakeModel, tmp_path: Path, policy: str) -> None:
    image_env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    env = image_env if policy == "CnnPolicy" else SimpleMultiObsEnv(discrete_actions=False)
    model = make_model(env, policy, buffer_size=10)
    scatter_weights(model.policy, scale=0.02)
    obs = env.observation_space.sample()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env)
    assert np.array_equal(predictions(model, obs), predictions(loaded, obs))
    type(model.policy).load(save_policy(model.policy, tmp_path))
    assert np.array_equal(predictions(model, obs), predictions(type(model.policy).load(tmp_path / "policy"), obs))


# Parameters


def save_policy(policy: Any, folder: Path) -> Path:
    policy.save(folder / "policy")
    return folder / "policy"


def test_parameters_have_exactly_the_documented_names(algorithm: type[BaseAlgorithm], make_model: MakeModel) -> None:
    names = {"policy", "actor.optimizer", "critic.optimizer"}
    names |= {"kl_coef_optimizer"} if issubclass(algorithm, DiffWPO) else set()
    assert set(make_model().get_parameters()) == names | {"diffusion_value.optimizer", "ent_coef_optimizer"}
    assert set(make_model(ent_coef=0.2).get_parameters()) == names | {"diffusion_value.optimizer"}
    assert set(make_model(policy_kwargs=dict(diffusion_steps=1)).get_parameters()) == names | {"ent_coef_optimizer"}


def test_set_parameters_restores_a_model_exactly(model: Any) -> None:
    saved = deepcopy(model.get_parameters())
    model.train(3, 8)
    assert differing(flat_tensors(saved), flat_tensors(model.get_parameters()))
    model.set_parameters(saved)
    assert not differing(flat_tensors(saved), flat_tensors(model.get_parameters()))


def test_set_parameters_reads_them_from_a_file(model: Any, files: Path) -> None:
    before = flat_tensors(model.get_parameters())
    model.train(3, 8)
    model.set_parameters(files / "model")
    assert not differing(before, flat_tensors(model.get_parameters()))


def test_set_parameters_refuses_unknown_and_missing_names(trained: Any) -> None:
    parameters = trained.get_parameters()
    with pytest.raises(ValueError):
        trained.set_parameters({**parameters, "unknown": {}})
    for name in parameters:
        missing = {other: state for other, state in parameters.items() if other != name}
        with pytest.raises(ValueError):
            trained.set_parameters(missing)
        trained.set_parameters(missing, exact_match=False)


def test_uniform_noise_in_every_weight_gives_finite_predictions_that_survive_saving(model: Any, tmp_path: Path) -> None:
    # SB3's own tests do this, so schedule constants must not be in the state dict, nor integers, which rand_like refuses.
    noisy = {}
    for name, state in model.get_parameters().items():
        if "optim" in name:
            noisy[name] = state
        else:
            noisy[name] = {key: th.rand_like(tensor) for key, tensor in state.items()}
    model.set_parameters(noisy)
    obs = observations(model)
    expected = predictions(model, obs)
    assert np.isfinite(expected).all()
    model.save(tmp_path / "model")
    assert np.array_equal(predictions(type(model).load(tmp_path / "model"), obs), expected)
    policy = type(model.policy).load(save_policy(model.policy, tmp_path))
    assert np.array_equal(predictions(policy, obs), expected)


# Policies and actors alone


def test_policy_and_actor_files_predict_the_same(model: Any, tmp_path: Path) -> None:
    scatter_weights(model.policy)
    obs = observations(model)
    expected = predictions(model, obs)
    model.policy.save(tmp_path / "policy")
    model.actor.save(tmp_path / "actor")
    for alone in (type(model.policy).load(tmp_path / "policy"), type(model.actor).load(tmp_path / "actor")):
        assert np.array_equal(predictions(alone, obs), expected)


def test_a_loaded_policy_is_built_as_the_saved_one(model: Any, tmp_path: Path) -> None:
    loaded = type(model.policy).load(save_policy(model.policy, tmp_path))
    assert not differing(flat_tensors(model.policy.state_dict()), flat_tensors(loaded.state_dict()))
    assert str(loaded) == str(model.policy)
    assert loaded.share_features_extractor == model.policy.share_features_extractor
    assert loaded.optimizer_class is model.policy.optimizer_class
    assert loaded.optimizer_kwargs == model.policy.optimizer_kwargs


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_policy_survives_pickling(model: Any, pickler: Any) -> None:
    scatter_weights(model.policy)
    obs = observations(model)
    copy = pickle.loads(pickler.dumps(model.policy))
    assert np.array_equal(predictions(copy, obs), predictions(model, obs))


def test_a_copied_policy_is_independent_of_the_original(model: Any) -> None:
    copy = deepcopy(model.policy)
    obs = observations(model)
    expected = predictions(model, obs)
    assert np.array_equal(predictions(copy, obs), expected)
    scatter_weights(copy)
    assert not np.array_equal(predictions(copy, obs), expected)
    assert np.array_equal(predictions(model, obs), expected)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_actor_can_be_traced_for_deployment(make_model: MakeModel, tmp_path: Path, deterministic: bool) -> None:
    """SB3's documented export; a trace at one observation serves any number of them."""
    actor = make_model().learn(12).actor

    class Exported(th.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor = actor

        def forward(self, obs: th.Tensor) -> th.Tensor:
            return self.actor(obs, deterministic)

    obs = th.randn(5, *actor.observation_space.shape)
    # Two traces of a sampled action differ by their random numbers.
    traced = th.jit.trace(Exported().eval(), obs[:1], check_trace=deterministic)
    th.jit.save(traced, tmp_path / "actor.pt")
    loaded = th.jit.load(tmp_path / "actor.pt")
    outputs = []
    for function in (actor, loaded):
        th.manual_seed(1)
        outputs.append(function(obs, deterministic) if function is actor else function(obs))
    th.testing.assert_close(*outputs)


# Files that are not what they should be


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, DiffPPO])
def test_weights_of_another_number_of_diffusion_steps_are_refused_in_one_sentence(algorithm: Any, tmp_path: Path) -> None:
    saved, other = (
        algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=dict(diffusion_steps=steps), device="cpu") for steps in (8, 4)
    )
    saved.save(tmp_path / "model")
    for load in (
        lambda: other.set_parameters(tmp_path / "model"),
        lambda: other.set_parameters(saved.get_parameters()),
        lambda: other.policy.load_state_dict(saved.policy.state_dict()),
        lambda: other.policy.actor.load_state_dict(saved.policy.actor.state_dict()),
    ):
        with pytest.raises(
            ValueError, match=r"^These are weights of a policy with diffusion_steps=8; this one has .*=4"
        ) as info:
            load()
        assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, DiffPPO])
@pytest.mark.parametrize(
    ("there", "here"),
    [
        (dict(noise_schedule="cosine"), {}),
        (dict(noise_schedule=[0.05, 0.1, 0.15, 0.3]), dict(noise_schedule="linear")),
        (dict(prior_std=0.5), dict(prior_std=1.0)),
        (dict(kernel="euler"), dict(kernel="vp")),
        (dict(prior_std=0.5, learn_schedule=True), dict(prior_std=1.0, learn_schedule=True)),
    ],
)
def test_weights_trained_with_another_schedule_are_refused_by_its_name(algorithm: Any, there: Any, here: Any) -> None:
    saved, other = (algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=kwargs, device="cpu") for kwargs in (there, here))
    name = next(iter(there))
    with pytest.raises(ValueError, match=f"trained with {name}=.*, and would act differently with {name}="):
        other.set_parameters(saved.get_parameters())
    other.policy.load_state_dict(saved.policy.state_dict(), strict=False)
    assert all(isinstance(value, th.Tensor) and value.is_floating_point() for value in saved.policy.state_dict().values())


def test_schedules_that_are_the_same_by_another_name_share_weights(make_model: MakeModel) -> None:
    saved = make_model(policy_kwargs=dict(noise_schedule="linear", beta_min=0.1, beta_max=0.4))
    make_model(policy_kwargs=dict(noise_schedule=[0.1, 0.2, 0.3, 0.4])).set_parameters(saved.get_parameters())


def test_weights_without_a_word_on_their_schedule_load_as_before(make_model: MakeModel, tmp_path: Path) -> None:
    saved, other = make_model(policy_kwargs=dict(noise_schedule="cosine")), make_model()
    other.policy.load_state_dict(dict(saved.policy.state_dict()))
    state = saved.policy.state_dict()
    for said in state._metadata.values():
        for name in set(said) - {"version"}:
            del said[name]
    th.save(state, tmp_path / "older.pth")
    other.policy.load_state_dict(th.load(tmp_path / "older.pth", weights_only=True))


def damage(path: Path, kind: str) -> bytes:
    """Write a damaged version of a file in its place; returns the sound one."""
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a model")
    elif kind == "flipped":
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(flipped))
    return content


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, DiffPPO])
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_file_is_refused_by_its_name_and_leaves_the_model_as_it_is(
    algorithm: Any, kind: str, tmp_path: Path
) -> None:
    model = algorithm("MlpPolicy", StrictBoxEnv(), device="cpu")
    model.save(tmp_path / "model.zip")
    damage(tmp_path / "model.zip", kind)
    before = full_state(model)
    for load in (algorithm.load, model.set_parameters):
        with pytest.raises(ValueError, match=r"model\.zip.*(is damaged|holds no model)"):
            load(tmp_path / "model.zip")
    assert not differing(before, full_state(model))


def test_no_flipped_byte_of_a_file_goes_unnoticed(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(policy_kwargs=dict(net_arch=[4]))
    model.save(tmp_path / "model.zip")
    content = (tmp_path / "model.zip").read_bytes()
    expected = full_state(model)
    for position in np.random.default_rng(0).integers(len(content), size=60):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        (tmp_path / "model.zip").write_bytes(bytes(flipped))
        try:
            # What zip files say twice, or for nobody, may differ.
            assert not differing(expected, full_state(type(model).load(tmp_path / "model.zip")))
        except ValueError as error:
            assert "model.zip" in str(error)


def test_a_zip_file_without_a_model_is_refused_by_the_name_of_what_is_missing(algorithm: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"other\.zip holds no model of Stable-Baselines3: it has no member 'data'"):
        algorithm.load(tmp_path / "other.zip")


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_replay_buffer_is_refused_by_its_name_and_the_earlier_one_stays(
    trained: Any, kind: str, tmp_path: Path
) -> None:
    trained.save_replay_buffer(tmp_path / "buffer.pkl")
    damage(tmp_path / "buffer.pkl", kind)
    earlier = trained.replay_buffer
    for path in (tmp_path / "buffer.pkl", tmp_path / "buffer"):
        with pytest.raises(ValueError, match=r"buffer.* is damaged"):
            trained.load_replay_buffer(path)
    assert trained.replay_buffer is earlier


def test_no_flipped_byte_of_a_replay_buffer_goes_unnoticed(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(buffer_size=20).learn(20)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    content = (tmp_path / "buffer.pkl").read_bytes()
    for position in np.random.default_rng(0).integers(len(content) - 25, size=60):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        (tmp_path / "buffer.pkl").write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=r"buffer\.pkl is damaged"):
            model.load_replay_buffer(tmp_path / "buffer.pkl")


def test_replay_buffers_move_between_stable_baselines3_and_this_library(tmp_path: Path) -> None:
    ours, theirs = (kind("MlpPolicy", StrictBoxEnv(), **SMALL).learn(20) for kind in (DiffSAC, SAC))
    for saving, loading in ((ours, theirs), (theirs, ours)):
        saving.save_replay_buffer(tmp_path / "buffer.pkl")
        loading.load_replay_buffer(tmp_path / "buffer.pkl")
        assert np.array_equal(saving.replay_buffer.observations, loading.replay_buffer.observations)


def test_a_replay_buffer_may_be_loaded_in_the_place_of_a_deleted_one(trained: Any, tmp_path: Path) -> None:
    trained.save_replay_buffer(tmp_path / "buffer.pkl")
    del trained.replay_buffer
    trained.load_replay_buffer(tmp_path / "buffer.pkl")
    assert trained.replay_buffer.size() == 20


def test_a_replay_buffer_of_another_environment_is_refused(trained: Any, make_model: MakeModel, tmp_path: Path) -> None:
    make_model(StrictBoxEnv()).learn(12).save_replay_buffer(tmp_path / "other.pkl")
    earlier = trained.replay_buffer
    with pytest.raises(ValueError, match=r"other\.pkl holds a replay buffer of other observations or actions"):
        trained.load_replay_buffer(tmp_path / "other.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"list\.pkl holds no replay buffer, but a list"):
        trained.load_replay_buffer(tmp_path / "list.pkl")
    assert trained.replay_buffer is earlier
