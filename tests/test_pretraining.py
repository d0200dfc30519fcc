"""``pretrain``: what the imitator learns, and how it behaves as a member of SB3's family."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import SMALL, SMALL_ON_POLICY, full_state
from envs_for_tests import AnyObservationEnv, BatchNormDropoutExtractor, SmallImageExtractor, StrictBoxEnv
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.demonstrations import Demonstrations, PretrainCallback
from sb3_diffusion.demonstrations.pretraining import ImitationData, WeightAverage, falling, validation_bound
from sb3_diffusion.diffusion import log_det_tanh

ALGORITHMS = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO, DiffPPO]
by_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
COSINE = dict(noise_schedule="cosine", diffusion_steps=16)


class Recorded(KVWriter):
    """What was logged, one dictionary an entry."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.entries.append(dict(key_values, step=step))

    def close(self) -> None:
        pass

    def all(self, name: str) -> list[Any]:
        return [entry[f"pretrain/{name}"] for entry in self.entries if f"pretrain/{name}" in entry]


def build(
    algorithm: Any = DiffSAC, env: Any = None, policy: str = "MlpPolicy", policy_kwargs: Any = None, **kwargs: Any
) -> Any:
    """A small model and what it logs."""
    settings = SMALL_ON_POLICY if issubclass(algorithm, DiffPPO) else SMALL
    env = StrictBoxEnv() if env is None else env
    model = algorithm(policy, env, policy_kwargs={"net_arch": [32, 32]} | (policy_kwargs or {}), **settings | kwargs)
    model.set_logger(Logger(None, [Recorded()]))
    return model


def logged(model: Any) -> Recorded:
    return model.logger.output_formats[0]


def single_steps(actions: np.ndarray, observations: np.ndarray | None = None) -> Demonstrations:
    """Episodes of one step each."""
    observations = np.zeros((len(actions), 3), np.float32) if observations is None else observations
    return Demonstrations.from_arrays(observations, actions, episode_ends=np.arange(1, len(actions) + 1))


def imitable(n: int = 200, seed: int = 0, dim: int = 1) -> Demonstrations:
    """The action is plain from the observation."""
    observations = np.random.default_rng(seed).uniform(-1, 1, (n, 3)).astype(np.float32)
    return single_steps(0.9 * np.repeat(observations[:, :1], dim, axis=1), observations)


def two_modes(dim: int) -> MixtureSameFamily:
    """A density before squashing, with 0.3 and 0.7 of the mass at two corners."""
    means = th.tensor([[-1.0] * dim, [0.8] * dim])
    stds = th.tensor([[0.15] * dim, [0.3] * dim])
    return MixtureSameFamily(Categorical(th.tensor([0.3, 0.7])), Independent(Normal(means, stds), 1))


