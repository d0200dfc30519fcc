"""Identities between DiffSAC, its full-chain variant and SAC (docs/method.md, "Identities")."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor

from sb3_diffusion import DiffSAC, DiffWPO
from sb3_diffusion.common import DiffusionActor
from sb3_diffusion.common.critics import CriticStates
from sb3_diffusion.diffusion import log_det_tanh, noising_log_prob, prior_log_prob, squashed_readout

OBSERVATIONS = spaces.Box(-1, 1, (3,))
ACTOR = dict(net_arch=[16], features_dim=3, activation_fn=th.nn.Tanh, features_extractor=FlattenExtractor(OBSERVATIONS))


def make_actor(diffusion_steps: int, action_dim: int = 1, **kwargs) -> DiffusionActor:
    action_space = spaces.Box(-1, 1, (action_dim,))
    return DiffusionActor(OBSERVATIONS, action_space, diffusion_steps=diffusion_steps, **ACTOR, **kwargs)


def copy_sac_head(actor: DiffusionActor, sac_actor: Actor) -> None:
    """Give the read-out the weights of a SAC actor; the denoiser's heads stay zero."""
    for name in ("latent_pi", "mu", "log_std"):
        getattr(actor, name).load_state_dict(getattr(sac_actor, name).state_dict())


def sac_log_prob(sac_actor: Actor, observations: th.Tensor, standard: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """SAC's own action and log-probability for given standard normal numbers."""
    mean, log_std, _ = sac_actor.get_action_dist_params(observations)
    pre_tanh = mean + log_std.exp() * standard
    distribution = sac_actor.action_dist.proba_distribution(mean, log_std)
    return th.tanh(pre_tanh), distribution.log_prob(th.tanh(pre_tanh), gaussian_actions=pre_tanh)


@pytest.mark.parametrize("diffusion_steps", [1, 3, 8])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_without_denoising_the_policy_is_sacs_squashed_gaussian_on_every_sample(diffusion_steps, noise_schedule) -> None:
    actor = make_actor(diffusion_steps, action_dim=2, noise_schedule=noise_schedule)
    sac_actor = Actor(OBSERVATIONS, actor.action_space, **ACTOR)
    copy_sac_head(actor, sac_actor)
    observations = th.randn(50, 3)
    sample = actor.sample(observations)
    actions, log_prob = sac_log_prob(sac_actor, observations, sample.latents[0])
    th.testing.assert_close(sample.actions, actions)
    # SB3 adds 1e-6 inside its logarithm, which shows where tanh saturates; ours is exact.
    inner = (actions.abs() < 0.99).all(dim=1)
    assert inner.sum() > 30
    th.testing.assert_close(sample.path_log_prob[inner], log_prob[inner], rtol=1e-4, atol=1e-3)


def test_with_one_step_and_beta_near_one_diffsacs_losses_equal_sacs_on_the_same_numbers() -> None:
    kwargs = dict(env="Pendulum-v1", learning_starts=10, batch_size=32, buffer_size=200, seed=0, device="cpu", ent_coef=0.2)
    beta = 1 - 1e-6
    sac = SAC("MlpPolicy", policy_kwargs=dict(net_arch=[16]), **kwargs)
    ours = DiffSAC("MlpPolicy", policy_kwargs=dict(net_arch=[16], diffusion_steps=1, noise_schedule=[beta]), **kwargs)
    sac.learn(60)
    copy_sac_head(ours.actor, sac.actor)
    for name in ("critic", "critic_target"):
        getattr(ours, name).load_state_dict(getattr(sac, name).state_dict())
    observations = sac.replay_buffer.sample(64).observations
    ent_coef = th.tensor(0.2)

    noise = th.randn(2, 64, 1)
    sample = ours.actor.sample(observations, noise)
    chains = ours._sample_chains(observations, ours._levels(len(observations), 0))
    standard = noise[0] * beta**0.5 + noise[1] * (1 - beta) ** 0.5
    actions, log_prob = sac_log_prob(sac.actor, observations, standard)
    q_values = ours._action_values(ours.critic_target, CriticStates(observations, observations), sample.actions)
    sac_q_values = th.cat(sac.critic_target(observations, actions), dim=1).min(dim=1).values
    th.testing.assert_close(q_values, sac_q_values, rtol=1e-3, atol=1e-3)
    th.testing.assert_close(q_values - 0.2 * sample.path_log_prob, sac_q_values - 0.2 * log_prob, rtol=1e-3, atol=1e-3)

    # The actor draws a fresh step from the same x^1; the prior's log-density is a constant that its loss leaves out.
    th.manual_seed(3)
    loss = ours._actor_losses(observations, chains, ent_coef)["actor_loss"]
    loss = loss + 0.2 * prior_log_prob(chains.kept.actor_latents, 1.0).mean()
    th.manual_seed(3)
    standard = th.randn(64, 1) * beta**0.5 + chains.kept.actor_latents * (1 - beta) ** 0.5
    actions, log_prob = sac_log_prob(sac.actor, observations, standard)
    sac_loss = (0.2 * log_prob - th.cat(sac.critic(observations, actions), dim=1).min(dim=1).values).mean()
    th.testing.assert_close(loss, sac_loss, rtol=1e-3, atol=1e-3)
    gradients = [
        th.autograd.grad(total, [actor.mu.weight, actor.log_std.weight, actor.latent_pi[0].weight])
        for total, actor in ((loss, ours.actor), (sac_loss, sac.actor))
    ]
    for our_gradient, sac_gradient in zip(*gradients, strict=True):
        th.testing.assert_close(our_gradient, sac_gradient, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("learn_schedule", [False, True])
@pytest.mark.parametrize("kernel", ["vp", "euler"])
def test_per_step_and_full_chain_gradients_agree_when_the_diffusion_value_is_exact(kernel, learn_schedule) -> None:
    # K = 2 in one dimension, so that every expectation is a Gauss-Hermite sum and V_1 is exact.
    th.manual_seed(5)
    actor = make_actor(2, kernel=kernel, learn_schedule=learn_schedule, beta_min=0.3, beta_max=0.5).double()
    for parameter in actor.parameters():
        parameter.data.add_(0.3 * th.randn_like(parameter))
    features = th.randn(1, 3, dtype=th.float64)
    ent_coef = 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    nodes, weights = th.as_tensor(nodes), th.as_tensor(weights / weights.sum())

    def q_value(actions: th.Tensor) -> th.Tensor:
        return (2 * actions - actions**2 + th.sin(3 * actions)).squeeze(-1)

    def gradient(loss: th.Tensor) -> th.Tensor:
        gradients = th.autograd.grad(loss, list(actor.parameters()), allow_unused=True)
        return th.cat(
            [
                th.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(actor.parameters(), gradients, strict=True)
            ]
        )

    grid = th.cartesian_prod(nodes, nodes, nodes).T.unsqueeze(-1)  # ε_0, ε_1 and x^2/ν, each (24³, 1)
    weight = th.cartesian_prod(weights, weights, weights).prod(dim=1)
    rows = features.expand(grid.shape[1], -1)
    sample = actor.sample(rows, grid)
    full_chain = gradient((weight * (ent_coef * sample.path_log_prob - q_value(sample.actions))).sum())

    def last_step(latents: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Actions and ℓ_1 with the read-out's term, from x^1."""
        ones = th.ones(len(latents), dtype=th.long)
        x0, log_ratios = actor.reverse_step(features.expand(len(latents), -1), latents, ones, noise)
        actions, readout_log_ratios = squashed_readout(x0, *actor.readout(features.expand(len(latents), -1)))
        return actions, log_ratios + readout_log_ratios

    def exact_value(latents: th.Tensor) -> th.Tensor:
        """V_1(s, x^1) by quadrature over ε_0."""
        actions, log_ratios = last_step(latents.repeat_interleave(len(nodes), 0), nodes.repeat(len(latents)).unsqueeze(1))
        return ((q_value(actions) - ent_coef * log_ratios).reshape(len(latents), -1) * weights).sum(dim=1)

    # Step 2, from x^2, judged by V_1, in which θ is stopped
    pairs, pair_weight = th.cartesian_prod(nodes, nodes).T.unsqueeze(-1), th.cartesian_prod(weights, weights).prod(dim=1)
    x2 = actor.prior_std * pairs[1]
    x1, log_ratios = actor.reverse_step(features.expand(len(x2), -1), x2, th.full((len(x2),), 2), pairs[0])
    probe = x1.detach().requires_grad_()
    slope = th.autograd.grad((pair_weight * exact_value(probe)).sum(), probe)[0]
    per_step = gradient((pair_weight * ent_coef * log_ratios).sum() - (slope * x1).sum())
    # Step 1, from stored x^1, judged by Q
    actions, log_ratios = last_step(sample.latents[1].detach(), grid[0])
    per_step += gradient((weight * (ent_coef * log_ratios - q_value(actions))).sum())
    assert full_chain.abs().max() > 0.05
    th.testing.assert_close(per_step, full_chain, rtol=1e-4, atol=1e-5)


def quadrature_noise(n_dims: int, n_nodes: int = 40) -> tuple[th.Tensor, th.Tensor]:
    """Gauss-Hermite points (N, n_dims) and weights (N,) of independent standard normal numbers."""
    nodes, weights = (th.as_tensor(array) for array in np.polynomial.hermite_e.hermegauss(n_nodes))
    points = th.cartesian_prod(*[nodes] * n_dims)
    return points, th.cartesian_prod(*[weights / weights.sum()] * n_dims).prod(dim=1)


def test_the_log_variance_gradient_is_the_reverse_kl_policy_gradient_and_past_terms_cancel() -> None:
    """
    One state, K = 2, a noising kernel without parameters, expectations by quadrature. With f the logarithm of the density of
    paths over that of the target, the gradient of ½ Var f at fixed paths of the current policy equals that of the
    Kullback-Leibler divergence E f, which is Σ_k E[∇ log q_k · (ℓ_k + … + ℓ_1 - Q/τ)]: what came before step k is no part.
    """
    steps, ent_coef = 2, 0.5
    th.manual_seed(1)
    actor = make_actor(steps, state_dependent_readout=False, beta_max=0.6).double()
    generator = th.Generator().manual_seed(0)
    for parameter in actor.denoiser.parameters():
        parameter.data.add_(0.2 * th.randn(parameter.shape, generator=generator, dtype=th.double))
    parameters = list(actor.denoiser.parameters())
    noise, weight = quadrature_noise(steps + 1)
    features = th.ones(len(noise), 3, dtype=th.double)

    def gradient(loss: th.Tensor) -> th.Tensor:
        return th.cat([g.flatten() for g in th.autograd.grad(loss, parameters, retain_graph=True)])

    def value(actions: th.Tensor) -> th.Tensor:
        return th.sin(3 * actions).sum(dim=1) / ent_coef

    sample = actor.sample(features, noise.T.unsqueeze(2))
    reverse_kl = gradient((weight * (sample.path_log_prob - value(sample.actions))).sum())

    # The same paths, fixed
    latents = sample.latents.detach()
    log_reverse, log_ratios = {}, {}
    for k in range(1, steps + 1):
        mean, log_std = actor.reverse_kernel(features, latents[k], th.full((len(noise),), k))
        log_reverse[k] = th.distributions.Normal(mean, log_std.exp()).log_prob(latents[k - 1]).sum(dim=1)
        noising = noising_log_prob(latents[k], latents[k - 1], actor.schedule().at(k))
        log_ratios[k] = log_reverse[k] - noising - (log_det_tanh(latents[0]) if k == 1 else 0)
    to_come = th.stack([log_ratios[k] for k in range(1, steps + 1)]).cumsum(dim=0) - value(sample.actions.detach())
    f = to_come[-1] + prior_log_prob(latents[-1], actor.prior_std)
    th.testing.assert_close(f, (sample.path_log_prob - value(sample.actions)).detach(), rtol=1e-8, atol=1e-8)
    mean_f = (weight * f).sum()
    log_variance = gradient(0.5 * (weight * (f - mean_f) ** 2).sum())
    policy_gradient = gradient(sum((weight * log_reverse[k] * to_come[k - 1].detach()).sum() for k in log_reverse))
    past = gradient((weight * log_reverse[1] * log_ratios[2].detach()).sum())
    assert reverse_kl.abs().max() > 0.05
    th.testing.assert_close(log_variance, reverse_kl, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(policy_gradient, reverse_kl, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(past, th.zeros_like(past), rtol=0, atol=1e-5)


def saved_bytes(model: DiffSAC) -> dict[str, int]:
    """Bytes that autograd keeps for the backward pass of each loss of one gradient step."""
    sizes: dict[str, int] = {}

    def measure(name: str, function):
        def measured(*args, **kwargs):
            saved: dict[int, int] = {}

            def pack(tensor: th.Tensor) -> th.Tensor:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = function(*args, **kwargs)
            sizes[name] = sum(saved.values())
            return loss

        return measured

    for name in ("_actor_losses", "_diffusion_value_loss"):
        setattr(model, name, measure(name, getattr(model, name)))
    model.train(1, batch_size=256)
    return sizes


@pytest.mark.parametrize(
    ("algorithm", "arguments"), [(DiffSAC, {}), (DiffSAC, {"objective": "forward_kl"}), (DiffWPO, {})], ids=str
)
def test_activation_memory_of_a_gradient_step_does_not_grow_with_the_number_of_diffusion_steps(algorithm, arguments) -> None:
    sizes = []
    for diffusion_steps in (4, 16, 64):
        model = algorithm(
            "MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=256, buffer_size=300, seed=0, device="cpu",
            policy_kwargs=dict(diffusion_steps=diffusion_steps, net_arch=[128, 128]), **arguments,
        )  # fmt: skip
        model.learn(20)
        sizes.append(saved_bytes(model))
    assert sizes[0].keys() == ({"_actor_losses"} if arguments else {"_actor_losses", "_diffusion_value_loss"})
    for name in sizes[0]:
        values = [size[name] for size in sizes]
        # The stored latents grow by K scalars per action dimension; activations, 128 wide, do not.
        assert max(values) <= 1.1 * values[0], (name, values)
