"""More columns for a campaign: functions of a model and its evaluation environment, for the key ``evaluation: metrics``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.envs import BimodalBandit, BoltzmannBandit, TurningDoubleWell
from sb3_diffusion.evaluation.density import histogram_entropy, total_variation
from sb3_diffusion.evaluation.fidelity import fidelity
from sb3_diffusion.evaluation.mode_coverage import goal_coverage, mixture_divergence, sample_actions, turn_mass

BANDIT_TEMPERATURE = 0.1
BANDIT_SAMPLES = 50_000
TURN_SAMPLES = 5000


def on_bandit(model: BaseAlgorithm) -> dict[str, float]:
    """
    :return: total variation to the exact density at τ = 0.1, share of the actions at 0 or above, mean reward, reward of the
        deterministic action; and with a SAC-like actor by how many nats its path entropy is below that of the actions
    """
    observation, reward = np.zeros(1, dtype=np.float32), BimodalBandit().reward
    actions = sample_actions(model, observation, BANDIT_SAMPLES)[:, 0]
    found = {
        "total_variation": total_variation(actions, reward, BANDIT_TEMPERATURE),
        "share_positive": float((actions >= 0).mean()),
        "mean_reward": float(reward(actions).mean()),
        "deterministic_reward": float(reward(model.predict(observation, deterministic=True)[0]).mean()),
    }
    actor: Any = getattr(model, "actor", None)
    if hasattr(actor, "action_log_prob"):
        with th.no_grad():
            log_prob = actor.action_log_prob(th.zeros(BANDIT_SAMPLES, 1, device=model.device))[1]
        found["bound_gap"] = histogram_entropy(actions) + float(log_prob.mean())
    return found


def on_goals(model: BaseAlgorithm) -> dict[str, float]:
    """:return: goals reached, entropy of their shares, the four shares and the return, all of 200 rollouts from the origin"""
    goals = goal_coverage(model, 200)
    found = {"goals": float(goals.n_goals), "entropy": goals.entropy, "mean_return": goals.mean_return}
    return found | {f"share_{i}": count / 200 for i, count in enumerate(goals.counts.tolist())}


def on_turns(model: BaseAlgorithm) -> dict[str, float]:
    """:return: smallest share of either turn in any heading, mean reward of sampled and of deterministic actions"""
    mass = turn_mass(model, TURN_SAMPLES)
    deterministic = TurningDoubleWell.reward(model.predict(TurningDoubleWell.HEADINGS, deterministic=True)[0])
    return {
        "smallest_share": float(min(mass.positive.min(), 1 - mass.positive.max())),
        "mean_reward": mass.mean_reward,
        "deterministic_reward": float(deterministic.mean()),
    }


def on_mixture(model: BaseAlgorithm) -> dict[str, float]:
    """:return: divergence from the exact mixture in nats, on average and at the worst heading, and mean reward"""
    mixture = mixture_divergence(model)
    worst = float(mixture.by_heading.max())
    return {"divergence": mixture.mean, "worst_divergence": worst, "mean_reward": mixture.mean_reward}


def boltzmann_fidelity(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    How near a policy comes to the exact densities of BoltzmannBandit.

    :param model: a trained model
    :param env: the problem, and the temperature
    :return: the mean and the worst total variation over the contexts, the smallest share that a mode of any context has of its
        exact mass, path divergence and gap of the bound in nats (means over contexts; without NaN)
    :raises ValueError: for another environment
    """
    problem = env.get_attr("unwrapped")[0]
    if not isinstance(problem, BoltzmannBandit):
        raise ValueError(f"boltzmann_fidelity is for BoltzmannBandit-v0, not for {problem}")
    found = fidelity(model, problem)
    columns = {
        "total_variation": float(found.total_variation.mean()),
        "worst_total_variation": float(found.total_variation.max()),
        "smallest_mode_share": float(min(shares.min() for shares in found.mode_shares)),
        "path_divergence": float(found.path_divergence.mean()),
        "bound_gap": float(found.bound_gap.mean()),
    }
    return {name: value for name, value in columns.items() if np.isfinite(value)}


MODES: dict[str, Callable[[BaseAlgorithm], dict[str, float]]] = {
    "BimodalBandit-v0": on_bandit,
    "MultiGoal2D-v0": on_goals,
    "TurningDoubleWell-v0": on_turns,
    "TurningGMM-v0": on_mixture,
}


def mode_coverage(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    How many of the equally good actions a policy keeps, in the environments of this library.

    :param model: a trained model
    :param env: says which environment it is for
    :return: the figures of :func:`on_bandit`, :func:`on_goals`, :func:`on_turns` or :func:`on_mixture`; none elsewhere
    """
    spec = env.get_attr("spec")[0]
    return MODES[spec.id](model) if spec is not None and spec.id in MODES else {}


def update_size(model: BaseAlgorithm, env: VecEnv) -> dict[str, float]:
    """
    How far the last update of PPO or DiffPPO went, from its log.

    :param model: a model in training
    :param env: not used
    :return: ``approx_kl`` in nats (of a whole chain for DiffPPO) and ``clip_fraction``; none before the first update
    """
    logged = model.logger.name_to_value
    return {name: float(logged[f"train/{name}"]) for name in ("approx_kl", "clip_fraction") if f"train/{name}" in logged}
