"""The whole policy as one module: from what the environment gives to what it takes."""

import copy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage, unwrap_vec_wrapper
from torch import nn

from sb3_diffusion.common.actor import DiffusionActor

OBSERVATION, NOISE, ACTION = "observation", "noise", "action"


def by_key(space: spaces.Space) -> dict[str, spaces.Space]:
    """:return: the parts of an observation space by the names of the file's inputs; "observation" where it is no Dict"""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}


def describe(space: spaces.Space) -> dict[str, Any]:
    """:return: a space as JSON can hold it"""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: describe(part) for key, part in space.spaces.items()}}
    description: dict[str, Any] = {"type": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        for name, bound in (("low", space.low), ("high", space.high)):
            # One number where all are alike; JSON knows no infinity
            values = np.unique(bound) if len(np.unique(bound)) == 1 else bound.flatten()
            description[name] = [value if np.isfinite(value) else str(value) for value in values.tolist()]
    elif isinstance(space, spaces.Discrete):
        description |= {"n": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.MultiDiscrete):
        description["nvec"] = space.nvec.tolist()
    return description


class ExportablePolicy(nn.Module):
    """
    A copy of a model's policy on the CPU, in evaluation mode, with all that surrounds it in SB3's ``predict`` and in
    VecNormalize, as operations on tensors.

    :param model: a trained model of this library
    :param deterministic: a mode of the policy instead of a sample
    :param vec_normalize: whose statistics the observations are normalised with, as during the training
    :param channels_last: whether the environment gives images with the channels last; None: as the model's environment does,
        and True where the model has none. Only for images that the policy wants with the channels first
    :raises TypeError: for a model that has no diffusion policy
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(
        self,
        model: BaseAlgorithm,
        deterministic: bool,
        vec_normalize: VecNormalize | None = None,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__()
        policy = getattr(model.policy, "_orig_mod", model.policy)  # of torch.compile
        actor = getattr(policy, "actor", None)
        if not isinstance(actor, DiffusionActor):
            raise TypeError(f"model={type(model).__name__} has no diffusion policy; allowed: models of sb3_diffusion")
        if vec_normalize is not None and not isinstance(vec_normalize, VecNormalize):
            raise TypeError(f"vec_normalize={vec_normalize!r} must be a VecNormalize or None")
        self.deterministic = deterministic
        # Without the optimizer, whose state may be twice as large
        leave_out = {id(actor.optimizer): None} if hasattr(actor, "optimizer") else {}
        self.actor: DiffusionActor = copy.deepcopy(actor, leave_out).cpu().requires_grad_(False)  # type: ignore[arg-type]
        self.actor.set_training_mode(False)
        action_space = model.action_space
        assert isinstance(action_space, spaces.Box)
        self.action_space = action_space
        self.register_buffer("low", th.as_tensor(action_space.low))
        self.register_buffer("high", th.as_tensor(action_space.high))
        self._take_normalization(vec_normalize)
        if channels_last is None:
            channels_last = model.env is None or unwrap_vec_wrapper(model.env, VecTransposeImage) is not None
        self._take_inputs(model.observation_space, vec_normalize, channels_last)

    def _take_normalization(self, vec_normalize: VecNormalize | None) -> None:
        self.vec_normalize = vec_normalize
        self.normalized: list[str] = []
        if vec_normalize is None or not vec_normalize.norm_obs:
            return
        statistics = vec_normalize.obs_rms if isinstance(vec_normalize.obs_rms, dict) else {OBSERVATION: vec_normalize.obs_rms}
        self.normalized = list(statistics)
        # By position: a key may be no name for an attribute.
        for index, running in enumerate(statistics.values()):
            self.register_buffer(f"mean_{index}", th.as_tensor(running.mean))
            self.register_buffer(f"std_{index}", th.as_tensor(np.sqrt(running.var + vec_normalize.epsilon)))

    def _take_inputs(self, observation_space: spaces.Space, vec_normalize: VecNormalize | None, channels_last: bool) -> None:
        venv = vars(vec_normalize).get("venv") if vec_normalize is not None else None  # none right after unpickling
        originals = by_key(venv.observation_space) if venv is not None else {}
        self.is_dict = isinstance(observation_space, spaces.Dict)
        self.inputs: dict[str, spaces.Space] = {}
        self.transposed: set[str] = set()
        for key, wanted in by_key(observation_space).items():
            given = originals.get(key, wanted)
            if is_image_space(wanted) and is_image_space_channels_first(wanted) and channels_last:  # type: ignore[arg-type]
                self.transposed.add(key)
                assert isinstance(wanted, spaces.Box)
                low, high = (np.moveaxis(bound, 0, -1) for bound in (wanted.low, wanted.high))
                given = spaces.Box(low, high, dtype=wanted.dtype)  # type: ignore[arg-type]
            self.inputs[key] = given

    @property
    def noise_shape(self) -> tuple[int, int]:
        """:return: (K + 1, d), of the noise for one observation"""
        return self.actor.diffusion_steps + 1, self.actor.action_dim

    def _observation(self, key: str, observation: th.Tensor) -> th.Tensor:
        """What the policy gets in the place of what the environment gives."""
        if key in self.normalized:
            assert self.vec_normalize is not None
            index, clip = self.normalized.index(key), self.vec_normalize.clip_obs
            # In double precision, as VecNormalize
            observation = (observation.double() - getattr(self, f"mean_{index}")) / getattr(self, f"std_{index}")
            observation = observation.clamp(-clip, clip).float()
        return observation.permute(0, 3, 1, 2) if key in self.transposed else observation

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: one batch of observations per key, in the order of ``inputs``; then, for sampled actions whose noise is
            given, the noise (B, K + 1, d)
        :return: actions (B, *action shape), in the environment's units
        """
        observations: Any = {key: self._observation(key, value) for key, value in zip(self.inputs, inputs, strict=False)}
        if not self.is_dict:
            observations = observations[OBSERVATION]
        features = self.actor.extract_features(observations, self.actor.features_extractor)
        if self.deterministic:
            actions = self.actor.mode(features)
        elif len(inputs) > len(self.inputs):
            actions = self.actor.sample_actions(features, inputs[-1].transpose(0, 1))
        else:
            actions = self.actor.sample_actions(features)
        actions = actions.reshape(-1, *self.action_space.shape)
        if self.actor.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return th.minimum(th.maximum(actions, self.low), self.high)
