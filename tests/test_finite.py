"""What is not finite stops training, prediction and saving with an error that says what came first."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
from conftest import ALGORITHMS, SMALL, SMALL_ON_POLICY, full_state
from envs_for_tests import AsDict, StrictBoxEnv
from rl_zoo3 import hyperparams_opt
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffPPO
from sb3_diffusion.zoo import hyperparameter_file, register

NAN, INF = float("nan"), float("inf")
ALL: list[Any] = [*ALGORITHMS, DiffPPO]


class Failing(gym.Wrapper):
    """
    Gives a value that is not finite at one step, counted from 1 over all episodes; at 0 the first observation has it.

    :param what: "reward" or "observation"
    :param value: the value
    :param at: the step
    """

    def __init__(self, env: gym.Env, what: str, value: float, at: int):
        super().__init__(env)
        self.what, self.value, self.at, self.count = what, value, at, 0
        self.actions: list[np.ndarray] = []

    def spoil(self, observation: Any) -> Any:
        if self.what == "observation" and self.count == self.at:
            part = observation["only"] if isinstance(observation, dict) else observation
            part[1] = self.value
        return observation

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return self.spoil(observation) if self.count == 0 else observation, info

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        self.count += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.what == "reward" and self.count == self.at:
            reward = self.value
        return self.spoil(observation), reward, terminated, truncated, info


def make(algorithm: Any, env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    small = SMALL_ON_POLICY if algorithm is DiffPPO else SMALL
    policy_kwargs = dict(net_arch=[16]) | kwargs.pop("policy_kwargs", {})
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **small | kwargs)


# Step 10 ends an episode of StrictBoxEnv.
@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("at", [3, 10, 21])
def test_training_stops_at_the_step_that_gives_what_is_not_finite(
    algorithm: Any, what: str, value: float, at: int, tmp_path: Path
) -> None:
    env = Failing(StrictBoxEnv(), what, value, at)
    model = make(algorithm, env)
    checkpoints = CheckpointCallback(1, tmp_path, save_replay_buffer=algorithm is not DiffPPO, save_vecnormalize=True)
    name = "last observation of an episode" if what == "observation" and at == 10 else what
    index = r" at index \(1,\)" if at == 10 and what == "observation" else r" at index \(0"
    with pytest.raises(ValueError, match=rf"At environment step {at - 1}: the {name} is not finite: {value}{index}"):
        model.learn(40, callback=checkpoints)
    assert env.count == at
    assert len(list(tmp_path.glob("rl_model_[0-9]*.zip"))) == at - 1
    assert all(np.isfinite(action).all() for action in env.actions)
    # What was learned before is still good.
    model.save(tmp_path / "model")
    assert all(np.isfinite(tensor.numpy()).all() for tensor in full_state(model).values() if isinstance(tensor, th.Tensor))


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_statistics_of_vec_normalize_are_not_saved_once_they_are_spoiled(algorithm: Any, what: str, tmp_path: Path) -> None:
    model = make(algorithm, VecNormalize(DummyVecEnv([lambda: Failing(StrictBoxEnv(), what, NAN, 13)])))
    with pytest.raises(ValueError, match=rf"At environment step 12: the {what} is not finite: nan"):
        model.learn(40, callback=CheckpointCallback(1, tmp_path, save_vecnormalize=True))
    files = sorted(tmp_path.glob("*vecnormalize*.pkl"))
    assert len(files) == 12
    for file in files:
        saved = VecNormalize.load(str(file), DummyVecEnv([StrictBoxEnv]))
        assert np.isfinite(saved.obs_rms.mean).all() and np.isfinite(saved.ret_rms.var)


@pytest.mark.parametrize("algorithm", ALL)
def test_the_first_observation_counts_and_so_do_entries_of_dictionaries(algorithm: Any) -> None:
    for at, where in ((0, "At environment step 0: the first "), (4, "At environment step 3: the ")):
        with pytest.raises(ValueError, match=where + r"observation\['only'\] is not finite: nan at index \(0, 1\)"):
            make(algorithm, Failing(AsDict(StrictBoxEnv()), "observation", NAN, at), "MultiInputPolicy").learn(20)


class FillingExtractor(FlattenExtractor):
    """Missing measurements arrive as NaN and count as 0."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).nan_to_num(0.0, 0.0, 0.0)


