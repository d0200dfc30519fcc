"""
From demonstrations that go two ways to a policy that is faster and still knows both (TwoWaysRound: a point, a wall, a goal
behind it).

    python examples/two_ways_round.py

1. A waypoint controller that goes left or right at random, unhurriedly and with noise, makes a data set of 200 episodes, kept
   as a local Minari data set in --out.
2. Two policies imitate it by maximum likelihood, with the same data, epochs and networks: DiffSAC's diffusion policy
   (``model.pretrain``) and the squashed Gaussian of Stable-Baselines3's SAC.
3. Both are fine-tuned with the reward of arriving, half of each batch being demonstrations (DemonstrationReplayBuffer); the
   critics first learn from demonstrations alone. DiffSAC is pulled to its imitator the while (``model.set_reference``).
4. The way that a policy has come to prefer is blocked, which it cannot see, and it learns on from new experience alone.
   DiffSAC is pulled to what it was before, less and less: without that one seed of five unlearned both ways.

Leaves in --out, for each algorithm and seed, a JSON file (success, share of the episodes that pass on the left, steps to the
goal at each stage and along the fine-tuning) and the trajectories, and besides two_ways_round.csv, .json and .png. A
finished run is not repeated. Takes some minutes of a core for each algorithm.

What was found (100 episodes an evaluation, five seeds, examples/results/two_ways_round): the diffusion imitator never fails,
with 42 to 52 % of the episodes on the left, in 53 steps where the demonstrations take 48; the Gaussian does as well (39 to
48 %, 51 steps). After 4000 steps of fine-tuning neither ever fails. DiffSAC, pulled to its imitator, takes 43 to 45 steps and
keeps both ways, 38 to 57 % on the left. SAC takes 24 to 25 and keeps one, as DiffSAC does without the pull. With the preferred
way blocked DiffSAC arrives in 45 to 61 % of the episodes, in all of them first after 500 to 750 further steps, and in 95 to
100 % after 2000. SAC arrives in 0 to 6 %, after 2000 steps in 0 to 12 %; the one seed of five that had kept 4 % of its
episodes on the other side arrives always after 250. A pull three times as strong leaves both ways, but hardly makes them
faster (48 steps). Without layer normalisation the critics lead through the wall, and the success is lost.
"""

import argparse
import copy
import csv
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import joblib
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.nn import functional as F

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.validation import check_number
from sb3_diffusion.demonstrations import DemonstrationReplayBuffer, Demonstrations
from sb3_diffusion.experiments.folders import read_json, write_json
from sb3_diffusion.experiments.provenance import provenance

try:
    from sb3_diffusion.envs.two_ways_round import LEFT, RIGHT, TwoWaysRound, WaypointController
except gym.error.DependencyNotInstalled as error:
    raise SystemExit(str(error)) from None

ENV_ID = "TwoWaysRound-v0"
DATASET_ID = "two-ways-round/waypoints-v0"
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"diffsac": DiffSAC, "sac": SAC}
# An update of the actor for every two of the critics, which SAC does not know
OWN_SETTINGS: dict[str, dict[str, Any]] = {"diffsac": dict(policy_delay=2), "sac": {}}
# Of the pull to the imitator during the fine-tuning, which SAC does not know either, in rewards per nat
KL_COEF = 0.001
LABELS = {"diffsac": "DiffSAC, diffusion", "sac": "SAC, Gaussian"}
IMITATION: dict[str, Any] = dict(batch_size=256, learning_rate=1e-3)
LEARNING_RATE = 3e-4
SETTINGS: dict[str, Any] = dict(gamma=0.97, ent_coef=0.003, tau=0.05, batch_size=128, gradient_steps=2, learning_starts=0)
NET_ARCH = [128, 128]
EVALUATION_ENVS, EVALUATION_SEED = 20, 1000
COLUMNS = ("success", "left", "steps")
STAGES = {
    "demonstrations": "demonstrations",
    "imitation": "imitation",
    "fine-tuned": "fine-tuned",
    "blocked": "one way blocked",
    "adapted": "{adaptation} steps later",
}


