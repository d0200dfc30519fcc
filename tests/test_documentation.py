"""
README and documentation do what they say.

The Python blocks of a page are executed one after the other, in one namespace and an empty folder, with these conventions:

* A number with an underscore, as in ``learn(10_000)``, is a number of steps; here it is 120.
* ``<!-- test: this -> that -->`` in the lines above a block replaces text of it.
* ``<!-- before:`` … ``-->`` above a block holds lines that are executed before it.

Commands, in blocks of ``bash`` and in indented ones, are not run; their programs, files, extras and options must exist.
"""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import SMALL, SMALL_ON_POLICY
from envs_for_tests import StrictBoxEnv
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
MODULES = [path for path in (ROOT / "sb3_diffusion").rglob("*.py")]
# What pages about clusters and installation use besides
OTHER_PROGRAMS = {"export", "srun", "sbatch", "ray", "sleep", "scontrol", "git"}
# Which files say what options a command has; without an entry, the program's own file
SOURCES = {
    "sb3_diffusion.train": ["rl_zoo3.train"],
    "sb3_diffusion.enjoy": ["rl_zoo3.enjoy"],
    "sb3_diffusion.campaign": ["sb3_diffusion.experiments.command"],
    "sb3_diffusion.report": ["sb3_diffusion.experiments.reporting"],
    "sb3_diffusion.plot": ["sb3_diffusion.plot"],
    "sb3_diffusion.export": ["sb3_diffusion.export.__main__"],
    "sb3_diffusion.zoo": [
        "rl_zoo3.record_video",
        "rl_zoo3.plots.plot_train",
        "rl_zoo3.plots.all_plots",
        "rl_zoo3.plots.plot_from_file",
        "rl_zoo3.load_from_hub",
    ],
    "./run.sh demo": ["examples/train_mujoco.py"],
    "./run.sh test": ["run.sh"],
}
FEW_STEPS = "120"
INDENTED = r"^    ((?:python |sb3-diffusion |\./run\.sh )(?:.*\\\n)*.*)$"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    language: str
    code: str
    above: str  # comments that belong to it


def blocks(text: str) -> Iterator[Block]:
    pattern = r"(?P<above>(?:^<!--(?:(?!-->)[\s\S])*-->\n)*)^(?P<indent> *)```(?P<language>\w*)\n(?P<code>[\s\S]*?)^ *```$"
    for match in re.finditer(pattern, text, re.MULTILINE):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        yield Block(match["language"], code, match["above"])