@pytest.mark.parametrize("algorithm", ALL)
def test_an_extractor_that_is_made_for_missing_values_gets_them(algorithm: Any) -> None:
    env = Failing(StrictBoxEnv(), "observation", NAN, 15)
    model = make(algorithm, env, policy_kwargs=dict(features_extractor_class=FillingExtractor))
    model.learn(40)
    assert np.isfinite(model.predict(np.float32([NAN, 0.0, INF]))[0]).all()


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("deterministic", [False, True])
def test_prediction_names_the_observation_or_the_weight_that_is_not_finite(algorithm: Any, deterministic: bool) -> None:
    model = make(algorithm, StrictBoxEnv()).learn(40)
    for predictor in (model, model.policy, model.policy.actor):
        with pytest.raises(ValueError, match=r"No action: the observation is not finite: nan at index \(2,\)"):
            predictor.predict(np.float32([0.0, 1.0, NAN]), deterministic=deterministic)
        with pytest.raises(ValueError, match=r"No action: the observation is not finite: nan at index \(1, 0\)"):
            predictor.predict(np.float32([[0.0, 1.0, 2.0], [NAN, 1.0, 2.0]]), deterministic=deterministic)
    with th.no_grad():
        model.policy.actor.latent_pi[0].weight[0, 0] = NAN
    with pytest.raises(ValueError, match=r"No action: the weights are not finite, first of them .*latent_pi\.0\.weight"):
        model.policy.predict(np.zeros(3, np.float32), deterministic=deterministic)
    trained = f"trained for {model.num_timesteps} environment steps and {model._n_updates} updates"
    with pytest.raises(ValueError, match=trained):
        model.predict(np.zeros(3, np.float32), deterministic=deterministic)


@pytest.mark.parametrize("algorithm", ALL)
def test_weights_that_are_not_finite_act_nowhere_and_take_no_good_files_place(algorithm: Any, tmp_path: Path) -> None:
    env = Failing(StrictBoxEnv(), "nothing", NAN, 0)
    model = make(algorithm, env).learn(40)
    model.save(tmp_path / "model")
    earlier = (tmp_path / "model.zip").read_bytes()
    with th.no_grad():
        next(model.policy.actor.denoiser.parameters()).fill_(INF)
    with pytest.raises(ValueError, match=r"Nothing is saved: the weights are not finite, first of them .*actor"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == earlier
    n_actions = len(env.actions)
    with pytest.raises(ValueError, match=r"the weights are not finite, first of them .*actor"):
        model.learn(40, reset_num_timesteps=False)
    assert len(env.actions) == n_actions


@pytest.mark.parametrize("algorithm", ALL)
def test_a_loss_that_is_not_finite_ends_training_by_its_name(algorithm: Any) -> None:
    # A step of 1e30 is no longer a direction: the next losses overflow.
    with pytest.raises(ValueError, match=r"(loss is|weights are) not finite"):
        make(algorithm, StrictBoxEnv(), learning_rate=1e30).learn(200)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stored", ["rewards", "observations"])
def test_data_that_came_from_elsewhere_is_named_as_the_cause(algorithm: Any, stored: str) -> None:
    model = make(algorithm, StrictBoxEnv()).learn(20)
    getattr(model.replay_buffer, stored)[:20] = NAN
    with pytest.raises(
        ValueError,
        match=rf"the replay buffer's entry in {stored} is not finite: nan at index \(0, 0.*",
    ):
        model.train(3, 8)


def test_a_diverging_trial_is_pruned_by_rl_zoo3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()

    def diverging(*_: Any) -> dict[str, Any]:
        return dict(learning_rate=1e5, learning_starts=5, policy_kwargs=dict(net_arch=[16]))

    monkeypatch.setitem(hyperparams_opt.HYPERPARAMS_SAMPLER, "diffsac", diverging)
    manager = ExperimentManager(
        argparse.Namespace(),
        "diffsac",
        "Pendulum-v1",
        str(tmp_path),
        n_timesteps=300,
        n_evaluations=1,
        n_eval_episodes=1,
        optimize_hyperparameters=True,
        config=str(hyperparameter_file("diffsac")),
        device="cpu",
    )
    manager.setup_experiment()
    with pytest.raises(optuna.TrialPruned):
        manager.objective(optuna.create_study().ask())
