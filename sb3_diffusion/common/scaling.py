"""Actions between [-1, 1] and their box, without overflow."""

from functools import cached_property

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy


class BoxScalingMixin(BasePolicy):
    """
    SB3's ``scale_action`` and ``unscale_action`` in double precision and without the difference ``high - low``, which in the
    box's own dtype overflows where a box spans more than half of its numbers (float32 ± its maximum, all of int8).
    """

    @cached_property
    def _centre_and_radius(self) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(self.action_space, spaces.Box), f"{self.action_space} is no Box: its actions cannot be scaled"
        low, high = (bound.astype(np.float64) / 2 for bound in (self.action_space.low, self.action_space.high))
        return high + low, high - low

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: (…, *action shape), in the box
        :return: the same in [-1, 1]
        """
        centre, radius = self._centre_and_radius
        return ((action - centre) / radius).astype(np.result_type(action, np.float32))

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        :param scaled_action: (…, *action shape), in [-1, 1]
        :return: the same in the box, in its dtype if that is a floating one
        """
        centre, radius = self._centre_and_radius
        actions = np.clip(centre + radius * scaled_action, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        dtype = self.action_space.dtype
        return actions.astype(dtype if np.issubdtype(dtype, np.floating) else np.result_type(scaled_action, np.float32))