def executable(block: Block) -> str:
    before = "".join(match + "\n" for match in re.findall(r"<!-- before:\n([\s\S]*?)-->", block.above))
    code = block.code
    for this, that in re.findall(r"<!-- test: (.*?) -> (.*?) -->", block.above):
        assert this in code, f"<!-- test: {this} -> … -->, but the block has no {this!r}"
        code = code.replace(this, that)
    return before + re.sub(r"\b\d{1,3}(?:_\d{3})+\b", FEW_STEPS, code)


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks(page.read_text()))]


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for number, block in enumerate(blocks(page.read_text()), 1):
        if block.language == "python":
            exec(compile(executable(block), f"{name_of(page)}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_the_yaml_blocks_of_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "yaml":
            assert yaml.safe_load(executable(block))


def commands(text: str) -> Iterator[str]:
    code = "\n".join(block.code for block in blocks(text) if block.language in ("bash", "sh"))
    without_blocks = re.sub(r"```[\s\S]*?```", "", text)
    code += "\n" + "\n".join(re.findall(INDENTED, without_blocks, re.MULTILINE))
    # Inside tables and sentences, where a command names a file or a module
    code += "\n" + "\n".join(re.findall(r"`((?:python (?:-m )?|sb3-diffusion |\./run\.sh )[^`]+)`", without_blocks))
    for line in re.sub(r"\\\n", " ", code).splitlines():
        line = line.strip()
        if (
            line
            and not line.startswith("#")
            and not re.fullmatch(r"\w+=\S.*[:)]?\S*", line.split(" ./")[0].split(" python ")[0])
        ):
            yield line


def source(name: str) -> str:
    """The text of a file of the repository or of a module."""
    if (ROOT / name).is_file():
        return (ROOT / name).read_text()
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"there is no {name}"
    return Path(spec.origin).read_text()


def extras() -> set[str]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def check_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):  # environment variables
        words = words[1:]
    if words[0] in ("srun", "xvfb-run"):
        words = words[next((i for i, word in enumerate(words) if word.endswith("python")), 0) :]
    program, *arguments = words
    if program in OTHER_PROGRAMS:
        return
    if program == "pip":
        wanted = re.findall(r"(?:^\.|sb3_diffusion)\[([\w,]+)\]", " ".join(arguments))
        assert {extra for group in wanted for extra in group.split(",")} <= extras()
        return
    if program == "./run.sh":
        assert arguments[0] in ("demo", "test")
        program, arguments = f"./run.sh {arguments[0]}", arguments[1:]
    elif program == "sb3-diffusion":
        from sb3_diffusion.__main__ import COMMANDS

        if arguments[0] == "COMMAND" or "|" in arguments[0]:
            return
        assert arguments[0] in COMMANDS
        program, arguments = f"sb3_diffusion.{arguments[0]}", arguments[1:]
    elif Path(program).name == "python":
        if arguments[0] == "-c":
            ast.parse(arguments[1])
            return
        program, arguments = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    else:
        assert (ROOT / program).is_file(), f"there is no {program}"
    if program.partition(".")[0] in ("rl_zoo3", "sphinx"):
        assert importlib.util.find_spec(program) is not None
        return
    text = "\n".join(source(name) for name in SOURCES.get(program, [program]))
    for argument in arguments:
        if re.fullmatch(r"--?[a-zA-Z][\w-]*", argument):
            option = re.escape(argument)
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text) or argument in ("-h", "--help"), f"no option {argument}"
        elif re.match(r"(examples|benchmarks|docs|tests|hyperparams)/", argument) and "results" not in argument:
            assert (ROOT / argument).exists(), f"there is no {argument}"


# The commands of what was tried are those of the runs' commits.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "experiments.md"], ids=name_of)
def test_the_commands_of_a_page_exist_with_their_options_and_files(page: Path) -> None:
    for line in commands(page.read_text()):
        try:
            check_command(line)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{name_of(page)}: {line}") from error


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_pictures_and_files_that_a_page_links_to_are_in_the_repository(page: Path) -> None:
    text = re.sub(r"```[\s\S]*?```", "", page.read_text())
    for target in re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
    # Sphinx would give it the page's title, other readers of the files show nothing.
    assert "[](" not in text, "a link without a text"


def test_the_sections_of_pages_that_docstrings_name_exist() -> None:
    named = 0
    for module in MODULES:
        for page, section in re.findall(r'docs/([\w-]+)\.md[,;]\s*"([^"]+)"', module.read_text()):
            named += 1
            section = re.sub(r"\s+", " ", section)
            text = (ROOT / "docs" / f"{page}.md").read_text()
            heading = rf"^(#+ |\*\*){re.escape(section)}"
            assert re.search(heading, text, re.MULTILINE), f"{module.name}: docs/{page}.md has no section {section!r}"
    assert named > 20


def test_the_pages_that_docstrings_name_exist() -> None:
    for module in MODULES:
        for page in re.findall(r"docs/([\w-]+)\.md", module.read_text()):
            assert (ROOT / "docs" / f"{page}.md").is_file(), f"{module.name} names docs/{page}.md"


def test_the_readme_can_be_read_to_the_end() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    listed = {docs / "index.md"}
    for page in PAGES:
        for tree in re.findall(r"```\{toctree\}\n([\s\S]*?)```", page.read_text()):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {page.parent / f"{entry}.md" for entry in entries}
    assert {page for page in PAGES if docs in page.parents} == {page for page in listed if docs in page.parents}


