"""Policies of DiffPPO: a diffusion actor and a value function that sees state, latent and diffusion step."""

from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from typing_extensions import Unpack

from sb3_diffusion.common.diffusion_arguments import DiffusionArguments, DiffusionKeywords, with_diffusion_arguments
from sb3_diffusion.common.finite import FinitePredictionsMixin
from sb3_diffusion.common.networks import StepConditionedMLP, fused_by_default
from sb3_diffusion.common.saving import DiffusionStateMixin, refuse_other_loaders
from sb3_diffusion.common.scaling import BoxScalingMixin
from sb3_diffusion.common.validation import (
    check_choice,
    check_network_arguments,
    check_number,
    warn_without_effect,
    with_hints,
)
from sb3_diffusion.diffppo.actor import ChainActor, DecisionKernels, Decisions, decisions_of

# What a subclass of SB3's policy may define or assign, of the networks that a diffusion policy does not have
WITHOUT_EFFECT = {
    "_build_mlp_extractor": "net_arch, activation_fn and features_extractor_class, or networks of your own in _build",
    "_get_action_dist_from_latent": "the arguments of DiffusionActor",
    "mlp_extractor": "net_arch, activation_fn and features_extractor_class",
    "action_net": "actor.denoiser, actor.latent_pi and actor.mu",
    "value_net": "critic",
}


class ChainEvaluation(NamedTuple):
    """
    Chosen decisions of given chains under the current policy, κ reverse steps for each of B chains and in the last column the
    first decision ``a^K``: ``values`` (B, κ + 1), ``V(s, a^k, k)``, for the first decision ``V(s)``; and their ``kernels``.
    """

    values: th.Tensor
    kernels: DecisionKernels


class ActedChains(NamedTuple):
    """
    What the policy did: ``values`` (B, K + 1), ``V(s, a^k, k)`` and in the last column ``V(s)``, and the fields of
    :class:`~sb3_diffusion.diffppo.actor.ActedDecisions`, first of them the ``chains`` (B, K + 1, d).
    """

    values: th.Tensor
    chains: th.Tensor
    drift: th.Tensor
    log_scale: th.Tensor
    location: th.Tensor
    readout_log_scale: th.Tensor
    retain: th.Tensor
    noise_std: th.Tensor
    drift_scale: th.Tensor


