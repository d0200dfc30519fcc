"""
Short trainings with recorded results: what changes the learning fails here, which tells whether benchmark results of an
earlier commit still hold. A deliberate change records new numbers, and says in the changelog which results it outdates.
"""

import math
from typing import Any

import pytest
import torch as th
from conftest import scatter_weights
from envs_for_tests import CountingExtractor

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO

OFF_POLICY: dict[str, Any] = dict(learning_starts=40, batch_size=32)
ON_POLICY: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2)


@pytest.mark.parametrize(
    "algorithm, settings, denoiser, actions",
    [
        (DiffSAC, OFF_POLICY, 0.132252, [0.529043, -0.875275, 0.658634]),
        (DiffWPO, OFF_POLICY, 0.145116, [0.522257, -0.881632, 0.650958]),
        (DiffCrossQ, OFF_POLICY, 0.174190, [0.518224, -0.878686, 0.646186]),
        (DiffTQC, OFF_POLICY, 0.079323, [0.519258, -0.874638, 0.648827]),
        (DiffPPO, ON_POLICY, 0.061761, [0.512676, -0.884381, 0.646970]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_short_training_ends_where_it_did_when_it_was_recorded(
    algorithm: Any, settings: dict[str, Any], denoiser: float, actions: list[float]
) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs=dict(net_arch=[32, 32]), **settings)
    model.learn(80)
    actor = model.policy.actor
    with th.no_grad():
        assert actor.denoiser.body[-1].weight.abs().sum().item() == pytest.approx(denoiser, rel=1e-3)
        th.manual_seed(0)
        sampled = actor.sample_actions(th.linspace(-1, 1, 30).reshape(10, 3))
    # The same on CPUs with other vector instructions, to about 1e-6
    assert sampled[:3].flatten().tolist() == pytest.approx(actions, abs=1e-3)


def moved_by_diffppo(share: bool) -> dict[str, float]:
    """How far each parameter is from its start after a short training of everything that DiffPPO can learn."""
    policy_kwargs = dict(
        net_arch=[16],
        features_extractor_class=CountingExtractor,
        share_features_extractor=share,
        learn_schedule=True,
        optimizer_class=th.optim.SGD,
    )
    # The value's share small, because Pendulum's returns are large; SGD and no clipped norm, so that every gradient counts
    settings = ON_POLICY | dict(learning_rate=0.03, ent_coef="auto_0.1", vf_coef=1e-3, max_grad_norm=math.inf)
    model = DiffPPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings)
    scatter_weights(model.policy, 0.2)
    start = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(80)
    moved = {name: (parameter - start[name]).norm().item() for name, parameter in model.policy.named_parameters()}
    return moved | {"log_ent_coef": model.log_ent_coef.item()}  # type: ignore[union-attr]


DIFFPPO: dict[bool, dict[str, float]] = {
    True: {
        "features_extractor.linear.1.weight": 0.018477,
        "features_extractor.linear.1.bias": 0.0074931,
        "actor.log_std": 0.0051045,
        "actor.latent_pi.0.weight": 0.0059017,
        "actor.latent_pi.0.bias": 0.0031659,
        "actor.mu.weight": 0.020359,
        "actor.mu.bias": 0.0083309,
        "actor.schedule.beta_logits": 0.007061,
        "actor.denoiser.latent_weight": 0.016934,
        "actor.denoiser.state_layer.weight": 0.010181,
        "actor.denoiser.state_layer.bias": 0.005668,
        "actor.denoiser.step_table.weight": 0.0070788,
        "actor.denoiser.body.1.weight": 0.055968,
        "actor.denoiser.body.1.bias": 0.0084031,
        "critic.latent_weight": 0.0038329,
        "critic.state_layer.weight": 0.01099,
        "critic.state_layer.bias": 0.028471,
        "critic.step_table.weight": 0.012862,
        "critic.body.1.weight": 0.032909,
        "critic.body.1.bias": 0.041011,
        "log_ent_coef": -2.4508,
    },
    False: {
        "features_extractor.linear.1.weight": 0.0073205,
        "features_extractor.linear.1.bias": 0.0028241,
        "vf_features_extractor.linear.1.weight": 0.0038361,
        "vf_features_extractor.linear.1.bias": 0.0031015,
        "actor.log_std": 0.011407,
        "actor.latent_pi.0.weight": 0.008553,
        "actor.latent_pi.0.bias": 0.0060715,
        "actor.mu.weight": 0.0086865,
        "actor.mu.bias": 0.0071426,
        "actor.schedule.beta_logits": 0.0060887,
        "actor.denoiser.latent_weight": 0.020565,
        "actor.denoiser.state_layer.weight": 0.012308,
        "actor.denoiser.state_layer.bias": 0.0045485,
        "actor.denoiser.step_table.weight": 0.0077204,
        "actor.denoiser.body.1.weight": 0.053015,
        "actor.denoiser.body.1.bias": 0.0064901,
        "critic.latent_weight": 0.0045382,
        "critic.state_layer.weight": 0.030621,
        "critic.state_layer.bias": 0.024671,
        "critic.step_table.weight": 0.011102,
        "critic.body.1.weight": 0.050306,
        "critic.body.1.bias": 0.041526,
        "log_ent_coef": -2.1671,
    },
}


@pytest.mark.parametrize("share", [True, False])
def test_every_parameter_of_diffppo_moves_as_far_as_when_it_was_recorded(share: bool) -> None:
    assert moved_by_diffppo(share) == pytest.approx(DIFFPPO[share], rel=2e-3)
