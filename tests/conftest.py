"""Fixtures shared by the tests of the Stable-Baselines3 surface: small models of every algorithm, built in one place."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest
import torch as th
from envs_for_tests import StrictBoxEnv
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_diffusion import DiffCrossQ, DiffSAC, DiffTQC, DiffWPO

# Every off-policy algorithm of the library goes through the whole surface.
BASES: dict[type[BaseAlgorithm], type[BaseAlgorithm]] = {DiffSAC: SAC, DiffWPO: SAC, DiffCrossQ: CrossQ, DiffTQC: TQC}
ALGORITHMS = list(BASES)
needs_compiler = pytest.mark.skipif(
    tuple(int(part) for part in th.__version__.split(".")[:2]) < (2, 11), reason="PyTorch before 2.11 does not trace gradients"
)
with_target_networks = pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffTQC], indirect=True)

SMALL: dict[str, Any] = dict(buffer_size=200, learning_starts=8, batch_size=8, seed=0, device="cpu")
SMALL_ON_POLICY: dict[str, Any] = dict(n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(n_threads)


@pytest.fixture(params=ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[BaseAlgorithm]:
    return request.param


@pytest.fixture
def make_model(algorithm: type[BaseAlgorithm]) -> Callable[..., Any]:
    """Builds a model of the algorithm under test that trains in a few milliseconds per step."""

    def make(env: Any = None, policy: Any = "MlpPolicy", policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        env = StrictBoxEnv() if env is None else env
        small = SMALL_ON_POLICY if issubclass(algorithm, OnPolicyAlgorithm) else SMALL
        return algorithm(policy, env, policy_kwargs={"net_arch": [16]} | (policy_kwargs or {}), **(small | kwargs))

    return make


def per_step(algorithm: Any) -> dict[str, Any]:
    """Arguments with which an off-policy algorithm trains a diffusion value; DiffCrossQ's default does without."""
    return {"objective": "reverse_kl"} if "objective" in inspect.signature(algorithm).parameters else {}


@pytest.fixture
def make_per_step_model(algorithm: type[BaseAlgorithm], make_model: Callable[..., Any]) -> Callable[..., Any]:
    return partial(make_model, **per_step(algorithm))


@pytest.fixture
def trained(make_model: Callable[..., Any]) -> Any:
    """A model after some gradient steps, with two-dimensional actions."""
    return make_model(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5])).learn(20)


@pytest.fixture
def scattered(trained: Any) -> Any:
    """A model whose policy weights are far from their initial values: its predictions depend visibly on the observation."""
    scatter_weights(trained.policy)
    return trained


def arguments_of(algorithm: type[BaseAlgorithm], **kwargs: Any) -> dict[str, Any]:
    """Those of the arguments that the algorithm has: CrossQ has no target networks."""
    known = inspect.signature(algorithm).parameters
    return {name: value for name, value in kwargs.items() if name in known}


def scatter_weights(policy: th.nn.Module, scale: float = 0.5, seed: int = 3) -> None:
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator))


def observations(model: Any, n: int = 8, seed: int = 1) -> np.ndarray:
    """A fixed batch of observations from a bounded Box space."""
    space = model.observation_space
    return np.random.default_rng(seed).uniform(-2.0, 2.0, (n, *space.shape)).astype(space.dtype)


def optimizers(model: Any) -> dict[str, th.optim.Optimizer]:
    """Every optimizer that the model saves, by name."""
    return {name: recursive_getattr(model, name) for name in model.get_parameters() if "optim" in name}


def scheduled_optimizers(model: Any) -> list[th.optim.Optimizer]:
    """Those that follow the learning rate; the multiplier of DiffWPO's trust region has a step size of its own."""
    return [optimizer for name, optimizer in optimizers(model).items() if name != "kl_coef_optimizer"]


def coefficients(model: Any) -> dict[str, th.Tensor]:
    """The learned multipliers outside the policy: of the entropy, and of DiffWPO's trust region."""
    values = {name: getattr(model, name, None) for name in ("log_ent_coef", "log_kl_coef")}
    return {name: value for name, value in values.items() if value is not None}


def flat_tensors(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts and lists, by its path; tensors are copied."""
    if isinstance(nested, dict):
        items = nested.items()
    elif isinstance(nested, (list, tuple)):
        items = enumerate(nested)
    else:
        return {prefix: nested.detach().clone() if isinstance(nested, th.Tensor) else nested}
    return {path: leaf for key, value in items for path, leaf in flat_tensors(value, f"{prefix}/{key}").items()}


def full_state(model: Any) -> dict[str, Any]:
    """All that training changes: networks, optimizer states, temperature."""
    return flat_tensors(model.get_parameters()) | flat_tensors(coefficients(model))


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The paths at which two states are not exactly equal."""

    def equal(a: Any, b: Any) -> bool:
        return th.equal(a, b) if isinstance(a, th.Tensor) and isinstance(b, th.Tensor) else a == b

    missing = object()
    return [path for path in first | second if not equal(first.get(path, missing), second.get(path, missing))]
