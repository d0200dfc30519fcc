"""The commands that make the table of mode coverage and the picture of the bound: small runs of both."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
