"""An argument out of range is refused before training, with its name and the given value."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import ALGORITHMS, SMALL, arguments_of
from envs_for_tests import AnyActionEnv, StrictBoxEnv
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.sac.policies import SACPolicy

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionActorCriticPolicy, DiffusionSACPolicy, DiffWPO

MakeModel = Callable[..., Any]
NAN, INF = float("nan"), float("inf")


def refused(name: str, value: Any) -> Any:
    """The error must carry the argument's name and its value."""
    shown = rf"(?<![\w.]){re.escape(str(value))}(?![\w.])"
    return pytest.raises(ValueError, match=rf"(?s){name}.*{shown}|{shown}.*{name}")


BAD_POLICY_ARGUMENTS = [
    *(("diffusion_steps", value) for value in (0, -1, 2.5, NAN, INF, "4", None)),
    *(("n_critics", value) for value in (0, -1)),
    *(("prior_std", value) for value in (0, 0.0, -1.0, NAN, INF, "wide")),
    *(("kernel", value) for value in ("ddpm", "", None, 1)),
    *(("noise_schedule", value) for value in ("quadratic", "", None, 3, ["a", "b", "c", "d"])),
    *(("noise_schedule", [0.1, 0.2, bad, 0.3]) for bad in (0.0, 1.0, -0.1, 1.5, NAN, INF, 1e-50, 9e-9)),
    *(("beta_min", value) for value in (0.0, 1.0, -0.1, 1.5, NAN, INF, "small")),
    *(("beta_max", value) for value in (0.0, 1.0, -0.1, 1.5, NAN, -INF)),
    *((name, value) for name in ("learn_schedule", "learn_variance", "state_dependent_readout") for value in ("no", None)),
    *(("latent_frequencies", value) for value in (-1, 17, 2.5, NAN, "4", None)),
    *(("share_features_extractor", value) for value in ("no", None)),
    *(("net_arch", value) for value in ([0], [-3], [16, 2.5], 16, "16", {"pi": [0], "qf": [16]}, {"pi": 16, "qf": [16]})),
    ("activation_fn", "relu"),
    ("features_extractor_class", "cnn"),
    ("optimizer_class", "adam"),
    *((name, [1]) for name in ("features_extractor_kwargs", "optimizer_kwargs")),
    ("normalize_images", "no"),
]


@pytest.mark.parametrize("name, value", BAD_POLICY_ARGUMENTS)
def test_a_policy_argument_out_of_range_is_refused(make_model: MakeModel, name: str, value: Any) -> None:
    with refused(name, value):
        make_model(policy_kwargs={"diffusion_steps": 4, name: value})


@pytest.mark.parametrize("name, value", BAD_POLICY_ARGUMENTS[::5])
def test_unchanged_sac_refuses_them_too(name: str, value: Any) -> None:
    with refused(name, value):
        SAC(DiffusionSACPolicy, StrictBoxEnv(), policy_kwargs={name: value}, **SMALL)


