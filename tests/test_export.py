"""The exported policy acts as the model does, and needs nothing of it (docs/deployment.md)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import SMALL, SMALL_ON_POLICY, scatter_weights
from envs_for_tests import AnyObservationEnv, BatchNormDropoutExtractor, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.diffusion.mode import MAX_UNEXPLAINED_SHARE, unexplained_share
from sb3_diffusion.export import ExportError, export_onnx, export_torch
from sb3_diffusion.export.__main__ import algorithm_of, algorithms, main
from sb3_diffusion.export.policy import ExportablePolicy
from sb3_diffusion.export.verification import typical_observations, undecided

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parent.parent


def make(algorithm: Any, env: Any, policy: str = "MlpPolicy", scale: float = 0.3, **kwargs: Any) -> Any:
    small = SMALL_ON_POLICY if issubclass(algorithm, OnPolicyAlgorithm) else SMALL
    policy_kwargs = {"net_arch": [16]} | kwargs.pop("policy_kwargs", {})
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, **(small | kwargs))
    scatter_weights(model.policy, scale)
    return model


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(params=[*algorithms().values()], ids=[*algorithms()])
def any_algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("diffusion_steps, latent_frequencies", [(1, 0), (4, 0), (4, 3)])
def test_an_onnx_file_gives_predicts_actions_for_batches_of_any_size(
    any_algorithm: Any, diffusion_steps: int, latent_frequencies: int, tmp_path: Path
) -> None:
    env = StrictBoxEnv(low=[[-3.0, 0.0, 1.0], [-1.0, -1.0, 2.0]], high=[[5.0, 0.5, 1.5], [1.0, 9.0, 3.0]])
    model = make(
        any_algorithm, env, policy_kwargs=dict(diffusion_steps=diffusion_steps, latent_frequencies=latent_frequencies)
    )
    path = tmp_path / "policy.onnx"
    assert export_onnx(model, path) <= 1e-4
    file = session(path)
    for batch_size in (1, 3, 40):
        observations = np.random.default_rng(batch_size).uniform(-2, 2, (batch_size, 3)).astype(np.float32)
        (actions,) = file.run(["action"], {"observation": observations})
        assert actions.shape == (batch_size, 2, 3)
        assert np.allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-4)


def test_sampled_actions_are_predicts_for_the_same_noise(any_algorithm: Any, tmp_path: Path) -> None:
    model = make(any_algorithm, StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]))
    assert export_onnx(model, tmp_path / "sampled.onnx", deterministic=False, noise_input=True) <= 1e-4
    file = session(tmp_path / "sampled.onnx")
    assert [(given.name, given.shape[1:]) for given in file.get_inputs()] == [("observation", [3]), ("noise", [5, 2])]
    observations = np.zeros((6, 3), np.float32)
    th.manual_seed(5)
    expected = model.predict(observations)[0]
    th.manual_seed(5)
    noise = th.randn(5, 6, 2).transpose(0, 1).numpy()
    assert np.allclose(file.run(None, {"observation": observations, "noise": noise})[0], expected, atol=1e-4)


def test_noise_drawn_inside_gives_new_actions_with_the_distribution_of_predicts(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]), scale=0.1)
    export_onnx(model, tmp_path / "sampled", deterministic=False)
    file = session(tmp_path / "sampled.onnx")
    assert [given.name for given in file.get_inputs()] == ["observation"]
    observations = np.ones((4000, 3), np.float32)
    first, second = (file.run(None, {"observation": observations})[0] for _ in range(2))
    assert not np.allclose(first, second)
    assert len(np.unique(first[:, 0])) > 3900
    expected = model.predict(observations)[0]
    assert (np.abs(first.mean(axis=0) - expected.mean(axis=0)) < 5 * expected.std(axis=0) * (2 / 4000) ** 0.5).all()
    assert np.allclose(first.std(axis=0), expected.std(axis=0), rtol=0.1)


OBSERVATION_SPACES = {
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "matrix": spaces.Box(-2.0, 2.0, (2, 3), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,)),
    "integers": spaces.Box(-100, 100, (3,), np.int16),
}


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_any_observation_space_goes_in_as_the_environment_gives_it(name: str, tmp_path: Path) -> None:
    space = OBSERVATION_SPACES[name]
    model = make(DiffSAC, AnyObservationEnv(space))
    export_onnx(model, tmp_path / "policy.onnx")
    observations = np.stack([np.asarray(space.sample()) for _ in range(5)])
    (actions,) = session(tmp_path / "policy.onnx").run(None, {"observation": observations})
    assert np.allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-4)


def image_batch(space: Any, n: int) -> np.ndarray:
    return np.stack([space.sample() for _ in range(n)])


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_images_go_in_as_bytes_with_the_channels_where_the_environment_has_them(algorithm: Any, tmp_path: Path) -> None:
    for channels_last in (True, False):
        env = FakeImageEnv(screen_height=40, screen_width=36, n_channels=2, discrete=False, channel_first=not channels_last)
        model = make(algorithm, env, "CnnPolicy", scale=0.02)
        export_onnx(model, tmp_path / "policy.onnx")
        images = image_batch(env.observation_space, 3)
        assert images.dtype == np.uint8
        (actions,) = session(tmp_path / "policy.onnx").run(None, {"observation": images})
        assert np.allclose(actions, model.predict(images, deterministic=True)[0], atol=1e-4)


def test_of_a_model_without_environment_images_have_the_channels_last_unless_said_otherwise(tmp_path: Path) -> None:
    env = FakeImageEnv(screen_height=40, screen_width=36, n_channels=2, discrete=False)
    make(DiffSAC, env, "CnnPolicy", scale=0.02).save(tmp_path / "model")
    model = DiffSAC.load(tmp_path / "model", device="cpu")
    export_onnx(model, tmp_path / "policy.onnx")
    assert session(tmp_path / "policy.onnx").get_inputs()[0].shape[1:] == [40, 36, 2]
    export_onnx(model, tmp_path / "policy.onnx", channels_last=False)
    assert session(tmp_path / "policy.onnx").get_inputs()[0].shape[1:] == [2, 40, 36]


def test_dict_observations_are_inputs_by_their_keys(any_algorithm: Any, tmp_path: Path) -> None:
    env = SimpleMultiObsEnv(discrete_actions=False)
    model = make(any_algorithm, env, "MultiInputPolicy", scale=0.02)
    export_onnx(model, tmp_path / "policy.onnx")
    file = session(tmp_path / "policy.onnx")
    assert {given.name: tuple(given.shape[1:]) for given in file.get_inputs()} == {
        key: space.shape for key, space in env.observation_space.spaces.items()
    }
    singles = [env.observation_space.sample() for _ in range(4)]
    batch = {key: np.stack([single[key] for single in singles]) for key in singles[0]}
    assert np.allclose(file.run(None, batch)[0], model.predict(batch, deterministic=True)[0], atol=1e-4)


@pytest.mark.parametrize("keys", [None, ["vec"]])
def test_the_statistics_of_vec_normalize_become_part_of_the_policy(keys: list[str] | None, tmp_path: Path) -> None:
    space: spaces.Space = spaces.Box(-5.0, 500.0, (3,), np.float64)
    if keys:
        space = spaces.Dict({"vec": space, "other": spaces.Box(-1.0, 1.0, (2,)), "n": spaces.Discrete(3)})
    env = VecNormalize(DummyVecEnv([lambda: AnyObservationEnv(space)]), norm_obs_keys=keys, clip_obs=1.5)
    model = make(DiffSAC, env, "MultiInputPolicy" if keys else "MlpPolicy").learn(20)
    env.save(str(tmp_path / "vecnormalize.pkl"))
    export_onnx(model, tmp_path / "policy.onnx", vec_normalize=env)
    singles = [space.sample() for _ in range(30)]
    batch: Any = {key: np.stack([single[key] for single in singles]) for key in singles[0]} if keys else np.stack(singles)
    expected = model.predict(env.normalize_obs(batch), deterministic=True)[0]
    inputs = batch if keys else {"observation": batch}
    assert np.allclose(session(tmp_path / "policy.onnx").run(None, inputs)[0], expected, atol=1e-4)
    export_onnx(model, tmp_path / "from_file.onnx", vec_normalize=tmp_path / "vecnormalize.pkl")
    assert np.allclose(session(tmp_path / "from_file.onnx").run(None, inputs)[0], expected, atol=1e-4)


def test_actions_without_tanh_are_clipped_to_the_box(tmp_path: Path) -> None:
    env = StrictBoxEnv(low=[-0.3, 0.0], high=[0.5, 0.25], action_dtype=np.float64)
    model = make(DiffPPO, env, policy_kwargs=dict(squash_output=False))
    export_onnx(model, tmp_path / "policy.onnx", deterministic=False)
    (actions,) = session(tmp_path / "policy.onnx").run(None, {"observation": np.ones((500, 3), np.float32)})
    assert actions.dtype == np.float64
    assert (actions.min(axis=0) == [-0.3, 0.0]).all() and (actions.max(axis=0) == [0.5, 0.25]).all()


def searched(model: Any, observations: np.ndarray) -> np.ndarray:
    """For which observations the mode is searched among 64 chains."""
    actor = model.policy.actor
    features = actor.extract_features(th.as_tensor(observations), actor.features_extractor)
    ends = actor._ends(actor.denoiser.condition(features), actor.probe_noise)
    return (unexplained_share(ends, actor.probe_residual) > MAX_UNEXPLAINED_SHARE).numpy()


def test_a_mode_is_searched_in_the_file_where_the_model_searches_it(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(low=[-1.0] * 3, high=[1.0] * 3), scale=0.25)
    observations = np.random.default_rng(0).uniform(-3, 3, (200, 3)).astype(np.float32)
    needed = searched(model, observations)
    assert 20 < needed.sum() < 180
    export_onnx(model, tmp_path / "policy.onnx")
    file = session(tmp_path / "policy.onnx")
    for rows in (observations, observations[~needed], observations[needed], observations[needed][:1]):
        (actions,) = file.run(None, {"observation": rows})
        assert np.allclose(actions, model.predict(rows, deterministic=True)[0], atol=1e-4)
    graph = onnx.load(str(tmp_path / "policy.onnx")).graph
    assert [node.name for node in graph.node if node.op_type == "If"] == ["search"]
    assert not any(node.op_type == "TopK" for node in graph.node)


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]))
    export_onnx(model, tmp_path / "policy.onnx")
    facts = session(tmp_path / "policy.onnx").get_modelmeta().custom_metadata_map
    assert facts["library"] == "sb3_diffusion"
    assert facts["algorithm"] == "DiffSAC"
    assert json.loads(facts["deterministic"]) is True
    assert json.loads(facts["action_space"]) == dict(type="Box", shape=[2], dtype="float32", low=[-3.0, 0.0], high=[5.0, 0.5])
    assert json.loads(facts["observation_space"])["shape"] == [3]


class RandomExtractor(FlattenExtractor):
    """Features that depend on more than the observation."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) + float(np.random.rand())


