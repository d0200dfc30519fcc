"""One run, from its first step or from its last checkpoint to its result."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger

from sb3_diffusion.common.saving import replacing
from sb3_diffusion.experiments.building import RunManager
from sb3_diffusion.experiments.checkpoints import (
    end_trajectories,
    load_checkpoint,
    remove_checkpoints,
    replace_environment,
    save_checkpoint,
)
from sb3_diffusion.experiments.evaluating import Evaluator
from sb3_diffusion.experiments.folders import FAILURE, LOG, PROGRESS, RESULT, SETTINGS, check_settings, locked, write_json
from sb3_diffusion.experiments.generators import TRAINING, derived_seed
from sb3_diffusion.experiments.plan import Run, prepare_environments
from sb3_diffusion.experiments.provenance import provenance

SECONDS_BETWEEN_REPORTS = 1.0


class CheckpointDue(Exception):
    """Leaves ``learn`` between two rollouts, where nothing is half done."""


class RememberingLogger(Logger):
    """SB3's logger without outputs, which keeps the last value of everything."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.last: dict[str, Any] = {}

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        super().record(key, value, exclude)
        self.last[key] = value

    def numbers(self) -> dict[str, float]:
        """:return: those of the last values that are numbers"""
        numbers = {}
        for key, value in self.last.items():
            try:
                numbers[key] = float(value)
            except (TypeError, ValueError):
                continue
        return numbers


class Stopwatch:
    """
    Seconds of wall-clock time without the pauses.

    :param seconds: to begin with
    """

    def __init__(self, seconds: float) -> None:
        self.before, self.since = seconds, time.perf_counter()
        self.is_paused = False

    def seconds(self) -> float:
        """:return: so far"""
        return self.before + (0.0 if self.is_paused else time.perf_counter() - self.since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block does not count."""
        self.before, self.is_paused = self.seconds(), True
        yield
        self.since, self.is_paused = time.perf_counter(), False


class Conductor(BaseCallback):
    """
    Evaluates, reports progress, and leaves ``learn`` at checkpoints.

    :param run: the run
    :param evaluator: of the run
    :param state: what checkpoints hold besides the model; its "rows" and "training" grow
    :param watch: measures training
    :param timesteps: environment steps so far
    """

    def __init__(self, run: Run, evaluator: Evaluator, state: dict[str, Any], watch: Stopwatch, timesteps: int) -> None:
        super().__init__()
        self.run, self.evaluator, self.state, self.watch = run, evaluator, state, watch
        self.next_evaluation = self.next_multiple(timesteps, run.evaluation.every)
        if run.evaluation.at_start and timesteps == 0:
            self.next_evaluation = 0
        self.next_checkpoint = self.next_multiple(timesteps, run.checkpoint_every)
        self.reported = -SECONDS_BETWEEN_REPORTS

    def next_multiple(self, timesteps: int, every: int) -> float:
        """:return: the next one after ``timesteps``, the end if that comes first; infinity after the end"""
        return min((timesteps // every + 1) * every, self.run.steps) if timesteps < self.run.steps else float("inf")

    def report(self) -> None:
        """Tell those who watch the folder how far it is."""
        self.reported = time.perf_counter()
        progress = {"timesteps": self.num_timesteps, "seconds": self.watch.seconds()}
        progress |= {name: self.state[name] for name in ("rows", "parts")}
        write_json(Path(self.run.folder) / PROGRESS, progress)

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next_checkpoint:
            raise CheckpointDue

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_evaluation:
            self.next_evaluation = self.next_multiple(self.num_timesteps, self.run.evaluation.every)
            with self.watch.paused():
                assert isinstance(self.logger, RememberingLogger)
                logged = self.logger.numbers()
                self.state["rows"].append(self.evaluator(self.model, self.watch.seconds(), logged))
                self.state["training"].append({"timesteps": self.num_timesteps, **logged})
                self.report()
        elif time.perf_counter() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.report()
        return True


def restart(model: BaseAlgorithm, manager: RunManager, seed: int) -> None:
    """Let the training go on from nothing but what a checkpoint holds."""
    replace_environment(model, manager.create_envs(manager.n_envs))
    model.set_random_seed(derived_seed(seed, model.num_timesteps, TRAINING))


def train(run: Run) -> None:
    """
    Train until the run is done, and write its result.

    :param run: the run
    """
    folder = Path(run.folder)
    manager = RunManager(run)
    model = manager.create_model()
    state: dict[str, Any] = {"rows": [], "training": [], "seconds": 0.0, "logged": {}, "callback_calls": [], "parts": []}
    assert model.env is not None
    continued = load_checkpoint(folder, model, model.env)
    if continued is not None:
        model, saved = continued
        state |= saved
        print(f"continued at {model.num_timesteps} steps", flush=True)
        restart(model, manager, run.seed)
    state["parts"].append({"from": model.num_timesteps, **provenance()})
    logger = RememberingLogger()
    logger.last.update(state["logged"])
    model.set_logger(logger)
    evaluator = Evaluator(run, manager)
    watch = Stopwatch(state["seconds"])
    while model.num_timesteps < run.steps:
        callbacks = manager.new_callbacks()
        for callback, calls in zip(callbacks, state["callback_calls"], strict=False):
            callback.n_calls = calls
        conductor = Conductor(run, evaluator, state, watch, model.num_timesteps)
        everything = CallbackList([conductor, *callbacks])
        try:
            remaining = run.steps - model.num_timesteps
            first = model.num_timesteps == 0
            model.learn(remaining, callback=everything, log_interval=None, reset_num_timesteps=first)  # type: ignore[arg-type]
            break
        except CheckpointDue:
            with watch.paused():
                everything.on_training_end()
                end_trajectories(model)
                state |= {"seconds": watch.seconds(), "logged": logger.numbers()}
                state["callback_calls"] = [callback.n_calls for callback in callbacks]
                save_checkpoint(folder, model, state)
                conductor.report()
                restart(model, manager, run.seed)
    seconds = watch.seconds()
    evaluator.close()
    with replacing(folder / "model.zip", ".zip") as temporary:
        model.save(temporary)
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        with replacing(folder / "vecnormalize.pkl", ".pkl") as temporary:
            normalization.save(str(temporary))
    result = {name: state[name] for name in ("rows", "training", "parts")}
    write_json(folder / RESULT, {"timesteps": model.num_timesteps, "seconds": seconds, **result})
    remove_checkpoints(folder)


def execute(run: Run, seconds_to_wait: float = 0.0) -> None:
    """
    A run in this process, which does nothing else: with one CPU thread, and what it prints in its folder.

    :param run: the run
    :param seconds_to_wait: for another process that still holds the run
    :raises LockedRun: if another process writes this run
    """
    folder = Path(run.folder)
    with locked(run, seconds_to_wait):
        # Another campaign may have got here first.
        check_settings(run)
        if (folder / RESULT).exists():
            return
        with (folder / LOG).open("a") as log:
            sys.stdout.flush()
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        th.set_num_threads(1)
        try:
            prepare_environments(run.gym_packages)
            write_json(folder / SETTINGS, run.identity)
            (folder / FAILURE).unlink(missing_ok=True)
            train(run)
        except Exception:
            text = traceback.format_exc()
            print(text, file=sys.stderr)
            write_json(folder / FAILURE, {"traceback": text})
            raise
        finally:
            sys.stdout.flush()
