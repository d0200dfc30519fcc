"""rl-zoo3's less used options and commands, on a short training of our own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_diffusion import DiffSAC
from sb3_diffusion.zoo.__main__ import COMMANDS

ENV = "Pendulum-v1"
COMMON = ("--algo", "diffsac", "--env", ENV, "-f", "logs", "--device", "cpu", "--num-threads", "1")
SMALL = (
    "-params",
    "learning_starts:50",
    "batch_size:16",
    "buffer_size:1000",
    "policy_kwargs:dict(net_arch=[16])",
    "train_freq:4",
)


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MPLBACKEND": "agg"}
    line = [sys.executable, "-m", f"sb3_diffusion.{module}", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment)


def succeeded(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which rl-zoo3's train has run twice, with checkpoints and evaluations."""
    folder = tmp_path_factory.mktemp("zoo")
    options = ("-n", "400", "--save-freq", "150", "--eval-freq", "200", "--eval-episodes", "2", *SMALL)
    for seed in ("1", "2"):
        succeeded(command("train", *COMMON, "--seed", seed, *options, cwd=folder))
    return folder


def test_save_freq_leaves_checkpoints_that_enjoy_loads(trained: Path) -> None:
    run = trained / "logs" / "diffsac" / f"{ENV}_1"
    assert {path.name for path in run.glob("rl_model_*.zip")} == {"rl_model_150_steps.zip", "rl_model_300_steps.zip"}
    assert DiffSAC.load(run / "rl_model_150_steps.zip", device="cpu").num_timesteps == 150
    options = ("--exp-id", "1", "--load-checkpoint", "150", "-n", "210", "--no-render")
    assert "rl_model_150_steps.zip" in succeeded(command("enjoy", *COMMON, *options, cwd=trained))


def test_a_trained_agent_is_continued(trained: Path, tmp_path: Path) -> None:
    before = trained / "logs" / "diffsac" / f"{ENV}_1" / f"{ENV}.zip"
    options = ("-i", str(before), "-n", "100", "--eval-freq", "-1", *SMALL)
    succeeded(command("train", *COMMON, *options, cwd=tmp_path))
    (after,) = tmp_path.glob("logs/diffsac/*/Pendulum-v1.zip")
    first, second = DiffSAC.load(before, device="cpu"), DiffSAC.load(after, device="cpu")
    assert second._n_updates > first._n_updates
    assert second.actor.denoiser is not None and second.policy_kwargs["net_arch"] == [16]


def test_environments_run_in_processes_of_their_own(tmp_path: Path) -> None:
    parameters = (*SMALL, "n_envs:2")
    succeeded(command("train", *COMMON, "-n", "100", "--vec-env", "subproc", "--eval-freq", "-1", *parameters, cwd=tmp_path))
    (path,) = tmp_path.glob("logs/diffsac/*/Pendulum-v1.zip")
    assert DiffSAC.load(path, device="cpu").n_envs == 2


def test_videos_are_recorded(trained: Path) -> None:
    succeeded(
        command("zoo", "record_video", "--algo", "diffsac", "--env", ENV, "-f", "logs", "-n", "5", "-o", "videos", cwd=trained)
    )
    assert list(trained.glob("videos/*.mp4"))


def test_runs_are_plotted_and_gathered_by_rl_zoo3s_own_commands(trained: Path) -> None:
    gathered = ("-a", "diffsac", "-e", ENV, "-f", "logs", "--no-display", "--no-million", "-o", "gathered")
    table = succeeded(command("zoo", "all_plots", *gathered, cwd=trained))
    assert "DIFFSAC" in table and "logs" in table and ENV in table
    assert (trained / "gathered.pkl").is_file()
    succeeded(command("zoo", "plot_from_file", "-i", "gathered.pkl", cwd=trained))
    plotted = command("zoo", "plot_train", "-a", "diffsac", "-e", ENV, "-f", "logs", "-w", "2", "-y", "reward", cwd=trained)
    succeeded(plotted)


# What rl-zoo3 would find on the hub, from a folder.
OFFLINE_HUB = """
import shutil, sys
from pathlib import Path
import huggingface_sb3

def load_from_hub(repo_id, filename):
    print("asked for", filename)
    return str(Path("hub") / filename)

huggingface_sb3.load_from_hub = load_from_hub
sys.argv = ["zoo", "load_from_hub", "--algo", "diffsac", "--env", "Pendulum-v1", "-orga", "someone", "-f", "downloaded"]
from sb3_diffusion.zoo.__main__ import main
main()
"""


def test_an_agent_of_ours_is_loaded_from_the_hub(trained: Path, tmp_path: Path) -> None:
    run, hub = trained / "logs" / "diffsac" / f"{ENV}_1", tmp_path / "hub"
    hub.mkdir()
    shutil.copy(run / f"{ENV}.zip", hub / f"diffsac-{ENV}.zip")
    for name in ("config.yml", "args.yml"):
        shutil.copy(run / ENV / name, hub)
    (hub / "env_kwargs.yml").write_text("{}\n")
    (hub / "vec_normalize.pkl").touch()
    shutil.make_archive(str(hub / "train_eval_metrics"), "zip", run, "Pendulum-v1")
    succeeded(subprocess.run([sys.executable, "-c", OFFLINE_HUB], cwd=tmp_path, capture_output=True, text=True))
    (path,) = tmp_path.glob("downloaded/diffsac/*/Pendulum-v1.zip")
    action, _ = DiffSAC.load(path, device="cpu").predict(np.zeros(3, dtype=np.float32))
    assert action.shape == (1,)


def test_push_to_hub_knows_our_algorithms_or_says_that_the_packages_do_not_fit(tmp_path: Path) -> None:
    finished = command("zoo", "push_to_hub", "--algo", "nonsense", "--env", ENV, "-orga", "someone", cwd=tmp_path)
    assert finished.returncode != 0
    broken_upstream = "rl-zoo3's push_to_hub does not fit the installed packages, whatever the algorithm" in finished.stderr
    assert broken_upstream or "diffsac" in finished.stderr


def test_an_unknown_command_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    finished = command("zoo", "recrod_video", cwd=tmp_path)
    assert finished.returncode == 1 and "'recrod_video' is none of them" in finished.stderr
    assert all(name in finished.stderr for name in COMMANDS)
    assert "record_video" in succeeded(command("zoo", "--help", cwd=tmp_path))