@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_a_file_that_acts_differently_is_refused_and_an_earlier_one_stays(export: Callable, tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(), policy_kwargs=dict(features_extractor_class=RandomExtractor))
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ExportError, match="differ from predict's"):
        export(model, path)
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]


def test_only_rows_on_which_the_model_itself_is_undecided_may_differ(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(low=[-1.0] * 2, high=[1.0] * 2))
    policy = ExportablePolicy(model, deterministic=True)
    observations = typical_observations(policy, 8)
    with th.no_grad():
        actions = policy(th.as_tensor(observations["observation"])).numpy()
    assert undecided(policy, observations, actions, np.ones(2)) == 8
    assert undecided(policy, observations, actions + 0.1, np.ones(2)) == 0


def test_dropout_and_batch_norm_are_exported_as_in_evaluation_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(), policy_kwargs=dict(features_extractor_class=BatchNormDropoutExtractor)).learn(20)
    model.policy.set_training_mode(True)
    before = th.get_rng_state()
    export_onnx(model, tmp_path / "policy.onnx")
    assert th.equal(th.get_rng_state(), before)
    model.learn(4)


@pytest.mark.parametrize("deterministic, noise_input", [(True, False), (False, False), (False, True)])
def test_a_torch_program_gives_predicts_actions(deterministic: bool, noise_input: bool, tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]), scale=0.6)
    assert export_torch(model, tmp_path / "policy", deterministic=deterministic, noise_input=noise_input) <= 1e-4
    facts = {"metadata.json": ""}
    program = th.export.load(str(tmp_path / "policy.pt2"), extra_files=facts).module()
    assert json.loads(json.loads(facts["metadata.json"])["inputs"]) == ["observation"] + ["noise"] * noise_input
    if deterministic:
        observations = np.random.default_rng(0).uniform(-2, 2, (50, 3)).astype(np.float32)
        actions = program(th.as_tensor(observations)).numpy()
        assert np.allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-4)


