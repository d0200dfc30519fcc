"""Forward KL divergence: importance-weighted denoising score matching."""

import math
from typing import Any

import torch as th

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, map_observations
from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.diffusion import read_out

# Of each state, for the weights
N_PROPOSALS = 16
# At 1 itself atanh is infinite.
LARGEST_UNIFORM = 0.99999


def forward_kl_losses(model: Any, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
    """
    For some of the states, as many proposals each as keep the number of rows, weighted by ``exp(Q / τ)`` over their path
    probability: exact on whole chains, for the target ``exp(Q / τ) Π_k π(x^k | x^{k-1})``. They are drawn from the policy or,
    the share ``uniform_proposals`` of them, uniformly over the actions and noised from there; the path probability is that of
    the mixture of both.
    """
    actor = model.actor
    features, critic_states = model._improvement_states(map_observations(lambda rows: rows[::N_PROPOSALS], states))
    features, critic_states = features.repeat_interleave(N_PROPOSALS, dim=0), critic_states.repeat(N_PROPOSALS)
    n_uniform = round(model.uniform_proposals * N_PROPOSALS)
    with th.no_grad():
        proposals = actor.sample(features, bfloat16=model.bfloat16_chains)
        actions = read_out(proposals.latents[0], proposals.location, proposals.log_scale)
        log_proposal = proposals.path_log_prob
        if n_uniform:
            rows = th.arange(len(features), device=features.device)
            uniform = rows.unflatten(0, (-1, N_PROPOSALS))[:, :n_uniform].flatten()
            drawn = LARGEST_UNIFORM * (2 * th.rand_like(actions[uniform]) - 1)
            actions[uniform] = th.atanh(drawn)
            log_proposal[uniform] = actor.noised_path_log_prob(features[uniform], actions[uniform])
            share = n_uniform / N_PROPOSALS
            log_uniform = math.log(share) - actor.action_dim * math.log(2)
            log_proposal = th.logaddexp(log_proposal + math.log(1 - share), th.full_like(log_proposal, log_uniform))
        q_values = model._action_values(model.critic, critic_states, th.tanh(actions))
        log_weights = q_values / ent_coef - log_proposal
        weights = log_weights.unflatten(0, (-1, N_PROPOSALS)).softmax(dim=1).flatten()
    # Every step equally often, in the long run also where there are fewer rows than steps
    offset = th.randint(actor.diffusion_steps, (1,), device=features.device)
    steps = (th.randperm(len(features), device=features.device) + offset) % actor.diffusion_steps + 1
    log_likelihood = actor.log_likelihood_bound(features, actions, steps)
    return {"actor_loss": -(weights * log_likelihood).sum() * N_PROPOSALS / len(features)}


FORWARD_KL = Objective(forward_kl_losses, needs_temperature=True)