@pytest.mark.parametrize("value", ["yes", None, 2])
def test_torch_compile_is_true_or_false(make_model: MakeModel, value: Any) -> None:
    with refused("torch_compile", value):
        make_model(torch_compile=value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", ["yes", None, 2])
def test_bfloat16_chains_is_true_or_false(algorithm: Any, value: Any) -> None:
    with refused("bfloat16_chains", value):
        algorithm("MlpPolicy", StrictBoxEnv(), bfloat16_chains=value, **SMALL)


@pytest.mark.parametrize("betas", [[0.1, 0.2, 0.3], [0.1] * 5, []], ids=len)
def test_as_many_betas_as_diffusion_steps_are_required(make_model: MakeModel, betas: list[float]) -> None:
    with refused("noise_schedule", betas):
        make_model(policy_kwargs=dict(diffusion_steps=4, noise_schedule=betas))


@pytest.mark.parametrize("value", [0, -1, 5, 1.5, NAN, INF, "2", None])
def test_latents_per_state_lie_between_one_and_the_diffusion_steps(make_model: MakeModel, value: Any) -> None:
    with refused("latents_per_state", value):
        make_model(latents_per_state=value, policy_kwargs=dict(diffusion_steps=4))


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", NAN),
        ("learning_rate", INF),
        ("learning_rate", -1e-3),
        ("tau", NAN),
        ("tau", -0.1),
        ("tau", 1.5),
        ("gamma", NAN),
        ("gamma", -0.1),
        ("gamma", 1.5),
        ("ent_coef", NAN),
        ("ent_coef", INF),
        ("ent_coef", -0.5),
        ("ent_coef", "banana"),
        ("ent_coef", "auto_-1"),
        ("ent_coef", "auto_0"),
        ("ent_coef", "auto_nan"),
        ("ent_coef", "auto_inf"),
        ("ent_coef", "auto_x"),
        ("target_entropy", NAN),
        ("target_entropy", INF),
        ("target_entropy", "banana"),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("learning_starts", -1),
        ("train_freq", 0),
        ("buffer_size", 0),
        ("replay_buffer_class", 3),
        ("replay_buffer_class", dict),
        ("replay_buffer_kwargs", [1]),
        ("n_steps", 0),
        ("target_update_interval", 0),
        ("policy_delay", 0),
        ("policy_delay", 1.5),
        ("own_states", 1.5),
        ("own_states", "all"),
        ("top_quantiles_to_drop_per_net", -1),
        ("top_quantiles_to_drop_per_net", 25),
        ("train_freq", (1,)),
        ("train_freq", ()),
        ("action_noise", 0.1),
        ("stats_window_size", -1),
        ("stats_window_size", 0),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", 2**32),
    ],
)
def test_an_algorithm_argument_out_of_range_is_refused(make_model: MakeModel, algorithm: Any, name: str, value: Any) -> None:
    if not arguments_of(algorithm, **{name: value}):
        pytest.skip(f"{algorithm.__name__} has no {name}")
    with refused(name, value):
        make_model(**{name: value})


@pytest.mark.parametrize("value", [[1], "net_arch"])
def test_policy_kwargs_are_a_dictionary(value: Any) -> None:
    for algorithm in [*ALGORITHMS, DiffPPO]:
        with refused("policy_kwargs", value):
            algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=value)


@pytest.mark.parametrize("noise_schedule", ["cosine", [0.1, 0.2]])
def test_a_bad_beta_is_refused_also_where_the_schedule_has_no_use_for_it(make_model: MakeModel, noise_schedule: Any) -> None:
    with refused("beta_min", 5):
        make_model(policy_kwargs=dict(diffusion_steps=2, noise_schedule=noise_schedule, beta_min=5))


def test_gsde_is_refused_with_a_clear_message(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"use_sde=True.*gSDE"):
        make_model(use_sde=True)
    with pytest.raises(ValueError, match=r"use_sde=True.*gSDE"):
        make_model(policy_kwargs=dict(use_sde=True))
    with pytest.raises(ValueError, match=r"use_sde=True.*gSDE"):
        DiffusionSACPolicy(StrictBoxEnv().observation_space, StrictBoxEnv().action_space, lambda _: 1e-3, use_sde=True)
    with pytest.raises(ValueError, match=r"use_sde=True.*gSDE"):
        SAC(DiffusionSACPolicy, StrictBoxEnv(), use_sde=True, **SMALL)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(2),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.float32([-1.0, -np.inf]), np.float32([1.0, 1.0])),
        spaces.Dict({"part": spaces.Box(-1.0, 1.0, (1,))}),
    ],
    ids=str,
)
def test_an_action_space_that_is_not_a_bounded_box_is_refused(make_model: MakeModel, action_space: spaces.Space) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"(?i)action space"):
        make_model(AnyActionEnv(action_space))


def test_an_unknown_policy_or_argument_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="LstmPolicy"):
        make_model(policy="LstmPolicy")
    with pytest.raises(TypeError, match="difusion_steps"):
        make_model(policy_kwargs=dict(difusion_steps=3))
    with pytest.raises(TypeError, match="latents"):
        make_model(latents=3)


