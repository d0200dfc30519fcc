"""The commands that make tables and pictures: small runs of benchmarks and of the examples."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sb3_diffusion import DiffSAC, DiffWPO

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mode_coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module, with trainings of a few steps."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "mode_coverage", raising=False)
    module = importlib.import_module("mode_coverage")
    for task in module.TASKS.values():
        task.settings["off-policy"] |= {"steps": 30, "learning_starts": 10, "policy_kwargs": {"net_arch": [8]}}
        task.settings["on-policy"] |= {"steps": 64, "policy_kwargs": {"net_arch": [8]}}
    module.COMMON["on-policy"] |= {"n_envs": 2, "n_steps": 16, "batch_size": 16}
    return module


def test_the_benchmark_trains_every_algorithm_once_and_tabulates_what_it_found(
    mode_coverage: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in mode_coverage.ALGORITHMS:
        assert "entropy" in mode_coverage.run_one("goals", name, 0, str(tmp_path))
        assert "done before" in mode_coverage.run_one("goals", name, 0, str(tmp_path))
    assert "divergence" in mode_coverage.run_one("mixture", "sac", 0, str(tmp_path))
    assert "smallest_share" in mode_coverage.run_one("turning", "diffsac", 1, str(tmp_path))
    report = json.loads((tmp_path / "goals" / "diffsac_seed0.json").read_text())
    assert report["settings"]["policy_kwargs"] == "{'net_arch': [8], 'diffusion_steps': 4}"
    assert report["settings"]["ent_coef"].startswith("Schedule(first=10.0")
    assert report["versions"]["stable_baselines3"]

    mode_coverage.summarise(tmp_path)
    with (tmp_path / "mode_coverage.csv").open() as file:
        rows = list(csv.DictReader(file))
    entropies = {row["algorithm"]: float(row["value"]) for row in rows if row["metric"] == "entropy"}
    assert entropies.keys() == mode_coverage.ALGORITHMS.keys() and all(0 <= value <= 1 for value in entropies.values())
    table = (tmp_path / "mode_coverage.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    assert lines.keys() == {algorithm.label for algorithm in mode_coverage.ALGORITHMS.values()}
    assert f"{entropies['ppo']:.2f} ({entropies['ppo']:.2f})" in lines["PPO"] and lines["PPO"].count("| - ") == 4
    assert (tmp_path / "mode_coverage.png").stat().st_size > 10_000


def test_the_benchmark_refuses_to_mix_runs_with_different_settings(mode_coverage: ModuleType, tmp_path: Path) -> None:
    mode_coverage.run_one("turning", "sac", 0, str(tmp_path))
    mode_coverage.TASKS["turning"].settings["off-policy"]["gamma"] = 0.5
    with pytest.raises(ValueError, match=r"sac_seed0.json was made with .* delete it or choose another --out"):
        mode_coverage.run_one("turning", "sac", 0, str(tmp_path))


def test_a_schedule_holds_falls_and_holds_again(mode_coverage: ModuleType) -> None:
    linear = mode_coverage.Schedule(3e-3, 0.0, 0.5, 1.0)
    assert [linear(progress) for progress in (1.0, 0.5, 0.25, 0.0)] == pytest.approx([3e-3, 3e-3, 1.5e-3, 0.0])
    geometric = mode_coverage.Schedule(16.0, 4.0, 0.25, 0.75, geometric=True)
    assert [geometric(progress) for progress in (1.0, 0.75, 0.5, 0.25, 0.0)] == pytest.approx([16, 16, 8, 4, 4])


def test_the_example_of_bound_tightness_leaves_a_table_in_which_the_bound_is_never_below_the_divergence(
    tmp_path: Path,
) -> None:
    options = ("--updates", "20", "--diffusion-steps", "1", "2", "--seeds", "0", "3", "--out", "results")
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "bound_tightness.py"), *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    with (tmp_path / "results" / "bound_tightness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 3 * 2
    assert {(row["diffusion_steps"], row["seed"]) for row in rows} == {("1", "0"), ("1", "3"), ("2", "0"), ("2", "3")}
    for row in rows:
        marginal, path, slack = (float(row[name]) for name in ("marginal_divergence", "path_divergence", "slack"))
        assert marginal > 0 and slack > -1e-6 and slack == pytest.approx(path - marginal)
    assert len({row["path_divergence"] for row in rows}) > 20
    assert (tmp_path / "results" / "bound_tightness.png").stat().st_size > 10_000


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example as a module."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_example_of_temperature_annealing_tabulates_every_rollout_of_every_schedule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = example("temperature_annealing", monkeypatch)
    monkeypatch.setitem(module.SETTINGS, "n_steps", 16)
    for schedule in module.SCHEDULES:
        assert "smallest share" in module.run_one(schedule, 4, 384, tmp_path)
    module.summarise([4], 384, tmp_path)
    rows = table(tmp_path / "temperature_annealing.csv")
    assert [row["schedule"] for row in rows] == [name for name in module.SCHEDULES for _ in range(3)]
    temperatures = [float(row["ent_coef"]) for row in rows]
    assert temperatures[:3] == [0.02] * 3
    assert temperatures[3:6] == pytest.approx([0.5, 0.34, 0.18], rel=1e-3)
    assert temperatures[6:] == pytest.approx([0.5, 0.5 * 0.04 ** (1 / 3), 0.5 * 0.04 ** (2 / 3)], rel=1e-3)
    assert [bool(row["smallest_share"]) for row in rows] == [False, False, True] * 3
    assert (tmp_path / "temperature_annealing.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"was made with .* delete it or choose another folder"):
        module.run_one("constant 0.02", 4, 500, tmp_path)


def test_the_example_of_updates_and_clip_range_tabulates_its_grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = example("updates_and_clip_range", monkeypatch)
    monkeypatch.setitem(module.SETTINGS, "n_steps", 200)
    monkeypatch.setattr(module, "EPOCHS", (1, 2))
    monkeypatch.setattr(module, "CLIP_RANGES", (0.001, 0.4))
    for job in [(2, epochs, clip, 0) for epochs in (1, 2) for clip in (0.001, 0.4)]:
        assert "clip_fraction" in module.run_one(*job, 1600, tmp_path)
    module.summarise([0], [2], 1600, tmp_path)
    rows = {(row["n_epochs"], row["clip_range"]): row for row in table(tmp_path / "updates_and_clip_range.csv")}
    assert rows.keys() == {("1", "0.001"), ("1", "0.4"), ("2", "0.001"), ("2", "0.4")}
    assert all(-2000 < float(row["mean_return"]) < 0 for row in rows.values())
    assert float(rows["2", "0.001"]["clip_fraction"]) > float(rows["2", "0.4"]["clip_fraction"])
    assert (tmp_path / "updates_and_clip_range.png").stat().st_size > 10_000


def test_the_example_of_both_divergences_tabulates_each_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = example("forward_and_reverse_kl", monkeypatch)
    for settings in module.SETTINGS.values():
        settings |= {"steps": 40, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
    for env_id in module.SETTINGS:
        for objective in module.OBJECTIVES:
            assert objective in module.run_one(env_id, objective, 0, tmp_path)
    module.summarise(list(module.SETTINGS), [0], tmp_path)
    rows = table(tmp_path / "forward_and_reverse_kl.csv")
    assert len(rows) == 2 * sum(len(columns) for columns in module.COLUMNS.values())
    assert len({row["value"] for row in rows if row["metric"] == "total_variation"}) == 2
    assert module.temperature("MultiGoal2D-v0", 1.0) == 10 and module.temperature("MultiGoal2D-v0", 0.2) == 5
    assert (module.falling(1e-3, 0.5), module.falling(1e-3, 0.25)) == (1e-3, 5e-4)
    assert (tmp_path / "forward_and_reverse_kl.png").stat().st_size > 10_000


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO])
def test_the_peak_memory_of_a_gradient_step_does_not_grow_with_the_number_of_diffusion_steps(
    monkeypatch: pytest.MonkeyPatch, algorithm: type[DiffSAC]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    memory = importlib.import_module("memory")
    few, many = (memory.peak_megabytes(memory.build(algorithm, diffusion_steps)) for diffusion_steps in (4, 64))
    assert many <= 1.1 * few


CAMPAIGN = """
import sys, time
from sb3_diffusion.evaluation import run_all

def run(seconds):
    print("running", flush=True)
    time.sleep(seconds)
    return "done"

if __name__ == "__main__":
    run_all(run, [(float(sys.argv[1]),)], 1)
"""


def test_a_killed_campaign_leaves_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "campaign.py").write_text(CAMPAIGN)
    process = subprocess.Popen([sys.executable, tmp_path / "campaign.py", "120"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    process.kill()
    process.communicate(timeout=60)  # until everyone who could still write to it is gone
