"""``bfloat16_chains=True``: chains with bfloat16 products, the same in all else."""

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import SMALL, needs_compiler, scatter_weights
from envs_for_tests import StrictBoxEnv

from sb3_diffusion import DiffSAC
from sb3_diffusion.common import DiffusionActor


def test_a_chain_with_bfloat16_products_is_the_same_up_to_rounding(trained: Any) -> None:
    actor = trained.actor
    scatter_weights(actor, 0.2)
    features = th.randn(200, actor.features_dim)
    noise = th.randn(actor.diffusion_steps + 1, 200, actor.action_dim)
    with th.no_grad():
        exact, rounded = actor.sample(features, noise), actor.sample(features, noise, bfloat16=True)
    assert all(field.dtype == th.float32 for field in rounded)
    assert th.equal(exact.location, rounded.location) and th.equal(exact.latents[-1], rounded.latents[-1])
    assert not th.equal(exact.latents[0], rounded.latents[0])
    th.testing.assert_close(rounded.latents, exact.latents, rtol=0.05, atol=0.05)
    difference = rounded.path_log_prob - exact.path_log_prob
    assert difference.abs().mean() < 0.05 and difference.mean().abs() < 0.02


@pytest.mark.parametrize("kwargs", [{}, {"objective": "forward_kl"}], ids=["reverse_kl", "forward_kl"])
def test_only_what_needs_no_gradient_is_rounded(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    denoise = DiffusionActor.denoise

    def record(self: DiffusionActor, *args: Any) -> Any:
        seen.add((th.is_grad_enabled(), th.is_autocast_enabled("cpu")))
        return denoise(self, *args)

    model = DiffSAC("MlpPolicy", "Pendulum-v1", learning_starts=20, device="cpu", bfloat16_chains=True, **kwargs).learn(20)
    monkeypatch.setattr(DiffusionActor, "denoise", record)
    model.train(2, 16)
    assert seen == {(False, True), (True, False)}
    seen.clear()
    model.predict(np.zeros(3, dtype=np.float32))
    assert seen == {(False, False)}


@needs_compiler
def test_a_gradient_step_is_the_same_up_to_rounding_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_function = th.compile
    monkeypatch.setattr(th, "compile", lambda *args, options, **kwargs: compile_function(*args, backend="aot_eager", **kwargs))
    policy_kwargs = dict(net_arch=[16], optimizer_class=th.optim.SGD, diffusion_steps=3)
    kwargs = SMALL | dict(learning_starts=30, policy_kwargs=policy_kwargs)
    states = []
    for choice in ({}, dict(bfloat16_chains=True), dict(bfloat16_chains=True, torch_compile=True)):
        model = DiffSAC("MlpPolicy", StrictBoxEnv(), **deepcopy(kwargs), **choice).learn(20)
        scatter_weights(model.policy, 0.1)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        th.manual_seed(5)
        np.random.seed(5)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="torch_compile")
            model.train(3, 16)
        states.append({name: value - before[name] for name, value in model.policy.state_dict().items()})
    exact, rounded, compiled = states
    largest = max(float(change.abs().max()) for change in exact.values())
    changed = [name for name in exact if not th.equal(exact[name], rounded[name])]
    assert {name.split(".")[0] for name in changed} >= {"actor", "critic", "diffusion_value"}
    for name, change in exact.items():
        th.testing.assert_close(rounded[name], change, rtol=0.1, atol=0.05 * largest)
        th.testing.assert_close(compiled[name], rounded[name], rtol=1e-3, atol=1e-3 * largest)