def test_every_public_name_is_in_the_api_reference() -> None:
    api = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    for init in (ROOT / "sb3_diffusion").rglob("__init__.py"):
        module = ".".join(init.parent.relative_to(ROOT).parts)
        names = re.findall(r"__all__ = \[([\s\S]*?)\]", init.read_text())
        if names and not re.search(rf"automodule:: {module}$", api, re.MULTILINE):
            for name in re.findall(r'"([A-Za-z]\w*)"', names[0]):
                assert re.search(rf"(autoclass|autofunction):: ({re.escape(module)}\.)?{name}\b", api), f"{module}.{name}"


def test_every_console_command_is_a_module_and_is_listed() -> None:
    from sb3_diffusion.__main__ import COMMANDS, usage

    for name in COMMANDS:
        assert importlib.util.find_spec(f"sb3_diffusion.{name}") is not None
        assert name in usage()


def test_the_console_command_names_its_commands_when_it_is_given_another() -> None:
    refused = subprocess.run([sys.executable, "-m", "sb3_diffusion", "trian"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "'trian' is no command" in refused.stderr and "campaign" in refused.stderr


# Not parsers that look at options of a command of rl-zoo3's before it does
WITH_OPTIONS = [
    path
    for path in [*sorted((ROOT / "sb3_diffusion").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
    if "add_argument(" in (text := path.read_text()) and "add_help=False" not in text
]


@pytest.mark.parametrize("script", [*WITH_OPTIONS, *sorted((ROOT / "examples").glob("*.py"))], ids=name_of)
def test_every_option_of_a_script_has_a_help_text_with_its_default(script: Path) -> None:
    tree = ast.parse(script.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    of_all = "ArgumentDefaultsHelpFormatter" in script.read_text()
    for call in calls:
        if call.func.attr != "add_argument":  # type: ignore[attr-defined]
            continue
        name, given = ast.unparse(call.args[0]), {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert "help" in given, f"{name} has no help text"
        option = name.startswith("'-") and given.get("action") != "'store_true'" and given.get("required") != "True"
        named = "default" in given["help"] or re.search(r"\([^()]+\)['\"]$", given["help"])
        assert not option or of_all or named, f"the help text of {name} lacks its default"


def logged_keys(model: Any) -> set[str]:
    """The keys below ``train/`` of a short training."""
    keys: set[str] = set()

    class Collect(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            keys.update(key for key in key_values if key.startswith("train/"))

        def close(self) -> None: ...

    model.set_logger(Logger(folder=None, output_formats=[Collect()]))
    model.learn(24, log_interval=1)
    model.logger.dump()
    return keys


@pytest.mark.parametrize(
    "algorithm", [DiffSAC, DiffTQC, DiffCrossQ, DiffWPO, DiffPPO], ids=lambda algorithm: algorithm.__name__
)
def test_every_logged_key_is_explained(algorithm: Any) -> None:
    kwargs = SMALL_ON_POLICY | dict(clip_range_vf=0.2) if algorithm is DiffPPO else SMALL
    keys = logged_keys(algorithm("MlpPolicy", StrictBoxEnv(), policy_kwargs=dict(net_arch=[16]), **kwargs))
    text = (ROOT / "docs" / "logged-values.md").read_text()
    assert len(keys) > 5
    for key in keys:
        assert f"`{re.sub(r'_([2-9]|prior)$', '_1', key)}`" in text, key


def test_every_explained_key_of_training_is_logged() -> None:
    text = (ROOT / "docs" / "logged-values.md").read_text()
    small = dict(policy_kwargs=dict(net_arch=[16]))
    ppo = DiffPPO("MlpPolicy", StrictBoxEnv(), clip_range_vf=0.2, **(SMALL_ON_POLICY | small))
    wpo = DiffWPO("MlpPolicy", StrictBoxEnv(), **(SMALL | small))
    wpo.set_reference(0.1)
    keys = logged_keys(wpo) | logged_keys(ppo)
    assert set(re.findall(r"`(train/\w+)`", text)) <= keys