class Rollouts(NamedTuple):
    """Some episodes: whether each arrived, its side (-1 left, 1 right, 0 neither), its steps, and its path (T, 2)."""

    success: np.ndarray
    way: np.ndarray
    steps: np.ndarray
    paths: list[np.ndarray]

    def summary(self) -> dict[str, float]:
        """Share of successes; of these the share that passed on the left, and the mean steps to the goal (nan without any)."""
        arrived = self.success
        left, steps = (
            (float((self.way[arrived] == LEFT).mean()), float(self.steps[arrived].mean()))
            if arrived.any()
            else (float("nan"), float("nan"))
        )
        return dict(success=float(arrived.mean()), left=left, steps=steps)


def roll_out(model: BaseAlgorithm, n_episodes: int, blocked: str | None = None) -> Rollouts:
    """
    Sampled actions from the same starts every time, without touching the global generators.

    :param model: a model
    :param n_episodes: how many, rounded up to a multiple of the environments
    :param blocked: as in ``TwoWaysRound``
    """
    env = make_vec_env(ENV_ID, EVALUATION_ENVS, seed=EVALUATION_SEED, env_kwargs=dict(blocked=blocked))
    wanted = np.full(EVALUATION_ENVS, -(-n_episodes // EVALUATION_ENVS))
    episodes, paths = [], [[] for _ in range(EVALUATION_ENVS)]  # type: ignore[var-annotated]
    with th.random.fork_rng(devices=[]):
        th.manual_seed(EVALUATION_SEED)
        observations: Any = env.reset()
        while wanted.any():
            for path, position in zip(paths, observations["achieved_goal"], strict=True):
                path.append(position.copy())
            observations, _, dones, infos = env.step(model.predict(observations)[0])
            for i in np.flatnonzero(dones):
                last, info = infos[i]["terminal_observation"]["achieved_goal"], infos[i]
                if wanted[i]:
                    whole = np.stack([*paths[i], last])
                    episodes.append((info["is_success"], info["way"], info["episode"]["l"], whole))
                    wanted[i] -= 1
                paths[i] = []
    env.close()
    success, way, steps, all_paths = zip(*episodes, strict=True)
    return Rollouts(np.array(success), np.array(way), np.array(steps), list(all_paths))


def demonstrate(n_episodes: int, seed: int = 0) -> None:
    """Let the controller make the Minari data set, unless it is there."""
    try:
        found = Demonstrations.from_minari(DATASET_ID)
    except FileNotFoundError:
        found = Demonstrations.from_policy(WaypointController(), ENV_ID, n_episodes, seed=seed)
        found.to_minari(
            DATASET_ID,
            author="sb3_diffusion",
            author_email="none",
            code_permalink="examples/two_ways_round.py",
            algorithm_name="WaypointController",
            eval_env=ENV_ID,
            description="A point goes round a wall, left or right at random.",
        )
    if found.n_episodes != n_episodes:
        raise ValueError(f"--episodes {n_episodes}: {DATASET_ID} is there with {found.n_episodes}; choose another --out")


def way_of(path: np.ndarray) -> int:
    """On which side a path (T, 2) that arrives crosses the middle of the wall."""
    return RIGHT if path[(path[:, 1] > 0).argmax(), 0] > 0 else LEFT


def summary(demonstrations: Demonstrations) -> Rollouts:
    """The demonstrations as rollouts."""
    rows = zip(demonstrations.episode_starts, demonstrations.episode_ends, strict=True)
    assert isinstance(demonstrations.observations, dict) and isinstance(demonstrations.final_observations, dict)
    positions, last = demonstrations.observations["achieved_goal"], demonstrations.final_observations["achieved_goal"]
    paths = [np.concatenate([positions[start:end], last[i : i + 1]]) for i, (start, end) in enumerate(rows)]
    ways = [way_of(path) for path in paths]
    success = demonstrations.terminations[demonstrations.episode_ends - 1]
    return Rollouts(np.asarray(success), np.array(ways), demonstrations.episode_lengths, paths)


class NormalizedReLU(nn.Module):
    """Critics with layer normalisation do not rise where no data is (RLPD): without it, they lead through the wall."""

    def forward(self, values: th.Tensor) -> th.Tensor:
        return F.relu(F.layer_norm(values, values.shape[-1:]))


def falling(initial: float) -> Schedule:
    """From a number to 0 along the training."""
    return lambda progress_remaining: initial * progress_remaining


def imitate_with_diffusion(
    model: DiffSAC, demonstrations: Demonstrations, n_epochs: int, critic_steps: int, seed: int
) -> None:
    model.pretrain(demonstrations, n_epochs, validation_fraction=0, critic_warmup_steps=critic_steps, seed=seed, **IMITATION)


def imitate_with_a_gaussian(model: SAC, demonstrations: Demonstrations, n_epochs: int, critic_steps: int, seed: int) -> None:
    """What ``pretrain`` does, for SAC: maximum likelihood of the demonstrated actions, then the critics on demonstrations."""
    rng, batch_size = np.random.default_rng(seed), IMITATION["batch_size"]
    optimizer = th.optim.Adam(model.actor.parameters(), IMITATION["learning_rate"])
    n_updates = n_epochs * -(-len(demonstrations) // batch_size)
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)
    distribution: Any = model.actor.action_dist
    for _ in range(n_updates):
        rows = rng.integers(len(demonstrations), size=batch_size)
        observations = model.policy.obs_to_tensor(demonstrations.observations_at(rows))[0]
        # tanh has no inverse on the bounds.
        scaled = demonstrations.scaled_actions_at(rows, model.action_space).clip(-0.99, 0.99)  # type: ignore[arg-type]
        mean, log_std, _ = model.actor.get_action_dist_params(observations)
        loss = -distribution.proba_distribution(mean, log_std).log_prob(th.as_tensor(scaled)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    # SAC has no updates of the critics alone: the actor is put back after each. The agent has done nothing yet, so all of a
    # batch are demonstrations.
    model.set_logger(configure(None, []))
    actor, state = copy.deepcopy(model.actor.state_dict()), copy.deepcopy(model.actor.optimizer.state_dict())
    for _ in range(critic_steps):
        model.train(1, model.batch_size)
        model.actor.load_state_dict(actor)
    model.actor.optimizer.load_state_dict(state)


def described(values: dict[str, float]) -> str:
    text = f"{values['success']:.0%} arrive"
    if values["success"]:
        text += f" in {values['steps']:.0f} steps, {values['left']:.0%} left"
    return text


class Curve(BaseCallback):
    """Evaluates before the first step and then every so many, and says what it finds."""

    def __init__(self, run: str, every: int, n_episodes: int, blocked: str | None) -> None:
        super().__init__()
        self.run, self.every = run, every
        self.evaluate = partial(roll_out, n_episodes=n_episodes, blocked=blocked)
        self.rows: list[dict[str, float]] = []

    def _record(self) -> None:
        values = self.evaluate(self.model).summary()
        self.rows.append({"timesteps": self.num_timesteps} | values)
        print(f"{self.run}, {self.num_timesteps} steps: {described(values)}", flush=True)

    def _on_training_start(self) -> None:
        self._record()

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            self._record()
        return True


def train(name: str, seed: int, options: dict[str, Any], out: Path) -> dict[str, Any]:
    """All stages of one run."""
    th.set_num_threads(1)
    demonstrations = Demonstrations.from_minari(DATASET_ID)
    model = ALGORITHMS[name](
        "MultiInputPolicy",
        make_vec_env(ENV_ID, seed=seed),
        learning_rate=falling(LEARNING_RATE),
        seed=seed,
        device="cpu",
        buffer_size=options["steps"] + 1,
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs=dict(demonstrations=demonstrations, share=0.5),
        policy_kwargs=dict(net_arch=NET_ARCH, activation_fn=NormalizedReLU),
        **SETTINGS,
        **OWN_SETTINGS[name],
    )
    n_episodes, stages, curves = options["evaluation_episodes"], {}, {}
    run = f"{name}, seed {seed}"
    print(f"{run}: imitates, then the critics learn from demonstrations", flush=True)
    imitate: Any = imitate_with_diffusion if isinstance(model, DiffSAC) else imitate_with_a_gaussian
    imitate(model, demonstrations, options["epochs"], options["warm_up"], seed)
    stages["demonstrations"], stages["imitation"] = summary(demonstrations), roll_out(model, n_episodes)

    if isinstance(model, DiffSAC):
        model.set_reference(KL_COEF)
    callback = Curve(f"{run}, fine-tuning", options["every"], n_episodes // 2, None)
    model.learn(options["steps"], callback=callback)
    stages["fine-tuned"], curves["fine-tuning"] = roll_out(model, n_episodes), callback.rows

    # The way that it has come to prefer
    blocked = "left" if stages["fine-tuned"].summary()["left"] >= 0.5 else "right"
    stages["blocked"] = roll_out(model, n_episodes, blocked)
    # Old experience and demonstrations go through what is a wall now.
    buffer: Any = model.replay_buffer
    buffer.reset()
    buffer.share = 0.0
    if isinstance(model, DiffSAC):
        # Both ways are kept until the critics know the wall.
        model.set_reference(falling(KL_COEF))
    model.set_env(make_vec_env(ENV_ID, seed=seed, env_kwargs=dict(blocked=blocked)))
    callback = Curve(f"{run}, {blocked} blocked", max(1, options["adaptation"] // 8), n_episodes // 2, blocked)
    model.learn(options["adaptation"], callback=callback)
    stages["adapted"], curves["adaptation"] = roll_out(model, n_episodes, blocked), callback.rows

    paths = {f"{stage}/{i}": path for stage, rollouts in stages.items() for i, path in enumerate(rollouts.paths)}
    ends = {f"{stage}/success": rollouts.success for stage, rollouts in stages.items()}
    np.savez_compressed(out / f"{name}_seed{seed}.npz", **paths, **ends)  # type: ignore[arg-type]
    return {"blocked": blocked, "stages": {stage: rollouts.summary() for stage, rollouts in stages.items()}, "curves": curves}


def run_one(name: str, seed: int, options: dict[str, Any], out: Path) -> str:
    settings = {
        "algorithm": name,
        "seed": seed,
        **options,
        **SETTINGS,
        **OWN_SETTINGS[name],
        "learning_rate": LEARNING_RATE,
        "kl_coef": KL_COEF,
    }
    path = out / f"{name}_seed{seed}.json"
    content = read_json(path)
    if content is None:
        content = {"settings": settings, **provenance(), "result": train(name, seed, options, out)}
        write_json(path, content)
    if content["settings"] != settings:
        raise ValueError(f"{path} was made with {content['settings']}, not {settings}; delete it or choose another --out")
    result = content["result"]
    stages = [f"  {stage}: {described(values)}" for stage, values in result["stages"].items()]
    return "\n".join([f"{name}, seed {seed}", *stages])


def draw_map(panel: Axes, blocked: str | None) -> None:
    rows, columns = len(TwoWaysRound.MAP), len(TwoWaysRound.MAP[0])
    for i, cells in enumerate(TwoWaysRound.map_with(blocked)):
        for j, cell in enumerate(cells):
            if cell == 1:
                corner = (j - columns / 2, rows / 2 - i - 1)
                colour = "#c4c4c4" if TwoWaysRound.MAP[i][j] == 1 else "#8c8c8c"
                panel.add_patch(Rectangle(corner, 1, 1, color=colour, linewidth=0))
    panel.add_patch(Circle((0, 1), 0.45, color="#009e73", alpha=0.3, linewidth=0))
    panel.set(xlim=(-3, 3), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
    for spine in panel.spines.values():
        spine.set_visible(False)


def draw(out: Path, algorithms: list[str], seed: int, options: dict[str, Any], n_paths: int = 60) -> None:
    """One row an algorithm, one panel a stage; paths on the left blue, on the right orange, those that fail grey."""
    figure = Figure(figsize=(15, 0.4 + 2.0 * len(algorithms)), layout="constrained")
    panels = figure.subplots(len(algorithms), len(STAGES), squeeze=False)
    for row, name in zip(panels, algorithms, strict=True):
        result = read_json(out / f"{name}_seed{seed}.json")["result"]
        with np.load(out / f"{name}_seed{seed}.npz") as data:
            for panel, stage in zip(row, STAGES, strict=True):
                draw_map(panel, result["blocked"] if stage in ("blocked", "adapted") else None)
                success = data[f"{stage}/success"]
                for i in range(min(n_paths, len(success))):
                    path = data[f"{stage}/{i}"]
                    colour = {LEFT: "#0072b2", RIGHT: "#d55e00"}[way_of(path)] if success[i] else "#7f7f7f"
                    panel.plot(*path.T, color=colour, linewidth=0.8, alpha=0.5)
                panel.set_xlabel(described(result["stages"][stage]), fontsize=10)
        row[0].set_ylabel(LABELS[name], fontsize=12)
    for panel, title in zip(panels[0], STAGES.values(), strict=True):
        panel.set_title(title.format(**options), fontsize=12)
    figure.savefig(out / "two_ways_round.png", dpi=120)


def tabulate(out: Path, runs: list[tuple[str, int]]) -> None:
    """One row for each run and stage, and for each evaluation along the way; beside it how each run was made."""
    made = {f"{name}, seed {seed}": read_json(out / f"{name}_seed{seed}.json") for name, seed in runs}
    write_json(out / "two_ways_round.json", {run: {**content, "result": None} for run, content in made.items()})
    with (out / "two_ways_round.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["algorithm", "seed", "stage", "timesteps", *COLUMNS])
        for name, seed in runs:
            result = read_json(out / f"{name}_seed{seed}.json")["result"]
            rows = [(stage, "", values) for stage, values in result["stages"].items()]
            rows += [(curve, values["timesteps"], values) for curve, points in result["curves"].items() for values in points]
            for stage, timesteps, values in rows:
                writer.writerow([name, seed, stage, timesteps, *(f"{values[column]:.4g}" for column in COLUMNS)])


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="demonstrated episodes")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the demonstrations for imitation")
    parser.add_argument("--warm-up", type=int, default=4000, help="updates of the critics before the fine-tuning")
    parser.add_argument("--steps", type=int, default=4000, help="environment steps of the fine-tuning")
    parser.add_argument("--every", type=int, default=500, help="steps between two evaluations of the fine-tuning")
    parser.add_argument("--adaptation", type=int, default=2000, help="environment steps with one way blocked")
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="of an evaluation; half of it along the way")
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS), help="which to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of each algorithm for each")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, with a CPU core each")
    parser.add_argument("--out", type=Path, default=Path("two_ways_round"), help="folder for all that is written")
    arguments = parser.parse_args()
    options = {name: value for name, value in vars(arguments).items() if isinstance(value, int) and name != "workers"}
    for name, value in options.items():
        check_number(f"--{name.replace('_', '-')}", value, 1, integer=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Also for the processes that train
    os.environ["MINARI_DATASETS_PATH"] = str((arguments.out / "minari").resolve())
    demonstrate(arguments.episodes)
    runs = [(name, seed) for name in arguments.algorithms for seed in arguments.seeds]
    jobs = [joblib.delayed(run_one)(name, seed, options, arguments.out) for name, seed in runs]
    print(*joblib.Parallel(n_jobs=arguments.workers)(jobs), sep="\n")
    tabulate(arguments.out, runs)
    draw(arguments.out, arguments.algorithms, arguments.seeds[0], options)
    print(f"wrote {arguments.out}/two_ways_round.csv and .png")


if __name__ == "__main__":
    main()
