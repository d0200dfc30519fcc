"""``torch_compile=True``: the same training in compiled functions, or a warning and the same training without."""

import copy
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
import torch._dynamo
from conftest import ALGORITHMS, SMALL, SMALL_ON_POLICY, needs_compiler
from torch._dynamo.utils import counters

from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.common import compiling
from sb3_diffusion.common.compiling import CompiledOrEager

pytestmark = needs_compiler

MakeModel = Callable[..., Any]


@pytest.fixture(params=[*ALGORITHMS, DiffPPO], ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


def train(model: Any) -> Any:
    th.manual_seed(5)
    np.random.seed(5)
    arguments = () if isinstance(model, DiffPPO) else (3, 16)
    model.train(*arguments)
    return model


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    compile_function = th.compile
    if backend != "inductor":  # which is the default, and the only one with options
        monkeypatch.setattr(th, "compile", lambda *args, options, **kwargs: compile_function(*args, backend=backend, **kwargs))


BACKENDS = [
    "aot_eager",  # all of torch.compile but the C++, which takes minutes
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_gradient_step_equals_the_plain_one(
    algorithm: Any, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    use_backend(monkeypatch, backend)
    # SGD: Adam's first steps would turn rounding errors of small gradients into full steps.
    kwargs: dict[str, Any] = dict(ent_coef="auto", policy_kwargs=dict(optimizer_class=th.optim.SGD, diffusion_steps=3))
    if algorithm is not DiffPPO:
        kwargs["learning_starts"] = 30
    plain, compiled = (make_model(torch_compile=choice, **kwargs).learn(20) for choice in (False, True))
    before = {name: value.clone() for name, value in plain.policy.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch_compile")
        train(compiled)
    train(plain)
    moved = 0
    for name, value in plain.policy.state_dict().items():
        th.testing.assert_close(compiled.policy.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        moved += not th.equal(value, before[name])
    assert moved > 10
    th.testing.assert_close(compiled.log_ent_coef, plain.log_ent_coef)


def test_compiled_training_acts_as_plain_training_and_predict_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "aot_eager")
    models = [
        DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]), torch_compile=choice, **SMALL)
        for choice in (False, True)
    ]
    calls = []
    for model in models:
        model.learning_rate, model.gradient_steps = 0.0, 0  # only the acting is compared
        if model.torch_compile:
            step = model._sample_step
            monkeypatch.setattr(model, "_sample_step", lambda *args, step=step: calls.append(1) or step(*args))
        th.manual_seed(1)
        model.learn(40)
    plain, compiled = (model.replay_buffer.actions[:40] for model in models)
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    assert len(np.unique(plain)) == 40
    n_calls = len(calls)
    assert n_calls == 40 - models[1].learning_starts
    models[1].predict(np.zeros((5, 3), np.float32))
    assert len(calls) == n_calls and models[1].actor._sampler is None
    assert step.works and not step.failed
    # The attribute decides, also when it has changed since.
    models[0].torch_compile = True
    models[0].learn(10)


def test_where_compiling_fails_a_warning_names_the_reason_and_training_goes_on(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no working C++ compiler")

    plain = make_model().learn(20)
    monkeypatch.setattr(th, "compile", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model = make_model(torch_compile=True).learn(20)
    # Once, although sampling and several parts of the gradient step fail alike.
    said = [str(warning.message) for warning in caught if "torch_compile=True" in str(warning.message)]
    assert len(said) == 1 and "no working C++ compiler" in said[0]
    for ours, theirs in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_a_pytorch_that_is_too_old_to_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo, "config", SimpleNamespace())
    function = CompiledOrEager(test_a_pytorch_that_is_too_old_to_compile_is_named)
    function.function = lambda: 3
    version = th.__version__.replace("+", r"\+")
    with pytest.warns(UserWarning, match=rf"goes on without .*PyTorch 2\.11 or newer; this is {version}"):
        assert function() == 3


def test_an_error_of_a_later_call_is_the_callers_and_a_failed_recompilation_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def divide(numbers: list[float]) -> float:
        calls.append("plain")
        return 1 / numbers[0]

    def compiled(numbers: list[float]) -> float:
        if len(numbers) > 1:
            raise torch._dynamo.exc.FailOnRecompileLimitHit("eight kinds of arguments")
        return 1 / numbers[0]

    monkeypatch.setattr(th, "compile", lambda function, **_: compiled)
    function = CompiledOrEager(divide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function([4.0]) == 0.25
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                function([0.0])
        assert function([2.0]) == 0.5 and not calls
    with pytest.warns(UserWarning, match="eight kinds of arguments"):
        assert function([2.0, 2.0]) == 0.5
    assert calls == ["plain"]
    with warnings.catch_warnings():  # an error of the very first call may be either's: the plain function tells
        warnings.simplefilter("ignore")
        with pytest.raises(ZeroDivisionError):
            CompiledOrEager(divide)([0.0])
    assert calls == ["plain", "plain"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_policy_compiled_as_sb3_documents_acts_trains_and_is_saved(
    algorithm: Any, make_model: MakeModel, backend: str, tmp_path: Path
) -> None:
    model, plain = make_model(), make_model()
    model.policy = th.compile(model.policy, backend=backend)
    observation = np.ones((4, 3), np.float32)
    for deterministic in (True, False):
        actions = []
        for one in (model, plain):
            th.manual_seed(1)
            actions.append(one.predict(observation, deterministic=deterministic)[0])
        np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)
    model.learn(32)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    np.testing.assert_allclose(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0], atol=1e-4
    )


def test_a_model_saved_with_torch_compile_loads_and_compiles_again(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = []

    def record(function: Any, **kwargs: Any) -> Any:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(th, "compile", record)
    model = make_model(torch_compile=True).learn(20)
    n_functions = 1 if isinstance(model, DiffPPO) else 3  # off-policy also the sampling of actions
    assert len(compiled) == n_functions
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert loaded.torch_compile
    loaded.learn(20)
    assert compiled[n_functions:] == compiled[:n_functions]
    plain = type(model).load(tmp_path / "model.zip", env=model.get_env(), device="cpu", torch_compile=False).learn(20)
    assert len(compiled) == 2 * n_functions and not plain.torch_compile


def test_many_different_models_of_one_process_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives up on a function after compiling it for eight kinds of arguments."""

    def repeat(times: int, numbers: th.Tensor) -> th.Tensor:
        return numbers.repeat(times)

    use_backend(monkeypatch, "eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch_compile")
        for times in range(12):
            assert len(CompiledOrEager(repeat)(times, th.zeros(3))) == 3 * times


def test_a_compiled_model_can_be_pickled_and_compiles_again(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "eager")
    model = make_model(torch_compile=True).learn(20)
    for module in (pickle, cloudpickle):
        again = module.loads(module.dumps(model))
        before = counters["stats"]["unique_graphs"]
        models = train(again), train(copy.deepcopy(model))
        for ours, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
            assert th.equal(ours, theirs)
        assert counters["stats"]["unique_graphs"] > before


def test_another_discount_does_not_compile_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "eager")
    model = DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]), torch_compile=True, **SMALL).learn(20)
    before = counters["stats"]["unique_graphs"]
    model.gamma = 0.9
    model.learn(5, reset_num_timesteps=False)
    assert counters["stats"]["unique_graphs"] == before


def test_diffppos_schedules_do_not_compile_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "aot_eager")
    model = DiffPPO(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=dict(net_arch=[16]),
        clip_range=lambda progress: 0.1 + 0.1 * progress,
        clip_range_vf=lambda progress: 0.2 + 0.1 * progress,
        ent_coef="lin_0.1",
        learning_rate=lambda progress: 1e-3 * progress,
        torch_compile=True,
        **SMALL_ON_POLICY,
    )
    before = counters["stats"]["unique_graphs"]
    model.learn(48)
    assert counters["stats"]["unique_graphs"] == before + 1


def test_a_line_says_that_something_is_compiled_once_and_without_verbosity_only_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def slowly(function: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            time.sleep(0.3)
            return function(*args)

        return call

    monkeypatch.setattr(th, "compile", slowly)

    def said(model: Any, seconds: float) -> str:
        monkeypatch.setattr(compiling, "SECONDS_OF_SILENCE", seconds)
        function = CompiledOrEager(a_gradient_step)
        assert function(model) == function(model) == "result"
        return capfd.readouterr().err

    line = "torch_compile=True: compiling the gradient step (a gradient step), once; this can take a minute or two\n"
    assert said(SimpleNamespace(verbose=0), 60) == ""
    assert said(SimpleNamespace(verbose=0), 0.05) == line
    assert said(SimpleNamespace(verbose=1), 60) == line


def a_gradient_step(model: Any) -> str:
    return "result"
