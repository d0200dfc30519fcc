"""The augmented MDP as an environment, the serial form that everything else is compared with."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import scatter_weights
from envs_for_tests import AnyActionEnv, AnyObservationEnv, AsDict, StrictBoxEnv
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion.common import DiffusionActor
from sb3_diffusion.diffusion import squashed_readout
from sb3_diffusion.envs import AugmentedMDP, BimodalBandit

# What the checkers say of every wrapper, of latents (a Gaussian's do not fit into [-1, 1]), and of one environment below.
EXPECTED_WARNINGS = ("different from the unwrapped version", "symmetric and normalized", "not having a spec")


class Recorder(gym.Wrapper):
    """Keeps the actions that reach the environment and what it answers."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.actions: list[np.ndarray] = []
        self.steps: list[tuple] = []

    def step(self, action: np.ndarray) -> tuple:
        self.actions.append(action)
        self.steps.append(super().step(action))
        return self.steps[-1]


def test_what_is_no_action_is_refused_at_every_step_and_no_step_follows_the_end_of_an_episode() -> None:
    env = AugmentedMDP(gym.make("Pendulum-v1", max_episode_steps=1), diffusion_steps=2)
    env.reset(seed=0)
    for _ in range(2):
        for action in (np.zeros(3), np.array([np.nan]), np.array([np.inf]), None, 0.5):
            with pytest.raises(ValueError, match=r"(?s)action=.*finite and have the shape \(1,\)"):
                env.step(action)  # type: ignore[arg-type]
        observation, _, _, truncated, _ = env.step(np.zeros(1))
    assert truncated and observation["diffusion_step"] == 1
    with pytest.raises(gym.error.ResetNeeded, match="after the end of an episode"):
        env.step(np.zeros(1))
    env.reset()
    env.step(np.zeros(1))


def run_episode(env: gym.Env, seed: int = 0) -> list[tuple]:
    """The steps of an episode with random latents, after the tuple (observation, info) of its reset."""
    rng = np.random.default_rng(seed)
    steps: list[tuple] = [env.reset(seed=seed)]
    while len(steps) == 1 or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(rng.standard_normal(env.action_space.shape).astype(np.float32)))
    return steps


@pytest.mark.parametrize("check_env", [gymnasium_check_env, sb3_check_env], ids=["gymnasium", "sb3"])
@pytest.mark.parametrize(
    "make_env",
    [
        lambda: gym.make("TurningGMM-v0"),
        lambda: gym.make("BimodalBandit-v0"),
        lambda: gym.make("MultiGoal2D-v0"),
        lambda: AsDict(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5])),
        lambda: AnyObservationEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8)),
        lambda: AnyObservationEnv(spaces.Discrete(3)),
    ],
    ids=["vector", "one-step", "two-dimensional", "dict", "image", "discrete"],
)
@pytest.mark.parametrize("squash", [True, False], ids=["squash", "plain"])
def test_the_environment_checkers_accept_it(make_env: Any, check_env: Any, squash: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(AugmentedMDP(make_env(), squash=squash))
    unexpected = [str(w.message) for w in caught if not any(text in str(w.message) for text in EXPECTED_WARNINGS)]
    assert unexpected == []


def test_the_environment_steps_once_in_k_steps_with_the_last_latents_and_pays_only_then() -> None:
    inner = Recorder(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5], episode_length=4))
    env = AugmentedMDP(inner, diffusion_steps=3, gamma=0.9)
    observation, _ = env.reset(seed=0)
    first, rng = observation["observation"], np.random.default_rng(1)
    for env_step in range(4):
        for k in (3, 2, 1):
            assert observation["diffusion_step"] == k - 1
            assert np.array_equal(observation["observation"], first)
            latents = rng.standard_normal(2).astype(np.float32)
            observation, reward, terminated, truncated, info = env.step(latents)
            if k > 1:
                assert (reward, terminated, truncated, info) == (0, False, False, {"discount": 1})
                assert np.array_equal(observation["latents"], latents)
        first, *rest = inner.steps[env_step]
        assert (reward, terminated, truncated) == tuple(rest[:3])
        assert truncated == (env_step == 3)
        assert info["discount"] == 0.9
        assert len(inner.actions) == env_step + 1
        u = np.tanh(latents)
        assert inner.actions[-1] == pytest.approx([-3 + 4 * (u[0] + 1), 0.25 * (u[1] + 1)], rel=1e-6)
        assert not np.array_equal(observation["latents"], latents)


