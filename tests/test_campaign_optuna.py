"""rl-zoo3's search for hyper-parameters by several processes, as the guide describes it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import campaigns_for_tests as small
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

TRIALS = 6
GUIDE = Path(__file__).parent.parent / "docs" / "campaigns.md"


def worker(storage: Path) -> subprocess.Popen[bytes]:
    """One of several equal ones."""
    command = [sys.executable, "-m", "sb3_diffusion.train", "--algo", "diffsac", "--env", "BimodalBandit-v0", "-n", "150"]
    command += ["-optimize", "--n-evaluations", "1", "--pruner", "none", "--no-optim-plots", "--n-startup-trials", "100"]
    command += ["--storage", str(storage), "--study-name", "hopper", "--max-total-trials", str(TRIALS)]
    return subprocess.Popen(command, cwd=storage.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trials(storage: Path, *states: TrialState) -> list[FrozenTrial]:
    """Those of the study."""
    if not storage.exists():
        return []
    try:
        study = optuna.load_study(
            study_name="hopper", storage=optuna.storages.JournalStorage(JournalFileBackend(str(storage)))
        )
    except KeyError:  # not yet made
        return []
    return study.get_trials(states=states)


@pytest.mark.slow
def test_trials_of_a_shared_study_are_neither_lost_nor_done_twice_if_a_worker_is_killed(tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    first, second = worker(storage), worker(storage)

    def stopped_within_a_trial() -> bool:
        os.kill(first.pid, signal.SIGSTOP)
        if trials(storage, TrialState.COMPLETE) and len(trials(storage, TrialState.RUNNING)) == 2:
            return True
        os.kill(first.pid, signal.SIGCONT)
        return False

    small.wait_until(stopped_within_a_trial, 300)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() < 0 and second.wait() == 0
    lost = trials(storage, TrialState.RUNNING)
    assert len(lost) == 1 and len(trials(storage, TrialState.COMPLETE)) == TRIALS - 1

    (snippet,) = re.findall(r"```python\n(import optuna\n.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(snippet.replace("/shared/hopper.log", str(storage)), {})
    assert worker(storage).wait() == 0
    complete = trials(storage, TrialState.COMPLETE)
    assert len(complete) == TRIALS and not trials(storage, TrialState.RUNNING)
    assert lost[0].params in [trial.params for trial in complete], "what was lost is done"
    assert len({str(sorted(trial.params.items())) for trial in complete}) == TRIALS, "nothing is done twice"
