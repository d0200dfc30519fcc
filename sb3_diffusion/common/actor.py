"""The diffusion actor that all algorithms share (docs/method.md, "The policy")."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor
from torch import nn
from typing_extensions import Unpack

from sb3_diffusion.common.diffusion_arguments import DiffusionArguments, DiffusionKeywords, with_diffusion_arguments
from sb3_diffusion.common.finite import FinitePredictionsMixin
from sb3_diffusion.common.networks import StepConditionedMLP
from sb3_diffusion.common.saving import DiffusionStateMixin
from sb3_diffusion.common.validation import check_choice
from sb3_diffusion.diffusion import (
    Denoiser,
    NoiseSchedule,
    expected_log_prob,
    find_mode,
    log_ratio,
    mode_noise,
    noising_moments,
    prior_log_prob,
    probe_noise,
    probe_residual,
    read_out,
    readout_log_ratio,
    reverse_mean,
    reverse_step,
    sample_chain,
    sample_end,
)

# Bounds of the two denoiser heads. They keep every chain finite in float32, whatever the weights, and are far from where
# trained networks work: one step moves by at most 50 noise standard deviations and scales the noise by e^-10 to e^2.
MAX_DRIFT = 50.0
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, 2.0


class PolicySample(NamedTuple):
    """
    A batch of sampled chains and what they end in.

    ``actions`` (B, d), in [-1, 1] if squashed; ``latents`` (K + 1, B, d), ``x^0 … x^K``; ``log_ratios`` (K, B),
    ``ℓ_1 … ℓ_K`` in nats, the first with the read-out's term; ``path_log_prob`` (B,), ``log p(x^K) + Σ_k ℓ_k``, whose mean is
    minus the path entropy; ``location`` and ``log_scale`` of the read-out, (B, d) each.
    """

    actions: th.Tensor
    latents: th.Tensor
    log_ratios: th.Tensor
    path_log_prob: th.Tensor
    location: th.Tensor
    log_scale: th.Tensor


def inference_is_possible() -> bool:
    """
    Whether inference mode, in which small operations are cheaper than under ``no_grad``, may be entered: not with gradients,
    and not for code that is traced or compiled, which keeps views of buffers for later calls.
    """
    return not (th.is_grad_enabled() or th.jit.is_tracing() or th.compiler.is_compiling())


def cheap_without_gradients(method: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
    """
    A method of features that runs in inference mode where gradients are off: a chain is many small operations. The result is
    an ordinary tensor. Features come from outside, because an extractor may keep tensors for its training.
    """

    @wraps(method)
    def call(self: "DiffusionActor", features: th.Tensor, *args: th.Tensor | None) -> th.Tensor:
        if not inference_is_possible():
            return method(self, features, *args)
        with th.inference_mode():
            result = method(self, features, *args)
        return result.clone()

    return call


def with_bfloat16_products(denoiser: Denoiser) -> Denoiser:
    """The same heads, float32 but for the rounding of the products inside."""

    def call(latents: th.Tensor, k: int) -> tuple[th.Tensor, th.Tensor]:
        with th.autocast(latents.device.type, dtype=th.bfloat16):
            return denoiser(latents, k)

    return call


class DiffusionActor(FinitePredictionsMixin, DiffusionStateMixin, Actor):
    """
    A diffusion policy: K reverse steps turn prior noise ``x^K`` into ``x^0``, and ``u = tanh(m(s) + c(s) x^0)`` is the action.
    With the state-dependent read-out, ``m`` and ``log c`` are the heads of SB3's own SAC actor, so the untrained diffusion
    *is* SAC's squashed Gaussian. Source: arXiv 2512.02019; docs/method.md.

    Parameters not listed are those of :class:`stable_baselines3.sac.policies.Actor` and of
    :class:`~sb3_diffusion.common.diffusion_arguments.DiffusionArguments`.

    :param squash_output: whether actions go through tanh; else ``a^0 = m(s) + c(s) x^0`` itself is the action
    :raises ValueError: for an argument out of range, and for ``use_sde=True``
    """

    # SAC's Actor is the base for what SB3's code and users hold an actor to (SACPolicy.actor, the arguments in its files), and
    # for its network latent_pi, mu, log_std, which is the read-out. Its Gaussian alone has no use here: chains take its place.

    min_heads: th.Tensor
    max_heads: th.Tensor
    probe_noise: th.Tensor
    probe_residual: th.Tensor
    mode_noise: th.Tensor
    _sampler: Callable[["DiffusionActor", th.Tensor], th.Tensor] | None = None

    @with_diffusion_arguments
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: nn.Module,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3,
        full_std: bool = True,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        normalize_images: bool = True,
        squash_output: bool = True,
        **diffusion: Unpack[DiffusionKeywords],
    ) -> None:
        if use_sde:
            raise ValueError("use_sde=True: gSDE is not supported by diffusion policies; allowed: use_sde=False")
        check_choice("squash_output", squash_output, (False, True))
        arguments = DiffusionArguments(**diffusion)
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            features_extractor,
            features_dim,
            activation_fn,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            clip_mean,
            normalize_images,
        )
        self._squash_output = squash_output
        self.diffusion_kwargs: dict[str, Any] = dict(asdict(arguments), squash_output=squash_output)
        self.diffusion_steps, self.prior_std = arguments.diffusion_steps, arguments.prior_std
        self.latent_frequencies = arguments.latent_frequencies
        self.learn_variance = arguments.learn_variance
        self.state_dependent_readout = arguments.state_dependent_readout
        self.action_dim = get_action_dim(action_space)
        self.schedule = NoiseSchedule(
            arguments.betas(), self.action_dim, self.prior_std, arguments.kernel, arguments.learn_schedule
        )
        bounds = th.tensor([[-MAX_DRIFT, MAX_DRIFT], [MIN_LOG_SCALE, MAX_LOG_SCALE]][: 2 if self.learn_variance else 1])
        min_heads, max_heads = bounds.repeat_interleave(self.action_dim, dim=0).unbind(dim=1)
        self.register_buffer("min_heads", min_heads, persistent=False)
        self.register_buffer("max_heads", max_heads, persistent=False)
        self.denoiser = self.make_denoiser(
            features_dim,
            self.action_dim,
            self.diffusion_steps,
            len(min_heads),
            net_arch,
            activation_fn,
            self.prior_std,
            arguments.latent_frequencies,
        )
        # f = g = 0: the reverse process starts as the noising process run backwards.
        self.denoiser.zero_output()
        if self.state_dependent_readout:
            for layer in (self.mu, self.log_std):
                for parameter in layer.parameters():  # type: ignore[union-attr]
                    nn.init.zeros_(parameter)
        else:
            del self.latent_pi, self.mu, self.log_std
        buffers = dict(
            probe_noise=probe_noise(self.diffusion_steps, self.action_dim),
            probe_residual=probe_residual(),
            mode_noise=mode_noise(self.diffusion_steps, self.action_dim),
        )
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def make_denoiser(self, *args: Any) -> StepConditionedMLP:
        """
        A hook for networks of one's own.

        :param args: all of :class:`~sb3_diffusion.common.networks.StepConditionedMLP`, in its order
        :return: the network of the reverse kernel; its last layer is set to zero afterwards
        """
        return StepConditionedMLP(*args)

    @contextmanager
    def all_steps_learn(self) -> Iterator[None]:
        """While all of the actor is trained by maximum likelihood; for actors of which parts are frozen otherwise."""
        yield

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.diffusion_kwargs)
        return data

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """:raises NotImplementedError: always; a diffusion policy is no Gaussian with a mean and a standard deviation"""
        raise NotImplementedError(
            "A diffusion policy has no mean and standard deviation: use action_log_prob(obs) for actions with the path "
            "log-probability, or sample(features) for whole chains"
        )

    def readout(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Location and log-scale of the read-out.

        :param features: (B, features_dim)
        :return: ``m`` and ``log c``, each (B, d); zeros without the state-dependent read-out
        """
        if not self.state_dependent_readout:
            zeros = features.new_zeros(features.shape[0], self.action_dim)
            return zeros, zeros
        latent_pi = self.latent_pi(features)
        location = self.mu(latent_pi)
        return location, th.clamp(self.log_std(latent_pi), LOG_STD_MIN, LOG_STD_MAX)  # type: ignore[operator]

    def keep_scale_in_range(self) -> None:
        """After an update: nothing to do, where the read-out's scale is a head of the network and clamped when it is used."""

    @th.no_grad()
    def start_readout(self, actions: th.Tensor) -> None:
        """
        Where the read-out is still as it started, put it at the mean and the standard deviation of given actions, as if prior
        and actions were Gaussians. A read-out that has learned stays.

        :param actions: (B, d), ``a^0``, before they are squashed
        """
        if not self.state_dependent_readout or any(parameter.any() for parameter in self.mu.parameters()):
            return
        log_scale = (actions.std(dim=0, correction=0) / self.prior_std).log().clamp(LOG_STD_MIN, LOG_STD_MAX)
        for layer, value in ((self.mu, actions.mean(dim=0)), (self.log_std, log_scale)):
            bias = layer.bias if isinstance(layer, nn.Module) else layer
            bias.copy_(value)  # type: ignore[operator]

    def denoise(self, condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int | None) -> tuple[th.Tensor, th.Tensor]:
        """
        The heads of the reverse kernel.

        :param condition: (B, width), ``denoiser.condition(features)``
        :param latents: (B, d), ``x^k``
        :param steps: k, as :class:`~sb3_diffusion.common.networks.StepConditionedMLP` takes them
        :return: drift ``f`` and log-scale ``g``, each (B, d)
        """
        return self._heads_of(self.denoiser(condition, latents, steps))

    def reverse_heads(
        self, condition: th.Tensor, latents: th.Tensor, steps: th.Tensor | int | None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The heads of the kernel that chains are sampled with and evaluated by: here :meth:`denoise`, with its parameters. The
        mode is found with :meth:`denoise` itself.
        """
        return self.denoise(condition, latents, steps)

    @property
    def _heads_of(self) -> Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]:
        """What makes ``f`` and ``g`` of the denoiser's output."""
        lowest, highest, action_dim, learn_variance = self.min_heads, self.max_heads, self.action_dim, self.learn_variance

        def heads_of(output: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            heads = output.clamp(lowest, highest)
            if not learn_variance:
                return heads, th.zeros_like(heads)
            drift, log_scale = th.split_with_sizes(heads, (action_dim, action_dim), dim=-1)
            return drift, log_scale

        return heads_of

    def squash(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: (…, d), ``a^0``
        :return: (…, d), what the policy returns: through tanh if squashed
        """
        return th.tanh(actions) if self.squash_output else actions

    def _chain_noise(self, features: th.Tensor) -> th.Tensor:
        return th.randn(self.diffusion_steps + 1, features.shape[0], self.action_dim, device=features.device)

    def _chain_denoiser(self, features: th.Tensor) -> Denoiser:
        """The heads as a function of ``x^k`` and k, for chains at these states."""
        condition = self.denoiser.condition(features)
        return lambda latents, k: self.reverse_heads(condition, latents, k)

    @cheap_without_gradients
    def sample_actions(self, features: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        The actions of :meth:`sample` alone, for the same random numbers.

        :param features: (B, features_dim)
        :param noise: (K + 1, B, d) standard normal, drawn from the global generator if not given
        :return: (B, d), in [-1, 1] if squashed
        """
        noise = self._chain_noise(features) if noise is None else noise
        end = sample_end(self._chain_denoiser(features), self.schedule, self.prior_std, noise)
        location, log_scale = self.readout(features)
        return self.squash(read_out(end, location, log_scale))

    def reverse_kernel(self, features: th.Tensor, latents: th.Tensor, steps: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        The Gaussian of one reverse step, before the read-out.

        :param features: (B, features_dim)
        :param latents: (B, d), ``x^k``
        :param steps: (B,), k
        :return: mean and log-std of ``x^{k-1}``, each (B, d)
        """
        tables = self.schedule().at(steps)
        drift, log_scale = self.reverse_heads(self.denoiser.condition(features), latents, steps)
        return reverse_mean(latents, drift, tables), tables.noise_std.log() + log_scale

    def sample(self, features: th.Tensor, noise: th.Tensor | None = None, bfloat16: bool = False) -> PolicySample:
        """
        Sample one chain per row, with the graph through all K steps unless gradients are off.

        :param features: (B, features_dim)
        :param noise: (K + 1, B, d) standard normal, drawn from the global generator if not given
        :param bfloat16: whether the products of the K steps run in bfloat16; all else, and what is returned, is float32
        :return: actions, latents, log-ratios and the path log-probability
        """
        noise = self._chain_noise(features) if noise is None else noise
        denoiser = self._chain_denoiser(features)
        if bfloat16:
            denoiser = with_bfloat16_products(denoiser)
        chain = sample_chain(denoiser, self.schedule(), self.prior_std, noise)
        location, log_scale = self.readout(features)
        actions = read_out(chain.latents[0], location, log_scale)
        last = chain.log_ratios[0] + readout_log_ratio(actions, log_scale, self.squash_output)
        log_ratios = th.cat([last.unsqueeze(0), chain.log_ratios[1:]])
        path_log_prob = chain.prior_log_prob + log_ratios.sum(dim=0)
        return PolicySample(self.squash(actions), chain.latents, log_ratios, path_log_prob, location, log_scale)

    def reverse_step(
        self, features: th.Tensor, latents: th.Tensor, steps: th.Tensor, noise: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        One fresh reverse step from given latents, without the read-out's term.

        :param features: (B, features_dim)
        :param latents: (B, d), ``x^k``
        :param steps: (B,), k
        :param noise: (B, d) standard normal, drawn from the global generator if not given
        :return: ``x^{k-1}`` (B, d) and ``ℓ_k`` (B,)
        """
        drift, log_scale = self.reverse_heads(self.denoiser.condition(features), latents, steps)
        noise = th.randn_like(latents) if noise is None else noise
        return reverse_step(latents, drift, log_scale, self.schedule().at(steps), noise)

    def log_likelihood_bound(self, features: th.Tensor, actions: th.Tensor, steps: th.Tensor) -> th.Tensor:
        """
        An unbiased estimate of the evidence lower bound on ``log π(a^0|s)``: the noising process takes ``x^0 = (a^0 - m) / c``
        to ``x^K``, and one of the K log-ratios stands for all. Given ``x^0`` and ``x^k``, all that the noising process draws
        besides, ``x^{k-1}`` and ``x^K``, is integrated out (docs/method.md, "Maximum likelihood").

        :param features: (B, features_dim)
        :param actions: (B, d), ``a^0``, before they are squashed
        :param steps: (B,), the step k of each row, all steps equally often
        :return: (B,), the mean of ``log p(x^K) + K ℓ_k - Σ_dims log c`` in nats
        """
        location, log_scale = self.readout(features)
        end = (actions - location) * th.exp(-log_scale)
        schedule = self.schedule()
        tables, moments = schedule.at(steps), noising_moments(schedule)
        signal, variance = moments.signal[steps], moments.variance[steps]
        signal_before, variance_before = moments.signal[steps - 1], moments.variance[steps - 1]
        latents = th.addcmul(signal * end, variance.sqrt(), th.randn_like(end))
        # x^{k-1} given x^0 and x^k
        noise_variance = tables.noise_std.square()
        posterior_mean = (tables.retain * variance_before * latents + noise_variance * signal_before * end) / variance
        posterior_variance = noise_variance * variance_before / variance
        mean, log_std = self.reverse_kernel(features, latents, steps)
        log_reverse = expected_log_prob(posterior_mean - mean, posterior_variance, log_std)
        log_noising = expected_log_prob(
            latents - tables.retain * posterior_mean,
            tables.retain.square() * posterior_variance,
            tables.noise_std.log(),
        )
        log_prior = expected_log_prob(
            moments.signal_left[steps] * latents,
            moments.variance_left[steps],
            th.full_like(latents, math.log(self.prior_std)),
        )
        log_ratios = log_reverse - log_noising
        return log_prior + self.diffusion_steps * log_ratios + readout_log_ratio(actions, log_scale, squashed=False)

    @th.no_grad()
    def noised_path_log_prob(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        The path log-probability of the path on which the noising process takes given actions to ``x^K``; what
        :attr:`PolicySample.path_log_prob` is for a sampled chain.

        :param features: (B, features_dim)
        :param actions: (B, d), ``a^0``, before they are squashed
        :return: (B,), ``log p(x^K) + Σ_k ℓ_k`` in nats, with the read-out's term
        """
        location, log_scale = self.readout(features)
        schedule = self.schedule()
        latents = (actions - location) * th.exp(-log_scale)
        condition = self.denoiser.condition(features)
        log_prob = readout_log_ratio(actions, log_scale, self.squash_output)
        for k, tables in enumerate(schedule.rows(), start=1):
            before, latents = latents, th.addcmul(tables.retain * latents, tables.noise_std, th.randn_like(latents))
            drift, log_scales = self.reverse_heads(condition, latents, k)
            residual = (before - reverse_mean(latents, drift, tables)) * th.exp(-log_scales) / tables.noise_std
            log_prob = log_prob + log_ratio(latents, before, residual, log_scales, tables)
        return log_prob + prior_log_prob(latents, self.prior_std)

    def _ends(self, condition: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """``x^0`` (n, B, d) of n chains at each state, with noise (K + 1, n, d); ``condition`` (B, width)."""
        n_chains, n_states = noise.shape[1], condition.shape[0]
        condition = condition.repeat(n_chains, 1)
        noise = noise.unsqueeze(2).expand(-1, -1, n_states, -1).flatten(1, 2)
        ends = sample_end(lambda latents, k: self.denoise(condition, latents, k), self.schedule, self.prior_std, noise)
        return ends.reshape(n_chains, -1, self.action_dim)

    @cheap_without_gradients
    def mode(self, features: th.Tensor) -> th.Tensor:
        """
        The centre of a mode of the policy, as a function of the features alone: no random number, no other row, no critic
        (:func:`~sb3_diffusion.diffusion.mode.find_mode`).

        :param features: (B, features_dim)
        :return: actions (B, d), in [-1, 1] if squashed
        """
        condition = self.denoiser.condition(features)
        centre = find_mode(self._ends, condition, self.probe_noise, self.probe_residual, self.mode_noise)
        return self.squash(read_out(centre, *self.readout(features)))

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Sampled actions with the path log-probability, the graph going through the whole chain.

        :param obs: observations
        :return: actions (B, d), in [-1, 1] if squashed; ``log p(x^K) + Σ_k ℓ_k`` (B,), in expectation an upper bound on
            ``log π(u|s)``: its mean is minus the path entropy
        """
        sample = self.sample(self.extract_features(obs, self.features_extractor))
        return sample.actions, sample.path_log_prob

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param obs: observations
        :param deterministic: a mode of the policy (:meth:`mode`) instead of a sample
        :return: actions (B, d), in [-1, 1] if squashed
        """
        features = self.extract_features(obs, self.features_extractor)
        if deterministic:
            return self.mode(features)
        return self.sample_actions(features) if self._sampler is None else self._sampler(self, features)

    @contextmanager
    def sampling_by(self, function: Callable[["DiffusionActor", th.Tensor], th.Tensor]) -> Iterator[None]:
        """Inside, :meth:`forward` samples by this function, :meth:`sample_actions` compiled, say."""
        self._sampler = function
        try:
            yield
        finally:
            self._sampler = None
