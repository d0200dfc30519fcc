"""What one sees of a campaign while it runs: live lines on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sb3_diffusion.experiments.engines import Outcome
from sb3_diffusion.experiments.folders import PROGRESS, read_json
from sb3_diffusion.experiments.plan import Run


def duration(seconds: float) -> str:
    """:return: a length of time in one or two units"""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def returns(row: dict[str, Any]) -> str:
    """:return: those of an evaluation"""
    return f"return {row['deterministic_return']:.5g}, sampled {row['sampled_return']:.5g}"


class Display:
    """
    Follows the runs by what they write into their folders, so that it does not matter where they run.

    :param runs: that are to be done
    :param done: how many of the campaign were done before
    """

    def __init__(self, runs: Sequence[Run], done: int) -> None:
        self.runs, self.done, self.total = list(runs), done, done + len(runs)
        self.steps = {run.folder: 0 for run in runs}
        self.began = time.time()
        self.seen: dict[str, float] = {}
        self.first: dict[str, tuple[int, float]] = {}
        self.rows: dict[str, int] = {}
        self.tasks: dict[str, TaskID] = {}
        self.console = Console(highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[returns]}"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console)
            self.progress.start()
            steps = sum(run.steps for run in runs)
            self.whole = self.progress.add_task(f"{done} of {self.total} runs", total=steps, speed="", returns="")

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False)
        self.console.file.flush()  # a log file is read while it grows

    def refresh(self) -> bool:
        """:return: whether there are new evaluations; the display shows what the folders tell"""
        new_rows = False
        for run in self.runs:
            path = Path(run.folder) / PROGRESS
            try:
                changed = path.stat().st_mtime
            except FileNotFoundError:
                continue
            if changed < self.began - 1 or self.seen.get(run.folder) == changed:
                continue
            self.seen[run.folder] = changed
            content = read_json(path)
            new_rows |= self.show(run, content)
        return new_rows

    def show(self, run: Run, content: dict[str, Any]) -> bool:
        """:return: whether the run has new evaluations"""
        timesteps, seconds, rows = content["timesteps"], content["seconds"], content["rows"]
        if run.folder not in self.first:
            self.first[run.folder] = timesteps, seconds
            self.rows[run.folder] = len(rows)
            began = content["parts"][-1]["from"]
            if self.progress is None:
                self.say(f"{run.name}: {f'continued at {began} steps' if began else 'started'}")
        self.steps[run.folder] = min(timesteps, run.steps)
        first_steps, first_seconds = self.first[run.folder]
        speed = (timesteps - first_steps) / max(seconds - first_seconds, 1e-9)
        new_rows = len(rows) != self.rows[run.folder]
        self.rows[run.folder] = len(rows)
        if self.progress is not None:
            if run.folder not in self.tasks:
                self.tasks[run.folder] = self.progress.add_task(run.name, total=run.steps, speed="", returns="")
            self.progress.update(
                self.tasks[run.folder],
                completed=self.steps[run.folder],
                speed=f"{speed:.0f} steps/s",
                returns=returns(rows[-1]) if rows else "",
            )
            self.progress.update(self.whole, completed=sum(self.steps.values()))
        elif new_rows and rows:
            left = duration((run.steps - timesteps) / speed) if speed > 0 else "?"
            self.say(f"{run.name}: {timesteps}/{run.steps} steps, {speed:.0f} steps/s, {returns(rows[-1])}, {left} left")
        return new_rows

    def ended(self, outcome: Outcome) -> None:
        """A run has ended."""
        self.done += 1
        self.runs.remove(outcome.run)
        self.say(f"{outcome.run.name}: {outcome.error or 'finished'} ({self.done} of {self.total} runs)")
        if self.progress is not None:
            self.steps[outcome.run.folder] = outcome.run.steps
            description = f"{self.done} of {self.total} runs"
            self.progress.update(self.whole, completed=sum(self.steps.values()), description=description)
            if outcome.run.folder in self.tasks:
                self.progress.remove_task(self.tasks.pop(outcome.run.folder))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.progress is not None:
            self.progress.stop()
