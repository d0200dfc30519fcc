"""
Configurations that nobody thought of: every one trains a few steps with finite numbers, or is refused by an error that names
an argument. A few hundred run with the other tests, always the same ones; ten thousand with ``-m slow``, or in parts, others
for every seed, by

    python tests/test_fuzz.py --seeds 0 10

which counts what became of the 1 000 configurations of each seed and prints those that failed; with any, its status is 1.
"""

import argparse
import inspect
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import ALGORITHMS
from envs_for_tests import BatchNormDropoutExtractor, CountingExtractor
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffTQC, DiffWPO
from sb3_diffusion.common.finite import NotFinite

ALL: list[Any] = [*ALGORITHMS, DiffPPO]
NAN, INF = float("nan"), float("inf")
Config = dict[str, Any]


class FuzzEnv(gym.Env):
    """
    Random observations of any space; refuses actions outside the box.

    :param observation_space: any
    :param action_space: a box
    :param length: of an episode
    :param terminates: whether it terminates or is truncated
    :param reward_scale: in which rewards come
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, length: int, terminates: bool, reward_scale: float
    ):
        self.observation_space, self.action_space = observation_space, action_space
        self.length, self.terminates, self.reward_scale = length, terminates, reward_scale

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        low, high = self.action_space.low, self.action_space.high
        assert np.shape(action) == self.action_space.shape and ((action >= low) & (action <= high)).all(), action
        self.count += 1
        over = self.count >= self.length
        reward = self.reward_scale * float(self.np_random.standard_normal())
        return self.observation_space.sample(), reward, over and self.terminates, over and not self.terminates, {}


@st.composite
def simple_spaces(draw: Any) -> spaces.Space:
    kind = draw(st.sampled_from(["box", "box", "wide box", "double", "discrete", "multi-discrete", "multi-binary"]))
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 5)))
    if kind == "multi-discrete":
        return spaces.MultiDiscrete(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    if kind == "multi-binary":
        return spaces.MultiBinary(draw(st.integers(1, 4)))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    bound = {"box": 1.0, "wide box": 1e4, "double": 3.0}[kind]
    return spaces.Box(-bound, bound, shape, dtype=np.float64 if kind == "double" else np.float32)


IMAGES = spaces.Box(0, 255, (1, 36, 36), dtype=np.uint8)


@st.composite
def observation_spaces(draw: Any) -> spaces.Space:
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return IMAGES
    if kind <= 4:
        keys = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
        return spaces.Dict({key: draw(simple_spaces()) for key in keys})
    return draw(simple_spaces())


@st.composite
def action_spaces(draw: Any) -> spaces.Box:
    shape = draw(st.sampled_from([(1,), (1,), (2,), (3,), (2, 2), (1, 3)]))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    low = np.full(shape, draw(st.sampled_from([-1.0, -1.0, -3.0, 0.0, -1e3])), dtype)
    return spaces.Box(low, low + draw(st.sampled_from([2.0, 0.5, 1e-3, 1e4])), dtype=dtype)


def some(draw: Any, choices: dict[str, Any], most: int = 6) -> Config:
    """A few of the arguments, each with one of its values."""
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=most, unique=True))
    return {name: draw(choices[name]) for name in names}


def decaying(remaining: float) -> float:
    return 1e-3 * remaining


def one_of(*values: Any) -> Any:
    return st.sampled_from(values)


DIFFUSION = dict(
    diffusion_steps=st.integers(1, 6),
    prior_std=one_of(1.0, 0.3, 3.0, 1e-6, 1e6),
    kernel=one_of("vp", "euler"),
    noise_schedule=one_of("linear", "geometric", "cosine", [0.1, 0.2, 0.3, 0.4], (0.5,), [1e-8] * 4, [0.999] * 4),
    beta_min=one_of(0.01, 0.05, 1e-8, 0.3),
    beta_max=one_of(0.2, 0.3, 0.9999),
    learn_schedule=st.booleans(),
    learn_variance=st.booleans(),
    state_dependent_readout=st.booleans(),
    latent_frequencies=one_of(0, 1, 4, 16),
)
NETWORKS = dict(
    net_arch=one_of([8], [8], [4, 4], [], [1]),
    activation_fn=one_of(th.nn.ReLU, th.nn.Tanh, th.nn.SiLU, th.nn.ELU),
    optimizer_class=one_of(th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop),
    optimizer_kwargs=one_of(None, {}, dict(weight_decay=1e-2)),
    share_features_extractor=st.booleans(),
    normalize_images=st.booleans(),
)
COMMON = dict(
    learning_rate=one_of(3e-4, 1e-2, 0.0, 1, decaying, np.float32(1e-3)),
    gamma=one_of(0.99, 0.0, 1.0, 1),
    seed=one_of(None, 0, 2**32 - 1),
    stats_window_size=st.integers(1, 5),
    target_entropy=one_of("auto", -3, 2.0),
    verbose=one_of(0),
)
TEMPERATURES = ("auto", "auto_0.1", "auto_1e-6", 0.0, 0, 0.1, 1e3, np.float32(0.2), decaying)
OFF_POLICY = dict(
    batch_size=st.integers(1, 20),
    buffer_size=st.integers(1, 60),
    learning_starts=st.integers(0, 10),
    train_freq=one_of(1, 2, (3, "step"), (1, "episode")),
    gradient_steps=st.integers(-1, 3),
    n_steps=st.integers(1, 3),
    ent_coef=one_of(*TEMPERATURES),
    latents_per_state=st.integers(1, 4),
    bfloat16_chains=st.booleans(),
    policy_delay=st.integers(1, 3),
    own_states=one_of("auto", 0, 0.5, 1),
    optimize_memory_usage=st.booleans(),
    replay_buffer_kwargs=one_of(None, dict(handle_timeout_termination=False)),
)
TARGETS = dict(tau=one_of(0.0, 0.005, 1.0), target_update_interval=st.integers(1, 3))
OBJECTIVE = dict(objective=one_of("reverse_kl", "forward_kl", "whole_chain"))
OWN = {
    DiffWPO: TARGETS
    | dict(
        fisher_rescale=st.booleans(),
        action_gradient=one_of("identity", "cube_root"),
        target_kl=one_of(None, 1e-3, 0.1, 10.0),
        target_actor_interval=st.integers(1, 3),
    ),
    DiffCrossQ: OBJECTIVE,
    DiffTQC: TARGETS | OBJECTIVE | dict(top_quantiles_to_drop_per_net=st.integers(0, 4)),
    DiffPPO: dict(
        n_steps=st.integers(1, 12),
        batch_size=st.integers(1, 16),
        n_epochs=st.integers(1, 3),
        gae_lambda=one_of(0.0, 0.95, 1.0),
        clip_range=one_of(0.2, 1e-3, decaying),
        clip_range_vf=one_of(None, 0.2, decaying),
        normalize_advantage=st.booleans(),
        ent_coef=one_of(*TEMPERATURES, "lin_0.1"),
        vf_coef=one_of(0.0, 0.5, 10.0),
        max_grad_norm=one_of(0.5, 1e-6, INF),
        target_kl=one_of(None, 1e-6, 0.02),
        latents_per_state=st.integers(1, 4),
    ),
}
OWN_POLICY = {
    DiffCrossQ: dict(n_critics=st.integers(1, 3), batch_norm=st.booleans(), renorm_warmup_steps=one_of(0, 5)),
    DiffTQC: dict(n_critics=st.integers(1, 3), n_quantiles=st.integers(1, 6)),
    DiffPPO: dict(ortho_init=st.booleans(), log_std_init=one_of(0.0, -2.0, -20, 2), squash_output=st.booleans()),
}

# One of them in a configuration that is otherwise good must be refused, by its name.
BAD: dict[str, Any] = dict(
    learning_rate=one_of(-1e-3, NAN, INF, "fast", lambda _: -1.0),
    gamma=one_of(-0.1, 1.1, NAN, "all"),
    batch_size=one_of(0, -1, 2.5, NAN, None),
    ent_coef=one_of(-1.0, NAN, "much", "auto_", "auto_-1", None, lambda _: NAN),
    target_entropy=one_of(NAN, INF, "none"),
    latents_per_state=one_of(0, -1, 99, 1.5),
    seed=one_of(-1, 1.5, 2**32),
    stats_window_size=one_of(0, -1),
    use_sde=one_of(True),
    torch_compile=one_of("yes", 2),
)
BAD_OFF_POLICY = dict(
    buffer_size=one_of(0, -1, 1.5),
    train_freq=one_of(0, (1,), (1, "epoch"), -1),
    gradient_steps=one_of(-2, 0.5),
    action_noise=one_of(0.1, "normal"),
    replay_buffer_class=one_of(dict, 1),
    n_steps=one_of(0, -1),
    own_states=one_of(-0.1, 1.5, "all", NAN),
    policy_delay=one_of(0, 1.5),
)
BAD_ON_POLICY = dict(
    n_steps=one_of(0, -1, 1.5),
    n_epochs=one_of(0, -1),
    gae_lambda=one_of(-0.1, 1.1, NAN),
    clip_range=one_of(0.0, -0.1, NAN),
    vf_coef=one_of(-1.0, NAN),
    max_grad_norm=one_of(0.0, -1.0, NAN),
    target_kl=one_of(0.0, -1.0, NAN),
    rollout_buffer_class=one_of(dict, 1),
)
BAD_POLICY: dict[str, Any] = dict(
    diffusion_steps=one_of(0, -1, 2.5, NAN, "4", None),
    prior_std=one_of(0.0, -1.0, NAN, INF, 1e-7, 1e7),
    kernel=one_of("ddpm", None),
    noise_schedule=one_of("quadratic", [0.1], [0.0] * 4, [1.0] * 4, 3, None),
    beta_min=one_of(0.0, 1.0, NAN),
    beta_max=one_of(0.0, 1.0, NAN),
    learn_schedule=one_of("no", None),
    learn_variance=one_of("no", None),
    state_dependent_readout=one_of("no", None),
    latent_frequencies=one_of(-1, 17, 2.5, NAN, "4", None),
    net_arch=one_of([0], [-1], [2.5], 8, "8"),
    activation_fn=one_of("relu", None),
    optimizer_class=one_of("adam", None),
    normalize_images=one_of("no", None),
    difusion_steps=one_of(4),
)


@st.composite
def configurations(draw: Any, algorithm: Any) -> Config:
    """A configuration that is good as far as its arguments say, one by one."""
    on_policy = algorithm is DiffPPO
    observation_space, action_space = draw(observation_spaces()), draw(action_spaces())
    policy = "MlpPolicy"
    if isinstance(observation_space, spaces.Dict):
        policy = "MultiInputPolicy"
    elif observation_space is IMAGES:
        policy = "CnnPolicy"
    policy_kwargs: Config = dict(net_arch=[8]) | some(draw, DIFFUSION) | some(draw, NETWORKS, 3)
    policy_kwargs |= some(draw, OWN_POLICY.get(algorithm, dict(n_critics=st.integers(1, 3))), 2)
    vectors = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
    if vectors and draw(st.integers(0, 5)) == 0:
        policy_kwargs["features_extractor_class"] = draw(one_of(BatchNormDropoutExtractor, CountingExtractor))
    own = OWN.get(algorithm, TARGETS | OBJECTIVE)
    if on_policy:
        arguments = dict(n_steps=8, batch_size=8, n_epochs=1) | some(draw, COMMON, 3) | some(draw, own)
    else:
        arguments = dict(batch_size=8, buffer_size=50, learning_starts=4) | some(draw, COMMON, 3)
        arguments |= some(draw, OFF_POLICY) | some(draw, own, 3)
        if draw(st.integers(0, 5)) == 0:
            noise = draw(one_of(NormalActionNoise, OrnsteinUhlenbeckActionNoise))
            size = action_space.shape
            arguments["action_noise"] = noise(np.zeros(size), np.full(size, 0.1))
    environment = dict(
        n_envs=draw(st.integers(1, 3)),
        length=draw(st.integers(1, 6)),
        terminates=draw(st.booleans()),
        reward_scale=draw(one_of(1.0, 0.0, 1e3, 1e-3)),
        wrapper=draw(one_of("", "", "normalize", "monitor", "stack")),
    )
    return dict(
        observation_space=observation_space,
        action_space=action_space,
        policy=policy,
        policy_kwargs=policy_kwargs,
        arguments=arguments,
        environment=environment,
        callback=draw(one_of("", "", "", "evaluate", "checkpoint")),
        save=draw(st.integers(0, 3)) == 0,
    )


def make_env(config: Config) -> Any:
    options = dict(config["environment"])
    wrapper, n_envs = options.pop("wrapper"), options.pop("n_envs")

    def one() -> gym.Env:
        env = FuzzEnv(config["observation_space"], config["action_space"], **options)
        return Monitor(env) if wrapper == "monitor" else env

    env: Any = DummyVecEnv([one] * n_envs)
    box = isinstance(config["observation_space"], spaces.Box)
    # SB3's VecNormalize fails at the end of an episode for observations that are single numbers.
    if wrapper == "normalize" and config["observation_space"].shape != ():
        keys = None
        if isinstance(config["observation_space"], spaces.Dict):
            keys = [key for key, space in config["observation_space"].items() if isinstance(space, spaces.Box)]
        env = VecNormalize(env, norm_obs=(box and config["policy"] != "CnnPolicy") or bool(keys), norm_obs_keys=keys or None)
    elif wrapper == "stack" and box and config["policy"] == "MlpPolicy":
        env = VecFrameStack(env, 2)
    return VecMonitor(env) if wrapper == "" and n_envs > 1 else env


def make_callback(config: Config, folder: Path) -> Any:
    if config["callback"] == "evaluate":
        return EvalCallback(make_env(config), n_eval_episodes=1, eval_freq=5, best_model_save_path=str(folder), verbose=0)
    return CheckpointCallback(6, str(folder), save_replay_buffer=True) if config["callback"] == "checkpoint" else None


def build(algorithm: Any, config: Config) -> Any:
    return algorithm(
        config["policy"], make_env(config), policy_kwargs=dict(config["policy_kwargs"]), device="cpu", **config["arguments"]
    )


def check_predictions(model: Any, config: Config) -> None:
    space, box = model.observation_space, config["action_space"]
    sampled = [space.sample() for _ in range(3)]
    batch = (
        {key: np.stack([one[key] for one in sampled]) for key in space}
        if isinstance(space, spaces.Dict)
        else np.stack(sampled)
    )
    for deterministic in (False, True):
        actions = model.predict(batch, deterministic=deterministic)[0]
        assert actions.shape == (3, *box.shape) and actions.dtype == box.dtype
        assert np.isfinite(actions).all() and ((actions >= box.low) & (actions <= box.high)).all()


def train(algorithm: Any, config: Config) -> None:
    """Build, train, predict, perhaps save and load; whatever comes out must be finite."""
    model = build(algorithm, config)
    with tempfile.TemporaryDirectory() as folder:
        model.learn(14, callback=make_callback(config, Path(folder)))
        for name, weight in model.policy.state_dict().items():
            assert th.isfinite(weight).all(), name
        check_predictions(model, config)
        if config["save"]:
            model.save(Path(folder) / "model")
            loaded = algorithm.load(Path(folder) / "model", env=make_env(config), device="cpu")
            observation = model.observation_space.sample()
            expected = model.predict(observation, deterministic=True)[0]
            assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
            loaded.learn(6, reset_num_timesteps=False)


def names_an_argument(error: Exception, algorithm: Any, config: Config) -> bool:
    policy = algorithm.policy_aliases[config["policy"]]
    names = {*inspect.signature(algorithm).parameters, *inspect.signature(policy).parameters, *config["policy_kwargs"]}
    names |= {"action space", "N-step", "handle_timeout_termination"}  # SB3's words for action_space, n_steps, …
    # PyTorch's, for batch normalisation of a single row
    return any(name in str(error) for name in names - {"env", "policy"}) or "more than 1 value per channel" in str(error)


def outcome(algorithm: Any, config: Config) -> str:
    """:return: "trained" or the first words of the refusal"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            train(algorithm, config)
        except NotFinite as error:
            # Only such steps may diverge: nothing else in these configurations is extreme.
            if (
                config["policy_kwargs"].get("optimizer_class") is not th.optim.SGD
                and config["arguments"].get("learning_rate") != 1
            ):
                raise
            return f"diverged: {str(error)[:40]}"
        except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
            if not names_an_argument(error, algorithm, config):
                raise
            return f"refused: {str(error).splitlines()[0][:80]}"
    return "trained"


