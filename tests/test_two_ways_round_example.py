"""The example that goes from demonstrations to fine-tuning."""

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

for package in ("gymnasium_robotics", "mujoco", "minari", "matplotlib"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[1]
FEW = ("--episodes=4 --epochs=2 --warm-up=2 --steps=20 --every=10 --adaptation=16 --evaluation-episodes=2").split()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, with small networks and two environments."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "two_ways_round", raising=False)
    module = importlib.import_module("two_ways_round")
    monkeypatch.setattr(module, "EVALUATION_ENVS", 2)
    monkeypatch.setattr(module, "NET_ARCH", [8])
    monkeypatch.setitem(module.SETTINGS, "batch_size", 8)
    return module


def test_the_example_leaves_stages_curves_paths_and_a_picture(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "overwritten")
    monkeypatch.setattr(sys, "argv", ["two_ways_round.py", *FEW, "--out", str(tmp_path)])
    example.main()
    printed = capsys.readouterr().out
    assert "sac, seed 0, fine-tuning, 10 steps: " in printed and "  demonstrations: 100% arrive in" in printed
    result = json.loads((tmp_path / "sac_seed0.json").read_text())["result"]
    assert list(result["stages"]) == list(example.STAGES)
    assert [row["timesteps"] for row in result["curves"]["fine-tuning"]] == [0, 10, 20]
    with (tmp_path / "two_ways_round.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["algorithm"] for row in rows} == {"diffsac", "sac"}
    assert {row["stage"] for row in rows} == {*example.STAGES, "fine-tuning", "adaptation"}
    assert (tmp_path / "two_ways_round.png").stat().st_size > 10_000
    # Everything is there: a second call only draws.
    example.main()


def test_another_number_of_episodes_than_the_data_sets_is_refused(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    example.demonstrate(2)
    example.demonstrate(2)
    with pytest.raises(ValueError, match="--episodes 3: two-ways-round/waypoints-v0 is there with 2"):
        example.demonstrate(3)


def test_the_demonstrations_summary_counts_both_ways(example: ModuleType) -> None:
    data = example.Demonstrations.from_policy(example.WaypointController(), example.ENV_ID, 10, seed=0)
    rollouts = example.summary(data)
    assert rollouts.success.all() and set(rollouts.way) == {-1, 1}
    assert [len(path) - 1 for path in rollouts.paths] == rollouts.steps.tolist()


@pytest.mark.parametrize("option", ["--steps=0", "--episodes=-1", "--warm-up=0"])
def test_options_out_of_range_are_refused_by_name(
    example: ModuleType, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["two_ways_round.py", option, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=f"{option.replace('=', '=.?')}.* must be an integer >= 1"):
        example.main()
