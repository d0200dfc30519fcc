"""Training, prediction and saving stop at the first number that is not finite, and say what it was."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

Observation = np.ndarray | dict[str, np.ndarray]


class NotFinite(ValueError):
    """A NaN or an infinity. A ValueError, by which rl-zoo3 knows trials that diverge."""


def first_not_finite(name: str, values: Any) -> str | None:
    """
    :param name: of the values
    :param values: an array, or a dictionary of arrays
    :return: what is not finite, with its place and value; None if all is
    """
    if isinstance(values, dict):
        parts = (first_not_finite(f"{name}[{key!r}]", part) for key, part in values.items())
        return next((part for part in parts if part is not None), None)
    values = np.asarray(values)
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return None
    place = tuple(int(index) for index in np.argwhere(~np.isfinite(values))[0])
    return f"the {name} is not finite: {values[place]}" + (f" at index {place}" if place else "")


def weights_not_finite(policy: th.nn.Module) -> str | None:
    """
    :param policy: any module
    :return: the first of its weights that is not finite; None if all are
    """
    for name, weight in policy.state_dict().items():
        if not th.isfinite(weight).all():
            return f"the weights are not finite, first of them {name}"
    return None


def observation_not_finite(policy: Any, observation: Observation, name: str = "observation") -> str | None:
    """
    :param policy: that sees the observation
    :param observation: of one or several environments
    :param name: what it is called
    :return: what is not finite; None also if the features extractor turns it into finite features, as some are made to do
    """
    problem = first_not_finite(name, observation)
    if problem is None or weights_not_finite(policy.actor.features_extractor) is not None:
        return problem
    with th.no_grad():
        tensors = policy.obs_to_tensor(observation)[0]
        features = policy.actor.extract_features(tensors, policy.actor.features_extractor)
    return None if th.isfinite(features).all() else problem


class FinitePredictionsMixin(BasePolicy):
    """For policies: ``predict`` gives finite actions or says why it cannot."""

    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """:raises NotFinite: instead of returning actions that are not finite"""
        actions, state = super().predict(observation, state, episode_start, deterministic)
        if not np.isfinite(actions).all():
            problem = first_not_finite("observation", observation) or weights_not_finite(self)
            raise NotFinite(
                f"No action: {problem or 'numbers overflow in the networks, though weights and observation are finite'}"
            )
        return actions, state


class FiniteVecEnv(VecEnvWrapper):
    """
    The environments of a model while it collects: no action, observation or reward passes that is not finite.

    :param venv: the environments
    :param model: whose policy acts
    """

    def __init__(self, venv: VecEnv, model: BaseAlgorithm) -> None:
        super().__init__(venv)
        self.model = model

    def stop_if(self, problem: str | None) -> None:
        """:raises NotFinite: if there is a problem"""
        if problem is not None:
            raise NotFinite(f"At environment step {self.model.num_timesteps}: {problem}")

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        if not np.isfinite(actions).all():
            last_obs: Any = self.model._last_obs
            problem = first_not_finite("observation", last_obs) or weights_not_finite(self.model.policy)
            self.stop_if(problem or first_not_finite("action", actions))
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.stop_if(observation_not_finite(self.model.policy, observations))  # type: ignore[arg-type]
        self.stop_if(first_not_finite("reward", rewards))
        for index in dones.nonzero()[0]:
            last = infos[index].get("terminal_observation")
            if last is not None:
                self.stop_if(observation_not_finite(self.model.policy, last, "last observation of an episode"))
        return observations, rewards, dones, infos

    def __reduce__(self) -> Any:
        # A copy of a model makes its own when it next collects.
        return type(None), ()


class FiniteMixin(BaseAlgorithm):
    """For algorithms: collecting, predicting and training stop with an error, before a callback could save anything."""

    _finite_env: FiniteVecEnv | None = None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._setup_learn(*args, **kwargs)
        problem = weights_not_finite(self.policy)
        if problem is None:
            problem = observation_not_finite(self.policy, self._last_obs, "first observation")  # type: ignore[arg-type]
        if problem is not None:
            raise NotFinite(f"At environment step {self.num_timesteps}: {problem}")
        return result

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> Any:
        """:raises NotFinite: if the environment gives or the policy takes what is not finite"""
        if self._finite_env is None or self._finite_env.venv is not env:
            self._finite_env = FiniteVecEnv(env, self)
        return super().collect_rollouts(self._finite_env, *args, **kwargs)  # type: ignore[misc]

    def predict(
        self,
        observation: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """:raises NotFinite: instead of returning actions that are not finite"""
        try:
            return super().predict(observation, state, episode_start, deterministic)
        except NotFinite as error:
            trained = f"the model has trained for {self.num_timesteps} environment steps and {self._n_updates} updates"
            raise NotFinite(f"{error} ({trained})") from None

    def mean_losses(self, losses: dict[str, list[th.Tensor]]) -> Iterator[tuple[str, float]]:
        """
        :param losses: scalars of a call of ``train``, by name; one of each gradient step that computed it
        :return: names and means
        :raises NotFinite: if one is not finite, naming the first
        """
        means = th.stack([th.stack(values).mean() for values in losses.values()]).tolist()
        if not np.isfinite(means).all():
            raise NotFinite(
                f"Training after environment step {self.num_timesteps} and {self._n_updates} updates: {self._cause(losses)}"
            )
        return zip(losses, means, strict=True)

    def _cause(self, losses: dict[str, list[th.Tensor]]) -> str:
        """What was not finite first: what the losses were computed from, or the first of them."""
        buffer: Any = getattr(self, "replay_buffer", None)
        for stored in ("rewards", "observations", "next_observations"):
            problem = first_not_finite(f"replay buffer's entry in {stored}", getattr(buffer, stored, ()))
            if problem is not None:
                return problem
        first: list[tuple[float, str]] = []
        for name, values in losses.items():
            numbers = th.stack(values).cpu().numpy()
            for step in (~np.isfinite(numbers)).nonzero()[0][:1]:
                what = f"the {name} is not finite: {numbers[step]} at update {step + 1} of {len(numbers)}"
                first.append((step / len(numbers), what))
        what = min(first)[1] if first else f"the losses overflow: {', '.join(losses)}"
        return f"{what}; a smaller learning_rate may help"

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_finite_env"]
