"""``python -m sb3_diffusion.campaign``: its file, its options, its results."""

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import campaigns_for_tests as small
import numpy as np
import pytest
import rl_zoo3
import yaml
from rich.console import Console

from sb3_diffusion.demonstrations import Demonstrations
from sb3_diffusion.experiments import command, live, plan
from sb3_diffusion.experiments.command import campaign_command, main
from sb3_diffusion.experiments.engines import LocalEngine, Outcome, outcome_of
from sb3_diffusion.experiments.folders import FAILURE, PROGRESS, locked, state_of, write_json
from sb3_diffusion.experiments.plan import CampaignError, Run, read_campaign, tuned_settings
from sb3_diffusion.experiments.results import COLUMNS

SAC = {"algo": "sac", **small.OFF_POLICY}
PPO = {"algo": "ppo", "n_steps": 16, "batch_size": 16, "n_epochs": 1, **small.SMALL}
CONTENT: dict[str, Any] = {
    "environments": ["Short-v0"],
    "seeds": [0],
    "steps": 60,
    "evaluation": {"every": 30, "episodes": 2},
    "device": "cpu",
    "variants": {"sac": SAC, "ppo": PPO},
}


def written(folder: Path, content: Any) -> Path:
    """A file with this content."""
    file = folder / "campaign.yml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(deepcopy(content), sort_keys=False))
    return file


