"""
How good is the per-step gradient? DiffSAC's actor gradient against the full-chain gradient, which needs no diffusion value.

    python benchmarks/diffusion_value.py --env HalfCheetah-v5 --steps 8000 --seed 0

Trains DiffSAC, then compares, with networks held fixed and averaged over batches, the two gradients of the denoiser: their
cosine, the ratio of their norms, the noise of one batch relative to the mean, and the cosine between the two halves of the
batches (the best that any comparison could reach with so many). For the read-out: the noise alone, which depends on how many
rows have k = 1. Appends one row for each κ of ``--latents-per-state`` to results/diffusion_value.csv.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch as th

import sb3_diffusion.envs  # noqa: F401  (registers the environments)
from sb3_diffusion import DiffSAC

COLUMNS = ("env", "steps", "seed", "diffusion_steps", "latents_per_state", "cosine", "norm_ratio", "noise", "full_chain_noise")
COLUMNS += ("halves_cosine", "full_chain_halves_cosine", "readout_noise", "full_chain_readout_noise")


READOUT = ("latent_pi", "mu", "log_std")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def noise(gradients: np.ndarray) -> float:
    return float(np.sqrt(gradients.var(axis=0).sum()) / np.linalg.norm(gradients.mean(axis=0)))


def halves(gradients: np.ndarray) -> float:
    return cosine(gradients[::2].mean(axis=0), gradients[1::2].mean(axis=0))


def actor_gradients(
    model: DiffSAC, loss: Callable[[th.Tensor, int], th.Tensor], batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """:return: of denoiser and read-out, (batches, number of parameters) each"""
    parameters = list(model.actor.denoiser.parameters())
    n_denoiser = sum(parameter.numel() for parameter in parameters)
    parameters += [parameter for name, parameter in model.actor.named_parameters() if name.startswith(READOUT)]
    rows = []
    for batch in range(batches):
        states = model.replay_buffer.sample(model.batch_size).next_observations.float()  # type: ignore[union-attr]
        of_batch = th.autograd.grad(loss(states, batch), parameters)
        rows.append(th.cat([gradient.flatten() for gradient in of_batch]).numpy())
    gradients = np.array(rows)
    return gradients[:, :n_denoiser], gradients[:, n_denoiser:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="with vector observations (%(default)s)")
    parser.add_argument("--steps", type=int, default=8_000, help="environment steps before the measurement (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--diffusion-steps", type=int, default=4, help="K (%(default)s)")
    parser.add_argument(
        "--latents-per-state", type=int, nargs="+", default=[1, 2, 4], help="κ, any number of them (%(default)s)"
    )
    parser.add_argument("--batches", type=int, default=300, help="whose gradients are compared (%(default)s)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder (%(default)s)")
    args = parser.parse_args()
    th.set_num_threads(1)
    model = DiffSAC(
        "MlpPolicy",
        args.env,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(diffusion_steps=args.diffusion_steps),
    ).learn(args.steps)
    assert model.log_ent_coef is not None
    ent_coef = model.log_ent_coef.detach().exp()

    def full_chain(states: th.Tensor, batch: int) -> th.Tensor:
        sample = model.actor.sample(states)
        critic_states = model._critic_states(model.critic, states)
        q_values = model._action_values(model.critic, critic_states, sample.actions)
        return (ent_coef * sample.path_log_prob - q_values).mean()

    def per_step(states: th.Tensor, batch: int) -> th.Tensor:
        # The per-step loss is the mean over κ of the K steps, the full-chain loss the sum over all of them.
        chains = model._sample_chains(states, model._levels(len(states), batch))
        return args.diffusion_steps * model._actor_losses(states, chains, ent_coef)["actor_loss"]

    reference, reference_readout = actor_gradients(model, full_chain, args.batches)
    target = Path(args.out) / "diffusion_value.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    new = not target.exists()
    with target.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for latents_per_state in args.latents_per_state:
            model.latents_per_state = latents_per_state
            ours, readout = actor_gradients(model, per_step, args.batches)
            means = ours.mean(axis=0), reference.mean(axis=0)
            figures = [cosine(*means), np.linalg.norm(means[0]) / np.linalg.norm(means[1]), noise(ours), noise(reference)]
            figures += [halves(ours), halves(reference), noise(readout), noise(reference_readout)]
            settings = [args.env, args.steps, args.seed, args.diffusion_steps, latents_per_state]
            writer.writerow([*settings, *(f"{figure:.3f}" for figure in figures)])
            named = ", ".join(f"{name} {figure:.3f}" for name, figure in zip(COLUMNS[5:], figures, strict=True))
            print(f"κ = {latents_per_state}: {named}", flush=True)


if __name__ == "__main__":
    main()
