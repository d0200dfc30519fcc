"""Reports: statistics against calculations by hand and scipy's own, the files that are read, the table and the pictures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, trim_mean

from sb3_diffusion.experiments import pictures, statistics
from sb3_diffusion.experiments.comparison import Comparison, listed, ranges, readable
from sb3_diffusion.experiments.reading import Run, read
from sb3_diffusion.experiments.reporting import report
from sb3_diffusion.experiments.statistics import (
    difference,
    estimate,
    interquartile_mean,
    on_grid,
    performance_profile,
    probability_of_improvement,
    reference_score,
)
from sb3_diffusion.experiments.tables import number, table


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_runs() -> None:
    assert interquartile_mean(np.array([1.0, 2.0, 4.0, 100.0])) == 3.0
    assert interquartile_mean(np.array([0.0, 1.0]), np.array([3.0, 50.0])) == 2.0
    tasks = np.random.default_rng(0).normal(size=(3, 7))
    assert interquartile_mean(*tasks) == pytest.approx(trim_mean(tasks.ravel(), 0.25))


def test_each_task_counts_alike_however_many_runs_it_has() -> None:
    few, many = np.array([0.0, 1.0]), np.array([10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    # Of 0 0 0 1 1 1 10 11 12 13 14 15 the middle six
    assert interquartile_mean(few, many) == pytest.approx((1 + 1 + 1 + 10 + 11 + 12) / 6)


def test_the_interval_is_scipys_bootstrap_of_the_runs() -> None:
    values = np.random.default_rng(1).normal(size=9)
    found = estimate(interquartile_mean, [values])
    expected = bootstrap(
        (values,), lambda x, axis: trim_mean(x, 0.25, axis=axis), method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(trim_mean(values, 0.25))


def test_runs_are_drawn_within_their_task_only() -> None:
    """Tasks without any spread have none over tasks either; drawn across tasks they would."""
    assert estimate(interquartile_mean, [np.zeros(4), np.ones(4)]) == (0.5, 0.5, 0.5)


def test_every_point_of_a_curve_has_the_interval_that_it_would_have_alone() -> None:
    curve = np.random.default_rng(2).normal(size=(5, 6))
    whole, alone = estimate(interquartile_mean, [curve]), [estimate(interquartile_mean, [point]) for point in curve]
    for name in ("value", "low", "high"):
        assert getattr(whole, name) == pytest.approx([getattr(point, name) for point in alone])


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_intervals_of_ten_seeds_contain_the_truth_about_as_often_as_they_say(
    n_tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(3)
    contained = [
        found.low <= 0 <= found.high
        for found in (estimate(interquartile_mean, list(rng.normal(size=(n_tasks, 10)))) for _ in range(400))
    ]
    assert 0.89 < np.mean(contained) < 0.98


def test_the_probability_of_improvement_counts_pairs_and_half_of_the_ties() -> None:
    assert probability_of_improvement(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx((1.5 + 3) / 6)
    first, second = [np.array([1.0, 1.0]), np.array([0.0])], [np.array([0.0]), np.array([1.0])]
    assert probability_of_improvement(*first, *second) == pytest.approx(0.5)


def test_a_difference_is_that_of_the_two_interquartile_means() -> None:
    first, second = np.array([1.0, 2.0, 4.0, 100.0]), np.array([0.0, 1.0, 1.0])
    assert difference(first, second) == pytest.approx(3 - 2 / 3)
    found = estimate(difference, [np.arange(5.0) + 10, np.arange(5.0)])
    assert found.value == 10 and 5 < found.low < 10 < found.high < 15


def test_one_run_has_no_interval() -> None:
    assert np.isnan(estimate(interquartile_mean, [np.arange(3.0), np.array([1.0])])[1:]).all()
    with pytest.raises(ValueError, match=r"tasks of \[0\] runs; allowed: one task or more, each with a run"):
        estimate(interquartile_mean, [np.empty(0)])


def test_a_performance_profile_is_the_share_of_runs_above_a_score() -> None:
    found = performance_profile([np.array([0.0, 1.0]), np.array([1.0, 1.0, 2.0])], np.array([-1.0, 0.5, 1.0]))
    assert found.value == pytest.approx([1, (1 / 2 + 1) / 2, (0 + 1 / 3) / 2])
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_curves_meet_where_all_of_them_are() -> None:
    grid, values = on_grid([(np.array([0.0, 10, 20]), np.array([0.0, 10, 0])), (np.array([5.0, 15]), np.array([1.0, 3]))])
    assert grid.tolist() == [5, 10, 15]
    assert values.tolist() == [[5, 1], [10, 2], [5, 3]]


def test_td3s_scores_hold_for_any_version_of_an_environment() -> None:
    assert reference_score("HalfCheetah-v5") == reference_score("HalfCheetah-v4") == ("TD3", (-289.415, 10574.0))
    assert reference_score("BipedalWalker-v3") == ("rl-zoo3", (-100.0, 300.0))
    assert reference_score("Pendulum-v1") is None


def test_numbers_have_no_negative_zero_and_seeds_are_short() -> None:
    assert (number(-0.001, 2), number(12.5, 0), number(3, 1, sign=True)) == ("0.00", "12", "+3.0")
    assert ranges([5, 0, 1, 2, 7, 8]) == "0–2, 5, 7–8"


Rows = list[dict[str, Any]]


def rows_of(variant: str, environment: str, seed: int, *returns: float, every: int = 100, **more: Any) -> Rows:
    """A run's rows in a campaign's table."""
    key = {"variant": variant, "environment": environment, "seed": seed}
    return [
        key | {"timesteps": every * (i + 1), "deterministic_return": value, "seconds": 36.0 * (i + 1)} | more
        for i, value in enumerate(returns)
    ]


@pytest.fixture
def campaign(tmp_path: Path) -> Callable[..., Path]:
    """Writes a campaign's two files and returns the table's path."""

    def write(rows: Rows, name: str = "results", **content: Any) -> Path:
        path = tmp_path / f"{name}.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
        if content:
            path.with_suffix(".json").write_text(json.dumps(content))
        return path

    return write


def by_name(runs: list[Run]) -> dict[str, Run]:
    return {run.name: run for run in runs}


def test_a_campaigns_runs_are_read_with_what_its_json_says(campaign: Callable[..., Path]) -> None:
    rows = rows_of("sac", "Ant-v5", 0, 1, 2, 3) + rows_of("sac", "Ant-v5", 1, 1) + rows_of("sac", "Ant-v5", 2, 1, 2, 3)
    key = {"variant": "sac", "environment": "Ant-v5"}
    told = [
        key | {"seed": 0, "status": "finished", "made_with": [0]},
        key | {"seed": 1, "status": "partial", "made_with": [0]},
        key | {"seed": 2, "status": "failed", "made_with": [0, 1]},
        key | {"seed": 3, "status": "failed", "made_with": []},
    ]
    made_with = [{"machine": "one"}, {"machine": "another"}]
    path = campaign(rows, steps=300, runs=told, made_with=made_with)
    runs = by_name(read([str(path.parent)]))
    assert {name: run.finished for name, run in runs.items()} == {
        "sac, Ant-v5, seed 0": True,
        "sac, Ant-v5, seed 1": False,
        "sac, Ant-v5, seed 2": False,
        "sac, Ant-v5, seed 3": False,
    }
    assert runs["sac, Ant-v5, seed 0"].final("deterministic_return") == 3
    assert runs["sac, Ant-v5, seed 2"].machines == ("one", "another")
    problems = Comparison(list(runs.values()), ["deterministic_return"], None).problems()
    assert problems == [
        "Unfinished and left out: sac, Ant-v5, seed 1 (100 of 300 steps); sac, Ant-v5, seed 2 (300 of 300 steps, failed); "
        "sac, Ant-v5, seed 3 (0 of 300 steps, failed).",
        "One seed, so no interval: Ant-v5: sac.",
        "Hours are those of different machines: one; another.",
    ]


def test_of_many_runs_left_out_some_are_named() -> None:
    assert listed(["a", "b"]) == "a; b"
    assert listed("abcde") == "a; b; c; d; e"
    assert listed("abcdefg") == "a; b; c; d; e; and 2 more"


def test_without_a_json_a_run_is_as_long_as_the_longest_of_its_variant(campaign: Callable[..., Path]) -> None:
    rows = rows_of("a", "E", 0, 1, 2, 3) + rows_of("a", "E", 1, 1) + rows_of("b", "E", 0, 1)
    rows += rows_of("c", "E", 0, 1, 2, 3, every=90)
    assert [run.finished for run in read([str(campaign(rows))])] == [True, False, True, True]


def test_steps_compares_runs_as_if_they_had_ended_there(campaign: Callable[..., Path], capsys: Any, tmp_path: Path) -> None:
    rows = rows_of("a", "E", 0, 1, 2, 3) + rows_of("a", "E", 1, 5, 6) + rows_of("b", "E", 0, 9, every=250)
    report([str(campaign(rows)), "--steps", "200", "--pictures", "--out", str(tmp_path / "r")])
    out, err = capsys.readouterr()
    assert "| E | a | 2 | 200 | 4.00 [2.00, 6.00] |" in out
    assert "b, E, seed 0: no evaluation up to step 200, left out" in err


def test_a_variant_that_trained_for_less_is_named(campaign: Callable[..., Path]) -> None:
    rows = rows_of("a", "E", 0, 1, 2, 3) + rows_of("b", "E", 0, 1)
    comparison = Comparison(read([str(campaign(rows))]), ["deterministic_return"], "a")
    assert "E: runs of b are shorter than 300 steps; --steps compares alike." in comparison.problems()


def test_a_label_names_what_a_path_holds(campaign: Callable[..., Path]) -> None:
    one, two = rows_of("sac", "E", 0, 1), rows_of("sac", "E", 0, 2) + rows_of("ppo", "E", 0, 3)
    paths = campaign(one, "one"), campaign(two, "two")
    runs = read([f"old={paths[0]}", f"new={paths[1]}"])
    assert [run.variant for run in runs] == ["old", "new sac", "new ppo"]
    with pytest.raises(ValueError, match=r"sac, E, seed 0 is in .*one.csv and in .*two.csv; LABEL=PATH"):
        read([str(path) for path in paths])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a table"),
        ("variant,environment\na,E\n", r"has no column \['seed', 'timesteps'\]"),
        ("variant,environment,seed,timesteps\n", "holds no evaluation"),
        ("variant,environment,seed,timesteps,x\na,E,0,10,1\na,E,0,20,bad\n", r"line 3: x=bad is not a number"),
        ("variant,environment,seed,timesteps,x\na,E,,10,1\n", "line 2: seed=nan is not a number"),
        ("variant,environment,seed,timesteps,x\n,E,0,10,1\n", "line 2: variant is empty"),
        ("variant,environment,seed,timesteps,x\na,E,0,10,1\na,E,0,10,2\n", "two evaluations of a, E, seed 0 at the same"),
    ],
)
def test_a_table_that_is_not_a_campaigns_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"broken\.csv.*{message}"):
        read([str(path)])


def test_a_source_without_runs_is_refused_by_name(tmp_path: Path, campaign: Callable[..., Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds neither results\.csv nor any evaluations\.npz"):
        read([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="does not exist"):
        read([str(tmp_path / "nowhere")])
    np.savez(tmp_path / "empty" / "evaluations.npz", timesteps=[1])
    with pytest.raises(ValueError, match="is not what EvalCallback writes"):
        read([str(tmp_path / "empty")])
    path = campaign(rows_of("a", "E", 0, 1))
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match="is not a campaign's JSON"):
        read([str(path)])


def test_folders_of_rl_zoo3_are_read_with_environment_seed_and_seconds(tmp_path: Path) -> None:
    options = "--algo ppo --env Pendulum-v1 -n 400 --eval-freq 200 --eval-episodes 2 --n-eval-envs 1 --seed 7 -f logs".split()
    parameters = ["n_envs:1", "n_steps:100", "batch_size:50", "n_epochs:1", "use_sde:False"]
    command = [sys.executable, "-m", "sb3_diffusion.train", *options, "-params", *parameters]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (run,) = read([str(tmp_path / "logs")])
    assert run.name == "ppo, Pendulum-v1, seed 7" and run.finished and run.planned_steps == 400
    with np.load(tmp_path / "logs" / "ppo" / "Pendulum-v1_1" / "evaluations.npz") as written:
        assert run.curve("deterministic_return")[1] == pytest.approx(written["results"].mean(axis=1))
        assert run.curve("deterministic_return")[0].tolist() == written["timesteps"].tolist() == [200, 400]
    seconds = run.evaluations["seconds"]
    assert 0 < seconds[0] < seconds[1] < 60
    (alone,) = read([f"mine={tmp_path / 'logs' / 'ppo' / 'Pendulum-v1_1'}"])
    assert alone.variant == "mine"


def test_evaluations_without_rl_zoo3s_other_files_take_their_names_from_the_folders(tmp_path: Path) -> None:
    for attempt in (1, 2):
        folder = tmp_path / "tqc" / f"My_Env-v0_{attempt}"
        folder.mkdir(parents=True)
        np.savez(folder / "evaluations.npz", timesteps=[10, 20], results=[[1, 3], [5, 7]], ep_lengths=[[2, 2], [4, 6]])
    runs = read([str(tmp_path)])
    assert [run.name for run in runs] == ["tqc, My_Env-v0, seed 1", "tqc, My_Env-v0, seed 2"]
    assert runs[0].evaluations["deterministic_length"].tolist() == [2, 5]
    assert runs[0].evaluations["seconds"].isna().all()


def two_variants(n_seeds: int = 5) -> Rows:
    """``new`` is above ``old`` on HalfCheetah and like it on Hopper."""
    rng = np.random.default_rng(4)
    rows: Rows = []
    for environment, gain in {"HalfCheetah-v5": 2000.0, "Hopper-v5": 0.0}.items():
        for variant in ("old", "new"):
            for seed in range(n_seeds):
                final = 3000 + (gain if variant == "new" else 0) + 200 * rng.normal()
                rows += rows_of(variant, environment, seed, final / 2, final, sampled_return=0.9 * final)
    return rows


def test_the_table_holds_what_the_statistics_find_and_marks_what_differs(campaign: Callable[..., Path]) -> None:
    runs = read([str(campaign(two_variants()))])
    text = table(Comparison(runs, ["deterministic_return"], "old"))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "environment", "variant", "seeds", "steps", "deterministic return", "minus old", "P(above old)", "hours",
    ]  # fmt: skip
    titles = [("HalfCheetah-v5", ""), ("Hopper-v5", ""), ("2 tasks, TD3-normalised", "")]
    rows = [[title, variant] for pair in titles for title, variant in zip(pair, ("old", "new"), strict=True)]
    assert [line[:2] for line in lines[2:]] == rows
    finals = {
        variant: np.array([run.final("deterministic_return") for run in runs if (run.variant, run.environment[:4]) == variant])
        for variant in (("old", "Half"), ("new", "Half"), ("old", "Hopp"), ("new", "Hopp"))
    }
    value, low, high = estimate(interquartile_mean, [finals["new", "Half"]])
    assert lines[3][4] == f"{value:.0f} [{low:.0f}, {high:.0f}]"
    value, low, high = estimate(difference, [finals["new", "Half"], finals["old", "Half"]])
    assert low > 0 and lines[3][5:] == [f"**{value:+.0f}** [{low:+.0f}, {high:+.0f}]", "**1.00** [1.00, 1.00]", "0.02"]
    assert not lines[5][5].startswith("**") and not lines[5][6].startswith("**")
    scores = [(finals["new", "Half"] + 289.415) / (10574 + 289.415), (finals["new", "Hopp"] - 18.791) / (3226 - 18.791)]
    value, low, high = estimate(interquartile_mean, scores)
    assert lines[7][4] == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    assert "All: seeds 0–4." in text and "too short" not in text


def test_seeds_with_many_digits_are_counted(campaign: Callable[..., Path]) -> None:
    rows = [row for seed in range(5) for row in rows_of("a", "E", 10**9 + 7 * seed, 1)] + rows_of("b", "E", 10**9, 1)
    comparison = Comparison(read([str(campaign(rows))]), ["deterministic_return"], "a")
    assert (comparison.seeds("a"), comparison.seeds("b")) == ("5 seeds", "seed 1000000000")


def test_the_table_says_where_there_is_no_interval_and_no_mean_over_tasks(campaign: Callable[..., Path]) -> None:
    rows = rows_of("a", "Pendulum-v1", 0, 1, x=np.nan) + rows_of("a", "Acrobot-v1", 0, 1, x=2.0)
    rows += rows_of("b", "Acrobot-v1", 0, 3, x=5.0) + rows_of("b", "Acrobot-v1", 1, 3, x=5.0)
    rows += rows_of("b", "Acrobot-v1", 2, 3, x=np.nan)
    runs = read([str(campaign(rows))])
    text = table(Comparison(runs, ["x"], "a"))
    assert "|  | b | 3 | 100 | 5.00 [5.00, 5.00] | +3.00 | 1.00 |" in text
    assert "| Pendulum-v1 | a | 1 | 100 | – | – | – |" in text
    assert "* No x on Pendulum-v1." in text
    assert "* No x at the last evaluation, left out: b, Acrobot-v1, seed 2." in text
    assert "* One seed, so no interval: Pendulum-v1: a; Acrobot-v1: a." in text
    assert "* x: no mean over tasks, for lack of a normalisation (--score gives one)." in text
    assert "With fewer than 5 seeds such intervals are too short" in text
    own = {"Pendulum-v1": (-1500.0, -150.0), "Acrobot-v1": (0.0, 10.0)}
    text = table(Comparison(runs, ["deterministic_return"], "a", own))
    assert "| 2 tasks, own-normalised | a |" in text
    assert "* deterministic return over tasks is without b: no finished run on Pendulum-v1." in text


def test_the_pictures_draw_what_the_table_says(campaign: Callable[..., Path]) -> None:
    comparison = Comparison(read([str(campaign(two_variants()))]), ["deterministic_return", "sampled_return"], "old")
    drawn = pictures.draw(comparison)
    assert list(drawn) == ["curves", "wall_clock", "improvement", "profile", "runs"]
    curves = drawn["curves"].axes
    assert [axes.get_title() for axes in curves[::2]] == ["HalfCheetah-v5", "Hopper-v5", "2 tasks, TD3-normalised"]
    found = comparison.value("new", ["HalfCheetah-v5"], "deterministic_return")
    assert found is not None
    line, band = curves[0].lines[1], curves[0].collections[1]
    assert line.get_xdata().tolist() == [100, 200] and line.get_ydata()[-1] == pytest.approx(found.value)
    at_end = band.get_paths()[0].vertices
    assert at_end[at_end[:, 0] == 200][:, 1].min() == pytest.approx(found.low)
    assert at_end[at_end[:, 0] == 200][:, 1].max() == pytest.approx(found.high)
    assert curves[0].get_xlabel() == "environment steps" and curves[0].get_ylabel() == "deterministic return of an episode"
    assert pictures.quantity("goals", "MultiGoal2D-v0") == "goals reached, of 4"
    assert pictures.quantity("goals", "Mine-v0") == "goals", "a user's column of that name"
    assert drawn["wall_clock"].axes[0].lines[0].get_xdata() == pytest.approx([0.01, 0.02])
    legend = [text.get_text() for text in drawn["curves"].legends[0].get_texts()]
    assert legend == ["old (seeds 0–4)", "new (seeds 0–4)"]
    assert "95 % stratified bootstrap interval" in drawn["curves"].get_suptitle()


def test_every_run_is_a_point_beside_its_variants_mean(campaign: Callable[..., Path]) -> None:
    comparison = Comparison(read([str(campaign(two_variants()))]), ["deterministic_return"], "old")
    figure = pictures.runs(comparison)
    assert figure is not None and [axes.get_title() for axes in figure.axes] == ["HalfCheetah-v5", "Hopper-v5"]
    bar, mean, points = figure.axes[1].lines[3:]
    finals = comparison.finals("new", "Hopper-v5", "deterministic_return")
    assert points.get_xdata() == pytest.approx(finals) and points.get_ydata().tolist() == [1] * len(finals)
    found = comparison.value("new", ["Hopper-v5"], "deterministic_return")
    assert found is not None and mean.get_xdata() == pytest.approx([found.value])
    assert bar.get_xdata() == pytest.approx([found.low, found.high])


def test_pictures_call_algorithms_by_their_names() -> None:
    names = ["sac", "diffsac-fullchain", "diffsac-learning-rate-1e-3", "diffppo-zero-temperature", "mine", "half-baked"]
    expected = ["SAC", "DiffSAC, full chain", "DiffSAC, learning rate 1e-3", "DiffPPO, zero temperature", "mine", "half-baked"]
    assert list(map(readable, names)) == expected


def test_unfinished_runs_are_drawn_dotted_and_said_to_be(campaign: Callable[..., Path]) -> None:
    rows = rows_of("a", "E", 0, 1, 2, 3) + rows_of("a", "E", 1, 7, 8)
    figure = pictures.curves(Comparison(read([str(campaign(rows))]), ["deterministic_return"], None))
    assert figure is not None
    dotted, line = figure.axes[0].lines
    assert dotted.get_linestyle() == ":" and dotted.get_ydata().tolist() == [7, 8]
    assert line.get_ydata().tolist() == [1, 2, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a (seed 0, no interval)", "unfinished run"]


def test_nothing_is_drawn_of_which_there_is_nothing(campaign: Callable[..., Path]) -> None:
    rows = rows_of("a", "E", 0, 1) + rows_of("a", "E", 1, 2)
    assert list(pictures.draw(Comparison(read([str(campaign(rows))]), ["deterministic_return"], None))) == ["profile", "runs"]
    told = [{"variant": "a", "environment": "E", "seed": seed, "status": "partial", "made_with": []} for seed in (0, 1)]
    unfinished = read([str(campaign(rows, steps=500, made_with=[], runs=told))])
    assert not pictures.draw(Comparison(unfinished, ["deterministic_return"], None))


def test_the_command_leaves_a_table_and_pictures_and_says_on_stderr_what_is_missing(
    campaign: Callable[..., Path], tmp_path: Path
) -> None:
    path = campaign(two_variants() + rows_of("old", "Hopper-v5", 9, 1))
    command = [sys.executable, "-m", "sb3_diffusion.report", str(path), "--baseline", "new", "--out", "made/learning"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    made = tmp_path / "made"
    names = ["learning.md", *(f"learning_{name}.png" for name in ("curves", "improvement", "profile", "runs", "wall_clock"))]
    assert sorted(file.name for file in made.iterdir()) == names
    assert finished.stdout.startswith((made / "learning.md").read_text())
    assert "Unfinished and left out: old, Hopper-v5, seed 9 (100 of 200 steps)" in finished.stderr
    assert all((made / name).stat().st_size > 10_000 for name in names[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "reward"], "metric='reward' is unknown; allowed: ('deterministic_return', 'seconds', 'sampled_return')"),
        (["--baseline", "sac"], "baseline='sac' is unknown; allowed: ('old', 'new')"),
        (["--variants", "new", "sac"], "variant='sac' is unknown"),
        (["--environments", "Ant-v5"], "environment='Ant-v5' is unknown"),
        (["--steps", "0"], "steps=0 must be an integer >= 1"),
        (["--steps", "99"], "no run is left to report on"),
        (["--score", "Hopper-v5", "1", "one"], "score of Hopper-v5=['1', 'one'] must be two different finite numbers"),
        (["--score", "Hopper-v5", "1", "1"], "score of Hopper-v5=['1', '1'] must be two different finite numbers"),
        (["--score", "Ant-v5", "0", "1"], "score='Ant-v5' is unknown"),
        (["--out", "results.csv/x"], "results.csv"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_by_name(
    options: list[str],
    message: str,
    campaign: Callable[..., Path],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = campaign(two_variants(2))
    with pytest.raises(SystemExit) as refused:
        report([str(path), *options])
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.md"))