@pytest.mark.parametrize("algorithm, dim", [(DiffSAC, 1), (DiffPPO, 2)])
def test_a_density_of_two_modes_is_recovered(algorithm: Any, dim: int) -> None:
    low, high = np.full(dim, -3.0), np.full(dim, 5.0)
    th.manual_seed(0)
    density = two_modes(dim)
    before_squashing = density.sample((4000,))
    true = th.tanh(before_squashing).numpy()
    actions = low + (true + 1) / 2 * (high - low)
    model = build(algorithm, StrictBoxEnv(low, high), policy_kwargs=COSINE | dict(net_arch=[64, 64]))
    model.pretrain(single_steps(actions.astype(np.float32)), n_epochs=25, batch_size=256, learning_rate=1e-2)

    sampled, _ = model.predict(np.zeros((20_000, 3), np.float32))
    sampled = (sampled - low) / (high - low) * 2 - 1
    for axis in range(dim):
        assert (sampled[:, axis] > 0).mean() == pytest.approx((true[:, axis] > 0).mean(), abs=0.04)
        # Each mode by its quartiles: a few chains that end between the modes do not move them.
        for side in (-1, 1):
            quartiles = [np.quantile(side * rows[side * rows[:, 0] > 0, axis], [0.25, 0.5, 0.75]) for rows in (sampled, true)]
            np.testing.assert_allclose(*quartiles, atol=0.04)
    if dim == 2:
        assert (np.sign(sampled[:, 0]) == np.sign(sampled[:, 1])).mean() > 0.96
    # The bound is one: not above the log-density that is exact, and near it.
    exact = (density.log_prob(before_squashing) - log_det_tanh(before_squashing)).mean().item()
    data = ImitationData(single_steps(actions), model, boundary_width=1e-3)
    bound = validation_bound(model.policy.actor, data, np.arange(4000), 2000)
    assert exact - 0.2 * dim < bound < exact + 0.03


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        dict(kernel="euler"),
        dict(learn_schedule=True),
        dict(learn_variance=False, diffusion_steps=8),
        dict(state_dependent_readout=False, noise_schedule="cosine"),
        dict(diffusion_steps=1, beta_max=0.9, beta_min=0.9),
        dict(prior_std=2.0, noise_schedule=[0.1, 0.2, 0.3]),
    ],
    ids=str,
)
@by_algorithm
def test_every_policy_imitates(algorithm: Any, policy_kwargs: dict[str, Any]) -> None:
    if "noise_schedule" in policy_kwargs and isinstance(policy_kwargs["noise_schedule"], list):
        policy_kwargs = policy_kwargs | dict(diffusion_steps=3)
    model = build(algorithm, policy_kwargs=policy_kwargs)
    before = copy.deepcopy(model.policy.actor.state_dict())
    demonstrations = imitable(400)
    error = np.abs(model.predict(demonstrations.observations, deterministic=True)[0] - demonstrations.actions).mean()
    model.pretrain(demonstrations, n_epochs=30, batch_size=64, learning_rate=3e-3)
    after = np.abs(model.predict(demonstrations.observations, deterministic=True)[0] - demonstrations.actions).mean()
    assert after < 0.35 * error
    bounds = logged(model).all("validation_bound")
    assert max(bounds) > bounds[0] + 0.3
    # All parts learn: read-out and schedule included.
    unchanged = [name for name, value in model.policy.actor.state_dict().items() if th.equal(value, before[name])]
    assert unchanged == []


@by_algorithm
def test_actions_on_the_bounds_are_imitated_up_to_the_boundary_width(algorithm: Any) -> None:
    low, high = np.array([-3.0, 0.0]), np.array([5.0, 0.5])
    rng = np.random.default_rng(0)
    actions = np.where(rng.random((1000, 2)) < 0.5, low, high)
    model = build(algorithm, StrictBoxEnv(low, high), policy_kwargs=dict(diffusion_steps=8))
    model.pretrain(single_steps(actions), n_epochs=70, batch_size=256, learning_rate=1e-2, boundary_width=0.05)
    assert np.isfinite(logged(model).all("loss")).all()
    sampled, _ = model.predict(np.zeros((4000, 3), np.float32))
    scaled = (sampled - low) / (high - low) * 2 - 1
    assert (np.abs(scaled) > 0.9).mean() > 0.8
    # All four corners
    shares = np.bincount(((scaled > 0) @ [1, 2]).astype(int), minlength=4) / 4000
    assert shares.min() > 0.15


def test_an_action_beyond_the_boundary_width_counts_as_one_on_the_bound_and_others_stay() -> None:
    model = build(env=StrictBoxEnv([-2.0], [2.0]))
    actions = np.array([[-2.0], [-1.98], [2.0], [1.0], [-1.9]])
    data = ImitationData(single_steps(actions), model, boundary_width=0.04)
    th.manual_seed(0)
    redrawn = th.stack([th.tanh(data.actions(np.arange(5)).actions).squeeze(1) for _ in range(2000)])
    for column, sign in ((0, -1), (1, -1), (2, 1)):
        distance = 1 - sign * redrawn[:, column]
        assert distance.min() >= 0 and distance.max() <= 0.04
        assert distance.mean().item() == pytest.approx(0.02, abs=0.001)
    th.testing.assert_close(redrawn[:, 3:], th.tensor([[0.5, -0.95]]).expand(2000, -1))