def refused_as_bad(algorithm: Any, config: Config) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, TypeError, AssertionError, NotImplementedError)) as info:
            build(algorithm, config)
    # Another argument may come first, where it does not fit either.
    assert names_an_argument(info.value, algorithm, config), info.value
    return "bad argument refused"


@st.composite
def bad_configurations(draw: Any, algorithm: Any) -> Config:
    """One argument of a configuration must be refused."""
    config = draw(configurations(algorithm))
    where = draw(one_of("arguments", "policy_kwargs"))
    bad = BAD | (BAD_ON_POLICY if algorithm is DiffPPO else BAD_OFF_POLICY)
    choices = bad if where == "arguments" else BAD_POLICY
    name = draw(one_of(*sorted(choices)))
    return config | {where: config[where] | {name: draw(choices[name])}}


KINDS: dict[str, tuple[Any, Callable[[Any, Config], str]]] = {
    "good": (configurations, outcome),
    "bad": (bad_configurations, refused_as_bad),
}


def fuzz(algorithm: Any, kind: str, n: int, number: int | None = None) -> Counter[str]:
    """
    :param kind: of configurations
    :param n: how many
    :param number: seed; None: always the same ones, and the first failure is an error, made as small as possible
    :return: how often each outcome was seen
    """
    strategy, judge = KINDS[kind]
    chosen = dict(derandomize=True) if number is None else dict(phases=[Phase.generate])
    counts: Counter[str] = Counter()

    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck), **chosen)
    @given(strategy(algorithm))
    def run(config: Config) -> None:
        note(repr(config))
        try:
            counts[judge(algorithm, config).split(":")[0]] += 1
        except Exception:
            if number is None:
                raise
            counts["FAILED"] += 1
            traceback.print_exc()
            print(f"FAILED, {kind}: {algorithm.__name__}, {config!r}", flush=True)

    (run if number is None else seed(number)(run))()
    return counts