def test_arguments_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    model = make(DiffSAC, StrictBoxEnv())
    with pytest.raises(ValueError, match="noise_input=True"):
        export_onnx(model, tmp_path / "policy.onnx", noise_input=True)
    with pytest.raises(TypeError, match="vec_normalize="):
        export_onnx(model, tmp_path / "policy.onnx", vec_normalize=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels_last="):
        export_onnx(model, tmp_path / "policy.onnx", channels_last="yes")  # type: ignore[arg-type]
    from stable_baselines3 import SAC

    with pytest.raises(TypeError, match="SAC has no diffusion policy"):
        export_onnx(SAC("MlpPolicy", StrictBoxEnv()), tmp_path / "policy.onnx")
    named = AnyObservationEnv(spaces.Dict({"noise": spaces.Box(-1.0, 1.0, (2,))}))
    with pytest.raises(ValueError, match="noise"):
        export_onnx(make(DiffSAC, named, "MultiInputPolicy"), tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_saved_model_by_what_its_file_says(
    any_algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = make(any_algorithm, StrictBoxEnv())
    model.save(tmp_path / "model.zip")
    assert algorithm_of(tmp_path / "model.zip") is any_algorithm
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "model.zip"), str(tmp_path / "policy.onnx")])
    main()
    assert any_algorithm.__name__ in capsys.readouterr().out
    observations = np.ones((2, 3), np.float32)
    (actions,) = session(tmp_path / "policy.onnx").run(None, {"observation": observations})
    assert np.allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-4)


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["policy.txt"], "must end in"),
        (["policy.onnx", "--noise-input"], "--sampled"),
        (["policy.onnx", "--vec-normalize", "none.pkl"], "none.pkl does not exist"),
    ],
)
def test_the_command_names_wrong_arguments_before_anything_starts(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "model.zip").touch()
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "model.zip"), *arguments])
    with pytest.raises(SystemExit):
        main()
    assert error in capsys.readouterr().err


