"""
What diffusion policies cost, beside SB3's SAC and PPO. One measurement is one command:

    python benchmarks/cost.py speed          training steps and gradient steps
    python benchmarks/cost.py parts          where the time of a gradient step goes
    python benchmarks/cost.py prediction     time of an action, sampled and deterministic
    python benchmarks/cost.py memory         peak memory of a gradient step
    python benchmarks/cost.py scaling        growth with K, κ, width, dimensions, environments
    python benchmarks/cost.py options        what each option of DiffSAC costs
    python benchmarks/cost.py levers         what single levers on a gradient step are worth
    python benchmarks/cost.py serial         DiffPPO against SB3's PPO on the serial form of its decision process

Everything runs in one process, and all subjects take turns in every round, so that the machine's drift hits all of them; a
ratio is taken within a round. ``<out>/cost_<measurement>.csv`` has a row for each session, round and subject, a column for
each figure; ``<out>/cost.json`` how each session was made; ``<out>/cost.md`` the medians and quartiles of all of them. Another
session is another machine or another setting (--session); one that is there already is replaced.
"""

import argparse
import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pandas as pd
import stable_baselines3.sac.sac as sb3_sac
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from matplotlib.figure import Figure
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import sb3_diffusion.common.critics.twin as twin_module
from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.common.off_policy import DiffusionOffPolicyAlgorithm
from sb3_diffusion.envs import AugmentedMDP
from sb3_diffusion.evaluation.style import COLORS, DPI, bare
from sb3_diffusion.experiments.provenance import processor, provenance

RESULTS = Path(__file__).parent / "results"
KEY = ["session", "round", "subject"]
BATCH = 256
BATCHES = (1, 16, 256)  # of a prediction
WARM_UP = 300
ROLLOUT = 512

Row = dict[str, Any]
Work = Callable[[], Any]


