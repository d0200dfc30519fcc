"""
Short trainings with recorded results: what changes the learning fails here, which tells whether benchmark results of an
earlier commit still hold. A deliberate change records new numbers, and says in the changelog which results it outdates.
"""

import math
from typing import Any

import pytest
import torch as th
from conftest import ALGORITHMS, per_step, scatter_weights
from envs_for_tests import CountingExtractor

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO

OFF_POLICY: dict[str, Any] = dict(learning_starts=40, batch_size=32)
ON_POLICY: dict[str, Any] = dict(n_steps=32, batch_size=16, n_epochs=2)


@pytest.mark.parametrize(
    "algorithm, settings, denoiser, actions",
    [
        (DiffSAC, OFF_POLICY, 0.132252, [0.529043, -0.875275, 0.658634]),
        (DiffWPO, OFF_POLICY, 0.145116, [0.522257, -0.881632, 0.650958]),
        (DiffCrossQ, OFF_POLICY, 0.174405, [0.513930, -0.873867, 0.644113]),
        (DiffCrossQ, OFF_POLICY | dict(objective="reverse_kl"), 0.174190, [0.518224, -0.878686, 0.646186]),
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


def everything_learns(share: bool) -> dict[str, Any]:
    """
    Arguments of a small policy in which all that can learn does; with SGD every gradient counts.

    :param share: the features extractor
    """
    extractor = dict(features_extractor_class=CountingExtractor, share_features_extractor=share)
    return dict(net_arch=[16], learn_schedule=True, optimizer_class=th.optim.SGD, **extractor)


def moved_by_diffppo(share: bool) -> dict[str, float]:
    """How far each parameter is from its start after a short training of everything that DiffPPO can learn."""
    # The value's share small, because Pendulum's returns are large; SGD and no clipped norm, so that every gradient counts
    settings = ON_POLICY | dict(learning_rate=0.03, ent_coef="auto_0.1", vf_coef=1e-3, max_grad_norm=math.inf)
    model = DiffPPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs=everything_learns(share), **settings)
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


def moved_off_policy(algorithm: Any, share: bool) -> dict[str, float]:
    """How far each network, and each features extractor, is from its start after a short training, all its parameters."""
    settings = OFF_POLICY | dict(learning_rate=1e-3) | per_step(algorithm)
    model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs=everything_learns(share), **settings)
    scatter_weights(model.policy, 0.2)
    start = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(80)
    squares: dict[str, float] = {}
    for name, parameter in model.policy.named_parameters():
        network, part = name.split(".")[:2]
        key = f"{network}.{part}" if network == "actor" or part == "features_extractor" else network
        squares[key] = squares.get(key, 0.0) + (parameter - start[name]).square().sum().item()
    return {key: math.sqrt(square) for key, square in squares.items()}


MOVED: dict[str, dict[bool, dict[str, float]]] = {
    "DiffSAC": {
        True: {
            "actor.features_extractor": 0.0097186,
            "actor.latent_pi": 0.0047913,
            "actor.mu": 0.0028109,
            "actor.log_std": 0.0063208,
            "actor.schedule": 0.00026179,
            "actor.denoiser": 0.032046,
            "critic": 0.46181,
            "critic_target.features_extractor": 0.20624,
            "critic_target": 0.8701,
            "diffusion_value": 0.18628,
        },
        False: {
            "actor.features_extractor": 0.018453,
            "actor.latent_pi": 0.0047349,
            "actor.mu": 0.0027407,
            "actor.log_std": 0.0081999,
            "actor.schedule": 0.00067213,
            "actor.denoiser": 0.036358,
            "critic.features_extractor": 0.167,
            "critic": 0.57082,
            "critic_target.features_extractor": 0.14291,
            "critic_target": 0.86698,
            "diffusion_value": 0.17328,
        },
    },
    "DiffWPO": {
        True: {
            "actor.features_extractor": 0.18246,
            "actor.latent_pi": 0.1103,
            "actor.mu": 0.16616,
            "actor.log_std": 0.059984,
            "actor.schedule": 0.064875,
            "actor.denoiser": 0.34219,
            "critic": 0.51267,
            "critic_target.features_extractor": 0.20598,
            "critic_target": 0.86983,
            "diffusion_value": 0.27931,
            "actor_target.features_extractor": 0.0,
            "actor_target": 0.0,
        },
        False: {
            "actor.features_extractor": 0.17023,
            "actor.latent_pi": 0.16491,
            "actor.mu": 0.18203,
            "actor.log_std": 0.10714,
            "actor.schedule": 0.085964,
            "actor.denoiser": 0.30677,
            "critic.features_extractor": 0.20658,
            "critic": 0.68293,
            "critic_target.features_extractor": 0.14302,
            "critic_target": 0.86845,
            "diffusion_value": 0.30787,
            "actor_target.features_extractor": 0.0,
            "actor_target": 0.0,
        },
    },
    "DiffCrossQ": {
        True: {
            "actor.features_extractor": 0.003945,
            "actor.latent_pi": 0.0018349,
            "actor.mu": 0.00094324,
            "actor.log_std": 0.0030734,
            "actor.schedule": 0.00012027,
            "actor.denoiser": 0.0082714,
            "critic": 0.65855,
            "diffusion_value": 0.010513,
        },
        False: {
            "actor.features_extractor": 0.0064949,
            "actor.latent_pi": 0.0017092,
            "actor.mu": 0.00134,
            "actor.log_std": 0.0015095,
            "actor.schedule": 0.00023202,
            "actor.denoiser": 0.013236,
            "critic.features_extractor": 0.24247,
            "critic": 0.65408,
            "diffusion_value": 0.051367,
        },
    },
    "DiffTQC": {
        True: {
            "actor.features_extractor": 0.01304,
            "actor.latent_pi": 0.0044642,
            "actor.mu": 0.002567,
            "actor.log_std": 0.0070334,
            "actor.schedule": 0.00022851,
            "actor.denoiser": 0.023489,
            "critic": 0.0048812,
            "critic_target.features_extractor": 0.19693,
            "critic_target": 1.6955,
            "diffusion_value": 0.084768,
        },
        False: {
            "actor.features_extractor": 0.013448,
            "actor.latent_pi": 0.0042949,
            "actor.mu": 0.002906,
            "actor.log_std": 0.0059945,
            "actor.schedule": 0.00031015,
            "actor.denoiser": 0.027958,
            "critic.features_extractor": 0.0016448,
            "critic": 0.0045915,
            "critic_target.features_extractor": 0.15011,
            "critic_target": 1.7043,
            "diffusion_value": 0.062452,
        },
    },
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("share", [True, False])
def test_every_network_of_the_off_policy_algorithms_moves_as_far_as_when_it_was_recorded(algorithm: Any, share: bool) -> None:
    assert moved_off_policy(algorithm, share) == pytest.approx(MOVED[algorithm.__name__][share], rel=2e-3, abs=1e-7)
