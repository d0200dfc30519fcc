"""Forward KL divergence: importance-weighted denoising score matching."""

from typing import Any

import torch as th

from sb3_diffusion.common.chains import SampledChains, TensorOrDict, map_observations
from sb3_diffusion.common.objectives.base import Objective
from sb3_diffusion.diffusion import read_out

# Of each state, for the weights
N_PROPOSALS = 16


def forward_kl_losses(model: Any, states: TensorOrDict, chains: SampledChains, ent_coef: th.Tensor) -> dict[str, th.Tensor]:
    """
    For some of the states, as many proposals of the current policy each as keep the number of rows, weighted by
    ``exp(Q / τ)`` over their path probability: exact on whole chains, for the target ``exp(Q / τ) Π_k π(x^k | x^{k-1})``.
    """
    actor = model.actor
    features, critic_states = model._improvement_states(map_observations(lambda rows: rows[::N_PROPOSALS], states))
    features, critic_states = features.repeat_interleave(N_PROPOSALS, dim=0), critic_states.repeat(N_PROPOSALS)
    with th.no_grad():
        proposals = actor.sample(features, bfloat16=model.bfloat16_chains)
        q_values = model._action_values(model.critic, critic_states, proposals.actions)
        log_weights = q_values / ent_coef - proposals.path_log_prob
        weights = log_weights.unflatten(0, (-1, N_PROPOSALS)).softmax(dim=1).flatten()
        actions = read_out(proposals.latents[0], proposals.location, proposals.log_scale)
    # Every step equally often, in the long run also where there are fewer rows than steps
    offset = th.randint(actor.diffusion_steps, (1,), device=features.device)
    steps = (th.randperm(len(features), device=features.device) + offset) % actor.diffusion_steps + 1
    log_likelihood = actor.log_likelihood_bound(features, actions, steps)
    return {"actor_loss": -(weights * log_likelihood).sum() * N_PROPOSALS / len(features)}


FORWARD_KL = Objective(forward_kl_losses, needs_temperature=True)
