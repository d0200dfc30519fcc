"""The package as it is installed: version, contents, the demo's command."""

import csv
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest

import sb3_diffusion
from sb3_diffusion import __main__ as console
from sb3_diffusion.command_line import missing

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(str(ROOT / "examples" / "train_mujoco.py"), *arguments, cwd=cwd)


def test_the_installed_version_is_the_one_in_version_txt() -> None:
    version = (ROOT / "sb3_diffusion" / "version.txt").read_text().strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert sb3_diffusion.__version__ == version == importlib.metadata.version("sb3_diffusion")


def test_setup_cfg_names_every_package() -> None:
    tree = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "sb3_diffusion").rglob("__init__.py")}
    named = set(re.findall(r"^    (sb3_diffusion[.\w]*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE))
    assert named == tree | {"sb3_diffusion.hyperparams"}


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files("sb3_diffusion").joinpath("py.typed").is_file()


def test_an_installed_wheel_holds_all_that_is_needed(tmp_path: Path) -> None:
    """Built from a copy of the files that belong to it, and installed away from them; the dependencies are those at hand."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sb3_diffusion", "hyperparams"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for step in (["wheel", "--wheel-dir", "wheels", "./source"], ["install", "--target", "site", "wheels"]):
        if step[-1] == "wheels":
            step[-1] = str(next((tmp_path / "wheels").glob("*.whl")))
        finished = run("-m", "pip", "--disable-pip-version-check", *step, "--no-deps", cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    with zipfile.ZipFile(next((tmp_path / "wheels").glob("*.whl"))) as wheel:
        names = [Path(name) for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.parts[0] for name in names} == {"sb3_diffusion"}
    assert {name.suffix or name.name for name in names} == {".py", ".yml", ".txt", ".typed"}
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import sb3_diffusion; from sb3_diffusion.zoo import ALGORITHMS, hyperparameter_file\n"
        "print(sb3_diffusion.__file__, sb3_diffusion.__version__)\n"
        "print(*(hyperparameter_file(algo) for algo in ALGORITHMS), sep='\\n')\n"
        "sb3_diffusion.DiffSAC('MlpPolicy', 'Pendulum-v1', learning_starts=2).learn(4)\n"
    )
    finished = run("-c", script, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    first, *files = finished.stdout.splitlines()
    assert first == f"{site / 'sb3_diffusion' / '__init__.py'} {sb3_diffusion.__version__}"
    assert len(files) == 5 and all(Path(file).is_file() and Path(file).is_relative_to(site) for file in files)
    assert (site / "sb3_diffusion" / "py.typed").is_file()


def test_the_source_distribution_builds_again_and_both_can_be_published(tmp_path: Path) -> None:
    """``build`` makes the wheel from the source distribution, not from the clone."""
    for package in ("build", "twine"):
        pytest.importorskip(package)
    source = tmp_path / "source"
    source.mkdir()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode != 0:
        pytest.skip("not a clone")
    for name in files.stdout.splitlines():
        if not name.startswith(("benchmarks/", "docs/", "examples/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    built = run("-m", "build", "--no-isolation", "--outdir", "dist", "source", cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    version = sb3_diffusion.__version__
    sdist, wheel = f"sb3_diffusion-{version}.tar.gz", f"sb3_diffusion-{version}-py3-none-any.whl"
    assert {path.name for path in (tmp_path / "dist").iterdir()} == {sdist, wheel}
    checked = run("-m", "twine", "check", "--strict", f"dist/{sdist}", f"dist/{wheel}", cwd=tmp_path)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout
    with tarfile.open(tmp_path / "dist" / sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "hyperparams/diffsac.yml", "sb3_diffusion/py.typed"} <= inside
    assert not any(name.startswith("tests") for name in inside)


def test_the_demo_leaves_model_evaluations_curve_and_gif(tmp_path: Path) -> None:
    options = ("--env", "InvertedPendulum-v5", "--steps", "150", "--diffusion-steps", "2", "--out", "results")
    finished = demo(*options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    written = {path.name for path in (tmp_path / "results").iterdir()}
    # Where nothing can render, the demo says so instead.
    assert written == {"model.zip", "evaluations.csv", "learning_curve.png", "two_modes.png"} | (
        set() if "No GIF" in finished.stdout else {"agent.gif"}
    )
    with (tmp_path / "results" / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["timesteps"]) for row in rows] == list(range(15, 151, 15))
    returns = [float(row["mean_return"]) for row in rows]
    best = 15 * (1 + returns.index(max(returns)))
    assert sb3_diffusion.DiffCrossQ.load(tmp_path / "results" / "model.zip").num_timesteps == best
    assert f"{max(returns):.1f} after {best} steps" in finished.stdout
    assert re.search(r"DiffCrossQ -?[\d.]+, random actions -?[\d.]+, no action \(zero\) -?[\d.]+", finished.stdout)


def test_the_demo_draws_the_recorded_sac_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("train_mujoco")
    assert module.recorded_sac("Reacher-v5") is None
    sac = module.recorded_sac("HalfCheetah-v5")
    with (ROOT / "benchmarks" / "results" / "paces.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["variant"] == "sac-early-start"]
    last = [float(row["deterministic_return"]) for row in runs if row["timesteps"] == "100000"]
    assert sac.n_seeds == len(last) == 3 and sac.steps.tolist() == list(range(10_000, 100_001, 10_000))
    assert (sac.mean[-1], sac.low[-1], sac.high[-1]) == pytest.approx((sum(last) / 3, min(last), max(last)))

    evaluation = SimpleNamespace(steps=[10_000, 20_000, 30_000], returns=[[0, 10], [2000, 2500], [500, 700]], best=1)
    drawn: list[Any] = []
    monkeypatch.setattr(module.Figure, "savefig", lambda self, path: drawn.append(self))
    untrained = {"random actions": -280.0, "no action (zero)": -1.0}
    for env_id in ("HalfCheetah-v5", "Reacher-v5"):
        module.draw_learning_curve(tmp_path / "a.png", evaluation, untrained, env_id)
    with_sac, without = ([line.get_label() for line in figure.axes[0].lines] for figure in drawn)
    assert without == ["DiffCrossQ, deterministic", "kept", *untrained]
    assert with_sac == [*without[:2], "SB3's SAC, recorded (3 seeds)", *untrained]
    kept, recorded = drawn[0].axes[0].lines[1:3]
    assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([20_000], [2250])
    assert list(recorded.get_xdata()) == list(range(10_000, 90_001, 10_000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "--steps must be 10 ... "),
        (("--seed", "-1"), "--seed must be 0 ... "),
        (("--diffusion-steps", "0"), "--diffusion-steps must be 1 ... "),
        (("--env", "NoSuchEnv-v0"), "--env NoSuchEnv-v0: "),
        (("--env", "CartPole-v1"), "Box action space"),
        (("--out", "taken"), "--out taken: "),
    ],
)
def test_the_demo_refuses_bad_arguments_before_it_trains(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    refused = demo(*options, cwd=tmp_path)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "demo").exists()


def test_the_demo_names_the_package_that_is_missing_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    demo_module = importlib.import_module("train_mujoco")
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env.reset()
    with pytest.raises(gym.error.DependencyNotInstalled) as info:
        env.render()
    assert demo_module.why_no_picture("Pendulum-v1", info.value).startswith(
        "rendering Pendulum-v1 needs the package pygame that"
    )
    assert (
        demo_module.why_no_picture("Reacher-v5", OSError("no GL")) == "this machine cannot render Reacher-v5 (OSError: no GL)"
    )


@pytest.mark.parametrize(
    ("command", "package", "message"),
    [
        ("campaign", "joblib", "a campaign needs the package joblib: install sb3_diffusion with its extra 'experiments'"),
        ("report", "scipy", "a report needs the package scipy: install sb3_diffusion with its extra 'experiments'"),
        ("plot", "matplotlib", "a picture needs the package matplotlib: install sb3_diffusion with its extra 'plots'"),
        ("export", "onnx", "export_onnx needs the package onnx: install sb3_diffusion with its extra 'export'"),
    ],
)
def test_a_command_says_in_one_sentence_which_extra_it_misses(
    command: str, package: str, message: str, tmp_path: Path
) -> None:
    model = sb3_diffusion.DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[4]), buffer_size=10, device="cpu")
    model.save(tmp_path / "model.zip")
    arguments = {
        "campaign": ["none.yml"],
        "report": ["none"],
        "plot": ["denoising", "model.zip", "--env", "Pendulum-v1"],
        "export": ["model.zip", "policy.onnx"],
    }
    code = (
        f"import sys; sys.modules[{package!r}] = None; "
        f"sys.argv = ['sb3-diffusion', {command!r}, *{arguments[command]!r}]; "
        "import sb3_diffusion.__main__ as command; command.main()"
    )
    finished = run("-W", "ignore", "-c", code, cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.strip() == message


def test_a_package_that_is_there_and_fails_is_not_called_missing() -> None:
    assert missing("a picture", ImportError("libGL.so.1: cannot open"), "plots") == (
        "a picture cannot import what it needs: libGL.so.1: cannot open"
    )
    message = "--ray needs the package ray: install sb3_diffusion with its extras 'a' and 'b'"
    assert missing("--ray", ModuleNotFoundError("No", name="ray.util"), "a", "b") == message


def test_the_console_command_names_itself_in_its_usage_and_tells_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3-diffusion", "--version"])
    console.main()
    assert capsys.readouterr().out == f"sb3-diffusion {sb3_diffusion.__version__}\n"
    for command in ("campaign", "report", "plot", "export"):
        monkeypatch.setattr(sys, "argv", ["sb3-diffusion", command, "--help"])
        with pytest.raises(SystemExit):
            console.main()
        assert capsys.readouterr().out.startswith(f"usage: sb3-diffusion {command} ")
