"""The commands that make tables and pictures: campaigns of benchmarks and examples, cost, modes, and what they are made of."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rl_zoo3
import torch as th
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_diffusion import DiffPPO, DiffSAC, DiffusionSACPolicy, DiffWPO
from sb3_diffusion.demonstrations import Demonstrations
from sb3_diffusion.envs import BoltzmannBandit
from sb3_diffusion.evaluation import plot_fidelity
from sb3_diffusion.experiments.annealing import Annealing
from sb3_diffusion.experiments.command import campaign_command, check_buildable
from sb3_diffusion.experiments.metrics import mode_coverage, update_size
from sb3_diffusion.experiments.plan import campaign_of, read_campaign
from sb3_diffusion.experiments.reading import read
from sb3_diffusion.experiments.reporting import report
from sb3_diffusion.zoo import register

ROOT = Path(__file__).parents[1]
CAMPAIGNS = sorted([*(ROOT / "benchmarks" / "campaigns").glob("*.yml"), *(ROOT / "examples").glob("*.yml")])
NOT_OF_CAMPAIGNS = (
    "latency",
    "cost_",
    "diffusion_value",
    "bound_tightness",
    "two_ways_round",
    "own_states",
    "soak",
    "fidelity_exact",
)
TABLES = [
    path
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder / "results").glob("*.csv"))
    if not path.name.startswith(NOT_OF_CAMPAIGNS)
]
NETWORK: dict[str, Any] = {"net_arch": [8]}


def script(name: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module."""
    monkeypatch.syspath_prepend(ROOT / folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("file", CAMPAIGNS, ids=lambda file: file.stem)
def test_every_campaign_can_be_started(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    if "half-good/" in file.read_text():
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        for env_id in ("HalfCheetah-v5", "Walker2d-v5"):
            demonstrations = Demonstrations.from_policy(lambda observation: np.zeros(6), env_id, 1, seed=0)
            demonstrations.to_minari(f"half-good/{env_id.lower()}")
    content = yaml.safe_load(file.read_text())
    algorithms = {(content.get("default", {}) | variant)["algo"] for variant in content["variants"].values()}
    if unknown := algorithms - rl_zoo3.ALGOS.keys():
        pytest.skip(f"for algorithms that are not there: {unknown}")
    check_buildable(read_campaign(file, tmp_path).runs)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_kept_table_is_a_campaigns_and_has_its_json(path: Path) -> None:
    runs = read([str(path)])
    content = json.loads(path.with_suffix(".json").read_text())
    assert {(run.variant, run.environment, run.seed) for run in runs} == {
        (run["variant"], run["environment"], run["seed"]) for run in content["runs"]
    }
    for run in content["runs"]:
        assert run["environment"] in content["variants"][run["variant"]]
        assert all(content["made_with"][number]["commit"] for number in run["made_with"])


def test_the_repository_keeps_no_more_than_ninety_result_files() -> None:
    files = [
        path for folder in ("benchmarks", "examples") for path in (ROOT / folder / "results").rglob("*") if path.is_file()
    ]
    assert len(files) <= 90


def build(algorithm: str, env_id: str) -> Any:
    env = make_vec_env(env_id, seed=0)
    common: dict[str, Any] = {"policy_kwargs": dict(NETWORK), "seed": 0, "device": "cpu"}
    if algorithm in ("PPO", "DiffPPO"):
        return {"PPO": PPO, "DiffPPO": DiffPPO}[algorithm]("MlpPolicy", env, n_steps=32, batch_size=16, **common).learn(64)
    policy: Any = DiffusionSACPolicy if algorithm == "full chain" else "MlpPolicy"
    classes = {"SAC": SAC, "full chain": SAC, "DiffSAC": DiffSAC, "DiffWPO": DiffWPO}
    return classes[algorithm](policy, env, learning_starts=8, batch_size=8, ent_coef=1.0, **common).learn(16)


@pytest.mark.parametrize(
    ("env_id", "algorithm", "names"),
    [
        ("BimodalBandit-v0", "DiffSAC", "total_variation share_positive mean_reward deterministic_reward bound_gap"),
        ("BimodalBandit-v0", "DiffPPO", "total_variation share_positive mean_reward deterministic_reward"),
        ("MultiGoal2D-v0", "full chain", "goals entropy mean_return share_0 share_1 share_2 share_3"),
        ("TurningDoubleWell-v0", "PPO", "smallest_share mean_reward deterministic_reward"),
        ("TurningGMM-v0", "SAC", "divergence worst_divergence mean_reward"),
        ("Pendulum-v1", "DiffWPO", ""),
    ],
)
def test_a_campaign_measures_how_many_modes_a_policy_keeps(env_id: str, algorithm: str, names: str) -> None:
    model = build(algorithm, env_id)
    found = mode_coverage(model, model.get_env())
    assert " ".join(found) == names
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
    if "bound_gap" in found:  # the entropy of the actions is at least that of the path, but for the histogram's error
        assert found["bound_gap"] > -0.01
    if "entropy" in found:
        assert 0 <= found["entropy"] <= 1 and 0 <= sum(found[f"share_{i}"] for i in range(4)) <= 1


def test_the_size_of_an_update_is_what_was_logged() -> None:
    model = build("DiffPPO", "Pendulum-v1")
    found = update_size(model, model.get_env())
    assert found == {name: float(model.logger.name_to_value[f"train/{name}"]) for name in ("approx_kl", "clip_fraction")}
    off_policy = build("SAC", "Pendulum-v1")
    assert update_size(off_policy, off_policy.get_env()) == {}


def test_what_is_annealed_holds_falls_and_holds_again() -> None:
    linear = Annealing("learning_rate", 3e-3, 0.0, 0.5)
    assert [linear.value(progress) for progress in (1.0, 0.5, 0.25, 0.0)] == pytest.approx([3e-3, 3e-3, 1.5e-3, 0.0])
    geometric = Annealing("ent_coef", 16.0, 4.0, 0.25, 0.75, geometric=True)
    assert [geometric.value(progress) for progress in (1.0, 0.75, 0.5, 0.25, 0.0)] == pytest.approx([16, 16, 8, 4, 4])


@pytest.mark.parametrize("algorithm", ["SAC", "full chain", "DiffSAC", "DiffWPO", "DiffPPO"])
def test_temperature_and_learning_rate_of_every_algorithm_can_be_annealed(algorithm: str) -> None:
    model = build(algorithm, "Pendulum-v1")
    callbacks = [Annealing("ent_coef", 0.5, 0.1, geometric=True), Annealing("learning_rate", 1e-2, 1e-3)]
    model.learn(64, callback=callbacks)
    if algorithm == "DiffPPO":
        # At the second rollout of two, half of the training is left.
        assert model.rollout_buffer.ent_coef == pytest.approx(0.5 * 0.2**0.5)
    else:
        assert model.ent_coef_tensor.item() == pytest.approx(0.1)
    (group,) = (model.policy if algorithm == "DiffPPO" else model.actor).optimizer.param_groups
    assert group["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("algorithm", ["DiffSAC", "DiffWPO", "DiffPPO"])
def test_the_pull_to_a_reference_can_be_annealed(algorithm: str, tmp_path: Path) -> None:
    model = build(algorithm, "Pendulum-v1")
    model.set_reference(0.5)
    seen = []
    by_step = ConvertCallback(lambda *_: seen.append((model.num_timesteps, model.reference_kl_coef)) is None)
    model.learn(64, callback=[Annealing("reference_kl_coef", 0.5, 0.1), by_step])
    assert seen[-1] == (64, pytest.approx(0.1)) and len(seen) > 1
    assert [value for _, value in seen] == pytest.approx([0.5 - 0.4 * steps / 64 for steps, _ in seen])
    model.save(tmp_path / "model.zip")
    assert type(model).load(tmp_path / "model.zip").reference_kl_coef == pytest.approx(0.1)


def test_annealing_refuses_a_model_without_a_pull() -> None:
    message = r"what='reference_kl_coef': this DiffSAC has no pull to a reference; set one before, by PretrainCallback"
    with pytest.raises(ValueError, match=message):
        build("DiffSAC", "Pendulum-v1").learn(4, callback=Annealing("reference_kl_coef", 0.5, 0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": "gamma", "first": 1, "last": 0}, "what='gamma' is unknown; allowed: "),
        ({"what": "ent_coef", "first": -1, "last": 0}, "first=-1 must be a finite number >= 0"),
        ({"what": "ent_coef", "first": 1, "last": 0, "geometric": True}, "last=0 must be a finite number > 0"),
        ({"what": "ent_coef", "first": 1, "last": 0, "begin": 0.5, "end": 0.5}, r"end=0.5 must be a finite number > 0\.5 and"),
    ],
)
def test_annealing_refuses_what_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Annealing(**arguments)


def test_annealing_refuses_an_algorithm_without_a_temperature() -> None:
    learned = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(NETWORK), device="cpu")
    with pytest.raises(ValueError, match="SAC with ent_coef='auto' has no temperature to anneal"):
        learned.learn(4, callback=Annealing("ent_coef", 1.0, 0.1))


def test_a_campaign_of_a_multimodal_task_ends_in_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = "sb3_diffusion.experiments.metrics.mode_coverage"
    annealing = "sb3_diffusion.experiments.annealing.Annealing"
    content = {
        "environments": ["TurningDoubleWell-v0"],
        "seeds": [3],
        "steps": 60,
        "evaluation": {"every": 60, "episodes": 2, "metrics": [metric]},
        "device": "cpu",
        "default": {
            "ent_coef": 1.0,
            "learning_starts": 20,
            "policy_kwargs": NETWORK,
            "callback": [{annealing: {"what": "ent_coef", "first": 1.0, "last": 0.25, "geometric": True}}],
        },
        "variants": {"sac": {"algo": "sac"}},
    }
    (tmp_path / "small.yml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    finished = subprocess.run(
        [sys.executable, "-m", "sb3_diffusion.campaign", "small.yml", "--out", "made"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    row = pd.read_csv("made/results.csv").iloc[0]
    assert row["ent_coef"] == pytest.approx(0.25, rel=0.1) and 0 <= row["smallest_share"] <= 0.5
    report(["made", "--metric", "mean_reward", "--pictures"])
    assert "| TurningDoubleWell-v0 | sac | 1 | 60 |" in capsys.readouterr().out
    modes = script("modes", "benchmarks", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["modes.py", "made", "--out", "pictures/modes"])
    modes.main()
    assert Path("pictures/modes.png").stat().st_size > 10_000


def test_modes_refuses_a_folder_without_a_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = script("modes", "benchmarks", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["modes.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        modes.main()
    assert "is not the folder of a campaign" in capsys.readouterr().err


SMALL_BENCH = """
environments: [BoltzmannBandit-v0]
seeds: [3]
steps: 20
device: cpu
default: {algo: diffsac, learning_starts: 8, batch_size: 8, policy_kwargs: {net_arch: [8]}}
variants:
  three-bumps: {}
  contexts: {env_kwargs: {bench_seed: 0}}
  plane: {env_kwargs: {bench_seed: 0, action_dim: 2}}
"""


def test_fidelitys_picture_has_a_panel_for_each_context_and_leaves_out_the_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yml").write_text(SMALL_BENCH)
    assert campaign_command(["small.yml", "--out", "made", "--workers", "1"]) == 0
    script_module = script("fidelity", "benchmarks", monkeypatch)
    drawn = {}

    def record(samples: dict[str, Any]) -> Any:
        drawn.update(samples)
        return plot_fidelity(samples)

    monkeypatch.setattr(script_module, "plot_fidelity", record)
    monkeypatch.setattr(sys, "argv", ["fidelity.py", "--picture", "made", "--out", "fidelity.png"])
    script_module.main()
    assert [len(env.contexts) for env, _ in drawn.values()] == [1, 4] and list(drawn) == ["three-bumps", "contexts"]
    assert Path("fidelity.png").stat().st_size > 10_000
    for samples in ({}, {"plane": (BoltzmannBandit(bench_seed=0, action_dim=2), None)}):
        with pytest.raises(ValueError, match=r"samples is empty|samples\['plane'\] has 2-dimensional actions"):
            plot_fidelity(samples)  # type: ignore[arg-type]


def test_fidelitys_table_is_continued_and_its_exact_reward_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_module = script("fidelity", "benchmarks", monkeypatch)
    env = BoltzmannBandit(bench_seed=1, action_dim=2, n_modes=(1, 3))
    actions = th.rand(10, 2) * 2 - 1
    expected = [*env.reward(actions[:5], 0), *env.reward(actions[5:], 1)]
    assert script_module.ExactReward(env)(actions).tolist() == pytest.approx(expected, abs=1e-5)
    for seeds in (["0"], ["0", "1"]):
        options = ["--problems", "three bumps", "--settings", "K = 4, 4 frequencies", "--updates", "2", "--seeds", *seeds]
        monkeypatch.setattr(sys, "argv", ["fidelity.py", "--out", str(tmp_path / "fidelity_exact.csv"), *options])
        script_module.main()
    table = pd.read_csv(tmp_path / "fidelity_exact.csv")
    assert table["seed"].tolist() == [0, 1] and (table["total_variation"] > 0.2).all()


SMALL_COSTS = {
    "speed": "--rounds 1 --diffusion-steps 1 --compiled-steps --env Pendulum-v1 "
    "--algorithms DiffSAC DiffTQC DiffCrossQ DiffPPO --policy-delays 2 --crossq-width 16 --n-envs 2 --batch-size 32",
    "parts": "--rounds 1 --diffusion-steps 1 --env Pendulum-v1",
    "prediction": "--rounds 1 --diffusion-steps 1 --compiled-steps --env Pendulum-v1",
    "memory": "--diffusion-steps 1",
    "scaling": "--rounds 1",
    "options": "--rounds 1 --width 16 --env Pendulum-v1",
    "levers": "--rounds 1 --repeats 1",
    "serial": "--rounds 1 --diffusion-steps 1 2 --n-envs 1 --env Pendulum-v1",
}


@pytest.mark.parametrize("measurement", SMALL_COSTS)
def test_every_measurement_of_cost_leaves_a_row_for_each_round_and_subject(
    measurement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = script("cost", "benchmarks", monkeypatch)
    monkeypatch.setattr(cost, "SWEEPS", {"width": [64, 256], "n_envs": [1]})
    monkeypatch.setattr(cost, "ROLLOUT", 256)
    monkeypatch.setattr(cost, "OPTIONS", {name: given for name, given in cost.OPTIONS.items() if "compile" not in name})
    options = [*SMALL_COSTS[measurement].split(), "--session", "here", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cost.py", measurement, *options])
    cost.main()
    table = pd.read_csv(tmp_path / f"cost_{measurement}.csv")
    assert list(table.columns[:3]) == ["session", "round", "subject"] and set(table["session"]) == {"here"}
    assert not table.duplicated(["round", "subject"]).any() and len(table) >= 2
    measured = table.drop(columns=["session", "round", "subject", "saved_percent"], errors="ignore")
    assert measured.notna().any(axis=1).all() and not (measured < 0).any(axis=None)
    assert f"| {table['subject'][0]} | " in capsys.readouterr().out
    assert json.loads((tmp_path / "cost.json").read_text())[measurement]["here"]["versions"]["torch"]


def test_another_session_stands_beside_the_first_and_a_repeated_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = script("cost", "benchmarks", monkeypatch)
    how = {"settings": {}, "machine": "a machine", "commit": "0123456789"}
    for session, values in {"one": (1.0, 3.0), "two": (5.0,), "one again": (2.0, 4.0)}.items():
        rows = [{"round": i, "subject": "SAC", "ms": value} for i, value in enumerate(values, 1)]
        cost.save(tmp_path, "speed", session.removesuffix(" again"), rows, how)
    table = pd.read_csv(tmp_path / "cost_speed.csv")
    assert table.groupby("session")["ms"].apply(list).to_dict() == {"one": [2, 4], "two": [5]}
    text = (tmp_path / "cost.md").read_text()
    assert "## speed: one\n\na machine, commit 0123456.\n\n| | ms |\n|---|---|\n| SAC | 3 (2.5–3.5) |" in text
    assert "## speed: two" in text and "| SAC | 5 |" in text


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO])
def test_the_peak_memory_of_a_gradient_step_does_not_grow_with_the_number_of_diffusion_steps(
    monkeypatch: pytest.MonkeyPatch, algorithm: type[DiffSAC]
) -> None:
    cost = script("cost", "benchmarks", monkeypatch)
    few, many = (cost.peak_megabytes(cost.memory_model(algorithm, diffusion_steps)) for diffusion_steps in (4, 64))
    assert many <= 1.1 * few


def test_the_example_of_bound_tightness_leaves_a_table_in_which_the_bound_is_never_below_the_divergence(
    tmp_path: Path,
) -> None:
    options = ("--updates", "20", "--diffusion-steps", "1", "2", "--seeds", "3", "--out", "results")
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "bound_tightness.py"), *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    rows = pd.read_csv(tmp_path / "results" / "bound_tightness.csv")
    assert len(rows) == 4 * 2 * 3
    assert set(zip(rows["diffusion_steps"], rows["seed"], strict=True)) == {(1, 3), (2, 3)}
    assert (rows["marginal_divergence"] > 0).all() and (rows["slack"] > -1e-6).all()
    assert rows["slack"].to_numpy() == pytest.approx((rows["path_divergence"] - rows["marginal_divergence"]).to_numpy())
    assert rows["path_divergence"].nunique() > 20
    assert (tmp_path / "results" / "bound_tightness.png").stat().st_size > 10_000


def test_the_example_of_updates_and_clip_range_is_a_campaign_of_its_grid_and_draws_its_last_fifth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("updates_and_clip_range", "examples", monkeypatch)
    planned = campaign_of(tmp_path / "grid.yml", module.campaign([2, 8], [0, 1], 1000), tmp_path)
    assert len(planned.runs) == 2 * 3 * 4 * 2 and planned.runs[0].evaluation.every == 50
    check_buildable([planned.runs[0], planned.runs[-1]])
    names = dict.fromkeys(run.variant for run in planned.runs)
    rows = [
        {"variant": name, "timesteps": steps, "sampled_return": steps + i, "approx_kl": 0.1, "clip_fraction": 0.2}
        for i, name in enumerate(names)
        for steps in (500, 850, 1000)
    ]
    figure = module.draw(pd.DataFrame(rows), [2, 8], 1000)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([925, 926, 927, 928])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["K = 2", "K = 8"]
    monkeypatch.setattr(sys, "argv", ["updates_and_clip_range.py", "--steps", "10239", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert not (tmp_path / "out").exists()


def test_the_table_of_updates_and_clip_range_can_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("updates_and_clip_range", "examples", monkeypatch)
    table = pd.read_csv(ROOT / "examples" / "results" / "updates_and_clip_range.csv")
    figure = module.draw(table, [2, 4, 8], 60_000)
    returns = [line.get_ydata() for axes in figure.axes[:3] for line in axes.lines]
    assert len(returns) == 9 and np.isfinite(returns).all() and -240 < np.max(returns) < -200


def test_contexts_of_truncated_episodes_are_learned_although_they_are_nobodys_next_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_states = script("own_states", "benchmarks", monkeypatch)
    errors = {}
    for share in ("auto", 0):
        model = own_states.make(share, Monitor(own_states.Contexts("fixed")), learning_rate=3e-3, seed=0, batch_size=128)
        errors[share] = own_states.error(model.learn(450))
    assert errors["auto"] < 0.08 and errors[0] > 0.2, errors


def test_a_soak_measures_each_tenth_and_replaces_the_algorithms_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soak = script("soak", "benchmarks", monkeypatch)
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "soak.csv")
    monkeypatch.setattr(soak.FastEnv, "length", 4)
    monkeypatch.setattr(sys, "argv", ["soak.py", "DiffPPO", "--steps", "512", "--record"])
    soak.record("DiffSAC", [["DiffSAC", "10", "1.0", "6", "100"]])
    soak.record("DiffPPO", [["DiffPPO", "7", "1.0", "6", "100"]])
    soak.main()
    assert "510 steps" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "soak.csv")
    assert list(table.columns) == soak.COLUMNS
    assert list(table.algorithm) == ["DiffPPO"] * 10 + ["DiffSAC"]
    assert list(table.steps) == [*range(51, 511, 51), 10]
    assert (table[["memory_mib", "handles", "steps_per_second"]] > 0).all().all()
