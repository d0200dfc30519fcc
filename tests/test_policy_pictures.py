"""Pictures of what a diffusion policy does: modes, chains, bounds of the entropy, the callback and the command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import SMALL, SMALL_ON_POLICY, differing, full_state, scatter_weights
from envs_for_tests import AsDict, BatchNormDropoutExtractor, StrictBoxEnv
from PIL import Image
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.evaluation import (
    PolicyPicturesCallback,
    animate_denoising,
    bound_tightness,
    entropy_bounds,
    find_modes,
    modes_along_episode,
    plot_actions_and_critic,
    plot_denoising,
    plot_log_ratios,
    plot_modes_along_episode,
    policy_chains,
)
from sb3_diffusion.evaluation.critic_plots import critic_values
from sb3_diffusion.evaluation.views import orthonormal, principal_axes
from sb3_diffusion.plot import plot

ALGORITHMS: list[Any] = [DiffSAC, DiffTQC, DiffCrossQ, DiffWPO, DiffPPO]
OFF_POLICY = ALGORITHMS[:-1]
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
WIDE = dict(low=[-3.0, 0.0, 0.0], high=[5.0, 0.5, 1.0])


def small(algorithm: Any, env: gym.Env | None = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    settings = (SMALL_ON_POLICY if algorithm is DiffPPO else SMALL) | kwargs
    policy_kwargs = dict(net_arch=[16]) | settings.pop("policy_kwargs", {})
    return algorithm(policy, env or StrictBoxEnv(), policy_kwargs=policy_kwargs, **settings)


def scattered(algorithm: Any, env: gym.Env | None = None, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    model = small(algorithm, env, policy, **kwargs)
    scatter_weights(model.policy, scale=0.3)
    return model


STATES = np.random.default_rng(0).uniform(-1, 1, (2, 3)).astype(np.float32)


def pixels(figure: Any, path: Path) -> np.ndarray:
    figure.savefig(path)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_modes_are_found_with_their_shares(dim: int) -> None:
    rng = np.random.default_rng(0)
    which = rng.choice(3, 1000, p=[0.5, 0.3, 0.2])
    samples = 0.1 * rng.standard_normal((1000, dim))
    samples[:, 0] += np.array([-1.0, 0.5, 2.0])[which]
    modes = find_modes(samples)
    assert modes.shares == pytest.approx([(which == mode).mean() for mode in range(3)], abs=0.01)
    assert modes.centres[:, 0] == pytest.approx([-1.0, 0.5, 2.0], abs=0.05)
    assert (modes.labels == which).mean() > 0.99


@pytest.mark.parametrize("dim", [1, 2, 6, 17])
def test_a_gaussian_has_one_mode(dim: int) -> None:
    rng = np.random.default_rng(1)
    assert [len(find_modes(rng.standard_normal((256, dim))).shares) for _ in range(20)] == [1] * 20


def test_equal_samples_are_one_mode_and_small_modes_join_the_nearest() -> None:
    assert find_modes(np.zeros((200, 2))).shares == pytest.approx([1.0])
    rng = np.random.default_rng(2)
    samples = 0.1 * rng.standard_normal((1000, 1))
    samples[:450] += 5
    samples[450:550] += 8
    assert find_modes(samples).shares == pytest.approx([0.45, 0.45, 0.1])
    assert find_modes(samples, min_share=0.2).shares == pytest.approx([0.55, 0.45])


def test_what_has_no_modes_is_refused() -> None:
    for samples in (np.zeros((127, 1)), np.zeros(200), np.full((200, 1), np.nan)):
        with pytest.raises(ValueError, match=r"samples of shape .* must have shape \(n, d\) with n >= 128"):
            find_modes(samples)
    with pytest.raises(ValueError, match=r"min_share=0\.5 must be"):
        find_modes(np.zeros((200, 1)), min_share=0.5)
    with pytest.raises(ValueError, match="depth=0 must be"):
        find_modes(np.zeros((200, 1)), depth=0)


@every_algorithm
def test_chains_are_the_policys_in_the_units_of_the_box_and_use_no_global_generator(algorithm: Any) -> None:
    model = scattered(algorithm, StrictBoxEnv(**WIDE))
    before = th.get_rng_state()
    chains = policy_chains(model, STATES, 3000)
    assert th.equal(before, th.get_rng_state())
    steps, dim = model.policy.actor.diffusion_steps, 3
    assert chains.actions.shape == chains.latents.shape == (2, steps + 1, 3000, dim)
    assert chains.log_ratios.shape == (2, steps, 3000) and chains.path_log_prob.shape == (2, 3000)
    for state, actions in zip(STATES, chains.actions[:, 0], strict=True):
        predicted, _ = model.predict(np.repeat(state[None], 3000, axis=0))
        assert actions.mean(axis=0) == pytest.approx(predicted.mean(axis=0), abs=0.3)
        assert actions.std(axis=0) == pytest.approx(predicted.std(axis=0), rel=0.1)
    assert np.array_equal(chains.actions, policy_chains(model, STATES, 3000).actions)
    assert not np.array_equal(chains.actions, policy_chains(model, STATES, 3000, seed=1).actions)


def test_an_untrained_diffusion_has_log_ratios_of_mean_zero_and_a_tight_bound() -> None:
    model = small(DiffSAC, StrictBoxEnv(**WIDE))
    chains = policy_chains(model, STATES, 20_000)
    assert chains.log_ratios.mean(axis=2) == pytest.approx(np.zeros((2, 4)), abs=0.02)
    bounds = entropy_bounds(model, STATES, 200, 8)
    assert bounds.low == pytest.approx(bounds.path, abs=1e-4)
    assert bounds.high == pytest.approx(bounds.path, abs=1e-4)


@pytest.mark.parametrize("kernel", ["vp", "euler"])
def test_the_entropy_lies_between_its_bounds(kernel: str) -> None:
    """Against the exact one, which propagates the density on a grid."""
    model = small(DiffSAC, policy_kwargs=dict(kernel=kernel, diffusion_steps=3))
    scatter_weights(model.policy, scale=0.2)
    state = STATES[:1]
    with th.no_grad():
        features = model.actor.extract_features(th.as_tensor(state), model.actor.features_extractor)
        tightness = bound_tightness(model.actor, features, np.zeros_like, temperature=1.0)
    exact_gap = tightness.path_divergence - tightness.marginal_divergence
    bounds = entropy_bounds(model, state, 4000, 64)
    gaps = bounds.low - bounds.path, bounds.high - bounds.path
    assert gaps[0] - 0.03 <= exact_gap <= gaps[1] + 0.03
    assert gaps[1] - gaps[0] < 0.25 * max(exact_gap, 0.1)


def test_more_noisings_tighten_the_bounds() -> None:
    model = scattered(DiffSAC, StrictBoxEnv(**WIDE))
    few, many = (entropy_bounds(model, STATES, 1000, n) for n in (2, 64))
    assert (few.path < many.low).all() and (few.low < many.low).all()
    assert (many.low < many.high + 0.02).all() and (many.high < few.high).all()


@every_algorithm
@pytest.mark.parametrize("dict_observations", [False, True])
def test_every_algorithms_denoising_is_drawn(algorithm: Any, dict_observations: bool, tmp_path: Path) -> None:
    env: gym.Env = AsDict(StrictBoxEnv(**WIDE)) if dict_observations else StrictBoxEnv(**WIDE)
    model = scattered(algorithm, env, "MultiInputPolicy" if dict_observations else "MlpPolicy")
    observations: Any = {"only": STATES} if dict_observations else STATES
    principal = plot_denoising(model, observations, 200)
    steps = model.policy.actor.diffusion_steps
    assert len(principal.axes) == 2 * (steps + 1)
    assert principal.axes[steps + 1].get_ylabel().endswith("\nprincipal axis 2")
    beside = {"another": np.zeros((5, 3))}
    one = plot_denoising(model, {"only": STATES[0]} if dict_observations else STATES[0], 200, dims=1, beside=beside)
    assert one.axes[0].get_ylabel() == "action[1]" and one.axes[0].get_ylim() == pytest.approx((0.0, 0.5))
    assert [axes.get_title() for axes in one.axes[1:]] == ["another"]
    assert pixels(one, tmp_path / "one.png").std() > 10
    plane = plot_denoising(model, observations, 200, dims=(2, 0), beside=beside)
    assert plane.axes[0].get_ylabel().endswith("\naction[0]") and plane.axes[0].get_ylim() == pytest.approx((-3.0, 5.0))
    assert len(plot_log_ratios(model, observations, 100, 4).axes) == 2


@pytest.mark.parametrize("algorithm", OFF_POLICY, ids=lambda algorithm: algorithm.__name__)
def test_the_landscape_is_what_the_actor_climbs(algorithm: Any) -> None:
    model = scattered(algorithm, StrictBoxEnv(**WIDE)).learn(12)
    actions = policy_chains(model, STATES[0], 50).actions[0, 0]
    scaled = th.as_tensor(model.policy.scale_action(actions))
    model.policy.set_training_mode(False)
    states = model._critic_states(model.critic, th.as_tensor(STATES[:1]).expand(50, -1))
    with th.no_grad():
        climbed = model._action_values(model.critic, states, scaled)
    assert critic_values(model, th.as_tensor(STATES[:1]), actions) == pytest.approx(climbed.numpy(), abs=1e-4)


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, SAC], ids=lambda algorithm: algorithm.__name__)
def test_actions_are_drawn_over_the_critic(algorithm: Any) -> None:
    policy: Any = DiffusionSACPolicy if algorithm is SAC else "MlpPolicy"
    model = scattered(algorithm, StrictBoxEnv(**WIDE), policy)
    figure = plot_actions_and_critic(model, STATES[0], 200)
    assert "principal axis" in figure.axes[0].get_ylabel() and figure.axes[1].get_ylabel() == "critic $Q(s, u)$"
    assert plot_actions_and_critic(model, STATES[0], 200, dims=[2, 0]).axes[0].get_xlabel() == "action[2]"
    line = plot_actions_and_critic(model, STATES[:1], 200, dims=0)
    assert line.axes[1].get_xlabel() == "action[0]" and line.axes[1].get_xlim() == pytest.approx((-3.0, 5.0))
    # The asked-for density is that of a whole action.
    labels = {str(text.get_text()) for text in line.axes[1].get_legend().get_texts()}
    assert labels == {"deterministic action"}
    single = plot_actions_and_critic(scattered(algorithm, policy=policy), STATES[0], 200)
    assert any("asked for by the critic" in str(text.get_text()) for text in single.axes[1].get_legend().get_texts())


def test_what_cannot_be_drawn_is_refused_by_name(tmp_path: Path) -> None:
    model = small(DiffSAC, StrictBoxEnv(**WIDE))
    gaussian = SAC("MlpPolicy", StrictBoxEnv(), buffer_size=10, device="cpu")
    calls: list[tuple[Any, str]] = [
        (lambda: plot_denoising(gaussian, STATES), "model=SAC has no diffusion policy; allowed: DiffSAC"),
        (lambda: plot_actions_and_critic(small(DiffPPO), STATES[0]), r"model=DiffPPO has no critic Q\(s, u\)"),
        (lambda: plot_actions_and_critic(model, STATES), "observation holds 2 of them; allowed: one"),
        (lambda: plot_denoising(model, np.zeros((7, 3))), "observations holds 7 of them"),
        (lambda: plot_denoising(model, np.zeros((0, 3))), "observations holds 0 of them"),
        (lambda: plot_denoising(model, np.zeros(4)), "Unexpected observation shape"),
        (lambda: plot_denoising(model, {"a": np.zeros(3)}), "allowed: no dictionary"),
        (lambda: plot_denoising(model, np.full(3, np.nan)), "the observation is not finite: nan"),
        (lambda: plot_denoising(model, STATES, dims=3), r"dims=3 must be one or two different dimensions from 0 to 2"),
        (lambda: plot_denoising(model, STATES, dims=(0, 0)), r"dims=\(0, 0\) must be"),
        (lambda: plot_denoising(model, STATES, dims="modes"), "'principal'"),
        (lambda: plot_denoising(model, STATES, n_chains=127), "n_chains=127 must be an integer >= 128"),
        (lambda: plot_denoising(model, STATES, seed=-1), "seed=-1 must be"),
        (lambda: plot_denoising(model, STATES, beside={"x": np.zeros((4, 2))}), r"beside\['x'\] of shape \(4, 2\)"),
        (lambda: animate_denoising(model, STATES, tmp_path / "a.png"), "must end in .gif"),
        (lambda: modes_along_episode(model, StrictBoxEnv(), 5), "Action spaces do not match"),
        (lambda: modes_along_episode(model, DummyVecEnv([lambda: StrictBoxEnv(**WIDE)] * 2)), "env has 2 environments"),
        (lambda: PolicyPicturesCallback(0), "every=0 must be"),
        (lambda: PolicyPicturesCallback(5, max_share=0), "max_share=0 must be"),
        (lambda: model.learn(2, PolicyPicturesCallback(1)), "give the model tensorboard_log"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    dictionary = small(DiffSAC, AsDict(StrictBoxEnv()), "MultiInputPolicy")
    with pytest.raises(ValueError, match=r"allowed: a dictionary with the keys \['only'\]"):
        plot_denoising(dictionary, STATES)
    with th.no_grad():
        next(model.actor.parameters()).fill_(th.nan)
    with pytest.raises(ValueError, match="the weights are not finite"):
        plot_denoising(model, STATES)


@pytest.mark.parametrize("dims", [0, (0, 1)])
def test_the_animation_goes_from_noise_to_actions(dims: Any, tmp_path: Path) -> None:
    model = scattered(DiffSAC, StrictBoxEnv(**WIDE), policy_kwargs=dict(diffusion_steps=1))
    animate_denoising(model, STATES, tmp_path / "a", 200, dims=dims)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1 + 6 and gif.info["loop"] == 0  # type: ignore[attr-defined]
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(6)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - first).mean() > 1


def test_a_failed_animation_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gif").write_text("earlier")
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        animate_denoising(scattered(DiffSAC), STATES, tmp_path / "a.gif", 200)
    assert (tmp_path / "a.gif").read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


def test_modes_along_an_episode_are_those_of_each_step(tmp_path: Path) -> None:
    model = scattered(DiffSAC, StrictBoxEnv(**WIDE))
    episode = modes_along_episode(model, StrictBoxEnv(**WIDE), n_chains=200)
    assert episode.samples.shape == (10, 200, 3) and episode.taken.shape == (10, 3) and episode.rewards.shape == (10,)
    assert (episode.rewards < 0).all() and (episode.counts >= 1).all()
    assert [shares.sum() for shares in episode.shares] == pytest.approx([1.0] * 10)
    again = modes_along_episode(model, StrictBoxEnv(**WIDE), n_chains=200)
    assert np.array_equal(episode.samples, again.samples) and np.array_equal(episode.rewards, again.rewards)
    assert not np.array_equal(episode.samples[0], episode.samples[1])
    figure = plot_modes_along_episode(model, StrictBoxEnv(**WIDE), max_steps=3, n_chains=200)
    assert figure.axes[0].get_title().startswith("3 steps, return -")
    assert pixels(figure, tmp_path / "a.png").std() > 10
    normalised = VecNormalize(make_vec_env(StrictBoxEnv, env_kwargs=WIDE), training=False)
    assert len(plot_modes_along_episode(model, normalised, 3, 200, dims=1).axes) == 3  # with the colours' bar


@every_algorithm
def test_training_with_pictures_ends_with_the_same_weights(algorithm: Any, tmp_path: Path) -> None:
    extractor = dict(features_extractor_class=BatchNormDropoutExtractor)

    def train(callback: Any) -> Any:
        env = VecNormalize(make_vec_env(StrictBoxEnv, 1, seed=0, env_kwargs=WIDE))
        model = small(algorithm, env, tensorboard_log=str(tmp_path), policy_kwargs=extractor)  # type: ignore[arg-type]
        return model.learn(32, callback)

    env = VecNormalize(make_vec_env(StrictBoxEnv, 1, env_kwargs=WIDE), training=False)
    callback = PolicyPicturesCallback(16, env=env, n_chains=128, max_share=1.0)
    with_pictures, without = train(callback), train(None)
    assert callback.seconds > 0
    assert differing(full_state(with_pictures), full_state(without)) == []
    expected = {"denoising", "log_ratios", "episode"} | ({"critic"} if algorithm is not DiffPPO else set())
    assert written_pictures(tmp_path) == {f"pictures/{name}": 2 for name in expected}
    assert np.array_equal(env.obs_rms.mean, with_pictures.get_vec_normalize_env().obs_rms.mean)


def written_pictures(folder: Path) -> dict[str, int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, int] = {}
    for run in folder.iterdir():
        events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
        found |= {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}
    return found


def test_pictures_wait_where_they_took_more_than_their_share_of_the_time(tmp_path: Path) -> None:
    callback = PolicyPicturesCallback(1, n_chains=128, max_share=1e-6)
    small(DiffSAC, tensorboard_log=str(tmp_path)).learn(20, callback)
    assert set(written_pictures(tmp_path).values()) == {1}


def test_pictures_of_given_dictionaries_are_drawn_while_training(tmp_path: Path) -> None:
    observation = {"only": STATES[0]}
    callback = PolicyPicturesCallback(10, observation, n_chains=128, max_share=1.0)
    small(DiffSAC, AsDict(StrictBoxEnv()), "MultiInputPolicy", tensorboard_log=str(tmp_path)).learn(12, callback)
    assert written_pictures(tmp_path) == {"pictures/denoising": 1, "pictures/log_ratios": 1, "pictures/critic": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    small(DiffSAC, gym.make("MultiGoal2D-v0")).save(path)
    return path


@pytest.mark.parametrize(
    ("picture", "options"),
    [
        ("denoising", ["--env", "MultiGoal2D-v0", "--at", "0", "3", "--out", "a.png"]),
        ("denoising", ["--observation", "0", "1", "--dims", "1", "--out", "a.gif"]),
        ("critic", ["--observation", "0", "0", "--out", "a.svg"]),
        ("episode", ["--env", "MultiGoal2D-v0", "--steps", "3", "--out", "a.png"]),
        ("log-ratios", ["--env", "MultiGoal2D-v0", "--out", "a.png"]),
    ],
)
def test_the_command_draws_every_picture(
    picture: str, options: list[str], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plot([picture, str(saved), "--chains", "128", *options])
    assert Path(options[-1]).stat().st_size > 5_000


def test_the_command_is_one_of_the_console_commands(saved: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sb3_diffusion", "plot", "denoising", str(saved), "--observation", "0", "0"]
    finished = subprocess.run([*command, "--chains", "128"], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stdout == "denoising.png\n", finished.stderr
    assert (tmp_path / "denoising.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["denoising"], "say where the observations come from: --env, or --observation"),
        (["episode"], "an episode needs --env"),
        (["critic", "--observation", "0"], "Unexpected observation shape"),
        (["denoising", "--observation", "0", "0", "--observation", "1"], "must have as many numbers"),
        (["denoising", "--env", "NoSuch-v0"], "--env NoSuch-v0: "),
        (["denoising", "--env", "MultiGoal2D-v0", "--at", "500"], "--at 500: the episode ends after "),
        (["denoising", "--env", "MultiGoal2D-v0", "--at", "-1"], "--at=-1 must be"),
        (["denoising", "--out", "a.bmp"], "--out a.bmp must end in one of .png"),
        (["critic", "--out", "a.gif"], "only denoising is drawn as a GIF"),
        (["log-ratios", "--dims", "0"], "--dims: log-ratios are of all dimensions together"),
        (["denoising", "--vec-normalize", "none.pkl"], "none.pkl does not exist"),
        (["denoising", "--observation", "0", "0", "--chains", "5"], "n_chains=5 must be"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(
    options: list[str],
    message: str,
    saved: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        plot([options[0], str(saved), *options[1:]])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_principal_axes_and_directions_are_orthonormal() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 3)) * [1.0, 5.0, 0.1]
    axes = principal_axes(points)
    assert np.abs(axes[0]) == pytest.approx([0, 1, 0], abs=0.05)
    assert axes @ axes.T == pytest.approx(np.eye(3))
    directions = orthonormal(np.array([[2.0, 0, 0], [4.0, 0, 0], [1.0, 1.0, 0]]))
    assert directions == pytest.approx(np.eye(3)[:2])