def test_arguments_given_to_load_are_checked_too(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(policy_kwargs=dict(diffusion_steps=3))
    model.save(tmp_path / "model")
    with refused("latents_per_state", 4):
        type(model).load(tmp_path / "model", latents_per_state=4)
    with refused("use_sde", True):
        type(model).load(tmp_path / "model", use_sde=True)


def test_the_values_at_the_edge_of_the_ranges_are_accepted(make_model: MakeModel, algorithm: Any) -> None:
    policy_kwargs = dict(diffusion_steps=2, prior_std=1e-3, beta_min=1e-6, beta_max=1 - 1e-6)
    model = make_model(
        latents_per_state=2,
        gamma=0.0,
        ent_coef=0.0,
        own_states=0,
        policy_kwargs=policy_kwargs,
        **arguments_of(algorithm, tau=1.0),
    )
    assert model.learn(10)._n_updates == 2
    kwargs = arguments_of(algorithm, tau=0.0, top_quantiles_to_drop_per_net=24)
    assert make_model(gamma=1.0, target_entropy=2.0, learning_rate=0.0, own_states=1, **kwargs).learn(10)._n_updates == 2
    assert make_model(policy_kwargs=dict(beta_min=0.3, beta_max=0.3)).learn(10)._n_updates == 2


@pytest.mark.parametrize("value", [-1.0, NAN, INF])
def test_a_schedule_of_the_temperature_must_give_numbers_from_zero_on(make_model: MakeModel, value: float) -> None:
    with refused("ent_coef", value):
        make_model(ent_coef=lambda progress_remaining: value)


def test_a_policy_without_a_diffusion_actor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy=.*SACPolicy.*allowed: subclasses of DiffusionSACPolicy"):
        DiffSAC(SACPolicy, StrictBoxEnv(), **SMALL)
    with pytest.raises(ValueError, match=r"policy=.*DiffusionActorCriticPolicy.*allowed: subclasses of DiffusionSACPolicy"):
        DiffSAC(DiffusionActorCriticPolicy, StrictBoxEnv(), **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, DiffPPO])
@pytest.mark.parametrize("ent_coef", [0.1, lambda progress: 0.1])
def test_a_learned_temperature_has_no_place_where_it_is_given(algorithm: Any, ent_coef: Any, tmp_path: Path) -> None:
    algorithm("MlpPolicy", StrictBoxEnv(), ent_coef="auto", device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"ent_coef=.*learned temperature; allowed: 'auto'"):
        algorithm.load(tmp_path / "model.zip", ent_coef=ent_coef, device="cpu")
    model = algorithm("MlpPolicy", StrictBoxEnv(), ent_coef=ent_coef, device="cpu")
    with pytest.raises(ValueError, match=r"ent_coef=.*learned temperature; allowed: 'auto'"):
        model.set_parameters(tmp_path / "model.zip")