def test_without_squashing_the_last_latents_are_the_action_clipped_to_its_space() -> None:
    inner = Recorder(StrictBoxEnv(low=[-3.0, 0.0], high=[5.0, 0.5]))
    env = AugmentedMDP(inner, diffusion_steps=1, squash=False)
    env.reset(seed=0)
    for latents in ([1.5, 0.25], [-4.0, 0.75], [6.0, -0.25]):
        env.step(np.array(latents, dtype=np.float32))
    assert np.array_equal(inner.actions, [[1.5, 0.25], [-3.0, 0.5], [5.0, 0.0]])


def test_the_environments_own_info_is_passed_on_with_the_discount() -> None:
    env = AugmentedMDP(gym.make("TurningDoubleWell-v0"), diffusion_steps=2)
    _, info = env.reset(seed=0)
    assert set(info) == {"heading", "position"}
    assert env.step(np.zeros(1, np.float32))[4] == {"discount": 1}
    assert env.step(np.ones(1, np.float32))[4].keys() == {"heading", "position", "turn", "discount"}


def test_every_chain_starts_with_a_fresh_prior_sample() -> None:
    env = AugmentedMDP(gym.make("MultiGoal2D-v0"), diffusion_steps=2, prior_std=2.5)
    priors = [
        step[0]["latents"]
        for seed in range(100)
        for step in run_episode(env, seed)
        if step[0]["diffusion_step"] == env.diffusion_steps - 1
    ]
    samples = np.array(priors)
    assert len(samples) > 500 and len(np.unique(samples)) == samples.size
    n = samples.size
    assert samples.mean() == pytest.approx(0, abs=4 * 2.5 / n**0.5)
    assert samples.std() == pytest.approx(2.5, rel=4 / (2 * n) ** 0.5)
    # Neither the two dimensions nor chains that follow each other are correlated.
    assert abs(np.corrcoef(samples.T)[0, 1]) < 4 / len(samples) ** 0.5
    assert abs(np.corrcoef(samples[:-1, 0], samples[1:, 0])[0, 1]) < 4 / len(samples) ** 0.5


def test_the_environments_seed_determines_the_prior_samples_too() -> None:
    def priors(seed: int) -> list[float]:
        env = AugmentedMDP(gym.make("Pendulum-v1", max_episode_steps=5), diffusion_steps=1)
        return [step[0]["latents"].item() for step in run_episode(env, seed)]

    assert priors(3) == priors(3)
    assert not set(priors(3)) & set(priors(4))


