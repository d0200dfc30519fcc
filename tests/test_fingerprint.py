"""
Short trainings with recorded results: what changes the learning fails here, which tells whether benchmark results of an
earlier commit still hold. A deliberate change records new numbers, and says in the changelog which results it outdates.
"""

from typing import Any

import pytest
import torch as th

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
