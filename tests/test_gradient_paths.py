"""What may train what: the order of updates and the gradients that must not pass, with a features extractor that learns."""

from typing import Any

import pytest
import torch as th
from conftest import SMALL, scatter_weights
from envs_for_tests import CountingExtractor, StrictBoxEnv

from sb3_diffusion import DiffSAC, DiffWPO

ALGORITHMS = pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO], ids=lambda algorithm: algorithm.__name__)


def make(algorithm: Any, share: bool = False, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """A model with some replay and weights far from their start, not yet trained; SGD, so that no gradient is no step."""
    policy_kwargs = dict(
        net_arch=[16],
        features_extractor_class=CountingExtractor,
        share_features_extractor=share,
        optimizer_class=th.optim.SGD,
        **(policy_kwargs or {}),
    )
    kwargs = SMALL | dict(learning_starts=40, learning_rate=0.01) | kwargs
    model = algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=policy_kwargs, **kwargs).learn(40)
    scatter_weights(model.policy, 0.3)
    if algorithm is DiffWPO:
        model.actor_target.load_state_dict(model.actor.state_dict())
    return model


def copies(module: th.nn.Module) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: th.nn.Module, before: list[th.Tensor]) -> bool:
    return any(not th.equal(new, old) for new, old in zip(module.parameters(), before, strict=True))


@ALGORITHMS
@pytest.mark.parametrize("share", [True, False])
def test_the_actors_extractor_learns_through_the_actor_alone(algorithm: Any, share: bool) -> None:
    """Where the actor's own layers take nothing from the features, neither critics nor diffusion value may move them."""
    model = make(algorithm, share)
    extractor = model.actor.features_extractor
    before = copies(extractor)
    model.train(1, batch_size=16)
    assert moved(extractor, before)
    layers = [model.actor.denoiser.state_layer, next(layer for layer in model.actor.latent_pi if hasattr(layer, "weight"))]
    with th.no_grad():
        for layer in layers:
            layer.weight.zero_()
    before, others = copies(extractor), {name: copies(getattr(model, name)) for name in ("critic", "diffusion_value")}
    model.train(1, batch_size=16)
    assert any(float(layer.weight.abs().max()) > 0 for layer in layers)  # the actor learned
    assert all(moved(getattr(model, name), earlier) for name, earlier in others.items())
    assert not moved(extractor, before)


@ALGORITHMS
@pytest.mark.parametrize("share", [True, False])
def test_the_actor_learns_from_critics_that_have_just_learned(algorithm: Any, share: bool) -> None:
    """Other rewards reach the actor within one gradient step, because the critics' update comes first."""
    actors, critics = [], []
    for factor in (1.0, 1.0, 100.0):
        model = make(algorithm, share, ent_coef=0.1)
        model.replay_buffer.rewards *= factor
        th.manual_seed(4)
        model.train(1, batch_size=16)
        actors.append(copies(model.actor))
        critics.append(copies(model.critic))
    for networks in (critics, actors):
        same, other = ([th.equal(a, b) for a, b in zip(networks[0], one, strict=True)] for one in networks[1:])
        assert all(same) and not all(other)


@pytest.mark.parametrize("share", [True, False])
def test_the_older_actor_of_the_trust_region_sees_its_own_features(share: bool) -> None:
    """An actor that differs from its older copy by the extractor alone is far from it."""
    model = make(DiffWPO, share, target_actor_interval=10_000)
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.train(1, batch_size=16)
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-6)
    with th.no_grad():
        model.actor.features_extractor.linear[1].weight.mul_(-1)
    model.train(1, batch_size=16)
    assert model.logger.name_to_value["train/kl"] > 1e-3