@pytest.mark.parametrize("diffusion_steps", [1, 3])
def test_a_time_limit_counts_environment_steps_and_truncates_at_the_last_diffusion_step(diffusion_steps: int) -> None:
    env = AugmentedMDP(gym.make("Pendulum-v1", max_episode_steps=5), diffusion_steps)
    steps = run_episode(env)[1:]
    assert len(steps) == 5 * diffusion_steps
    assert [step[3] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert not any(step[2] for step in steps)
    assert steps[-1][0]["diffusion_step"] == diffusion_steps - 1


def test_a_termination_stays_one() -> None:
    env = AugmentedMDP(gym.make("BimodalBandit-v0"), diffusion_steps=3)
    assert [step[2:4] for step in run_episode(env)[1:]] == [(False, False), (False, False), (True, False)]


def test_the_value_that_bootstraps_a_truncated_episode_is_that_of_a_fresh_prior_sample() -> None:
    vec_env = make_vec_env(
        "Pendulum-v1", 2, seed=0, wrapper_class=AugmentedMDP, wrapper_kwargs={"diffusion_steps": 2},
        env_kwargs={"max_episode_steps": 3},
    )  # fmt: skip
    vec_env.reset()
    last_latents = np.full((2, 1), 0.5, dtype=np.float32)
    for step in range(6):
        first_of_next, _, dones, infos = vec_env.step(last_latents)
        assert dones.all() == dones.any() == (step == 5)
    seen = [info["terminal_observation"]["latents"].item() for info in infos]
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"]["diffusion_step"] == 1 for info in infos)
    assert len({*seen, *first_of_next["latents"].ravel().tolist(), 0.5}) == 5


@pytest.mark.parametrize("state_dependent_readout", [True, False], ids=["readout", "no-readout"])
@pytest.mark.parametrize("kernel, prior_std", [("vp", 1.0), ("vp", 2.5), ("euler", 1.0)])
def test_serial_reverse_steps_give_the_actions_rewards_and_soft_return_of_whole_chains(
    kernel: str, prior_std: float, state_dependent_readout: bool
) -> None:
    ent_coef, gamma, diffusion_steps, seed = 0.3, 0.9, 3, 7
    plain = Recorder(gym.make("Pendulum-v1", max_episode_steps=6))
    inner = Recorder(gym.make("Pendulum-v1", max_episode_steps=6))
    env = AugmentedMDP(inner, diffusion_steps, prior_std, gamma)
    th.manual_seed(seed)
    actor = DiffusionActor(
        plain.observation_space, plain.action_space, [16], FlattenExtractor(plain.observation_space), 3,
        diffusion_steps=diffusion_steps, prior_std=prior_std, kernel=kernel, state_dependent_readout=state_dependent_readout,
    )  # fmt: skip
    scatter_weights(actor, 0.2)
    generator = th.Generator().manual_seed(seed)
    noise: list[th.Tensor] = []

    soft_return, weight, over = 0.0, 1.0, False
    observation, _ = env.reset(seed=seed)
    while not over:
        features, latents = th.as_tensor(observation["observation"])[None], th.as_tensor(observation["latents"])[None]
        steps = th.tensor([int(observation["diffusion_step"]) + 1])
        if steps == diffusion_steps:
            noise.append(latents / prior_std)
        noise.append(th.randn(1, 1, generator=generator))
        with th.no_grad():
            latents, log_ratio = actor.reverse_step(features, latents, steps, noise[-1])
            if steps == 1:
                location, log_scale = actor.readout(features)
                log_ratio = log_ratio + squashed_readout(latents, location, log_scale)[1]
                latents = location + log_scale.exp() * latents
        observation, reward, terminated, truncated, info = env.step(latents[0].numpy())
        soft_return += weight * (reward - ent_coef * log_ratio.item())
        weight *= info["discount"]
        over = terminated or truncated

    expected, over = 0.0, False
    state, _ = plain.reset(seed=seed)
    while not over:
        t = len(plain.steps)
        chain_noise = th.stack(noise[t * (diffusion_steps + 1) : (t + 1) * (diffusion_steps + 1)][::-1])
        with th.no_grad():
            sample = actor.sample(th.as_tensor(state)[None], chain_noise)
        state, reward, terminated, truncated, _ = plain.step(2 * sample.actions[0].numpy())
        expected += gamma**t * (float(reward) - ent_coef * float(sample.log_ratios.sum()))
        over = terminated or truncated

    assert len(inner.steps) == len(plain.steps) == 6
    assert weight == pytest.approx(gamma**6)
    assert np.array(inner.actions) == pytest.approx(np.array(plain.actions), abs=1e-5)
    assert len(np.unique(inner.actions)) > 3
    assert [step[1] for step in inner.steps] == pytest.approx([step[1] for step in plain.steps], rel=1e-4)
    assert soft_return == pytest.approx(expected, rel=1e-4)
    assert abs(soft_return - sum(gamma**t * float(step[1]) for t, step in enumerate(plain.steps))) > 0.1


@pytest.mark.parametrize("policy, wrapper", [("MultiInputPolicy", lambda env: env), ("MlpPolicy", FlattenObservation)])
def test_sb3s_ppo_learns_on_it(policy: str, wrapper: Any) -> None:
    env = wrapper(AugmentedMDP(BimodalBandit(heights=(0.01, 1.0)), diffusion_steps=2))
    model = PPO(
        policy, env, n_steps=256, batch_size=64, learning_rate=3e-3, gamma=0.99**0.5, seed=0, device="cpu",
        policy_kwargs={"net_arch": [32], "log_std_init": -1.0},
    )  # fmt: skip
    returns = []
    for _ in range(6):
        model.learn(256, reset_num_timesteps=False)
        returns.append(np.mean([episode["r"] for episode in list(model.ep_info_buffer)[-100:]]))  # type: ignore[arg-type]
    assert returns[0] < 0.4 and returns[-1] > 0.6
    assert {episode["l"] for episode in model.ep_info_buffer} == {2}  # type: ignore[union-attr]


def test_the_flat_observation_holds_the_same_numbers_with_one_indicator_for_each_step() -> None:
    env = FlattenObservation(AugmentedMDP(gym.make("Pendulum-v1"), diffusion_steps=3))
    observation, _ = env.reset(seed=0)
    observation, *_ = env.step(np.array([0.25], dtype=np.float32))
    assert observation.shape == (3 + 3 + 1,)
    parts = spaces.unflatten(env.env.observation_space, observation)
    assert (parts["diffusion_step"], parts["latents"].item()) == (1, 0.25)


def test_vec_normalize_can_leave_latents_and_steps_alone() -> None:
    vec_env = DummyVecEnv([lambda: AugmentedMDP(gym.make("Pendulum-v1"), diffusion_steps=2)])
    model = PPO("MultiInputPolicy", VecNormalize(vec_env, norm_obs_keys=["observation"]), n_steps=16, batch_size=8, seed=0)
    model.learn(64)
    latents = np.full((1, 1), 2.5, dtype=np.float32)
    assert model.env.step(latents)[0]["latents"] == latents  # type: ignore[union-attr]


def test_images_and_dicts_keep_their_form() -> None:
    image = AugmentedMDP(AnyObservationEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8)))
    assert image.reset(seed=0)[0]["observation"].dtype == np.uint8
    named = AugmentedMDP(AsDict(StrictBoxEnv()))
    assert named.observation_space.spaces.keys() == {"only", "latents", "diffusion_step"}
    assert named.reset(seed=0)[0] in named.observation_space


