"""``torch_compile=True``: the same training in compiled functions, or a warning and the same training without."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

MakeModel = Callable[..., Any]


def train(model: Any, gradient_steps: int) -> Any:
    th.manual_seed(5)
    np.random.seed(5)
    model.train(gradient_steps, batch_size=16)
    return model


BACKENDS = [
    "aot_eager",  # all of torch.compile but the C++, which takes minutes
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_gradient_step_equals_the_plain_one(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    compile_function = th.compile
    if backend != "inductor":  # which is the default, and the only one with options
        monkeypatch.setattr(th, "compile", lambda *args, options, **kwargs: compile_function(*args, backend=backend, **kwargs))
    # SGD: Adam's first steps would turn rounding errors of small gradients into full steps.
    kwargs = dict(learning_starts=30, policy_kwargs=dict(optimizer_class=th.optim.SGD, diffusion_steps=3))
    plain, compiled = (make_model(torch_compile=choice, **kwargs).learn(20) for choice in (False, True))
    before = {name: value.clone() for name, value in plain.policy.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch_compile")
        train(compiled, 3)
    train(plain, 3)
    moved = 0
    for name, value in plain.policy.state_dict().items():
        th.testing.assert_close(compiled.policy.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        moved += not th.equal(value, before[name])
    assert moved > 10
    th.testing.assert_close(compiled.log_ent_coef, plain.log_ent_coef)


def test_where_compiling_fails_a_warning_names_the_reason_and_training_goes_on(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no working C++ compiler")

    plain = make_model().learn(20)
    monkeypatch.setattr(th, "compile", fail)
    with pytest.warns(UserWarning, match=r"torch_compile=True.*no working C\+\+ compiler"):
        model = make_model(torch_compile=True).learn(20)
    for ours, theirs in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_a_model_saved_with_torch_compile_loads_and_compiles_again(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = []

    def record(function: Any, **kwargs: Any) -> Any:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(th, "compile", record)
    model = make_model(torch_compile=True).learn(20)
    assert len(compiled) == 2
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert loaded.torch_compile
    loaded.learn(20)
    assert compiled[2:] == compiled[:2]
    plain = type(model).load(tmp_path / "model.zip", env=model.get_env(), device="cpu", torch_compile=False).learn(20)
    assert len(compiled) == 4 and not plain.torch_compile