def test_without_squashing_actions_stay_in_the_environments_units() -> None:
    low, high = np.array([-3.0, 0.0]), np.array([5.0, 0.5])
    model = build(DiffPPO, StrictBoxEnv(low, high), policy_kwargs=dict(squash_output=False))
    demonstrations = imitable(400)
    # On the bound itself there is nothing special.
    actions = low + (demonstrations.observations[:, :2] > 0) * (high - low)
    demonstrations = single_steps(actions, demonstrations.observations)
    model.pretrain(demonstrations, n_epochs=40, batch_size=32, learning_rate=1e-2)
    predicted, _ = model.predict(demonstrations.observations, deterministic=True)
    assert (np.abs(predicted - actions) < 0.1 * (high - low)).all(axis=1).mean() > 0.85


@by_algorithm
def test_dictionaries_with_images_are_imitated(algorithm: Any) -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (36, 40, 3), np.uint8), "number": spaces.Discrete(2)})
    env = AnyObservationEnv(space)
    demonstrations = Demonstrations.from_policy(lambda observation: [1.6 * observation["number"] - 0.8], env, 10, seed=0)
    model = build(algorithm, env, "MultiInputPolicy", dict(features_extractor_kwargs=dict(cnn_output_dim=8)))
    model.pretrain(demonstrations, n_epochs=40, batch_size=32, learning_rate=3e-3)
    actions, _ = model.predict(demonstrations.observations, deterministic=True)
    assert np.abs(actions - demonstrations.actions).mean() < 0.3


@by_algorithm
def test_images_are_transposed_and_scaled_as_the_policy_wants_them(algorithm: Any) -> None:
    env = AnyObservationEnv(spaces.Box(0, 255, (36, 40, 3), np.uint8))
    demonstrations = Demonstrations.from_policy(lambda observation: [0.5], env, 2, seed=0)
    model = build(algorithm, env, "CnnPolicy", dict(features_extractor_class=SmallImageExtractor))
    model.pretrain(demonstrations, n_epochs=2, batch_size=8)
    assert model.policy.actor.features_extractor.largest_input <= 1
    assert model.observation_space.shape == (3, 36, 40)


@by_algorithm
def test_a_new_vec_normalize_is_fitted_and_an_old_one_kept(algorithm: Any) -> None:
    demonstrations = Demonstrations.from_policy(lambda observation: 0.1 * observation[:1], StrictBoxEnv(), 30, seed=0)
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]), gamma=0.9)
    model = build(algorithm, env)
    model.pretrain(demonstrations, n_epochs=20, batch_size=64, learning_rate=3e-3)
    np.testing.assert_allclose(env.obs_rms.mean, demonstrations.observations.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(env.obs_rms.var, demonstrations.observations.var(axis=0), rtol=1e-3)
    returns, expected = 0.0, []
    for i, reward in enumerate(demonstrations.rewards):  # type: ignore[arg-type]
        returns = 0.9 * returns * (i % 10 > 0) + reward
        expected.append(returns)
    np.testing.assert_allclose(env.ret_rms.var, np.var(expected), rtol=1e-3)
    # The imitator sees what the statistics make of raw observations.
    actions, _ = model.predict(env.normalize_obs(demonstrations.observations), deterministic=True)
    assert np.abs(actions - demonstrations.actions).mean() < 0.04
    before = pickle.dumps((env.obs_rms, env.ret_rms))
    model.pretrain(demonstrations, n_epochs=1)
    assert pickle.dumps((env.obs_rms, env.ret_rms)) == before


@pytest.mark.parametrize("norm_obs, norm_reward", [(False, True), (True, False)])
def test_a_vec_normalize_of_one_kind_only_and_demonstrations_without_rewards(norm_obs: bool, norm_reward: bool) -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]), norm_obs=norm_obs, norm_reward=norm_reward)
    build(env=env).pretrain(imitable(50), n_epochs=1)
    assert env.ret_rms.count < 1