class ForkEngine:
    """One run after the other in copies of this process, which start at once."""

    def start(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    def ended(self, seconds: float) -> list[Outcome]:
        run = self.runs.pop(0)
        process = small.start(run)
        process.join()
        failed = process.exitcode != 0
        return [outcome_of(run, RuntimeError(f"exit code {process.exitcode}") if failed else None)]

    def stop(self) -> None:
        pass


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Campaigns that start at once."""
    monkeypatch.setattr(command, "engine_for", lambda *_: ForkEngine())


def with_(**changes: Any) -> dict[str, Any]:
    return CONTENT | changes


def variant(**changes: Any) -> dict[str, Any]:
    return with_(variants={"sac": SAC | changes})


WRONG: list[tuple[Any, list[str]]] = [
    ("a: [", ["is not YAML"]),
    ("steps: 3\nsteps: 4", ["'steps' is given twice"]),
    ([1], ["the campaign must be a mapping"]),
    ({key: value for key, value in CONTENT.items() if key != "seeds"}, ["'seeds' is missing"]),
    (with_(step=3), ["'step'", "did you mean 'steps'"]),
    (with_(environments=["HalfCheetah-v77"]), ["environments", "HalfCheetah-v77"]),
    (with_(environments=["Short-v0", "Short-v0"]), ["environments: Short-v0 is given twice"]),
    (with_(seeds=[1, 2, 1]), ["seeds: 1 is given twice"]),
    (with_(seeds=[-1]), ["seeds", "-1"]),
    (with_(seeds=[]), ["seeds", "at least one"]),
    (with_(steps="1e5"), ["steps", "'1e5'", "100_000"]),
    (with_(evaluation={"every": 0}), ["evaluation.every", "0"]),
    (with_(evaluation={"freq": 10}), ["evaluation", "'freq'", "every, episodes, metrics"]),
    (with_(evaluation={"metrics": ["campaigns_for_tests.nothing"]}), ["evaluation.metrics", "campaigns_for_tests.nothing"]),
    (with_(checkpoints={"every": 1.5}), ["checkpoints.every", "1.5"]),
    (with_(resources={"gpus": -1}), ["resources.gpus", "-1"]),
    (with_(resources={"cores": 1}), ["resources", "'cores'"]),
    (with_(gym_packages=["no_such_package"]), ["gym_packages", "no_such_package"]),
    (with_(device="gpu"), ["device", "'gpu'"]),
    (with_(variants={}), ["variants"]),
    (with_(variants={"a/b": SAC}), ["'a/b'", "letters"]),
    (with_(variants={"sac": 3}), ["'sac'", "mapping", "3"]),
    (with_(variants={"sac": {"learning_starts": 3}}), ["'sac'", "no 'algo'"]),
    (variant(algo="diffsacc"), ["'sac'", "'diffsacc'", "did you mean 'diffsac'"]),
    (variant(learning_start=3), ["'sac'", "'learning_start'", "did you mean 'learning_starts'"]),
    (variant(learning_rate="1e-3"), ["'sac'", "learning_rate", "YAML takes 1e-3 for text"]),
    (variant(seed=3), ["'sac'", "'seed'"]),
    (variant(tuned="yes, please"), ["'sac'", "tuned"]),
    (variant(environments={"Hopper-v5": {}}), ["'sac'", "'Hopper-v5'", "Short-v0"]),
    (variant(environments={"Short-v0": {"gama": 1.0}}), ["'sac'", "'gama'", "did you mean 'gamma'"]),
    # Only found by building
    (variant(policy="MlpPolice"), ["'sac'", "MlpPolice"]),
    (variant(policy_kwargs={"net_arc": [8]}), ["'sac'", "net_arc"]),
    (variant(env_wrapper="no_such.Wrapper"), ["'sac'", "no_such"]),
    (variant(learning_rate="steep_3e-4x"), ["'sac'", "Short-v0"]),
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_what_is_wrong_in_the_file_is_named_before_anything_starts(content: Any, said: list[str], tmp_path: Path) -> None:
    file = written(tmp_path, content)
    with pytest.raises(CampaignError) as caught:
        campaign_command([str(file), "--out", str(tmp_path / "out")])
    assert all(part in str(caught.value) for part in said), caught.value
    assert not list(tmp_path.glob("out/**/log.txt"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "sacc"], ["--only", "'sacc'", "did you mean 'sac'"]),
        (["--part", "0/3"], ["--part", "'0/3'", "3/20"]),
        (["--part", "4/3"], ["--part", "'4/3'"]),
        (["--workers", "0"], ["--workers", "0"]),
        (["--out", "{folder}/campaign.yml"], ["--out", "is a file"]),
        (["--ray", "nowhere"], ["--ray", "'nowhere'", "host:port"]),
        (["--ray", "127.0.0.1:1"], ["--ray", "no cluster answers at 127.0.0.1:1"]),
        (["--ray", "127.0.0.1:1", "--workers", "2"], ["--workers", "resources"]),
    ],
)
def test_wrong_options_are_named_before_anything_starts(options: list[str], said: list[str], tmp_path: Path) -> None:
    if "--ray" in options:
        pytest.importorskip("ray")
    file = written(tmp_path, CONTENT)
    options = [option.format(folder=tmp_path) for option in options]
    with pytest.raises(CampaignError) as caught:
        campaign_command([str(file), "--out", str(tmp_path / "out"), *options])
    assert all(part in str(caught.value) for part in said), caught.value
    assert not list(tmp_path.glob("out/**/log.txt"))


def test_an_unwritable_folder_and_an_absent_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, CONTENT)
    with pytest.raises(CampaignError, match=r"nothing\.yml cannot be read"):
        campaign_command([str(tmp_path / "nothing.yml")])
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may write everywhere
    with pytest.raises(CampaignError, match=f"--out: .*no permission for {tmp_path}"):
        campaign_command([str(file), "--out", str(tmp_path / "some" / "where")])


def test_the_command_exits_with_2_and_one_line_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["campaign", str(tmp_path / "nothing.yml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_settings_come_from_the_tuned_entry_the_default_the_variant_and_its_environment(tmp_path: Path) -> None:
    text = """
    environments: [Hopper-v5, Pendulum-v1]
    seeds: [0, 1]
    steps: 1_000
    default: &shared {learning_starts: 7}
    variants:
      plain: &plain {algo: sac, learning_rate: lin_3e-4}
      again: {<<: *plain, gamma: 0.9}
      tuned: {algo: sac, tuned: true, environments: {Hopper-v5: {learning_starts: 8, tau: 0.5}}}
    """
    campaign = read_campaign(written(tmp_path, text), tmp_path)
    settings = {(run.variant, run.environment): run.settings for run in campaign.runs}
    shared = {"policy": "MlpPolicy", "learning_starts": 7}
    assert settings["plain", "Hopper-v5"] == shared | {"learning_rate": "lin_3e-4"}
    assert settings["again", "Hopper-v5"] == shared | {"learning_rate": "lin_3e-4", "gamma": 0.9}
    entries = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "sac.yml").read_text())
    of_hopper, of_pendulum = entries["Hopper-v4"], entries["Pendulum-v1"]
    del of_hopper["n_timesteps"], of_pendulum["n_timesteps"]
    assert settings["tuned", "Hopper-v5"] == of_hopper | {"learning_starts": 8, "tau": 0.5}
    assert settings["tuned", "Pendulum-v1"] == of_pendulum | {"learning_starts": 7}
    assert [run.seed for run in campaign.runs] == [0] * 6 + [
        1
    ] * 6, "every variant has its first seed before any has its second"


def test_a_tuned_entry_is_that_of_the_version_an_earlier_one_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned_settings("diffsac", "HalfCheetah-v5")["learning_starts"] == 10_000
    assert tuned_settings("diffsac", "Short-v0") == {"n_timesteps": 1_000_000, "policy": "MlpPolicy"}
    monkeypatch.setattr(plan, "hyperparameter_file", lambda _: written(tmp_path, {"Hopper-v5": {"gamma": 0.5}}))
    with pytest.raises(CampaignError, match=r"campaign\.yml has no entry for Hopper-v4"):
        tuned_settings("diffsac", "Hopper-v4")


def test_a_campaign_leaves_one_table_and_one_description(forking: None, tmp_path: Path) -> None:
    fails = PPO | {"callback": {"campaigns_for_tests.StopsAt": {"calls": 40}}}
    content = with_(seeds=[0, 1], variants={"fails": fails, "sac": SAC, "ppo": PPO})
    content["evaluation"] = CONTENT["evaluation"] | {"metrics": ["campaigns_for_tests.goal_distance"]}
    out = tmp_path / "out"
    status = campaign_command([str(written(tmp_path, content)), "--out", str(out)])
    assert status == 1, "a run failed"

    rows = list(csv.DictReader((out / "results.csv").open()))
    assert list(rows[0]) == [*COLUMNS, "mean_action", "first_observation"]
    assert [(row["variant"], row["seed"], row["timesteps"]) for row in rows] == [
        ("fails", "0", "30"),
        ("fails", "1", "30"),
        *[(name, seed, steps) for name in ("sac", "ppo") for seed in ("0", "1") for steps in ("30", "60")],
    ]
    assert all(float(row["deterministic_length"]) == float(row["sampled_length"]) == 10 for row in rows)
    assert all(float(row["seconds"]) > 0 and float(row["deterministic_return"]) < 0 for row in rows)
    assert {row["variant"] for row in rows if row["path_entropy"]} == {"sac"}
    assert {row["ent_coef"] for row in rows if row["variant"] == "ppo"} == {"0"}
    assert all(0 < float(row["ent_coef"]) < 1.01 for row in rows if row["variant"] == "sac")

    report = json.loads((out / "results.json").read_text())
    assert report["variants"]["ppo"]["Short-v0"] == {"algo": "ppo", "settings": {"policy": "MlpPolicy"} | without(PPO, "algo")}
    assert report["steps"] == 60 and report["evaluation"]["every"] == 30 and report["checkpoints"] == {"every": 6}
    assert report["made_with"][0].keys() == {"commit", "machine", "versions"}
    statuses = [(run["variant"], run["status"]) for run in report["runs"]]
    assert statuses == [("fails", "failed")] * 2 + [("sac", "finished")] * 2 + [("ppo", "finished")] * 2
    assert "RuntimeError: failed at call 40" in report["runs"][0]["traceback"]
    assert "traceback" not in report["runs"][2]
    assert sorted(path.name for path in (out / "runs" / "ppo" / "Short-v0" / "0").iterdir()) == [
        "holder.json",
        "lock",
        "log.txt",
        "model.zip",
        "progress.json",
        "result.json",
        "settings.json",
    ]


def without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def test_the_same_command_again_does_only_what_is_missing(
    forking: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, CONTENT), tmp_path / "out"
    assert campaign_command([str(file), "--out", str(out), "--only", "ppo"]) == 0
    table = (out / "results.csv").read_text()
    assert "1 of 1 runs finished" in capsys.readouterr().out
    assert campaign_command([str(file), "--out", str(out), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 60 environment steps to do" in shown and "100%" in shown
    assert not (out / "runs" / "sac").exists(), "a dry run leaves nothing"
    assert campaign_command([str(file), "--out", str(out), "--part", "2/2"]) == 0, "the second part is that of ppo"
    assert (out / "results.csv").read_text() == table
    assert campaign_command([str(file), "--out", str(out)]) == 0
    assert "1 of 1 runs finished" in capsys.readouterr().out
    assert table.splitlines()[1] in (out / "results.csv").read_text().splitlines()
    content = with_(variants=CONTENT["variants"] | {"more": PPO})
    assert campaign_command([str(written(tmp_path, content)), "--out", str(out)]) == 0, "variants may be added"


def test_changed_settings_under_an_old_name_are_refused_with_the_difference(forking: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert campaign_command([str(written(tmp_path, CONTENT)), "--out", str(out), "--only", "ppo"]) == 0
    changed = with_(variants={"ppo": PPO | {"n_epochs": 2, "gamma": 0.9}}, steps=61)
    with pytest.raises(CampaignError) as caught:
        campaign_command([str(written(tmp_path, changed)), "--out", str(out)])
    said = str(caught.value)
    assert "settings.n_epochs was 1 and is 2" in said and "settings.gamma was 'not given' and is 0.9" in said
    assert "steps was 60 and is 61" in said and "batch_size" not in said


def test_a_second_process_is_refused_by_the_name_of_the_run(forking: None, tmp_path: Path) -> None:
    file, out = written(tmp_path, CONTENT), tmp_path / "out"
    run = read_campaign(file, out).runs[1]
    with locked(run):
        with pytest.raises(CampaignError, match=f"ppo Short-v0 seed 0 is being written by process {os.getpid()} on"):
            campaign_command([str(file), "--out", str(out)])
        assert campaign_command([str(file), "--out", str(out), "--only", "sac"]) == 0, "others can be done meanwhile"
    assert state_of(run).status == "new"


def test_a_failed_run_is_tried_again_from_its_checkpoint(forking: None, tmp_path: Path) -> None:
    fails = PPO | {"callback": {"campaigns_for_tests.StopsAt": {"calls": 40}}}
    file = written(tmp_path, with_(variants={"fails": fails}, checkpoints={"every": 16}))
    arguments = [str(file), "--out", str(tmp_path / "out")]
    assert campaign_command(arguments) == 1
    run = read_campaign(file, tmp_path / "out").runs[0]
    assert state_of(run).timesteps == 32
    assert campaign_command(arguments) == 1
    assert [part["from"] for part in state_of(run).parts] == [0, 32]


@pytest.mark.parametrize(
    ("env_id", "columns"),
    [
        ("TurningDoubleWell-v0", ["smallest_share", "mean_reward", "deterministic_reward"]),
        ("TurningGMM-v0", ["divergence", "worst_divergence", "mean_reward"]),
        ("MultiGoal2D-v0", ["goals", "entropy", "mean_return", *(f"share_{i}" for i in range(4))]),
    ],
)
def test_metrics_of_the_multimodal_environments_become_columns(
    env_id: str, columns: list[str], forking: None, tmp_path: Path
) -> None:
    evaluation = {"every": 32, "episodes": 1, "metrics": ["sb3_diffusion.experiments.metrics.mode_coverage"]}
    content = with_(environments=[env_id], variants={"ppo": PPO}, steps=32, evaluation=evaluation)
    assert campaign_command([str(written(tmp_path, content)), "--out", str(tmp_path / "out")]) == 0
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert list(row) == [*COLUMNS, *columns]
    assert all(np.isfinite(float(row[name])) for name in columns)


def test_on_a_terminal_each_running_run_has_a_line_and_so_has_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = read_campaign(written(tmp_path, CONTENT), tmp_path / "out").runs
    screen = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda **_: Console(file=screen, force_terminal=True, width=150))
    display = live.Display(runs, done=3)
    row = {"deterministic_return": -12.5, "sampled_return": -20.0}
    for number, run in enumerate(runs):
        progress = {"timesteps": 30, "seconds": 2.0, "rows": [row], "parts": [{"from": 0}]}
        write_json(Path(run.folder) / PROGRESS, progress)
        assert not display.refresh(), "the first look finds old evaluations"
        os.utime(Path(run.folder) / PROGRESS, (display.began + 9 + number,) * 2)
    write_json(Path(run.folder) / PROGRESS, progress | {"timesteps": 45, "seconds": 3.0, "rows": [row, row]})
    assert display.refresh()
    assert display.progress is not None
    display.progress.refresh()
    display.ended(Outcome(runs[0]))
    display.close()
    shown = screen.getvalue()
    assert "sac Short-v0 seed 0" in shown and "ppo Short-v0 seed 0" in shown and "15 steps/s" in shown
    assert "return -12.5, sampled -20" in shown and "3 of 5 runs" in shown and "4 of 5 runs" in shown
    assert "105/120" in shown.replace(" ", ""), "60 of the run that is done and 45 of the other"


def test_a_process_that_dies_takes_nothing_else_along(tmp_path: Path) -> None:
    """The engine itself, with processes from nothing."""
    kills = {"callback": {"campaigns_for_tests.KillsItself": {"calls": 40}}}
    content = with_(variants={"dies": PPO | kills, "ppo": PPO}, gym_packages=["campaigns_for_tests"], steps=48)
    campaign = read_campaign(written(tmp_path, content), tmp_path / "out")
    engine = LocalEngine(2)
    engine.start(campaign.runs)
    outcomes: dict[str, str] = {}
    try:
        while len(outcomes) < 2:
            outcomes |= {outcome.run.variant: outcome.error for outcome in engine.ended(60.0)}
    finally:
        engine.stop()
    assert outcomes["ppo"] == "" and "TerminatedWorkerError" in outcomes["dies"]
    assert (Path(campaign.runs[0].folder) / "log.txt").read_text() == "it ends here\n"
    states = {run.variant: state_of(run) for run in campaign.runs}
    assert states["ppo"].status == "finished"
    assert states["dies"].status == "failed" and "without a traceback" in states["dies"].traceback
    assert "SIGKILL" in states["dies"].traceback


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_of_runs_end_with_the_command_however_that_ends(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = with_(steps=1_000_000, gym_packages=["campaigns_for_tests"], checkpoints={"every": 32}, variants={"ppo": PPO})
    file, out = written(tmp_path, content), tmp_path / "out"
    run = read_campaign(file, out).runs[0]
    monkeypatch.setattr(sys, "argv", ["campaign", str(file), "--out", str(out)])
    process = small.forked.Process(target=main)
    process.start()
    small.wait_until(lambda: state_of(run).timesteps > 0)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60.0)
    assert process.exitcode == (130 if number == signal.SIGTERM else -number)
    with locked(run, seconds_to_wait=20.0):  # which waits for the end of the run's process
        pass
    assert state_of(run).status == "partial" and not (Path(run.folder) / FAILURE).exists()
    assert (out / "results.csv").exists() == (number == signal.SIGTERM), "one can see how far it is"


def test_an_evaluation_at_the_start_judges_a_policy_that_a_callback_has_pretrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    Demonstrations.from_policy(lambda observation: np.full(1, 0.3), "Short-v0", 4, seed=0).to_minari("thirds-v0")
    pretrain = {"sb3_diffusion.demonstrations.PretrainCallback": {"demonstrations": "thirds-v0", "n_epochs": 30}}
    variants: dict[str, Any] = {name: {"algo": "diffsac", **small.OFF_POLICY} for name in ("scratch", "pretrained")}
    variants["pretrained"]["callback"] = pretrain
    metric = ["campaigns_for_tests.goal_distance"]
    evaluation = {"every": 50, "episodes": 2, "at_start": True, "metrics": metric}
    runs = small.campaign(tmp_path, variants, evaluation=evaluation, checkpoints={"every": 50}).runs
    rows = {run.variant: small.measured(small.finish(run)) for run in runs}
    for of_variant in rows.values():
        assert [row["timesteps"] for row in of_variant] == [1, 50, 100, 120]
    assert abs(rows["pretrained"][0]["mean_action"] - 0.3) < 0.1 < abs(rows["scratch"][0]["mean_action"] - 0.3)


def test_the_evaluation_at_the_start_is_asked_for_by_true_and_unasked_for_changes_no_old_run(tmp_path: Path) -> None:
    variants = {"one": {"algo": "diffsac"}}
    (run,) = small.campaign(tmp_path, variants).runs
    assert run.identity["evaluation"] == {"every": 50, "episodes": 2, "metrics": []}
    with pytest.raises(CampaignError, match=r"evaluation.at_start must be true or false; given: 'yes please'"):
        small.campaign(tmp_path, variants, evaluation={"at_start": "yes please"})