WITHOUT_US = """
import sys
for name in ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "sb3_diffusion", "onnx"):
    sys.modules[name] = None  # importing it fails
import runpy
sys.argv = ["run_exported_policy.py", {path!r}, "--repeats", "3"]
runpy.run_path({example!r}, run_name="__main__")
"""


@pytest.mark.parametrize("options", [dict(), dict(deterministic=False), dict(deterministic=False, noise_input=True)])
def test_the_example_runs_a_file_with_numpy_and_onnxruntime_alone(options: dict[str, bool], tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    export_onnx(make(DiffSAC, StrictBoxEnv()), path, **options)
    script = WITHOUT_US.format(path=str(path), example=str(ROOT / "examples" / "run_exported_policy.py"))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "algorithm: DiffSAC" in run.stdout
    assert "action: [" in run.stdout


class AsDocumented(th.nn.Module):
    """The wrapper of Stable-Baselines3's documentation."""

    def __init__(self, policy: th.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: th.Tensor) -> Any:
        return self.policy(observation, deterministic=True)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exports_as_stable_baselines3_documents_them_keep_working(algorithm: Any, tmp_path: Path) -> None:
    model = make(algorithm, StrictBoxEnv(low=[-1.0] * 3, high=[1.0] * 3), scale=0.25)
    model.policy.set_training_mode(False)
    documented = AsDocumented(model.policy if algorithm is DiffPPO else model.policy.actor).eval()
    observations = np.random.default_rng(0).uniform(-3, 3, (200, 3)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    needed = searched(model, observations)
    assert needed.any() and not needed.all()

    example = th.as_tensor(observations[:5])
    axes = {"input": {0: "batch"}}
    path = str(tmp_path / "documented.onnx")
    th.onnx.export(documented, (example,), path, opset_version=17, input_names=["input"], dynamic_axes=axes, dynamo=False)
    traced = th.jit.freeze(th.jit.trace(documented, example))
    for rows in (observations, observations[~needed][:3], observations[needed][:1]):
        wanted = model.predict(rows, deterministic=True)[0]
        assert np.allclose(session(Path(path)).run(None, {"input": rows})[0], wanted, atol=1e-4)
        output = traced(th.as_tensor(rows))
        assert np.allclose((output[0] if algorithm is DiffPPO else output).numpy(), wanted, atol=1e-4)
    assert expected.shape == (200, 3)