class ShapesEnv(gym.Env):
    """
    Constant observations, no reward, no end: an environment that costs nothing.

    :param observation_dim: of the observations; HalfCheetah-v5's by default
    :param action_dim: of the actions, in [-1, 1]
    """

    def __init__(self, observation_dim: int = 17, action_dim: int = 6) -> None:
        self.observation_space = spaces.Box(-1, 1, (observation_dim,))
        self.action_space = spaces.Box(-1, 1, (action_dim,))
        self.observation = np.zeros(observation_dim, dtype=np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        return self.observation, {}

    def step(self, action):  # type: ignore[no-untyped-def]
        return self.observation, 0.0, False, False, {}


def milliseconds(work: Work, repeats: int = 1, device: str = "cpu") -> float:
    """:return: of one call, the device's work included"""
    synchronize = th.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


# ------------------------------------------------------------------------------------------------------------------------
# speed, parts, prediction: the algorithms side by side


OFF_POLICY: dict[str, Any] = {"DiffSAC": DiffSAC, "DiffWPO": DiffWPO, "DiffTQC": DiffTQC, "DiffCrossQ": DiffCrossQ}
BASES: dict[str, type[BaseAlgorithm]] = {
    "DiffSAC": SAC,
    "DiffWPO": SAC,
    "DiffTQC": TQC,
    "DiffCrossQ": CrossQ,
    "DiffPPO": PPO,
    "full chain": SAC,
}


def off_policy(
    algorithm: Any, policy: Any, args: argparse.Namespace, diffusion_steps: int = 0, **kwargs: Any
) -> BaseAlgorithm:
    """A model that has taken its first gradient steps."""
    policy_kwargs: dict[str, Any] = {"diffusion_steps": diffusion_steps} if diffusion_steps else {}
    if issubclass(algorithm, CrossQ):
        policy_kwargs["net_arch"] = {"pi": [256, 256], "qf": [args.crossq_width] * 2}
    kwargs |= dict(env=make_vec_env(args.env, args.n_envs, seed=0), seed=0, device=args.device, policy_kwargs=policy_kwargs)
    model = algorithm(policy, learning_starts=WARM_UP, batch_size=args.batch_size, **kwargs)
    return model.learn(WARM_UP + 10 * args.n_envs)


def on_policy(algorithm: type[PPO], args: argparse.Namespace, diffusion_steps: int = 0, **kwargs: Any) -> PPO:
    """The same for PPO and DiffPPO: 20 gradient steps for 512 environment steps."""
    policy_kwargs: dict[str, Any] = {"net_arch": [256, 256]} | (
        {"diffusion_steps": diffusion_steps} if diffusion_steps else {}
    )
    kwargs |= dict(env=make_vec_env(args.env, args.n_envs, seed=0), seed=0, device=args.device, policy_kwargs=policy_kwargs)
    n_steps = ROLLOUT // args.n_envs
    return algorithm("MlpPolicy", n_steps=n_steps, batch_size=args.batch_size, **kwargs).learn(ROLLOUT)


def contestants(args: argparse.Namespace, compiled: bool) -> dict[str, Callable[[], BaseAlgorithm]]:
    """:return: by name, what builds each model, the algorithms that they are compared with first"""
    builders: dict[str, Callable[[], BaseAlgorithm]] = {}
    for base in dict.fromkeys(BASES[name] for name in args.algorithms):
        recipe = partial(on_policy, base) if base is PPO else partial(off_policy, base, "MlpPolicy")
        builders[base.__name__] = partial(recipe, args)
    for steps in args.diffusion_steps:
        for name in args.algorithms:
            algorithm: Any = OFF_POLICY.get(name, SAC)
            policy = DiffusionSACPolicy if name == "full chain" else "MlpPolicy"
            build = partial(on_policy, DiffPPO, args) if name == "DiffPPO" else partial(off_policy, algorithm, policy, args)
            variants: dict[str, dict[str, Any]] = {"": {}}
            if name == "DiffPPO":
                variants |= {", κ = 1": {"latents_per_state": 1}}
            elif name == "DiffSAC":
                variants |= {f", delay {delay}": {"policy_delay": delay} for delay in args.policy_delays}
            if compiled and steps in args.compiled_steps and name != "full chain":
                variants |= {f" compiled{variant}": {"torch_compile": True, **kwargs} for variant, kwargs in variants.items()}
                if name == "DiffSAC":
                    variants[" compiled, bfloat16"] = {"torch_compile": True, "bfloat16_chains": True}
            for variant, kwargs in variants.items():
                builders[f"{name}{variant}, K = {steps}"] = partial(build, steps, **kwargs)
    return builders


def reference(name: str) -> str:
    """:return: the algorithm that a contestant is compared with: its Gaussian twin, itself if it is one"""
    return next((base.__name__ for ours, base in BASES.items() if name.startswith(ours)), name)


def plain(name: str) -> str:
    """:return: the same contestant, not compiled"""
    return name.replace(" compiled", "").replace(", bfloat16", "")


def train(model: BaseAlgorithm) -> int:
    """Make some gradient steps; returns how many."""
    if isinstance(model, OffPolicyAlgorithm):
        model.train(12, batch_size=model.batch_size)
        return 12
    assert isinstance(model, PPO)
    model.train()
    return model.n_epochs * math.ceil(ROLLOUT / model.batch_size)


def speed(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of an environment step with its training and of a gradient step, networks of 256 x 256."""
    models = {name: build() for name, build in contestants(args, compiled=True).items()}
    n_steps = {name: train(model) for name, model in models.items()}
    mflop = {}
    for name, model in models.items():
        if name == plain(name):
            with FlopCounterMode(display=False) as counter:
                done = train(model)
            mflop[name] = counter.get_total_flops() / done / 1e6
    factor = th.randn(256, 256, device=args.device)
    for round_ in range(1, args.rounds + 1):
        gflops = 2 * 256**3 / 1e6 / milliseconds(lambda: factor @ factor, 50, args.device)
        rows: dict[str, Row] = {}
        for name, model in models.items():
            learn = partial(model.learn, reset_num_timesteps=False, log_interval=1_000_000)
            steps = 48 * model.n_envs if isinstance(model, OffPolicyAlgorithm) else ROLLOUT
            update = milliseconds(partial(train, model), 1, args.device) / n_steps[name]
            training = milliseconds(partial(learn, steps), 1, args.device) / steps
            rows[name] = {"round": round_, "subject": name, "training_steps_per_s": 1e3 / training}
            rows[name] |= {"speed_relative": training, "gradient_step_ms": update, "gradient_step_relative": update}
            rows[name] |= {"mflop": mflop[plain(name)], "product_gflops": gflops}
            rows[name]["product_share"] = mflop[plain(name)] / update / gflops
        for name, row in rows.items():
            base = rows[reference(name)]
            row["speed_relative"] = row["training_steps_per_s"] / base["training_steps_per_s"]
            row["gradient_step_relative"] = row["gradient_step_ms"] / base["gradient_step_ms"]
            yield row


def prediction(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of ``predict``, and relative to the sampled action of SB3's algorithm."""
    models = {name: build() for name, build in contestants(args, compiled=True).items()}
    dim = next(iter(models.values())).observation_space.shape
    assert dim is not None
    observations = {batch: np.random.default_rng(0).standard_normal((batch, *dim)) for batch in BATCHES}
    for round_ in range(1, args.rounds + 1):
        rows: dict[str, Row] = {}
        for name, model in models.items():
            rows[name] = {"round": round_, "subject": name}
            for batch, observation in observations.items():
                for kind, repeats in (("sampled", 20), ("deterministic", 2)):
                    act = partial(model.predict, observation, deterministic=kind == "deterministic")
                    rows[name][f"{kind}_{batch}_ms"] = milliseconds(act, repeats, args.device)
        for name, row in rows.items():
            for batch in BATCHES:
                base = rows[reference(name)][f"sampled_{batch}_ms"]
                for kind in ("sampled", "deterministic"):
                    row[f"{kind}_{batch}_relative"] = row[f"{kind}_{batch}_ms"] / base
            yield row


def off_policy_parts(model: SAC, patch: Callable[..., None]) -> list[th.optim.Optimizer]:
    """Name the parts of SAC's gradient step and of ours; returns the optimizers."""
    patch(model.replay_buffer, "sample", "buffer")
    patch(sb3_sac, "polyak_update", "target update")
    patch(twin_module, "follow", "target update")
    optimizers: list[Any] = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    if isinstance(model, DiffusionOffPolicyAlgorithm):
        if model.diffusion_value is not None:
            optimizers.append(model.diffusion_value.optimizer)
        if isinstance(model, DiffWPO):
            optimizers.append(model.kl_coef_optimizer)
        patch(model, "_sample_chains", "chains")
        patch(model, "_diffusion_value_loss", "diffusion value, forward")
        patch(model, "_actor_losses", "actor, forward")
        patch(model, "_evaluate_step", "critics, forward")
        patch(model, "_improve_step", "rest")
        names = ["critics and diffusion value, backward", *["actor, backward"] * (3 if isinstance(model, DiffWPO) else 1)]
        gradients = iter(names * 10_000)
        patch(th.autograd, "grad", lambda: next(gradients))
    else:
        patch(model.actor, "action_log_prob", "chains")
        patch(model.critic, "forward", "critics, forward")
        patch(model.critic_target, "forward", "critics, forward")
        # In SB3's order: temperature, critics, actor
        gradients = iter(["rest", "critics, backward", "actor, backward"] * 10_000)
        patch(th.Tensor, "backward", lambda: next(gradients))
    return optimizers


def on_policy_parts(model: BaseAlgorithm, patch: Callable[..., None]) -> list[th.optim.Optimizer]:
    """The same for PPO and DiffPPO."""
    assert isinstance(model, PPO)
    patch(model.rollout_buffer, "_get_samples", "buffer")
    patch(
        model.policy, "evaluate_decisions" if isinstance(model, DiffPPO) else "evaluate_actions", "policy and value, forward"
    )
    patch(th.autograd, "grad", "all, backward")
    patch(th.Tensor, "backward", "all, backward")
    return [model.policy.optimizer]


@contextmanager
def timed_parts(model: BaseAlgorithm, device: str) -> Iterator[dict[str, float]]:
    """Milliseconds spent in each part of the gradient steps made inside, without what is nested in it."""
    spent: dict[str, float] = defaultdict(float)
    running: list[float] = []

    def timed(name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            running.append(0.0)
            results = []
            elapsed = milliseconds(lambda: results.append(function(*args, **kwargs)), 1, device)
            nested = running.pop()
            spent[name if isinstance(name, str) else name()] += elapsed - nested
            if running:
                running[-1] += elapsed
            return results[0]

        return call

    with ExitStack() as stack:

        def patch(target: Any, attribute: str, name: str | Callable[[], str]) -> None:
            stack.enter_context(mock.patch.object(target, attribute, timed(name, getattr(target, attribute))))

        optimizers = off_policy_parts(model, patch) if isinstance(model, SAC) else on_policy_parts(model, patch)
        for optimizer in optimizers:
            patch(optimizer, "step", "optimizers")
            patch(optimizer, "zero_grad", "optimizers")
        patch(model, "train", "rest")
        yield spent


def parts(args: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of the parts of a plain gradient step, timers included: "forward" is a loss, "backward" its gradients."""
    models = {name: build() for name, build in contestants(args, compiled=False).items()}
    for round_ in range(1, args.rounds + 1):
        for name, model in models.items():
            with timed_parts(model, args.device) as spent:
                n_steps = train(model)
            yield {"round": round_, "subject": name} | {part: value / n_steps for part, value in spent.items()}


# ------------------------------------------------------------------------------------------------------------------------
# memory


class PeakMemory(TorchDispatchMode):
    """Bytes held by all tensors made inside the context and by those given at its start; ``peak`` is their maximum."""

    def __init__(self, tensors: list[th.Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.add(tensors)

    def add(self, tensors: list[th.Tensor]) -> None:
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            weak = StorageWeakRef(storage)
            self.storages[weak.cdata] = (weak, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        outputs = func(*args, **(kwargs or {}))
        self.add([leaf for leaf in tree_leaves(outputs) if isinstance(leaf, th.Tensor)])
        return outputs


def peak_megabytes(model: BaseAlgorithm) -> float:
    """
    :param model: that has made gradient steps, so that its optimizers have their states
    :return: the most that all tensors of a gradient step hold at a time, in MB: parameters, optimizer states, gradients,
        activations; the replay buffer is not a tensor
    """
    networks: list[Any] = [model.policy]
    if isinstance(model, SAC):
        networks = [model.actor, model.critic, model.critic_target]
        if isinstance(model, DiffusionOffPolicyAlgorithm) and model.diffusion_value is not None:
            networks.append(model.diffusion_value)
    tensors = [parameter for network in networks for parameter in network.parameters()]
    states = [network.optimizer.state for network in networks if hasattr(network, "optimizer")]
    tensors += [leaf for state in states for leaf in tree_leaves(state) if isinstance(leaf, th.Tensor)]
    counted = PeakMemory(tensors)
    with counted:
        if isinstance(model, SAC):
            model.train(1, batch_size=BATCH)
        else:
            assert isinstance(model, PPO)
            model.train()
    return counted.peak / 1e6


def memory_model(algorithm: type[SAC], diffusion_steps: int) -> SAC:
    """:return: DiffSAC or DiffWPO, or for SB3's SAC the same policy trained through the full chain, on HalfCheetah's shapes"""
    policy: Any = "MlpPolicy" if issubclass(algorithm, DiffusionOffPolicyAlgorithm) else DiffusionSACPolicy
    kwargs: dict[str, Any] = dict(learning_starts=260, buffer_size=300, seed=0, device="cpu")
    return algorithm(policy, ShapesEnv(), policy_kwargs=dict(diffusion_steps=diffusion_steps), **kwargs).learn(262)


def memory(args: argparse.Namespace) -> Iterator[Row]:
    """MB of a gradient step of DiffSAC and through the full chain; draws memory.png."""
    curves: dict[str, list[float]] = {"DiffSAC": [], "full chain": []}
    for steps in args.diffusion_steps:
        for name, algorithm in (("DiffSAC", DiffSAC), ("full chain", SAC)):
            curves[name].append(peak_megabytes(memory_model(algorithm, steps)))
            yield {"round": 1, "subject": f"{name}, K = {steps}", "peak_mb": curves[name][-1]}
    args.out.mkdir(parents=True, exist_ok=True)
    memory_picture(args.diffusion_steps, curves).savefig(args.out / "memory.png")


def memory_picture(diffusion_steps: list[int], curves: dict[str, list[float]]) -> Figure:
    """:param curves: two, by name, of MB for each K"""
    figure = Figure(figsize=(5.5, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (name, values), marker, color in zip(curves.items(), ("o-", "s--"), COLORS, strict=False):
        axes.plot(diffusion_steps, values, marker, color=color, label=name)
    axes.set(xlabel="diffusion steps K", ylabel="peak memory of a gradient step, MB", ylim=(0, None))
    axes.legend(frameon=False)
    bare(axes)
    return figure


# ------------------------------------------------------------------------------------------------------------------------
# scaling

BASE = dict(diffusion_steps=4, latents_per_state=1, width=256, action_dim=6, observation_dim=17, n_envs=1)
SWEEPS = dict(
    diffusion_steps=[1, 2, 4, 8, 16, 32, 64],
    latents_per_state=[1, 2, 4],
    width=[64, 128, 256, 512, 1024],
    action_dim=[1, 6, 16, 64],
    observation_dim=[4, 17, 64, 376],
    n_envs=[1, 4, 16, 64],
)


def scaling_model(algorithm: type[SAC], setting: dict[str, int]) -> SAC:
    env_kwargs = dict(observation_dim=setting["observation_dim"], action_dim=setting["action_dim"])
    env = make_vec_env(ShapesEnv, n_envs=setting["n_envs"], env_kwargs=env_kwargs)
    policy_kwargs: dict[str, Any] = dict(net_arch=[setting["width"]] * 2)
    kwargs: dict[str, Any] = dict(seed=0, device="cpu", learning_starts=300, buffer_size=2000)
    if algorithm is DiffSAC:
        policy_kwargs["diffusion_steps"] = setting["diffusion_steps"]
        kwargs["latents_per_state"] = setting["latents_per_state"]
    return algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, **kwargs).learn(300 + 5 * setting["n_envs"])


def scaling(args: argparse.Namespace) -> Iterator[Row]:
    """
    Milliseconds of a gradient step with one setting changed at a time from HalfCheetah-v5's shapes, 256 x 256 networks, batch
    256, K = 4, κ = 1, one environment (n_envs: of a call of all environments with one gradient step), SAC beside it.
    """
    for setting, values in SWEEPS.items():
        algorithms = (DiffSAC,) if setting in ("diffusion_steps", "latents_per_state") else (DiffSAC, SAC)
        models = {(a.__name__, v): scaling_model(a, BASE | {setting: v}) for v in values for a in algorithms}
        for round_ in range(1, args.rounds + 1):
            times = {}
            for key, model in models.items():
                step: Work = partial(model.train, 4, batch_size=BATCH)
                if setting == "n_envs":
                    step = partial(model.learn, 4 * model.n_envs, reset_num_timesteps=False, log_interval=1_000_000)
                times[key] = milliseconds(step) / 4
            for (name, value), figure in times.items():
                relative = figure / times["DiffSAC", BASE[setting]]
                yield {"round": round_, "subject": f"{name}, {setting} = {value}", "ms": figure, "relative": relative}


# ------------------------------------------------------------------------------------------------------------------------
# options

# One option of DiffSAC at a time, the others at their defaults; what is named first is an argument of the policy.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "torch_compile=True": ({}, dict(torch_compile=True)),
    "torch_compile=True, bfloat16_chains=True": ({}, dict(torch_compile=True, bfloat16_chains=True)),
    "policy_delay=2": ({}, dict(policy_delay=2)),
    "policy_delay=3": ({}, dict(policy_delay=3)),
    "latents_per_state=2": ({}, dict(latents_per_state=2)),
    "latents_per_state=4": ({}, dict(latents_per_state=4)),
    "own_states=0": ({}, dict(own_states=0.0)),
    "own_states=1": ({}, dict(own_states=1.0)),
    "ent_coef=0.1": ({}, dict(ent_coef=0.1)),
    'objective="forward_kl"': ({}, dict(objective="forward_kl")),
    'objective="whole_chain"': ({}, dict(objective="whole_chain")),
    "diffusion_steps=8": (dict(diffusion_steps=8), {}),
    "diffusion_steps=16": (dict(diffusion_steps=16), {}),
    "learn_schedule=True": (dict(learn_schedule=True), {}),
    "learn_variance=False": (dict(learn_variance=False), {}),
    "state_dependent_readout=False": (dict(state_dependent_readout=False), {}),
    "share_features_extractor=True": (dict(share_features_extractor=True), {}),
}
EVALUATION_FREQ, EVALUATION_EPISODES, EPISODE_STEPS = 10_000, 5, 1000


def options(args: argparse.Namespace) -> Iterator[Row]:
    """
    What each option of DiffSAC costs: environment steps with their training per second, relative to SB3's SAC of the same
    networks, and of a gradient step the milliseconds. ``evaluation_share`` is what ``EvalCallback`` with its defaults (every
    10 000 steps 5 episodes, here of 1000 steps, one environment) adds to the time of such a training.
    """
    networks: dict[str, Any] = dict(net_arch=[args.width] * 2)
    common: dict[str, Any] = dict(seed=0, device="cpu", learning_starts=WARM_UP)

    def build(algorithm: Any, policy_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        env = make_vec_env(args.env, args.n_envs, seed=0)
        model = algorithm("MlpPolicy", env, policy_kwargs=networks | policy_kwargs, **common, **kwargs)
        return model.learn(WARM_UP + 12 * args.n_envs)

    models = {"SAC": build(SAC, {}, {})} | {name: build(DiffSAC, *given) for name, given in OPTIONS.items()}
    for round_ in range(1, args.rounds + 1):
        rows: dict[str, Row] = {}
        for name, model in models.items():
            update = milliseconds(partial(model.train, 12, batch_size=BATCH)) / 12
            steps = 24 * args.n_envs
            learn = partial(model.learn, steps, reset_num_timesteps=False, log_interval=1_000_000)
            training = milliseconds(learn) / steps
            observation, state = model.get_env().reset()[:1], model.get_env()
            act = milliseconds(partial(model.predict, observation, deterministic=True), 10)
            act += milliseconds(partial(state.step, np.zeros((args.n_envs, *model.action_space.shape))), 10) / args.n_envs
            evaluation = act * EVALUATION_EPISODES * EPISODE_STEPS / (training * EVALUATION_FREQ)
            rows[name] = {"round": round_, "subject": name, "training_steps_per_s": 1e3 / training, "speed_relative": 0.0}
            rows[name] |= {"gradient_step_ms": update, "evaluation_share": evaluation}
        for row in rows.values():
            row["speed_relative"] = row["training_steps_per_s"] / rows["SAC"]["training_steps_per_s"]
            yield row


# ------------------------------------------------------------------------------------------------------------------------
# levers


def two_backward_passes(model: DiffSAC) -> tuple[Work, Work]:
    """The slope of the critics in the action, with the gradients of the critics' weights and without."""
    features, actions = th.randn(BATCH, 17), th.rand(BATCH, 6, requires_grad=True)

    def slope(inputs: list[th.Tensor]) -> None:
        loss = th.cat(model.critic(features, actions), dim=1).min(dim=1).values.mean()
        th.autograd.grad(loss, inputs)

    return lambda: slope([actions, *model.critic.parameters()]), lambda: slope([actions])


def twin_critics(model: DiffSAC) -> tuple[Work, Work]:
    """Loss and gradients of the two critics one after the other, and as one batched product in each layer."""
    features, actions = th.randn(BATCH, 17), th.rand(BATCH, 6)
    networks = [[layer for layer in network if isinstance(layer, th.nn.Linear)] for network in model.critic.q_networks]
    weights = [
        th.stack([layer.weight.detach().t() for layer in pair]).requires_grad_() for pair in zip(*networks, strict=True)
    ]
    biases = [
        th.stack([layer.bias.detach().unsqueeze(0) for layer in pair]).requires_grad_() for pair in zip(*networks, strict=True)
    ]

    def separate() -> None:
        loss = th.stack([q_values.square().mean() for q_values in model.critic(features, actions)]).sum()
        th.autograd.grad(loss, list(model.critic.parameters()))

    def batched() -> None:
        rows = th.cat([features, actions], dim=1).expand(2, -1, -1)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            rows = th.baddbmm(bias, rows, weight).relu()
        loss = th.baddbmm(biases[-1], rows, weights[-1]).square().mean(dim=(1, 2)).sum()
        th.autograd.grad(loss, weights + biases)

    return separate, batched


def optimizers(model: DiffSAC) -> tuple[Work, Work]:
    """All Adam steps of a gradient step, in PyTorch's default way and fused."""

    def steps(fused: bool) -> Work:
        modules = deepcopy([model.actor, model.critic, model.diffusion_value])
        for module in modules:
            for parameter in module.parameters():  # type: ignore[union-attr]
                parameter.grad = th.zeros_like(parameter)
        all_ = [th.optim.Adam(module.parameters(), fused=fused or None) for module in modules]  # type: ignore[union-attr]
        return lambda: [optimizer.step() for optimizer in all_]

    return steps(False), steps(True)


def target_updates(model: DiffSAC) -> tuple[Work, Work]:
    """SB3's ``polyak_update``, and one ``lerp`` over all tensors."""
    critic, target = deepcopy(model.critic), deepcopy(model.critic_target)
    parameters = [parameter.data for parameter in critic.parameters()], [parameter.data for parameter in target.parameters()]
    return (
        lambda: polyak_update(critic.parameters(), target.parameters(), 0.005),
        lambda: th._foreach_lerp_(parameters[1], parameters[0], 0.005),
    )


def first_layer(model: DiffSAC) -> tuple[Work, Work]:
    """The features' part of the denoiser's first layer, once for each of the K steps, and once for all."""
    features, condition = th.randn(BATCH, 17), model.actor.denoiser.condition
    return (lambda: [condition(features) for _ in range(model.actor.diffusion_steps)]), lambda: condition(features)


def precision(model: DiffSAC) -> tuple[Work, Work]:
    """The chains, which no gradient passes through, in float32 and with bfloat16 products."""
    features = th.randn(BATCH, 17)

    return lambda: model.actor.sample(features), lambda: model.actor.sample(features, bfloat16=True)


def fewer_own_states(model: DiffSAC) -> tuple[Work, Work]:
    """Chains at the states and the next states, and at the next states and a sixteenth of the states."""
    both, fewer = th.randn(2 * BATCH, 17), th.randn(BATCH + BATCH // 16, 17)
    return lambda: model.actor.sample(both), lambda: model.actor.sample(fewer)


LEVERS: dict[str, Callable[[DiffSAC], tuple[Work, Work]]] = {
    "no gradients of the critics' weights in the actor's step": two_backward_passes,
    "chains at the next states and few others": fewer_own_states,
    "fused Adam": optimizers,
    "features' part of the first layer once for all K": first_layer,
    "twin critics as batched products": twin_critics,
    "target update by one lerp": target_updates,
    "bfloat16 products in the chains": precision,
}
UNDIFFERENTIATED = (fewer_own_states, first_layer, precision, target_updates)


def levers(args: argparse.Namespace) -> Iterator[Row]:
    """
    One piece of work done in two ways, milliseconds, and the difference as a share of DiffSAC's whole gradient step in the
    same round: HalfCheetah-v5's shapes, 256 x 256 networks, batch 256, K = 4, not compiled.
    """
    model = DiffSAC("MlpPolicy", make_vec_env(ShapesEnv), seed=0, device="cpu", learning_starts=300).learn(310)
    ways = {name: make(model) for name, make in LEVERS.items()}
    for round_ in range(args.rounds + 1):  # the first one warms up
        step = milliseconds(lambda: model.train(1, batch_size=BATCH), args.repeats)
        for name, both in ways.items():
            with th.set_grad_enabled(LEVERS[name] not in UNDIFFERENTIATED):
                without, with_ = (milliseconds(work, args.repeats) for work in both)
            if round_ > 0:
                row = {"round": round_, "subject": name, "without_ms": without, "with_ms": with_, "gradient_step_ms": step}
                yield row | {"saved_percent": 100 * (without - with_) / step}


# ------------------------------------------------------------------------------------------------------------------------
# serial

SERIAL_ROLLOUT = 256


def serial_model(kind: str, diffusion_steps: int, n_envs: int, env_id: str) -> PPO:
    """:return: DiffPPO ("vectorised"), or SB3's PPO on the augmented decision process ("serial"), 64 x 64 networks"""
    kwargs: dict[str, Any] = dict(n_epochs=10, seed=0, device="cpu")
    if kind == "vectorised":
        env = make_vec_env(env_id, n_envs=n_envs, seed=0)
        kwargs["policy_kwargs"] = dict(diffusion_steps=diffusion_steps)
        return DiffPPO("MlpPolicy", env, n_steps=SERIAL_ROLLOUT, batch_size=64 * n_envs, **kwargs)
    env = make_vec_env(lambda: FlattenObservation(AugmentedMDP(gym.make(env_id), diffusion_steps)), n_envs=n_envs, seed=0)
    steps, batch = diffusion_steps * SERIAL_ROLLOUT, diffusion_steps * 64 * n_envs
    return PPO("MlpPolicy", env, n_steps=steps, batch_size=batch, **kwargs)


def serial(args: argparse.Namespace) -> Iterator[Row]:
    """
    Milliseconds per step of all environments, collecting and training on it, and collecting alone. As many optimizer steps for
    either: a minibatch of PPO on the wrapper holds K times as many rows as one of DiffPPO, which carries K steps in each.
    """
    settings = [(n_envs, k) for n_envs in args.n_envs for k in args.diffusion_steps]
    kinds = ("serial", "vectorised")
    models = {(kind, *setting): serial_model(kind, setting[1], setting[0], args.env) for setting in settings for kind in kinds}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for n_envs, k in settings:
            row: Row = {"round": round_, "subject": f"{n_envs} environment{'s' * (n_envs > 1)}, K = {k}"}
            for part in ("all", "collecting"):
                for kind in kinds:
                    model = models[kind, n_envs, k]
                    learn = partial(model.learn, reset_num_timesteps=False, log_interval=1_000_000)
                    with mock.patch.object(model, "train") if part == "collecting" else ExitStack():
                        elapsed = milliseconds(partial(learn, model.n_steps * n_envs))
                    row[f"{kind}_{part}_ms"] = elapsed / SERIAL_ROLLOUT
                row[f"ratio_{part}"] = row[f"serial_{part}_ms"] / row[f"vectorised_{part}_ms"]
            if round_ > 0:
                yield row


# ------------------------------------------------------------------------------------------------------------------------
# the one table

MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "speed": speed,
    "parts": parts,
    "prediction": prediction,
    "memory": memory,
    "scaling": scaling,
    "options": options,
    "levers": levers,
    "serial": serial,
}


def quartiles(values: pd.Series) -> str:
    """:return: the median, and the quartiles where they differ; nothing where there is no value"""
    values = values.dropna()
    if values.empty:
        return ""
    # Three digits or more, without an exponent
    figures = np.percentile(values, [25, 50, 75])
    low, middle, high = (f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in figures)
    return middle if low == high else f"{middle} ({low}–{high})"


def markdown(out: Path) -> str:
    """:return: the medians of all sessions of all measurements"""
    made = json.loads((out / "cost.json").read_text())
    lines = ["# What diffusion policies cost", "", "Medians of all rounds (quartiles): `python benchmarks/cost.py --help`."]
    for measurement, sessions in made.items():
        table = pd.read_csv(out / f"cost_{measurement}.csv")
        for session, how in sessions.items():
            rows = table[table["session"] == session].dropna(axis="columns", how="all")
            figures = list(rows.columns.difference(KEY, sort=False))
            lines += ["", f"## {measurement}: {session}", "", f"{how['machine']}, commit {how['commit'][:7]}.", ""]
            lines += [
                "| | " + " | ".join(figure.replace("_", " ") for figure in figures) + " |",
                "|---" * (len(figures) + 1) + "|",
            ]
            for subject, own in rows.groupby("subject", sort=False):
                lines.append(f"| {subject} | " + " | ".join(quartiles(own[figure]) for figure in figures) + " |")
    return "\n".join(lines) + "\n"


def save(out: Path, measurement: str, session: str, rows: list[Row], how: dict[str, Any]) -> None:
    """
    Put a session in the place of the one of the same name, and write all tables anew.

    :param rows: with "round", "subject" and figures
    :param how: settings and provenance
    """
    out.mkdir(parents=True, exist_ok=True)
    path, description = out / f"cost_{measurement}.csv", out / "cost.json"
    table = pd.DataFrame([{"session": session, **row} for row in rows])
    if path.exists():
        others = pd.read_csv(path)
        table = pd.concat([others[others["session"] != session], table], ignore_index=True)
    table.to_csv(path, index=False, float_format="%.5g", lineterminator="\n")
    made = json.loads(description.read_text()) if description.exists() else {}
    made.setdefault(measurement, {})[session] = how
    ordered = {name: made[name] for name in MEASUREMENTS if name in made}
    description.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    (out / "cost.md").write_text(markdown(out))


def parser() -> argparse.ArgumentParser:
    """:return: of the command, with a sub-command for each measurement"""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest="measurement", required=True)
    rounds = {"speed": 15, "parts": 15, "prediction": 15, "memory": 1, "scaling": 10, "options": 15, "levers": 25, "serial": 5}
    steps = {"memory": [4, 16, 64], "serial": [1, 2, 4, 8, 16]}
    for name, function in MEASUREMENTS.items():
        command = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--threads", type=int, default=1, help="of PyTorch")
        command.add_argument(
            "--session", help="name of the machine or setting in the tables (default: the processor's or GPU's)"
        )
        command.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
        if name != "memory":
            command.add_argument("--rounds", type=int, default=rounds[name], help="in each of which all subjects take turns")
        if name not in ("scaling", "options", "levers"):
            command.add_argument(
                "--diffusion-steps", nargs="+", type=int, default=steps.get(name, [1, 2, 4, 8, 16, 32]), help="K"
            )
        if name in ("speed", "parts", "prediction", "options", "serial"):
            command.add_argument("--env", default="HalfCheetah-v5", help="with vector observations")
        if name in ("speed", "parts", "prediction"):
            command.add_argument("--device", default="cpu", help="PyTorch's")
            command.add_argument("--n-envs", type=int, default=1, help="environments, in one process")
            command.add_argument("--batch-size", type=int, default=BATCH, help="of a gradient step")
            parts_only = ["DiffSAC", "DiffWPO", "DiffPPO", "full chain"]
            names = parts_only if name == "parts" else list(BASES)
            command.add_argument("--algorithms", nargs="+", choices=names, default=parts_only, help="and their Gaussian twins")
            command.add_argument("--policy-delays", nargs="*", type=int, default=[], help="DiffSAC also with these")
            command.add_argument("--crossq-width", type=int, default=256, help="of the critics of CrossQ and DiffCrossQ")
        if name in ("speed", "prediction"):
            command.add_argument("--compiled-steps", nargs="*", type=int, default=[4, 8, 16], help="K that also run compiled")
        if name == "options":
            command.add_argument("--width", type=int, default=256, help="of the networks' two layers")
            command.add_argument("--n-envs", type=int, default=1, help="environments, in one process")
        if name == "levers":
            command.add_argument("--repeats", type=int, default=20, help="of each piece of work in a round")
        if name == "serial":
            command.add_argument("--n-envs", type=int, nargs="+", default=[1, 8], help="environments")
    return result


def main() -> None:
    args = parser().parse_args()
    warnings.filterwarnings("error", message="torch_compile")
    th.set_num_threads(args.threads)
    rows = list(MEASUREMENTS[args.measurement](args))
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "session", "measurement")}
    card = th.cuda.get_device_name() if getattr(args, "device", "cpu").startswith("cuda") else None
    session = args.session or card or processor()
    save(args.out, args.measurement, session, rows, {"settings": settings, **provenance(), **({"gpu": card} if card else {})})
    print(markdown(args.out).partition(f"## {args.measurement}: {session}\n")[2].partition("\n## ")[0].strip())


if __name__ == "__main__":
    main()
