"""One-step problems with several contexts whose optimal maximum-entropy policies are known densities with many modes."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_diffusion.common.validation import check_number
from sb3_diffusion.envs.rendering import BLUE, ORANGE, SKY, Picture, RenderedEnv, faded

# Points of the quadrature per action dimension, for d = 1, 2, 3
GRID_POINTS = (4001, 241, 71)
# Equal bins per action dimension in which samples are compared with the density
BINS = (40, 20, 8)
# The centres of generated bumps lie within it.
LARGEST_CENTRE = 0.8
MAX_TRIES = 10_000
# How many of the last actions are drawn
REMEMBERED_ACTIONS = 500


class Bumps(NamedTuple):
    """Of one context: ``centres`` (n, d) in [-1, 1], ``heights`` (n,) and ``widths`` (n,), all above 0."""

    centres: np.ndarray
    heights: np.ndarray
    widths: np.ndarray


class ExactMasses(NamedTuple):
    """Of one context: of its ``modes`` (n,), of the ``bins`` (BINS per dimension, flat), and ``log_partition``, ``log Z``."""

    modes: np.ndarray
    bins: np.ndarray
    log_partition: float


THREE_BUMPS = Bumps(np.array([[-0.6], [0.1], [0.7]]), np.array([1.0, 0.9, 1.0]), np.full(3, 0.15))


def generated_bumps(
    bench_seed: int, action_dim: int = 1, n_modes: Sequence[int] = (1, 2, 4, 6), separation: float = 4.0
) -> list[Bumps]:
    """
    Bumps of unequal heights (0.85 … 1) and widths, at random places within 0.8 of the middle that are far enough apart. With n
    bumps in d dimensions the mean width is ``1.12 / n^(1/d) / separation`` (of one bump, that of two), at most 0.2; each
    bump's is 0.8 to 1.25 times that.

    :param bench_seed: from which all is drawn
    :param action_dim: d, 1 to 3
    :param n_modes: how many bumps each context has, 1 to 6
    :param separation: least distance of two centres in units of the mean width, 2 to 8: at 3 the valley between two equal
        bumps is a third below them, at 4 nearly three quarters
    :return: one for each context
    :raises ValueError: for an argument out of range
    """
    check_number("bench_seed", bench_seed, 0, integer=True)
    check_number("action_dim", action_dim, 1, len(GRID_POINTS), integer=True)
    check_number("separation", separation, 2, 8)
    if not len(n_modes):
        raise ValueError(f"n_modes={n_modes!r} must name one context or more")
    for i, n in enumerate(n_modes):
        check_number(f"n_modes[{i}]", n, 1, 6, integer=True)
    generator = np.random.default_rng([bench_seed, action_dim])
    contexts = []
    for n in n_modes:
        # With one bump, as wide as with two
        distance = 0.7 * 2 * LARGEST_CENTRE / max(2, n) ** (1 / action_dim)
        width = min(0.2, distance / separation)
        distance = separation * width
        for _ in range(MAX_TRIES):
            centres = generator.uniform(-LARGEST_CENTRE, LARGEST_CENTRE, (n, action_dim))
            gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) + np.diag(np.full(n, np.inf))
            if gaps.min() >= distance:
                break
        else:
            raise ValueError(
                f"bench_seed={bench_seed!r}: no {n} centres are {separation} widths apart in {action_dim} dimensions"
            )
        heights, widths = generator.uniform(0.85, 1.0, n), width * generator.uniform(0.8, 1.25, n)
        contexts.append(Bumps(centres, heights, widths))
    return contexts


class BoltzmannBandit(RenderedEnv):
    """
    One action in [-1, 1]^d, then the episode terminates. In each context the reward is a sum of Gaussian bumps,

    ``r(s, a) = Σ_i h_i exp(-|a - c_i|² / (2 w_i²))``,

    so at temperature τ the optimal maximum-entropy policy is ``exp(r(s, a) / τ) / Z(s)``, a known density whose modes have
    known masses (:meth:`exact_masses`). The context is drawn at random and observed one-hot, float32 of shape (contexts,). By
    default there is one, with three bumps at -0.6, 0.1 and 0.7 of heights 1, 0.9 and 1 and width 0.15.

    The picture shows the current context: the reward over the action or, with several action dimensions, the bumps as discs of
    their width in the first two; and the last actions.

    :param bench_seed: None: the three bumps; else the contexts of :func:`generated_bumps`
    :param temperature: τ at which policies are judged, in units of reward per nat, above 0
    :param render_mode: "rgb_array", "human" or None
    :param generation: the other arguments of :func:`generated_bumps`
    :raises ValueError: for an argument out of range, and for other arguments without ``bench_seed``
    """

    def __init__(
        self,
        bench_seed: int | None = None,
        temperature: float = 0.2,
        render_mode: str | None = None,
        **generation: Any,
    ) -> None:
        super().__init__(render_mode)
        check_number("temperature", temperature, 0, exclusive=True)
        if bench_seed is None and generation:
            raise ValueError(f"{', '.join(generation)}: only with bench_seed, for which contexts are generated")
        self.temperature = float(temperature)
        #: Of each context, its bumps.
        self.contexts = [THREE_BUMPS] if bench_seed is None else generated_bumps(bench_seed, **generation)
        self.action_dim = self.contexts[0].centres.shape[1]
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_dim,))
        self.observation_space = spaces.Box(0.0, 1.0, (len(self.contexts),))
        self._context = 0
        self._actions: list[deque[np.ndarray]] = [deque(maxlen=REMEMBERED_ACTIONS) for _ in self.contexts]

    @property
    def observations(self) -> np.ndarray:
        """What is observed in each context, float32 of shape (contexts, contexts)."""
        return np.eye(len(self.contexts), dtype=np.float32)

    def bumps(self, actions: npt.ArrayLike, context: int) -> np.ndarray:
        """
        :param actions: (…, d)
        :param context: from 0 on
        :return: (…, n), what each bump adds to the reward
        """
        centres, heights, widths = self.contexts[context]
        distances = np.linalg.norm(np.asarray(actions, dtype=np.float64)[..., None, :] - centres, axis=-1)
        return heights * np.exp(-0.5 * (distances / widths) ** 2)

    def reward(self, actions: npt.ArrayLike, context: int) -> np.ndarray:
        """
        :param actions: (…, d)
        :param context: from 0 on
        :return: (…), the reward of each, float64
        """
        return self.bumps(actions, context).sum(axis=-1)

    def mode_of(self, actions: npt.ArrayLike, context: int) -> np.ndarray:
        """
        :param actions: (…, d)
        :param context: from 0 on
        :return: (…), the mode that each belongs to: the bump whose centre is nearest in units of its width
        """
        centres, _, widths = self.contexts[context]
        distances = np.linalg.norm(np.asarray(actions, dtype=np.float64)[..., None, :] - centres, axis=-1)
        return (distances / widths).argmin(axis=-1)

    def bin_shares(self, actions: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> np.ndarray:
        """
        :param actions: (N, d) in [-1, 1]
        :param weights: (N,) of the actions; equal if not given
        :return: the share of the actions in each of the equal bins (BINS per dimension), flat
        """
        bins = [np.linspace(-1, 1, BINS[self.action_dim - 1] + 1)] * self.action_dim
        counts, _ = np.histogramdd(np.asarray(actions, dtype=np.float64), bins=bins, weights=weights)
        return counts.ravel() / counts.sum()

    def exact_masses(self, context: int) -> ExactMasses:
        """
        Masses under ``exp(r / τ) / Z`` by quadrature, the midpoint rule on a grid whose cells divide the bins.

        :param context: from 0 on
        """
        n_bins = BINS[self.action_dim - 1]
        n_points = n_bins * -(-GRID_POINTS[self.action_dim - 1] // n_bins)
        points = (np.arange(n_points) + 0.5) * 2 / n_points - 1
        grid = np.stack(np.meshgrid(*[points] * self.action_dim, indexing="ij"), axis=-1).reshape(-1, self.action_dim)
        exponents = self.reward(grid, context) / self.temperature
        largest = exponents.max()
        masses = np.exp(exponents - largest)
        total = masses.sum()
        modes = np.bincount(self.mode_of(grid, context), weights=masses, minlength=len(self.contexts[context].heights))
        log_partition = float(np.log(total) + self.action_dim * np.log(2 / n_points) + largest)
        return ExactMasses(modes / total, self.bin_shares(grid, masses), log_partition)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._context = int(self.np_random.integers(len(self.contexts)))
        self._show()
        return self.observations[self._context], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._actions[self._context].append(np.array(action, dtype=np.float64))
        self._show()
        return self.observations[self._context], float(self.reward(action, self._context)), True, False, {}

    def _picture(self) -> Picture:
        bumps, actions = self.contexts[self._context], list(self._actions[self._context])
        picture = Picture(560, 420)
        caption = f"context {self._context + 1} of {len(self.contexts)}, {len(actions)} actions"
        picture.panel(0, 0, 560, 420, (0, 560), (420, 0)).text(caption, (280, 20))
        if self.action_dim == 1:
            grid = np.linspace(-1, 1, 401)
            rewards = self.reward(grid[:, None], self._context)
            panel = picture.panel(30, 45, 500, 320, (-1, 1), (-0.1, 1.1 * rewards.max()))
            panel.polygon([(-1, 0), *zip(grid, rewards, strict=True), (1, 0)], faded(SKY, 0.25))
            panel.line(np.stack([grid, rewards], axis=-1), BLUE, 2.5)
            places = [(float(action[0]), float(self.reward(action, self._context))) for action in actions]
        else:
            panel = picture.panel(110, 40, 340, 340, (-1, 1), (-1, 1))
            for centre, width in zip(bumps.centres, bumps.widths, strict=True):
                panel.disc(centre[:2], 170 * width, faded(SKY, 0.5))
            places = [(float(action[0]), float(action[1])) for action in actions]
        for place in places:
            panel.disc(place, 2, faded(ORANGE, 0.7))
        panel.axis({tick: f"{tick:g}" for tick in (-1.0, -0.5, 0.0, 0.5, 1.0)})
        if places:
            panel.marker(places[-1])
        return picture