@by_algorithm
def test_the_best_average_is_kept_and_no_improvement_ends_the_training(algorithm: Any) -> None:
    """From random actions only memorising can be learned, and that is soon no help."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (60, 3)).astype(np.float32)
    demonstrations = single_steps(rng.uniform(-0.9, 0.9, (60, 1)), observations)
    model = build(algorithm, policy_kwargs=dict(net_arch=[128, 128]))
    model.pretrain(
        demonstrations, n_epochs=400, batch_size=10, learning_rate=lambda _: 3e-3, validation_fraction=0.4, patience=7, seed=0
    )
    bounds = logged(model).all("validation_bound")
    best = int(np.argmax(bounds))
    assert len(bounds) == best + 8 < 400
    # The model in hand is the one with that bound.
    data = ImitationData(demonstrations, model, 0.02)
    with np.errstate(all="ignore"):
        rng = np.random.default_rng(_first_integer_of_seed(0))
    _, validation_rows = data.split(0.4, rng)
    assert validation_bound(model.policy.actor, data, validation_rows, 10) == pytest.approx(bounds[best], abs=1e-5)


def _first_integer_of_seed(seed: int) -> int:
    return int(np.random.RandomState(seed).randint(2**32 - 1))


def test_the_last_epoch_is_logged_whatever_the_interval() -> None:
    model = build()
    model.pretrain(imitable(50), n_epochs=5, log_interval=3)
    assert logged(model).all("epoch") == [3, 5]


def test_without_validation_the_last_average_is_taken_and_all_epochs_are_gone_through() -> None:
    model = build()
    model.pretrain(imitable(50), n_epochs=25, validation_fraction=0, patience=1)
    assert logged(model).all("validation_bound") == []
    assert logged(model).all("epoch") == list(range(1, 26))


def test_logged_are_loss_bound_rate_epoch_and_updates() -> None:
    model = build()
    model.pretrain(imitable(200), n_epochs=4, batch_size=64, learning_rate=1e-2, log_interval=2)
    recorded = logged(model)
    assert recorded.all("epoch") == [2, 4]
    assert recorded.all("n_updates") == [entry["step"] for entry in recorded.entries] == [6, 12]
    assert len(recorded.all("loss")) == len(recorded.all("validation_bound")) == 2
    # Falls from the first update on, and the last has some left
    np.testing.assert_allclose(recorded.all("learning_rate"), [falling(1e-2)(1 - i / 12) for i in (5, 11)])
    assert falling(1e-2)(1.0) == 1e-2 and falling(1e-2)(0.0) == 0


def test_tensorboard_and_the_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DiffSAC("MlpPolicy", StrictBoxEnv(), tensorboard_log=str(tmp_path), **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm calls its rich bars experimental.
        model.pretrain(imitable(50), n_epochs=2, progress_bar=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain_1"]
    assert "2/2" in capsys.readouterr().out
    model.learn(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DiffSAC_1", "pretrain_1"]


class Watcher(BaseCallback):
    """Looks at the model after each epoch, and stops after some."""

    def __init__(self, epochs: int = 1000) -> None:
        super().__init__()
        self.epochs = epochs
        self.events: list[str] = []
        self.actors: list[Any] = []

    def _on_training_start(self) -> None:
        self.events.append("start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.actors.append(copy.deepcopy(self.locals["average"].actor.state_dict()))
        weights = self.model.policy.actor.state_dict()
        assert all(th.equal(weights[name], value) for name, value in self.actors[-1].items())
        return self.n_calls < self.epochs

    def _on_training_end(self) -> None:
        self.events.append("end")


def test_a_callback_sees_the_averaged_weights_after_each_epoch_and_may_stop() -> None:
    model, watcher = build(), Watcher(3)
    model.pretrain(imitable(50), n_epochs=10, callback=watcher, validation_fraction=0)
    assert watcher.events == ["start", "step", "step", "step", "end"]
    assert model.num_timesteps == 0
    last = model.policy.actor.state_dict()
    assert all(th.equal(last[name], value) for name, value in watcher.actors[-1].items())


def test_sb3s_eval_callback_and_functions_are_callbacks() -> None:
    model = build()
    evaluation = EvalCallback(Monitor(StrictBoxEnv()), n_eval_episodes=1, eval_freq=2, verbose=0)
    calls = []
    model.pretrain(imitable(50), n_epochs=4, callback=[evaluation])
    model.pretrain(imitable(50), n_epochs=2, callback=lambda locals_, globals_: calls.append(locals_["epoch"]) or True)
    assert calls == [1, 2]
    assert evaluation.last_mean_reward > -np.inf


@by_algorithm
def test_after_an_error_the_model_is_as_it_was(algorithm: Any) -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv]))
    model = build(algorithm, env)
    before, statistics = full_state(model), pickle.dumps((env.obs_rms, env.ret_rms))

    def tired(*_: Any) -> bool:
        raise RuntimeError("tired")

    with pytest.raises(RuntimeError, match="tired"):
        model.pretrain(imitable(50), n_epochs=3, callback=tired)
    after = full_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert pickle.dumps((env.obs_rms, env.ret_rms)) == statistics
    assert not model.policy.training

    with pytest.raises(ValueError, match="The loss of epoch 1 is nan"):
        model.pretrain(imitable(300), n_epochs=3, batch_size=10, learning_rate=lambda _: 1e30)
    after = full_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@by_algorithm
def test_the_seed_decides_and_leaves_the_global_generators_alone(algorithm: Any) -> None:
    def pretrained(seed: int | None) -> dict[str, th.Tensor]:
        model = build(algorithm)  # seeds the global generators
        state = th.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
        model.pretrain(imitable(50), n_epochs=2, seed=seed)
        moved = not th.equal(th.get_rng_state(), state[0]) or not np.array_equal(np.random.get_state()[1], state[1])
        assert moved == (seed is None)
        return model.policy.actor.state_dict()

    first = pretrained(3)
    assert all(th.equal(first[name], value) for name, value in pretrained(3).items())
    assert any(not th.equal(first[name], value) for name, value in pretrained(4).items())
    unseeded = pretrained(None)
    assert all(th.equal(unseeded[name], value) for name, value in pretrained(None).items())


@by_algorithm
def test_it_is_saved_loaded_and_gone_on_with(algorithm: Any, tmp_path: Path) -> None:
    demonstrations = imitable(200)
    model = build(algorithm)
    model.pretrain(demonstrations, n_epochs=20, learning_rate=3e-3, seed=0)
    bounds = logged(model).all("validation_bound")
    model.save(tmp_path / "model")
    # Imitation needs no environment.
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    observations = demonstrations.observations[:5]
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    loaded.set_logger(Logger(None, [Recorded()]))
    loaded.pretrain(demonstrations, n_epochs=5, learning_rate=1e-4, seed=0)
    again = logged(loaded).all("validation_bound")
    assert again[0] > max(bounds) - 0.1 > bounds[0]


@by_algorithm
def test_reinforcement_learning_goes_on_from_the_imitator(algorithm: Any) -> None:
    model = build(algorithm, learning_rate=0.0)
    model.pretrain(imitable(200), n_epochs=10)
    weights = copy.deepcopy(model.policy.actor.state_dict())
    model.learn(32)
    assert all(th.equal(weights[name], value) for name, value in model.policy.actor.state_dict().items())
    assert model.num_timesteps == 32


@by_algorithm
def test_the_callback_pretrains_once_before_the_first_step_and_logs_where_the_training_does(algorithm: Any) -> None:
    arguments: dict[str, Any] = dict(n_epochs=3, seed=1)
    by_hand, by_callback = (build(algorithm, learning_rate=0.0) for _ in range(2))
    by_hand.pretrain(imitable(), **arguments)
    callback = PretrainCallback(imitable(), reference_kl_coef=0.5, **arguments)
    by_callback.learn(16, callback=callback)
    assert logged(by_callback).all("loss") == logged(by_hand).all("loss")
    for name, weight in by_hand.policy.actor.state_dict().items():
        assert th.equal(by_callback.policy.actor.state_dict()[name], weight), name
    assert by_callback.reference_actor is not None
    by_callback.learn(16, callback=callback, reset_num_timesteps=False)
    assert len(logged(by_callback).all("loss")) == 3


def test_the_callback_takes_the_id_of_a_data_set_and_leaves_the_training_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    Demonstrations.from_policy(lambda observation: np.zeros(1), StrictBoxEnv(), 3, seed=0).to_minari("zeros-v0")
    model = build(tensorboard_log=str(tmp_path / "logs"))
    model._custom_logger = False
    model.learn(16, callback=PretrainCallback("zeros-v0", n_epochs=1, validation_fraction=0))
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["DiffSAC_1"]


@by_algorithm
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_callback_fits_a_vec_normalize_that_has_seen_only_the_first_observations(algorithm: Any, n_envs: int) -> None:
    env = VecNormalize(DummyVecEnv([StrictBoxEnv] * n_envs))
    demonstrations = imitable(100)
    seen: list[Any] = []

    class First(BaseCallback):
        def _on_training_start(self) -> None:
            seen.append((copy.deepcopy(env.obs_rms), self.model._last_obs, env.get_original_obs()))

        def _on_step(self) -> bool:
            return False

    build(algorithm, env).learn(16, [PretrainCallback(demonstrations, n_epochs=1), First()])
    statistics, first, raw = seen[0]
    assert statistics.count == pytest.approx(100 + n_envs, abs=1)
    together = np.concatenate([demonstrations.observations, raw])
    np.testing.assert_allclose(statistics.mean, together.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(first, (raw - statistics.mean) / np.sqrt(statistics.var + env.epsilon), rtol=1e-5)


def test_the_callback_leaves_a_loaded_model_alone(tmp_path: Path) -> None:
    callback = PretrainCallback(imitable(50), n_epochs=1)
    model = build().learn(40, callback=callback)
    model.save(tmp_path / "model")
    loaded = DiffSAC.load(tmp_path / "model", env=StrictBoxEnv())
    loaded.set_logger(Logger(None, [Recorded()]))
    loaded.learn(2, callback=callback)
    assert loaded.num_timesteps == 2 and logged(loaded).all("loss") == []


def test_the_callback_with_images_around_which_sb3_puts_a_wrapper() -> None:
    image = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    env = VecNormalize(DummyVecEnv([lambda: AnyObservationEnv(image)]), norm_obs=False)
    demonstrations = Demonstrations.from_policy(lambda observation: [0.2], AnyObservationEnv(image), 1, seed=0)
    small = dict(features_extractor_class=SmallImageExtractor)
    model = build(DiffPPO, env, "CnnPolicy", small).learn(16, callback=PretrainCallback(demonstrations, n_epochs=1))
    assert model.num_timesteps == 16


def test_the_callback_refuses_its_arguments_when_it_is_made() -> None:
    for arguments, message in (
        (dict(reference_kl_coef=-1), "reference_kl_coef=-1 must be"),
        (dict(n_epoch=3), "PretrainCallback, arguments of pretrain: .*'n_epoch'"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainCallback(imitable(5), **arguments)


def test_an_eval_callback_takes_nothing_from_the_epochs_log() -> None:
    model = build()
    model.pretrain(imitable(50), n_epochs=2, callback=EvalCallback(Monitor(StrictBoxEnv()), eval_freq=1, verbose=0))
    steps = [entry["step"] for entry in logged(model).entries if "pretrain/epoch" in entry]
    assert len(steps) == 2 and 0 < steps[0] < steps[1]


def test_a_single_short_episode_leaves_a_row_to_train_on() -> None:
    build().pretrain(single_episode := imitable(2).select([0]), n_epochs=1, validation_fraction=0.9)
    assert len(single_episode) == 1


def test_the_callback_refuses_what_cannot_be_pretrained() -> None:
    with pytest.raises(ValueError, match=r"PretrainCallback: SAC has no pretrain"):
        SAC("MlpPolicy", StrictBoxEnv()).learn(4, callback=PretrainCallback(imitable()))


def test_copies_of_the_actor_follow_it() -> None:
    model = build(DiffWPO)
    model.pretrain(imitable(50), n_epochs=2)
    actor = model.policy.actor.state_dict()
    assert all(th.equal(actor[name], value) for name, value in model.policy.actor_target.state_dict().items())
    shared = build(policy_kwargs=dict(features_extractor_class=BatchNormDropoutExtractor, share_features_extractor=True))
    shared.pretrain(imitable(50), n_epochs=2)
    extractor = shared.policy.actor.features_extractor.state_dict()
    target = shared.policy.critic_target.features_extractor.state_dict()
    assert shared.policy.critic.features_extractor is shared.policy.actor.features_extractor
    assert all(th.equal(extractor[name], value) for name, value in target.items())


def test_the_average_forgets_the_untrained_weights_and_follows_the_decay() -> None:
    actor = build().policy.actor
    average, expected = WeightAverage(actor, 0.3), None
    for i in range(5):
        with th.no_grad():
            actor.denoiser.state_layer.bias.fill_(float(i))
        average.update_parameters(actor)
        decay = min(0.3, (1 + i) / (10 + i))
        expected = float(i) if expected is None else decay * expected + (1 - decay) * i
        assert average.actor.denoiser.state_layer.bias.mean().item() == pytest.approx(expected)


def test_episodes_are_split_whole_and_a_single_one_at_its_end() -> None:
    rng = np.random.default_rng(0)
    demonstrations = Demonstrations.from_arrays(
        np.zeros((100, 3)),
        np.zeros((100, 1)),
        episode_ends=np.sort([*rng.choice(np.arange(1, 100), 19, replace=False), 100]),
    )
    model = build()
    train, validation = ImitationData(demonstrations, model, 0.02).split(0.25, rng)
    assert sorted([*train, *validation]) == list(range(100))
    assert set(demonstrations.episodes_of(train)).isdisjoint(demonstrations.episodes_of(validation))
    assert 10 < len(validation) <= 25
    single = ImitationData(Demonstrations.from_arrays(np.zeros((10, 3)), np.zeros((10, 1))), model, 0.02)
    assert single.split(0.25, rng)[1].tolist() == [8, 9]
    assert len(single.split(0.0, rng)[1]) == len(ImitationData(demonstrations, model, 0.02).split(0.0, rng)[1]) == 0
    one_step = ImitationData(Demonstrations.from_arrays(np.zeros((1, 3)), np.zeros((1, 1))), model, 0.02)
    assert len(one_step.split(0.1, rng)[0]) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(demonstrations=np.zeros((3, 3))), "must be Demonstrations"),
        (dict(n_epochs=0), "n_epochs=0"),
        (dict(batch_size=1.5), "batch_size=1.5"),
        (dict(learning_rate=0), "learning_rate=0"),
        (dict(learning_rate=lambda progress: progress - 1), r"learning_rate\(0\)=-1"),
        (dict(validation_fraction=1.0), "validation_fraction=1.0"),
        (dict(patience=0), "patience=0"),
        (dict(average_decay=1.0), "average_decay=1.0"),
        (dict(boundary_width=0.0), "boundary_width=0.0"),
        (dict(seed=-1), "seed=-1"),
        (dict(log_interval=0), "log_interval=0"),
        (dict(demonstrations=single_steps(np.full((4, 1), 1.5))), "4 of 4 lie outside"),
        (dict(demonstrations=single_steps(np.zeros((4, 1)), np.zeros((4, 2)))), "observations have the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_starts(arguments: dict[str, Any], message: str) -> None:
    model = build()
    before = full_state(model)
    with pytest.raises(ValueError, match=message):
        model.pretrain(**dict(demonstrations=imitable(20)) | arguments)
    after = full_state(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert logged(model).entries == []