@pytest.mark.parametrize(
    ("saved", "policy", "loaded"),
    [
        (DiffWPO, "MlpPolicy", DiffSAC),
        (SAC, DiffusionSACPolicy, DiffSAC),
        (DiffSAC, "MlpPolicy", DiffWPO),
        (DiffPPO, "MlpPolicy", DiffSAC),
        (SAC, "MlpPolicy", DiffSAC),
        (SAC, "MlpPolicy", DiffWPO),
        (PPO, "MlpPolicy", DiffPPO),
        (A2C, "MlpPolicy", DiffPPO),
        (DiffSAC, "MlpPolicy", DiffPPO),
        (TQC, "MlpPolicy", DiffTQC),
        (CrossQ, "MlpPolicy", DiffCrossQ),
        (DiffTQC, "MlpPolicy", DiffSAC),
        (DiffSAC, "MlpPolicy", DiffCrossQ),
        (DiffTQC, "MlpPolicy", TQC),
        (DiffCrossQ, "MlpPolicy", CrossQ),
        (DiffSAC, "MlpPolicy", SAC),
        (DiffWPO, "MlpPolicy", SAC),
        (DiffPPO, "MlpPolicy", PPO),
        (DiffPPO, "MlpPolicy", A2C),
    ],
)
@pytest.mark.parametrize("diffusion_steps", [1, 4])
def test_a_file_says_whose_it_is_where_another_algorithm_loads_it(
    saved: Any, policy: Any, loaded: Any, diffusion_steps: int, tmp_path: Path
) -> None:
    is_diffusion = saved.__name__.startswith("Diff") or policy is DiffusionSACPolicy
    policy_kwargs = dict(diffusion_steps=diffusion_steps) if is_diffusion else {}
    model = saved(policy, StrictBoxEnv(), policy_kwargs=policy_kwargs, device="cpu")
    model.save(tmp_path / "model.zip")
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    name = saved.__name__
    for file in (tmp_path / "model", tmp_path / "model.zip", stream):
        with pytest.raises(
            ValueError, match=rf"holds a {name} model: load it with {name}.load, not with {loaded.__name__}.load"
        ):
            loaded.load(file, device="cpu")


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, DiffPPO])
def test_a_subclass_of_an_algorithm_and_the_algorithm_read_each_others_files(algorithm: Any, tmp_path: Path) -> None:
    class Own(algorithm):
        pass

    for saved, loaded in ((algorithm, Own), (Own, algorithm)):
        model = saved("MlpPolicy", StrictBoxEnv(), device="cpu")
        model.save(tmp_path / "model.zip")
        read = loaded.load(tmp_path / "model.zip", device="cpu")
        assert type(read) is loaded
        for name, weight in model.policy.state_dict().items():
            assert th.equal(read.policy.state_dict()[name], weight), name


def test_the_policy_alone_moves_between_stable_baselines3_and_this_library(tmp_path: Path) -> None:
    ours = DiffSAC("MlpPolicy", StrictBoxEnv(), device="cpu")
    theirs = SAC(DiffusionSACPolicy, StrictBoxEnv(), device="cpu")
    theirs.policy.load_state_dict(ours.policy.state_dict())
    theirs.save(tmp_path / "model.zip")
    loaded = SAC.load(tmp_path / "model.zip", device="cpu")
    ours.policy.load_state_dict(loaded.policy.state_dict())


def test_algorithms_may_share_policy_kwargs() -> None:
    shared = dict(net_arch=[8])
    for algorithm in (*ALGORITHMS, DiffPPO):
        algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=shared, device="cpu")
        assert shared == dict(net_arch=[8])
    SAC("MlpPolicy", StrictBoxEnv(), policy_kwargs=shared, device="cpu")
    assert "use_sde" in shared  # SB3 leaves it behind
    DiffPPO("MlpPolicy", StrictBoxEnv(), policy_kwargs=shared, device="cpu")


def test_algorithms_may_share_replay_buffer_kwargs(make_model: MakeModel) -> None:
    shared = dict(handle_timeout_termination=False)
    make_model(replay_buffer_kwargs=shared, n_steps=3)
    assert shared == dict(handle_timeout_termination=False)
    make_model(replay_buffer_kwargs=shared)


def test_beta_min_must_not_exceed_beta_max(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"beta_min=0\.3 must be <= beta_max=0\.2"):
        make_model(policy_kwargs=dict(beta_min=0.3))


def test_a_learning_rate_schedule_that_falls_below_zero_is_refused(make_model: MakeModel) -> None:
    with refused(r"learning_rate\(0\)", -1e-3):
        make_model(learning_rate=lambda progress: 2e-3 * progress - 1e-3)


@pytest.mark.parametrize("beta", [1e-6, 0.9999])
def test_a_schedule_outside_the_range_of_learned_ones_cannot_be_learned(make_model: MakeModel, beta: float) -> None:
    with refused("learn_schedule=True", beta):
        make_model(policy_kwargs=dict(diffusion_steps=1, noise_schedule=[beta], learn_schedule=True))
    make_model(policy_kwargs=dict(diffusion_steps=1, noise_schedule=[beta]))