@pytest.mark.parametrize("algorithm", ALL)
def test_every_configuration_trains_with_finite_numbers_or_is_refused_by_name(algorithm: Any) -> None:
    fuzz(algorithm, "good", 40)


@pytest.mark.parametrize("algorithm", ALL)
def test_every_bad_argument_is_refused_by_name_before_anything_starts(algorithm: Any) -> None:
    fuzz(algorithm, "bad", 60)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALL)
def test_ten_thousand_configurations_train_or_are_refused(algorithm: Any) -> None:
    fuzz(algorithm, "good", 1_500)
    fuzz(algorithm, "bad", 500)


def main() -> int:
    """The configurations of some seeds, counted."""
    parser = argparse.ArgumentParser(description="Train configurations that nobody thought of.")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 10), metavar=("FIRST", "END"), help="END is not run itself")
    parser.add_argument("--examples", type=int, default=200, help="of each algorithm and seed, a quarter bad (%(default)s)")
    parser.add_argument("--algorithms", nargs="+", default=[one.__name__ for one in ALL], metavar="NAME")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    in_all: Counter[str] = Counter()
    n_bad = arguments.examples // 4
    for number in range(*arguments.seeds):
        for algorithm in (one for one in ALL if one.__name__ in arguments.algorithms):
            counts = fuzz(algorithm, "good", arguments.examples - n_bad, number) + fuzz(algorithm, "bad", n_bad, number)
            in_all += counts
            print(f"seed {number}, {algorithm.__name__}: {dict(counts)}", flush=True)
    print(f"{in_all.total()} configurations: {dict(in_all)}")
    return int("FAILED" in in_all)


if __name__ == "__main__":
    sys.exit(main())