class DiffusionActorCriticPolicy(FinitePredictionsMixin, DiffusionStateMixin, BoxScalingMixin, ActorCriticPolicy):
    """
    PPO's policy class with a diffusion actor (arXiv 2512.02019; docs/method.md, "DiffPPO"). Where SB3 speaks of the
    log-probability of an action, this class speaks of chains: a diffusion policy has no exact one. SB3's PPO cannot train it.

    Parameters not listed are those of :class:`stable_baselines3.common.policies.ActorCriticPolicy`; the diffusion's own are
    :class:`~sb3_diffusion.common.diffusion_arguments.DiffusionArguments`, ``finetune_steps`` and ``min_std`` those of
    :class:`~sb3_diffusion.diffppo.actor.ChainActor`. Adam and AdamW run fused unless ``optimizer_kwargs`` says otherwise.

    :param squash_output: actions are ``tanh(a^0)``, rescaled to the box; else ``a^0`` itself, clipped to the box as PPO's are
    :param full_std: only for gSDE, without effect
    :param use_expln: only for gSDE, without effect
    :param log_std_init: initial log-scale of the read-out, from -20 to 2; must be 0 without the state-dependent one
    :param net_arch: as in SB3, with 64 x 64 as the default for images too
    :param min_std: floor of the standard deviation of every decision, 0 for none: an update cannot make the policy sharper
    :param features_extractor_class: None: ``FlattenExtractor``, or what a subclass names as its default
    :raises ValueError: for an argument out of range, and for ``use_sde=True``
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    @with_hints
    @with_diffusion_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        finetune_steps: int | None = None,
        min_std: float = 0.0,
        **diffusion: Unpack[DiffusionKeywords],
    ) -> None:
        refuse_other_loaders()
        arguments = DiffusionArguments(**diffusion)
        self.diffusion_kwargs: dict[str, Any] = dict(
            asdict(arguments), squash_output=squash_output, finetune_steps=finetune_steps, min_std=min_std
        )
        warn_without_effect(full_std=(full_std, True), use_expln=(use_expln, False))
        check_number("log_std_init", log_std_init, LOG_STD_MIN, LOG_STD_MAX)
        check_choice("ortho_init", ortho_init, (False, True))
        # SB3 warns of this form, which it still takes, and unpacks it.
        in_a_list = isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict)
        arch = net_arch[0] if in_a_list else net_arch  # type: ignore[index]
        if features_extractor_class is None:
            features_extractor_class = self.default_features_extractor_class
        check_network_arguments(
            arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            share_features_extractor,
        )
        if isinstance(arch, dict) and not arch.keys() <= {"pi", "vf"}:
            raise ValueError(f"net_arch={net_arch!r} has other keys than 'pi' and 'vf'")
        for name, instead in WITHOUT_EFFECT.items():
            if getattr(type(self), name, None) is not getattr(ActorCriticPolicy, name, None):
                raise TypeError(f"{type(self).__name__}.{name} would have no effect in a diffusion policy; instead: {instead}")
        if net_arch is None:
            # SB3's default for images is a linear head, and a linear denoiser could hold no second mode.
            net_arch = dict(pi=[64, 64], vf=[64, 64])
        if log_std_init != 0 and not arguments.state_dependent_readout:
            raise ValueError(f"log_std_init={log_std_init!r} needs state_dependent_readout=True; without it set prior_std")
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = dict(eps=1e-5)  # SB3's choice for PPO, which it makes only where nothing is given
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            ortho_init,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            False,  # SB3 allows True with gSDE only
            features_extractor_class,
            features_extractor_kwargs,
            share_features_extractor,
            normalize_images,
            optimizer_class,
            fused_by_default(optimizer_class, optimizer_kwargs),
        )
        self._squash_output = squash_output

    def _build(self, lr_schedule: Schedule) -> None:
        """Instead of SB3's networks: its ``_build`` would make, and count among the parameters, a Gaussian actor."""
        arch = self.net_arch
        actor_arch, critic_arch = (arch.get("pi", []), arch.get("vf", [])) if isinstance(arch, dict) else (arch, arch)
        self.actor = ChainActor(
            self.observation_space,
            self.action_space,  # type: ignore[arg-type]
            actor_arch,
            self.pi_features_extractor,
            self.features_dim,
            self.activation_fn,
            use_sde=self.use_sde,
            normalize_images=self.normalize_images,
            **self.diffusion_kwargs,
        )
        diffusion_steps, prior_std = self.actor.diffusion_steps, self.actor.prior_std
        # Step K + 1: before the first decision, when there is no latent
        self.critic = StepConditionedMLP(
            self.features_dim,
            self.actor.action_dim,
            diffusion_steps + 1,
            1,
            critic_arch,
            self.activation_fn,
            prior_std,
            self.actor.latent_frequencies,
        )
        if self.ortho_init:
            gains: dict[nn.Module, float] = {self.pi_features_extractor: np.sqrt(2), self.vf_features_extractor: np.sqrt(2)}
            gains |= {self.actor.denoiser: np.sqrt(2), self.critic: np.sqrt(2)}
            if self.actor.state_dependent_readout:
                gains[self.actor.latent_pi] = np.sqrt(2)
            if len(self.critic.body):
                gains[self.critic.body[-1]] = 1
            for module, gain in gains.items():
                module.apply(partial(self.init_weights, gain=gain))
            self.actor.denoiser.zero_output()
        if self.actor.state_dependent_readout:
            nn.init.constant_(self.actor.log_std, self.log_std_init)  # type: ignore[arg-type]
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in WITHOUT_EFFECT:
            raise AttributeError(f"{name} would have no effect in a diffusion policy; instead: {WITHOUT_EFFECT[name]}")
        if name == "log_std":
            return self._set_log_std(value)
        super().__setattr__(name, value)

    @property
    def log_std(self) -> nn.Parameter:  # type: ignore[override]
        """
        Log-scale of the read-out, (d,), in the place of PPO's: with the untrained diffusion, ``prior_std`` times its
        exponential is the standard deviation of the action before it is squashed. What is assigned is copied into the
        parameter that is trained.

        :raises AttributeError: without the state-dependent read-out, where there is none
        """
        return self.actor.log_std  # type: ignore[return-value]

    def _set_log_std(self, value: th.Tensor) -> None:
        if not self.actor.state_dependent_readout:
            raise AttributeError("without state_dependent_readout there is no log_std; set prior_std instead")
        log_std = self.log_std
        if value.shape != log_std.shape:
            raise ValueError(f"log_std of shape {tuple(value.shape)} must have shape {tuple(log_std.shape)}")
        with th.no_grad():
            log_std.copy_(value)
        if isinstance(value, nn.Parameter):
            log_std.requires_grad_(value.requires_grad)

    def _both_features(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """The features for the actor and for the critic."""
        features = self.extract_features(obs)
        return features if isinstance(features, tuple) else (features, features)

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, ActedChains]:
        """
        What SB3 collects rollouts with.

        :param obs: observations
        :param deterministic: a mode of the policy instead of a sample
        :return: actions (B, *action shape), in [-1, 1] if squashed; ``V(s)`` (B, 1); in the place of a log-probability the
            chains, with their values and what they were decided by, all nan if deterministic: a mode has none
        """
        pi_features, vf_features = self._both_features(obs)
        if deterministic:
            actions, values = self.actor.mode(pi_features), self._state_values(vf_features)
            acted = self._no_chains(actions)
        else:
            decided = self.actor.act(pi_features)
            actions = self.actor.squash(decided.chains[:, 0])
            acted = ActedChains(self._decision_values(vf_features, decisions_of(decided.chains)), *decided)
            values = acted.values[:, -1:]
        return actions.reshape(-1, *self.action_space.shape), values, acted  # type: ignore[misc]

    def _no_chains(self, actions: th.Tensor) -> ActedChains:
        n, steps, dim = actions.shape[0], self.actor.diffusion_steps, self.actor.action_dim
        shapes = [(n, steps + 1), (n, steps + 1, dim), (n, steps, dim), (n, steps, dim), (n, dim), (dim,), *[(steps, 1)] * 3]
        return ActedChains(*(actions.new_full(shape, th.nan) for shape in shapes))

    def _state_values(self, features: th.Tensor) -> th.Tensor:
        """``V(s)`` (B, 1), before the first decision."""
        no_latents = features.new_zeros(features.shape[0], self.actor.action_dim)
        return self.critic(self.critic.condition(features), no_latents, self.actor.diffusion_steps + 1)

    def _decision_values(self, features: th.Tensor, decisions: Decisions) -> th.Tensor:
        """``V(s, a^k, k)`` (B, κ + 1), in the last column ``V(s)``."""
        return self.critic(self.critic.condition(features).unsqueeze(1), decisions.before, decisions.steps).squeeze(2)

    def evaluate_chains(self, obs: PyTorchObs, chains: th.Tensor, steps: th.Tensor | None = None) -> ChainEvaluation:
        """
        :param obs: observations
        :param chains: (B, K + 1, d), ``a^0 … a^K``
        :param steps: (B, κ), the reverse steps k of each chain to evaluate; None for all
        :return: values and kernels of these steps and of the first decision
        """
        return self.evaluate_decisions(obs, decisions_of(chains, steps))

    def evaluate_decisions(self, obs: PyTorchObs, decisions: Decisions) -> ChainEvaluation:
        """
        :param obs: observations
        :param decisions: of (B, κ + 1)
        :return: their values and kernels
        """
        pi_features, vf_features = self._both_features(obs)
        values = self._decision_values(vf_features, decisions)
        return ChainEvaluation(values, self.actor.evaluate_decisions(pi_features, decisions))

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, None]:
        """
        Evaluates *chains*, not actions: the log-probability of an action alone is an integral over all chains that end in it.

        :param obs: observations
        :param actions: chains (B, K + 1, d), ``a^0 … a^K``, such as ``forward(obs)[2].chains``
        :return: ``V(s, a^k, k)`` for k = 1 … K and ``V(s)``, (B, K + 1); log-probabilities of the K reverse steps and of the
            first decision, (B, K + 1); and None: no closed-form entropy exists
        :raises ValueError: for anything but chains
        """
        n_observations = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        wanted = (n_observations, self.actor.diffusion_steps + 1, self.actor.action_dim)
        if actions.shape != wanted:
            raise ValueError(
                f"actions of shape {tuple(actions.shape)}: for {n_observations} observations a diffusion policy evaluates "
                f"chains of shape {wanted}, as in forward(obs)[2].chains; an action alone has no exact log-probability"
            )
        evaluation = self.evaluate_chains(obs, actions)
        return evaluation.values, evaluation.kernels.log_prob, None

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """:raises NotImplementedError: always; a diffusion policy has no distribution with an exact log-probability"""
        raise NotImplementedError(
            "A diffusion policy has no action distribution with an exact log-probability: use forward(obs)[2] for chains, "
            "evaluate_actions(obs, chains) for their log-probabilities, actor.action_log_prob(obs) for the path bound"
        )

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations
        :return: ``V(s)``, (B, 1)
        """
        _, features = self._both_features(obs)
        return self._state_values(features)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        features = self.actor.extract_features(observation, self.pi_features_extractor)
        return self.actor.mode(features) if deterministic else self.actor.sample_actions(features)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3's own list leaves the last one out.
        data.update(self.diffusion_kwargs, share_features_extractor=self.share_features_extractor)
        return data


MlpPolicy = DiffusionActorCriticPolicy


class CnnPolicy(DiffusionActorCriticPolicy):
    """:class:`DiffusionActorCriticPolicy` with ``NatureCNN`` as the default features extractor, for images."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(DiffusionActorCriticPolicy):
    """:class:`DiffusionActorCriticPolicy` with ``CombinedExtractor`` as the default features extractor: Dict observations."""

    default_features_extractor_class = CombinedExtractor
