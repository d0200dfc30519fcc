"""What callbacks and user code may change or replace while a model trains: SB3's SAC reads it afresh, and so do ours."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import ALGORITHMS, SMALL, differing, full_state
from envs_for_tests import AnyObservationEnv, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

from sb3_diffusion import DiffCrossQ

EVERY: list[Any] = [SAC, *ALGORITHMS]


def make(algorithm: Any, env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    env = StrictBoxEnv() if env is None else env
    return algorithm(policy, env, policy_kwargs=dict(net_arch=[16]), **SMALL | kwargs)


class Change(BaseCallback):
    """Calls a function of the model at one environment step."""

    def __init__(self, change: Callable[[Any], None] | None, at: int = 14):
        super().__init__()
        self.change, self.at = change, at

    def _on_step(self) -> bool:
        if self.change is not None and self.num_timesteps == self.at:
            self.change(self.model)
        return True


def setting(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value)


LEARNED = {
    "gamma": setting("gamma", 0.5),
    "tau": setting("tau", 0.5),
    "target_entropy": setting("target_entropy", -7.0),
    "batch_size": setting("batch_size", 5),
    "gradient_steps": setting("gradient_steps", 3),
    "lr_schedule": setting("lr_schedule", lambda _: 1e-2),
    "learning_starts": setting("learning_starts", 1_000),
    "action_noise": setting("action_noise", NormalActionNoise(np.zeros(1), np.ones(1))),
    "log_ent_coef": lambda model: model.log_ent_coef.data.fill_(1.0),
}


def trained(algorithm: Any, change: Any, **kwargs: Any) -> dict[str, Any]:
    model = make(algorithm, gradient_steps=2, **kwargs)
    return full_state(model.learn(24, callback=Change(change)))


# CrossQ has no target networks.
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(algorithm, name) for algorithm in EVERY for name in LEARNED if not (algorithm is DiffCrossQ and name == "tau")],
)
def test_a_setting_that_a_callback_changes_counts_from_the_next_update_on(algorithm: Any, name: str) -> None:
    assert differing(trained(algorithm, None), trained(algorithm, LEARNED[name]))
    assert not differing(trained(algorithm, None), trained(algorithm, None))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("name", "value"), [("policy_delay", 2), ("own_states", 0.5)])
def test_so_do_settings_that_stable_baselines3_does_not_know(algorithm: Any, name: str, value: float) -> None:
    assert differing(trained(algorithm, None), trained(algorithm, setting(name, value)))


@pytest.mark.parametrize("algorithm", [algorithm for algorithm in EVERY if algorithm is not DiffCrossQ])
def test_the_interval_of_the_target_networks_may_change(algorithm: Any) -> None:
    assert differing(trained(algorithm, None), trained(algorithm, setting("target_update_interval", 2)))


@pytest.mark.parametrize("algorithm", EVERY)
def test_the_tensor_of_a_given_temperature_may_be_set(algorithm: Any) -> None:
    changed = trained(algorithm, lambda model: model.ent_coef_tensor.fill_(3.0), ent_coef=0.1)
    assert differing(trained(algorithm, None, ent_coef=0.1), changed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_given_temperature_may_be_annealed_as_with_ppo(algorithm: Any) -> None:
    """SB3's SAC ignores this one."""
    by_tensor = trained(algorithm, lambda model: model.ent_coef_tensor.fill_(3.0), ent_coef=0.1)
    by_number = trained(algorithm, setting("ent_coef", 3.0), ent_coef=0.1)
    assert not differing(by_tensor, by_number)
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="ent_coef="):
            trained(algorithm, setting("ent_coef", value), ent_coef=0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_temperature_cannot_change_between_learned_and_given(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"ent_coef=0\.1 while training: the coefficient was learned"):
        trained(algorithm, setting("ent_coef", 0.1))
    with pytest.raises(ValueError, match=r"ent_coef='auto' while training: the coefficient was given"):
        trained(algorithm, setting("ent_coef", "auto"), ent_coef=0.1)


# Replay buffers of one's own


def as_object(samples: Any) -> Any:
    """SB3's fields and no more, without its tuple."""
    names = ("observations", "actions", "next_observations", "dones", "rewards")
    return SimpleNamespace(**{name: getattr(samples, name) for name in names})


class ObjectBuffer(ReplayBuffer):
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return as_object(super().sample(*args, **kwargs))


class DictObjectBuffer(DictReplayBuffer):
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return as_object(super().sample(*args, **kwargs))


class FewerRowsBuffer(ReplayBuffer):
    def sample(self, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        return super().sample(batch_size - 3, *args, **kwargs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_may_be_any_object_with_the_fields_of_stable_baselines3(algorithm: Any) -> None:
    states = [full_state(make(algorithm, replay_buffer_class=kind).learn(20)) for kind in (ReplayBuffer, ObjectBuffer)]
    assert not differing(*states)
    env = AnyObservationEnv(spaces.Dict(vector=spaces.Box(-1, 1, (3,)), number=spaces.Discrete(4)))
    assert make(algorithm, env, "MultiInputPolicy", replay_buffer_class=DictObjectBuffer).learn(20)._n_updates == 12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_may_have_another_number_of_rows_than_was_asked_for(algorithm: Any) -> None:
    other = make(algorithm, replay_buffer_class=FewerRowsBuffer, batch_size=11).learn(20)
    assert not differing(full_state(make(algorithm).learn(20)), full_state(other))


# Boxes of actions


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("low", "high", "dtype", "reason"),
    [
        (-np.finfo(np.float32).max, np.finfo(np.float32).max, np.float32, "too large for float32"),
        (-60_000, 60_000, np.float16, "too large for float16"),
        (-128, 127, np.int8, "too large for int8"),
        (0.5, 0.5, np.float32, "every upper bound must lie above the lower one"),
    ],
)
def test_a_box_that_cannot_be_scaled_is_refused_by_name(algorithm: Any, low: Any, high: Any, dtype: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"action_space=Box.*{reason}"):
        make(algorithm, StrictBoxEnv([low, -1], [high, 1], action_dtype=dtype))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("low", "high"), [(-1e37, 1e37), (0.0, 1e-6), (1e6, 1e6 + 1)])
def test_a_wide_or_narrow_box_that_can_be_scaled_gives_actions_inside(algorithm: Any, low: float, high: float) -> None:
    model = make(algorithm, StrictBoxEnv([low], [high])).learn(12)
    actions = model.predict(np.zeros((50, 3), np.float32))[0]
    assert ((actions >= np.float32(low)) & (actions <= np.float32(high))).all()
    assert th.isfinite(th.as_tensor(actions)).all()
