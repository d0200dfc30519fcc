"""Frozen parts stay as they are and the rest learns; hooks on gradients fire: as with SB3's SAC and PPO."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from conftest import ALGORITHMS, SMALL, SMALL_ON_POLICY, differing, flat_tensors, per_step
from envs_for_tests import CountingExtractor, StrictBoxEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion import DiffPPO

OFF_POLICY: list[Any] = [SAC, *ALGORITHMS]
ON_POLICY: list[Any] = [PPO, DiffPPO]


def make(algorithm: Any, **policy_kwargs: Any) -> Any:
    small = SMALL_ON_POLICY if algorithm in ON_POLICY else SMALL
    return algorithm(
        "MlpPolicy", StrictBoxEnv(), policy_kwargs=dict(net_arch=[16]) | policy_kwargs, **small, **per_step(algorithm)
    )


def state(module: th.nn.Module) -> dict[str, Any]:
    """What can be frozen; running statistics cannot."""
    return flat_tensors(dict(module.named_parameters()))


def parts(model: Any) -> dict[str, th.nn.Module]:
    """What can be frozen, by name."""
    policy = model.policy
    if isinstance(model, PPO) and not isinstance(model, DiffPPO):
        actor = th.nn.ModuleList([policy.mlp_extractor.policy_net, policy.action_net])
        critic = th.nn.ModuleList([policy.mlp_extractor.value_net, policy.value_net])
        return dict(actor=actor, critic=critic)
    if isinstance(model, DiffPPO):
        return dict(actor=policy.actor, critic=policy.critic)
    named = dict(actor=policy.actor, critic=policy.critic)
    if getattr(policy, "diffusion_value", None) is not None:
        named["diffusion_value"] = policy.diffusion_value
    return named


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, *ON_POLICY])
@pytest.mark.parametrize("frozen", ["actor", "critic", "diffusion_value"])
@pytest.mark.parametrize("target_kl", [None, 0.1])
def test_a_frozen_part_stays_as_it_is_and_the_others_learn(algorithm: Any, frozen: str, target_kl: float | None) -> None:
    model = make(algorithm)
    if hasattr(model, "target_kl") and algorithm.__name__ == "DiffWPO":
        model.target_kl = target_kl
    elif target_kl is not None:
        pytest.skip("for the trust region of DiffWPO")
    if algorithm is SAC and frozen == "critic":
        pytest.skip("SB3's SAC cannot: its critic loss has no graph then")
    named = parts(model)
    if frozen not in named:
        pytest.skip(f"{algorithm.__name__} has no {frozen}")
    named[frozen].requires_grad_(False)
    before = {name: state(part) for name, part in named.items()}
    model.learn(40)
    changed = {name: bool(differing(before[name], state(part))) for name, part in named.items()}
    assert changed == {name: name != frozen for name in named}


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, *ON_POLICY])
def test_a_frozen_extractor_stays_as_it_is_and_the_networks_learn(algorithm: Any) -> None:
    model = make(algorithm, features_extractor_class=CountingExtractor)
    extractor = model.policy.features_extractor if algorithm in ON_POLICY else model.policy.actor.features_extractor
    extractor.requires_grad_(False)
    before, all_before = state(extractor), state(model.policy)
    model.learn(40)
    assert not differing(before, state(extractor))
    assert differing(all_before, state(model.policy))


class Freeze(BaseCallback):
    """Freezes the actor between two steps (critic warm-up, in the middle of training)."""

    def __init__(self, first: int, last: int):
        super().__init__()
        self.first, self.last = first, last
        self.states: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        actor = parts(self.model)["actor"]
        if self.num_timesteps in (self.first, self.last):
            self.states.append(state(actor))
            actor.requires_grad_(self.num_timesteps == self.last)
        return True


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_a_part_may_be_frozen_and_freed_while_training(algorithm: Any) -> None:
    model, callback = make(algorithm), Freeze(15, 25)
    start = state(model.policy.actor)
    model.learn(40, callback=callback)
    frozen, freed = callback.states
    assert differing(start, frozen) and not differing(frozen, freed) and differing(freed, state(model.policy.actor))


def each_parameter(model: Any, name: str, register: Callable[[th.nn.Parameter], Any]) -> int:
    parameters = [parameter for parameter in parts(model)[name].parameters() if parameter.requires_grad]
    for parameter in parameters:
        register(parameter)
    return len(parameters)


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, *ON_POLICY])
@pytest.mark.parametrize("part", ["actor", "critic"])
def test_hooks_after_the_accumulation_of_a_gradient_fire_at_every_update(algorithm: Any, part: str) -> None:
    model, fired = make(algorithm), []
    n_parameters = each_parameter(
        model, part, lambda parameter: parameter.register_post_accumulate_grad_hook(lambda p: fired.append(p.grad is not None))
    )
    model.learn(16)
    n_updates = model._n_updates * (2 if algorithm in ON_POLICY else 1)  # two minibatches an epoch
    if part == "actor":
        n_updates //= getattr(model, "policy_delay", 1)
    assert all(fired)
    # A SAC critic gets gradients from the actor's loss too.
    assert len(fired) >= n_parameters * n_updates


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, *ON_POLICY])
@pytest.mark.parametrize("part", ["actor", "critic"])
@pytest.mark.parametrize("kind", ["register_post_accumulate_grad_hook", "register_hook"])
def test_what_a_hook_makes_of_a_gradient_is_what_the_optimizer_gets(algorithm: Any, part: str, kind: str) -> None:
    model = make(algorithm)

    def clear(parameter: th.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.zero_()

    def register(parameter: th.nn.Parameter) -> None:
        if kind == "register_hook":
            parameter.register_hook(th.zeros_like)
        else:
            parameter.register_post_accumulate_grad_hook(clear)

    each_parameter(model, part, register)
    before = {name: state(module) for name, module in parts(model).items()}
    model.learn(32)
    changed = {name: bool(differing(before[name], state(module))) for name, module in parts(model).items()}
    assert changed == {name: name != part for name in changed}
