"""A gradient step waits for the GPU nowhere: by inspection on a CPU, by PyTorch's own alarm where there is a GPU."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch as th
from conftest import ALGORITHMS
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.utils import polyak_update
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_diffusion import DiffPPO
from sb3_diffusion.common import compiling, gradients, transfer
from sb3_diffusion.common.critics.twin import follow

MakeModel = Callable[..., Any]

# Operations that have to know the values of a tensor, or bring one from Python
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_dim", "is_nonzero", "equal", "lift_fresh"}


class NoWaiting(TorchDispatchMode):
    """:raises AssertionError: at the first operation for which a GPU would have to be waited for"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, name
        if name in ("index", "index_put", "index_put_"):
            assert not any(index is not None and index.dtype in (th.bool, th.uint8) for index in args[1]), "index by a mask"
        if name == "_to_copy":
            assert (kwargs or {}).get("device", args[0].device) == args[0].device, "a copy to another device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "operation", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: x[x > 0], lambda x: th.tensor(1.0)]
)
def test_the_inspection_finds_what_waits(operation: Callable[[th.Tensor], Any]) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        operation(th.ones(1))


@contextmanager
def inspected(model: Any, inspection: Callable[[], Any]) -> Iterator[None]:
    """Everything that a gradient step does on the device happens under the inspection."""

    def under(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with inspection():
                return function(*args, **kwargs)

        return call

    off_policy = ["_evaluate_step", "_improve_step", "_optimize", "_update_targets"]
    with ExitStack() as stack:
        for name in ["_minibatch_step"] if isinstance(model, DiffPPO) else off_policy:
            stack.enter_context(mock.patch.object(model, name, under(getattr(model, name))))
        yield


@pytest.fixture(params=[*ALGORITHMS, DiffPPO], ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


def train(model: Any) -> None:
    arguments = () if isinstance(model, DiffPPO) else (4, 16)
    model.train(*arguments)


@pytest.mark.parametrize("diffusion_steps", [1, 4])
def test_a_gradient_step_waits_for_no_tensors_value(algorithm: Any, make_model: MakeModel, diffusion_steps: int) -> None:
    model = make_model(ent_coef="auto", policy_kwargs=dict(diffusion_steps=diffusion_steps)).learn(20)
    with inspected(model, NoWaiting):
        train(model)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_gradient_step_does_not_wait(algorithm: Any, make_model: MakeModel) -> None:
    @contextmanager
    def alarm() -> Iterator[None]:
        th.cuda.set_sync_debug_mode("error")
        yield
        th.cuda.set_sync_debug_mode("default")

    model = make_model(device="cuda", ent_coef="auto").learn(20)
    train(model)  # the levels' indices come to the device once
    with inspected(model, alarm):
        train(model)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_compiled_training_learns_as_plain_training_does(algorithm: Any, make_model: MakeModel) -> None:
    model = make_model(device="cuda", torch_compile=True, ent_coef="auto").learn(20)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for _ in range(5):
        train(model)
    # None of them has gone back to running as it is.
    compiled = [value for value in vars(model).values() if isinstance(value, compiling.CompiledOrEager)]
    assert compiled and all(function.works and not function.failed for function in compiled)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    assert sum(not th.equal(value, before[name]) for name, value in model.policy.state_dict().items()) > 10


def test_only_a_gpu_gets_cuda_graphs_whose_results_end_with_the_gradient_step(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[str] = []
    monkeypatch.setattr(th.compiler, "cudagraph_mark_step_begin", lambda: marks.append("step"))
    for device, compiled in (("cpu", True), ("cuda", True), ("cuda", False)):
        model = SimpleNamespace(device=th.device(device), torch_compile=compiled)
        graphs = compiling.compiler_options(model).get("triton.cudagraphs", False)
        assert graphs == (device == "cuda")
        compiling.begin_step(model)
    assert marks == ["step"]


def test_on_a_gpu_gradients_are_copied_into_memory_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph's memory goes to the next step, and its gradients may be transposed, which fused optimizers refuse."""
    monkeypatch.setattr(gradients, "on_a_gpu", lambda tensor: True)
    parameters: list[th.Tensor] = [th.nn.Parameter(th.zeros(3, 2)), th.nn.Parameter(th.zeros(4)), th.nn.Parameter(th.zeros(1))]
    seen: list[float] = []
    parameters[0].register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.sum().item()))  # type: ignore
    places = []
    for step in (1.0, 2.0):
        given = (th.full((2, 3), step).t(), th.full((4,), step), None)
        gradients.assign(parameters, given)
        for parameter, gradient in zip(parameters[:2], given[:2], strict=True):
            assert gradient is not None and parameter.grad is not None
            assert th.equal(parameter.grad, gradient) and parameter.grad.stride() == parameter.stride()
            assert parameter.grad.data_ptr() != gradient.data_ptr()
        assert parameters[2].grad is None
        places.append([parameter.grad.data_ptr() for parameter in parameters[:2]])  # type: ignore[union-attr]
    assert places[0] == places[1]
    assert seen == [6.0, 12.0]


def test_targets_follow_as_sb3s_do() -> None:
    parameters, targets = ([th.randn(5, 3), th.randn(4)] for _ in range(2))
    copies = [target.clone() for target in targets]
    for _ in range(3):
        follow(targets, parameters, 0.005)
        polyak_update(parameters, copies, 0.005)
    assert all(th.equal(target, copy) for target, copy in zip(targets, copies, strict=True))
    follow([], [], 1.0)  # no batch norm


def test_what_is_logged_does_not_lie_in_the_memory_of_the_gradient_step(algorithm: Any, make_model: MakeModel) -> None:
    """As with a CUDA graph, whose results the next step overwrites."""
    model = make_model(ent_coef="auto").learn(20)
    first = "_minibatch_step" if isinstance(model, DiffPPO) else "_evaluate_step"
    function, loss_of_step = getattr(model, first), []
    held: list[th.Tensor] = []

    def overwriting(*args: Any) -> Any:
        for tensor in held:
            tensor.fill_(th.nan)
        held.clear()
        results = function(*args)
        losses = results[0]._asdict() if isinstance(model, DiffPPO) else results[2]
        held.extend(losses.values())
        loss_of_step.append(losses["loss" if isinstance(model, DiffPPO) else "critic_loss"].item())
        return results

    setattr(model, first, overwriting)
    train(model)
    logged = model.logger.name_to_value["train/loss" if isinstance(model, DiffPPO) else "train/critic_loss"]
    assert len(loss_of_step) > 1
    assert logged == pytest.approx(np.mean(loss_of_step), rel=1e-5)


def test_tensors_move_together_by_dtype_and_keep_shapes_and_values() -> None:
    tensors = [th.rand(3, 2), th.randint(0, 255, (3, 2, 2), dtype=th.uint8), None, th.rand(3, 1), "text"]
    moved = transfer.moved_together(tensors, th.device("cpu"))
    for tensor, result in zip(tensors, moved, strict=True):
        assert result is tensor or (th.equal(tensor, result) and result.shape == tensor.shape and result.dtype == tensor.dtype)
    # One storage for each dtype
    assert moved[0].untyped_storage().data_ptr() == moved[3].untyped_storage().data_ptr()
    assert all(part.device.type == "meta" for part in transfer.moved_together(tensors[:2], th.device("meta")))


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, DictReplayBuffer, NStepReplayBuffer])
def test_a_replayed_batch_comes_to_the_device_whole_and_the_buffer_keeps_its_own(buffer_class: type[ReplayBuffer]) -> None:
    box = spaces.Box(-1, 1, (3,))
    space = spaces.Dict(first=box, second=spaces.Box(0, 255, (2, 2), np.uint8)) if buffer_class is DictReplayBuffer else box
    buffer = buffer_class(20, space, spaces.Box(-1, 1, (2,)), device="cpu")  # type: ignore[arg-type]
    for _ in range(8):
        observation: Any = space.sample()
        if isinstance(observation, dict):
            observation = {key: value[None] for key, value in observation.items()}
        else:
            observation = observation[None]
        buffer.add(observation, observation, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    plain = tree_leaves(buffer.sample(5))
    moved = tree_leaves(transfer.sample_in_one_transfer(buffer, 5, None, th.device("meta")))
    assert buffer.device == th.device("cpu")
    for ours, theirs in zip(moved, plain, strict=True):
        if ours is not None:
            assert (ours.device.type, ours.shape, ours.dtype) == ("meta", theirs.shape, theirs.dtype)


def test_a_users_own_buffer_keeps_its_transitions_where_it_likes() -> None:
    class OwnBuffer:
        device = "where it likes"

        def sample(self, batch_size: int, env: Any) -> tuple[str, int]:
            return self.device, batch_size

    assert transfer.sample_in_one_transfer(OwnBuffer(), 7, None, th.device("cuda")) == ("where it likes", 7)


@pytest.mark.parametrize("tests_pass", [True, False])
def test_the_script_for_a_gpu_compiles_tests_and_then_measures(tests_pass: bool, tmp_path: Path) -> None:
    """With a program in Python's place that notes how it is called."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(f'#!/bin/bash\necho "$@" >> {calls}\n[[ "$*" != *pytest* ]] || {"true" if tests_pass else "false"}\n')
    stub.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = {"PYTHON": str(stub), "DEVICE": "cpu", "CARD": "a card", "OUT": "tables", "TMPDIR": str(scratch)}
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    finished = subprocess.run(["bash", str(script)], env=os.environ | settings, capture_output=True, text=True)
    assert (finished.returncode == 0) == tests_pass, finished.stderr
    assert not list(scratch.iterdir())
    measured = [call for call in calls.read_text().splitlines() if "--out tables" in call]
    assert len(measured) == (2 if tests_pass else 0)
    assert all("--session a card" in call and "--device cpu" in call for call in measured)
