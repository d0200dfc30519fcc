"""A point that has to get round a wall, left or right, and a controller that shows both ways. Needs gymnasium-robotics."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from sb3_diffusion.command_line import missing
from sb3_diffusion.common.validation import check_choice, check_number
from sb3_diffusion.envs.rendering import BLUE, GREEN, GREY, PAPER, Picture, RenderedEnv, faded

try:
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
except ImportError as error:
    raise gym.error.DependencyNotInstalled(missing("TwoWaysRound", error, "demonstrations")) from error

LEFT, RIGHT = -1, 1
WAYS = {LEFT: "left", RIGHT: "right"}


class TwoWaysRound(RenderedEnv, PointMazeEnv):
    """
    gymnasium-robotics' PointMaze with a map of its own: a wall between start and goal that can be passed left or right.

    .. code-block:: text

        ##############      # wall, G goal, S start, each displaced by up to 0.25 m; a field of two characters is a square
        ##    G     ##      metre
        ##  ######  ##
        ##    S     ##
        ##############

    Everything else is PointMaze's: the action in [-1, 1]² is a force, held for 0.05 s here (PointMaze's own 0.01 s makes five
    times as many decisions of the same episode); the observation is a Dict of ``observation`` (position in metres and velocity
    in m/s, (4,)), ``achieved_goal`` and ``desired_goal``, (2,) each, float64; the reward is 1 within 0.45 m of the goal, where
    the episode terminates, and 0 elsewhere. ``TwoWaysRound-v0`` truncates after 150 steps, 7.5 s.

    ``info`` holds ``is_success`` and ``way``: -1 once the wall is passed on the left, 1 on the right, 0 before.

    :param blocked: "left" or "right": the way that is closed by a further wall, which the observation does not show; or None
    :param render_mode: "rgb_array", "human" or None
    :raises ValueError: for another ``blocked`` or ``render_mode``
    """

    FRAME_SKIP: ClassVar[int] = 5
    #: Rows from the top, as gymnasium-robotics writes maps: 1 wall, 0 free, "r" start, "g" goal. The origin is in the middle.
    MAP: ClassVar[tuple[tuple[int | str, ...], ...]] = (
        (1, 1, 1, 1, 1, 1, 1),
        (1, 0, 0, "g", 0, 0, 1),
        (1, 0, 1, 1, 1, 0, 1),
        (1, 0, 0, "r", 0, 0, 1),
        (1, 1, 1, 1, 1, 1, 1),
    )
    metadata: ClassVar[dict[str, Any]] = {**RenderedEnv.metadata, "render_fps": 20}  # type: ignore[misc]

    def __init__(self, blocked: str | None = None, render_mode: str | None = None) -> None:
        PointMazeEnv.__init__(self, maze_map=self.map_with(blocked), continuing_task=False)
        RenderedEnv.__init__(self, render_mode)
        self.point_env.frame_skip = self.FRAME_SKIP
        self._way = 0
        self._path: list[np.ndarray] = []

    @classmethod
    def map_with(cls, blocked: str | None) -> list[list[int | str]]:
        """
        :param blocked: as for the environment
        :return: :attr:`MAP` with the further wall
        :raises ValueError: for another ``blocked``
        """
        check_choice("blocked", blocked, (None, *WAYS.values()))
        maze_map = [list(row) for row in cls.MAP]
        if blocked is not None:
            maze_map[2][1 if blocked == "left" else 5] = 1
        return maze_map

    def _completed(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> dict[str, Any]:
        position = observation["achieved_goal"]
        self._path.append(position)
        if not self._way and position[1] > 0:
            self._way = RIGHT if position[0] > 0 else LEFT
        self._show()
        return {**info, "is_success": info["success"], "way": self._way}

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """:param options: PointMaze's ``reset_cell`` and ``goal_cell``"""
        observation, info = PointMazeEnv.reset(self, seed=seed, options=options)
        self._way, self._path = 0, []
        return observation, self._completed(observation, info)

    def step(  # type: ignore[override]
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = PointMazeEnv.step(self, action)
        return observation, float(reward), terminated, truncated, self._completed(observation, info)

    def close(self) -> None:
        RenderedEnv.close(self)
        PointMazeEnv.close(self)

    def _picture(self) -> Picture:
        rows, columns = len(self.MAP), len(self.MAP[0])
        picture = Picture(80 * columns, 80 * rows)
        field = picture.panel(0, 0, 80 * columns, 80 * rows, (-columns / 2, columns / 2), (-rows / 2, rows / 2))
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        for row, cells in enumerate(self.maze.maze_map):
            for column, cell in enumerate(cells):
                if cell == 1:
                    field.polygon(self.maze.cell_rowcol_to_xy(np.array([row, column])) + corners, GREY)
        field.disc(self.goal, 0.45 * 80, faded(GREEN, 0.35))
        field.disc(self.goal, 6, GREEN)
        field.line(self._path, BLUE, 2.5)
        field.disc(self._path[0], 5, PAPER)
        field.disc(self._path[0], 4, BLUE)
        field.marker(self._path[-1])
        return picture


class WaypointController:
    """
    Goes round the wall on a side that it draws for each episode, unhurriedly and unsteadily: a demonstrator of
    :class:`TwoWaysRound`, for :meth:`Demonstrations.from_policy`.

    The side has two waypoints, each displaced by N(0, 0.12² I) metres; then comes the goal. The force brings the velocity in
    one step to the one wanted, ``speed`` towards the next waypoint, and is disturbed.

    :param speed: in m/s, above 0
    :param noise: standard deviation of what is added to the action, in its units
    :param way: "left" or "right" for that side always; None: either with probability one half
    :raises ValueError: for an argument out of range
    """

    WAYPOINTS: ClassVar[tuple[tuple[float, float], ...]] = ((1.9, -0.75), (1.9, 0.75))
    DISPLACEMENT_STD: ClassVar[float] = 0.12
    REACHED: ClassVar[float] = 0.4
    # Force 1 for 0.05 s, on a ball of 1000 kg/m³ and radius 0.1 m with gear 100
    VELOCITY_PER_STEP: ClassVar[float] = 100 * 0.05 / (1000 * 4 / 3 * np.pi * 0.1**3)

    def __init__(self, speed: float = 2.0, noise: float = 0.3, way: str | None = None) -> None:
        check_number("speed", speed, 0, exclusive=True)
        check_number("noise", noise, 0)
        check_choice("way", way, (None, *WAYS.values()))
        self.speed, self.noise, self.way = speed, noise, way
        self.reset(seed=0)

    def reset(self, *, seed: int | None = None) -> None:
        """
        Draw a side and begin an episode.

        :param seed: of all that is random from here on; None goes on with the present generator
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        drawn = WAYS[LEFT if self._rng.random() < 0.5 else RIGHT]
        mirror = np.array([LEFT if (self.way or drawn) == "left" else RIGHT, 1])
        displacements = self.DISPLACEMENT_STD * self._rng.standard_normal((len(self.WAYPOINTS), 2))
        self._waypoints = list(mirror * self.WAYPOINTS + displacements)

    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """
        :param observation: of :class:`TwoWaysRound`
        :return: an action in [-1, 1]², float32
        """
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        if self._waypoints and np.linalg.norm(self._waypoints[0] - position) < self.REACHED:
            self._waypoints.pop(0)
        towards = (self._waypoints[0] if self._waypoints else observation["desired_goal"]) - position
        wanted = self.speed * towards / max(float(np.linalg.norm(towards)), 1e-9)
        action = (wanted - velocity) / self.VELOCITY_PER_STEP + self.noise * self._rng.standard_normal(2)
        return np.clip(action, -1, 1).astype(np.float32)
