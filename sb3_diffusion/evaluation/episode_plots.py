"""The modes of a policy along an episode; the picture needs matplotlib, but no display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.evaluation.chain_plots import color_of
from sb3_diffusion.evaluation.modes import FEWEST_SAMPLES, find_modes
from sb3_diffusion.evaluation.policy_chains import Sampler, observation_tensors
from sb3_diffusion.evaluation.style import BLACK, DPI, GREY, WIDTH, bare
from sb3_diffusion.evaluation.views import Dims, View, view_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES_SHOWN = 6


class EpisodeModes(NamedTuple):
    """What :func:`modes_along_episode` finds, of T steps."""

    shares: list[np.ndarray]
    """At each step the shares of the modes, the largest first."""
    samples: np.ndarray
    """Actions that the policy might have taken, in the units of the action space, shape (T, n, d)."""
    taken: np.ndarray
    """The one that it took, shape (T, d)."""
    rewards: np.ndarray
    """As the environment gives them, shape (T,)."""

    @property
    def counts(self) -> np.ndarray:
        """How many modes there are at each step, shape (T,)."""
        return np.array([len(shares) for shares in self.shares])


def one_environment(model: BaseAlgorithm, env: gym.Env | VecEnv | str) -> VecEnv:
    """
    :param model: that is to act in it
    :param env: one environment, or its Gymnasium id
    :return: the same, vectorised
    :raises ValueError: for several environments, or other spaces than the model's
    """
    wrapped = model._wrap_env(maybe_make_env(env, verbose=0), verbose=0)  # type: ignore[arg-type]
    if wrapped.num_envs != 1:
        raise ValueError(f"env has {wrapped.num_envs} environments; allowed: one")
    check_for_correct_spaces(wrapped, model.observation_space, model.action_space)
    return wrapped


def modes_along_episode(
    model: BaseAlgorithm, env: gym.Env | VecEnv | str, max_steps: int = 200, n_chains: int = 512, seed: int = 0
) -> EpisodeModes:
    """
    Follow a policy through the beginning of an episode, with sampled actions, and find the modes that it has at each step
    (:func:`find_modes`, before the read-out and tanh, which make no modes).

    :param model: with a diffusion policy
    :param env: one environment, its Gymnasium id, or a ``VecEnv`` of one; behind ``VecNormalize`` with ``training=False``
    :param max_steps: the episode is followed so far
    :param n_chains: actions sampled at each step, at least 128
    :param seed: of the environment and of a generator of its own
    :return: shares, samples, actions and rewards of the steps
    :raises ValueError: for a model without a diffusion policy, an environment that does not fit, or a number out of range
    """
    check_number("max_steps", max_steps, 1, integer=True)
    check_number("n_chains", n_chains, FEWEST_SAMPLES, integer=True)
    sampler = Sampler(model, seed)
    vec_env = one_environment(model, env)
    vec_env.seed(seed)
    observation: Any = vec_env.reset()
    shares, samples, taken, rewards = [], [], [], []
    space: Any = model.action_space
    for _ in range(max_steps):
        chains = sampler.chains(observation_tensors(model, observation), n_chains)
        shares.append(find_modes(chains.latents[0, 0]).shares)
        samples.append(chains.actions[0, 0])
        action = np.clip(chains.actions[0, 0, 0].reshape(space.shape), space.low, space.high).astype(space.dtype)
        taken.append(action.astype(np.float64).ravel())
        observation, reward, done, _ = vec_env.step(action[None])
        rewards.append(float(reward[0]))
        if done[0]:
            break
    return EpisodeModes(shares, np.stack(samples), np.stack(taken), np.array(rewards))


def plot_modes_along_episode(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv | str,
    max_steps: int = 200,
    n_chains: int = 512,
    dims: Dims = None,
    seed: int = 0,
) -> Figure:
    """
    How many modes a policy has along an episode, and their shares (:func:`modes_along_episode`): above, the density of the
    actions that it might take, and those that it takes; below, the shares, one upon the other, the largest first.

    :param model: with a diffusion policy
    :param env: one environment, its Gymnasium id, or a ``VecEnv`` of one; behind ``VecNormalize`` with ``training=False``
    :param max_steps: the episode is followed so far
    :param n_chains: actions sampled at each step, at least 128
    :param dims: one or two dimensions of the action, a panel each, or "principal"; None: all of one or two, of more the
        principal axes
    :param seed: of the environment and of a generator of its own
    :return: the figure; save it with ``figure.savefig(path)``
    :raises ValueError: as :func:`modes_along_episode`, and for other ``dims``
    """
    episode = modes_along_episode(model, env, max_steps, n_chains, seed)
    d = episode.samples.shape[-1]
    return draw_episode(episode, view_of(model.action_space, dims, episode.samples.reshape(-1, d), episode.samples))  # type: ignore[arg-type]


def draw_episode(episode: EpisodeModes, view: View) -> Figure:
    """:return: the picture of an episode"""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    positions, n_steps, n_rows = view.project(episode.samples), len(episode.taken), len(view.directions)
    figure = Figure(figsize=(WIDTH, 1.0 + 1.9 * (n_rows + 1)), dpi=DPI, layout="constrained")
    panels = figure.subplots(n_rows + 1, 1, sharex=True)
    borders = np.arange(n_steps + 1) - 0.5
    taken = view.project(episode.taken)
    for row, axes in enumerate(panels[:-1]):
        edges = np.linspace(*view.limits[row], 61)
        density = np.stack([np.histogram(step, bins=edges, density=True)[0] for step in positions[..., row]], axis=1)
        shades = axes.pcolormesh(borders, edges, density, cmap="Blues", vmax=np.percentile(density, 99.5), rasterized=True)
        figure.colorbar(shades, ax=axes, label="density", pad=0.01)
        marker = dict(marker=".", markersize=4) if n_steps <= 60 else {}
        axes.plot(taken[:, row], color=BLACK, linewidth=0.7, alpha=0.8, label="action taken", **marker)  # type: ignore[arg-type]
        axes.set_ylabel(view.labels[row])
        axes.set_ylim(*view.limits[row])
        bare(axes, grid=False)
    panels[0].legend(frameon=True, framealpha=0.8, fontsize="small", loc="upper right")
    modes = f"{episode.counts.mean():.1f} modes on average, most {episode.counts.max()}"
    panels[0].set_title(f"{n_steps} steps, return {episode.rewards.sum():.4g}; {modes}", fontsize="medium")
    shares = np.zeros((MODES_SHOWN, n_steps))
    for step, of_step in enumerate(episode.shares):
        shares[: len(of_step), step] = of_step[:MODES_SHOWN]
    base = np.zeros(n_steps)
    below = panels[-1]
    for mode, share in enumerate(shares):
        if share.any():
            below.bar(range(n_steps), share, 1.0, base, color=color_of(mode), alpha=0.85, label=f"mode {mode + 1}")
            base = base + share
    if (base < 1 - 1e-9).any():
        below.bar(range(n_steps), 1 - base, 1.0, base, color=GREY, alpha=0.85, label="further modes")
    below.set_ylim(0, 1)
    below.set_ylabel("shares of the modes")
    below.set_xlabel("step of the episode")
    below.set_xlim(borders[0], borders[-1])
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.legend(frameon=True, framealpha=0.8, fontsize="small", loc="lower right", ncols=4)
    bare(below, grid=False)
    return figure