def test_changing_a_returned_observation_does_not_change_the_next_one() -> None:
    env = AugmentedMDP(AsDict(StrictBoxEnv()), diffusion_steps=2)
    first, _ = env.reset(seed=0)
    expected = first["only"].copy()
    first["only"][:] = 9
    assert np.array_equal(env.step(np.zeros(1, np.float32))[0]["only"], expected)


def test_its_spec_makes_the_same_environment_again() -> None:
    env = AugmentedMDP(gym.make("Pendulum-v1"), diffusion_steps=3, prior_std=2.0, gamma=0.9, squash=False)
    again = gym.make(env.spec)  # type: ignore[arg-type]
    assert isinstance(again, AugmentedMDP)
    assert (again.diffusion_steps, again.prior_std, again.gamma, again.squash) == (3, 2.0, 0.9, False)


@pytest.mark.parametrize(
    "kwargs, complaint",
    [
        ({"diffusion_steps": 0}, "diffusion_steps=0 must be an integer >= 1"),
        ({"diffusion_steps": 2.5}, "diffusion_steps=2.5 must be an integer"),
        ({"prior_std": 0.0}, "prior_std=0.0 must be"),
        ({"gamma": 1.5}, "gamma=1.5 must be .* <= 1"),
        ({"gamma": float("nan")}, "gamma=nan must be"),
        *(({"squash": value}, f"squash={value!r} is unknown") for value in ("no", None, 2)),
        ({"prior_std": 0.1, "squash": False}, r"prior_std=0.1 leaves part of the action space Box\(-2.0, 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AugmentedMDP(gym.make("Pendulum-v1"), **kwargs)


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (1,))], ids=str)
def test_an_action_space_that_is_not_a_bounded_box_is_refused(action_space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"action space .*; allowed: a bounded Box"):
        AugmentedMDP(AnyActionEnv(action_space))


def test_an_observation_that_is_called_latents_already_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observations \['latents'\]; .* must not be among them"):
        AugmentedMDP(AnyObservationEnv(spaces.Dict({"latents": spaces.Box(-1, 1, (1,))})))


def test_a_step_before_the_first_reset_is_refused() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        AugmentedMDP(BimodalBandit()).step(np.zeros(1, np.float32))
