"""The file of a campaign: what it may say, and the runs that follow from it."""

import difflib
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from stable_baselines3.common.utils import get_device

from sb3_diffusion.zoo import ALGORITHMS, hyperparameter_file, register

# What rl-zoo3 takes from a variant for itself; all other keys go to the algorithm's constructor.
ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "noise_std",
    "noise_type",
    "normalize",
    "vec_env_wrapper",
)
# The campaign's own business, not a variant's
GIVEN_KEYS = ("self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "monitor_wrapper")
CAMPAIGN_KEYS = (
    "environments",
    "seeds",
    "steps",
    "evaluation",
    "checkpoints",
    "variants",
    "default",
    "device",
    "resources",
    "gym_packages",
)
MOST_STEPS_BETWEEN_CHECKPOINTS = 25_000


class CampaignError(ValueError):
    """Something in a campaign's file, its options or its folder is wrong; nothing was started."""


class UniqueKeys(yaml.SafeLoader):
    """YAML as rl-zoo3 reads it, but a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for key, count in Counter(given).items() if count > 1]
        if twice:
            raise CampaignError(f"{twice[0]!r} is given twice, the second time near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Evaluation:
    """
    :param every: environment steps between evaluations; there is always one at the end
    :param episodes: as many with deterministic actions, and as many with sampled ones
    :param at_start: also after the first step, before anything is learned: what a pre-trained policy is worth
    :param metrics: dotted paths of functions ``(model, env) -> dict[str, float]`` with more columns
    """

    every: int
    episodes: int = 10
    metrics: tuple[str, ...] = ()
    at_start: bool = False


@dataclass(frozen=True)
class Run:
    """
    One training: everything that its process needs, and nothing that it could not be sent.

    :param variant: its name in the file
    :param environment: Gymnasium's name of it
    :param seed: of everything
    :param algo: a key of ``rl_zoo3.ALGOS``
    :param settings: hyper-parameters as in a file of rl-zoo3
    :param steps: environment steps
    :param evaluation: when and how
    :param checkpoint_every: environment steps between checkpoints, at each of which the environment is restarted
    :param device: PyTorch's
    :param gym_packages: modules that register environments
    :param folder: where logs, checkpoints and the result go, an absolute path
    """

    variant: str
    environment: str
    seed: int
    algo: str
    settings: dict[str, Any]
    steps: int
    evaluation: Evaluation
    checkpoint_every: int
    device: str
    gym_packages: tuple[str, ...]
    folder: str

    @property
    def name(self) -> str:
        return f"{self.variant} {self.environment} seed {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of the run depend on, as JSON holds it."""
        evaluation = plain(asdict(self.evaluation))
        if not self.evaluation.at_start:
            del evaluation["at_start"]  # runs of earlier versions know no such thing
        return {
            "algo": self.algo,
            "settings": plain(self.settings),
            "steps": self.steps,
            "evaluation": evaluation,
            "checkpoints": {"every": self.checkpoint_every},
            "device": self.device,
        }


@dataclass(frozen=True)
class Resources:
    """
    What Ray sets aside for a run.

    :param cpus: cores; a run has one thread, more are for environments in processes of their own
    :param gpus: may be a fraction
    """

    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Campaign:
    """
    A campaign's file, checked.

    :param file: its path
    :param runs: in the order in which they start: all variants and environments of the first seed, then of the second, …
    :param resources: of every run
    """

    file: Path
    runs: tuple[Run, ...]
    resources: Resources = field(default_factory=Resources)


def plain(value: Any) -> Any:
    """:return: the same in what JSON has: lists for tuples, text for names of dictionaries and for everything else"""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def named(what: str, given: Any, allowed: Iterable[Any]) -> CampaignError:
    """:return: an error that names what was given and what is allowed, the likeliest first"""
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(given), names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return CampaignError(f"{what}: {given!r}{hint} (allowed: {', '.join(names)})")


def checked(what: str, mapping: Any, allowed: Iterable[str]) -> dict[str, Any]:
    """:return: ``mapping``, which has no other keys than ``allowed``"""
    if not isinstance(mapping, dict):
        raise CampaignError(f"{what} must be a mapping, not {mapping!r}")
    for key in mapping:
        if key not in allowed:
            raise named(f"{what} has an unknown key", key, allowed)
    return mapping


def without_numbers_as_text(what: str, value: Any) -> None:
    """:raises CampaignError: if ``value`` holds text that looks like a number, which YAML made of one without a dot"""
    if isinstance(value, dict):
        for key, item in value.items():
            without_numbers_as_text(f"{what}: {key}", item)
    elif isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return
        raise CampaignError(f"{what}: YAML takes {value} for text; write numbers with a dot and a signed exponent: 1.0e-3")


def positive(what: str, value: Any, least: int = 1) -> int:
    """:return: ``value``, a whole number from ``least`` on"""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CampaignError(f"{what} must be a whole number >= {least}, for example 100_000; given: {value!r}")
    return value


def listed(what: str, value: Any) -> list[Any]:
    """:return: ``value``, a list with something in it and nothing twice"""
    if not isinstance(value, list) or not value:
        raise CampaignError(f"{what} must be a list with at least one element; given: {value!r}")
    twice = [item for item, count in Counter(map(str, value)).items() if count > 1]
    if twice:
        raise CampaignError(f"{what}: {twice[0]} is given twice")
    return value


def function_named(path: str) -> Any:
    """:return: the function of a dotted path"""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CampaignError(f"evaluation.metrics: {path!r} cannot be imported ({error})") from error


def prepare_environments(gym_packages: Iterable[str]) -> None:
    """Make our algorithms and environments and those of ``gym_packages`` known in this process."""
    register()
    for package in gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise CampaignError(f"gym_packages: {package!r} cannot be imported ({error})") from error


def known_environment(env_id: Any) -> str:
    """:return: ``env_id``, which Gymnasium knows"""
    try:
        gym.spec(env_id)
    except Exception as error:
        raise CampaignError(f"environments: Gymnasium does not know {env_id!r} ({error})") from error
    return env_id


def tuned_settings(algo: str, env_id: str) -> dict[str, Any]:
    """
    The entry of ``hyperparams/`` or of rl-zoo3 for an environment; if there is none, that of its latest earlier version; if
    there is none either, ``default``.

    :param algo: a key of ``rl_zoo3.ALGOS``
    :param env_id: Gymnasium's name
    :raises CampaignError: if there is no entry at all
    """
    package = Path(rl_zoo3.__file__).parent
    file = hyperparameter_file(algo) if algo in ALGORITHMS else package / "hyperparams" / f"{algo}.yml"
    entries = yaml.safe_load(file.read_text())
    name, _, version = env_id.rpartition("-v")
    earlier = (f"{name}-v{number}" for number in range(int(version) - 1, -1, -1)) if version.isdigit() else ()
    for candidate in (env_id, *earlier, "default"):
        if candidate in entries:
            return dict(entries[candidate])
    raise CampaignError(f"tuned: {file} has no entry for {env_id}, for an earlier version or 'default'")


def resolved_settings(name: str, variant: dict[str, Any], env_id: str) -> tuple[str, dict[str, Any]]:
    """
    :param name: the variant's
    :param variant: its mapping, the campaign's ``default`` included
    :param env_id: the environment
    :return: the algorithm, and its settings as in a file of rl-zoo3
    """
    for_environments = variant.get("environments", {})
    own = variant | for_environments.get(env_id, {})
    algo = own["algo"]
    tuned = own.get("tuned", False)
    if not isinstance(tuned, bool):
        raise CampaignError(f"variant {name!r}: tuned must be true or false, not {tuned!r}")
    settings = tuned_settings(algo, env_id) if tuned else {"policy": "MlpPolicy"}
    settings |= {key: value for key, value in own.items() if key not in ("algo", "tuned", "environments")}
    settings.pop("n_timesteps", None)
    return algo, settings


def checked_variant(name: str, variant: Any, default: dict[str, Any], environments: list[str]) -> dict[str, Any]:
    """:return: the variant with the campaign's ``default``, all keys known"""
    if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
        raise CampaignError(f"variant {name!r}: a name has letters, digits and _ . + = - only; it becomes a folder's")
    if not isinstance(variant, dict):
        raise CampaignError(f"variant {name!r} must be a mapping, for example {{algo: sac}}, not {variant!r}")
    variant = default | variant
    without_numbers_as_text(f"variant {name!r}", variant)
    if "algo" not in variant:
        raise CampaignError(f"variant {name!r} has no 'algo' (allowed: {', '.join(rl_zoo3.ALGOS)})")
    if variant["algo"] not in rl_zoo3.ALGOS:
        raise named(f"variant {name!r} has an unknown algo", variant["algo"], rl_zoo3.ALGOS)
    arguments = inspect.signature(rl_zoo3.ALGOS[variant["algo"]].__init__).parameters
    allowed = [key for key in (*arguments, *ZOO_KEYS) if key not in GIVEN_KEYS]
    checked(f"variant {name!r}", variant, ["algo", "tuned", "environments", *allowed])
    for env_id, own in checked(f"variant {name!r}: environments", variant.get("environments", {}), environments).items():
        checked(f"variant {name!r}: environments: {env_id}", own, ["tuned", *allowed])
    return variant


def read_campaign(file: Path, out: Path) -> Campaign:
    """
    Read a campaign's file and check all that can be checked without building anything.

    :param file: YAML
    :param out: the folder of the campaign
    :raises CampaignError: names what is wrong
    """
    try:
        content = yaml.load(file.read_text(), UniqueKeys)
    except OSError as error:
        raise CampaignError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CampaignError(f"{file} is not YAML: {error}") from error
    try:
        return campaign_of(file, content, out)
    except CampaignError as error:
        raise CampaignError(f"{file}: {error}") from error


def campaign_of(file: Path, content: Any, out: Path) -> Campaign:
    """:return: the campaign that ``content`` describes"""
    checked("the campaign", content, CAMPAIGN_KEYS)
    for key in ("environments", "seeds", "steps", "variants"):
        if key not in content:
            raise CampaignError(f"{key!r} is missing")
    gym_packages = tuple(listed("gym_packages", content["gym_packages"])) if "gym_packages" in content else ()
    prepare_environments(gym_packages)
    environments = [known_environment(env_id) for env_id in listed("environments", content["environments"])]
    seeds = [positive("seeds", seed, 0) for seed in listed("seeds", content["seeds"])]
    steps = positive("steps", content["steps"])

    evaluation = checked("evaluation", content.get("evaluation", {}), ["every", "episodes", "metrics", "at_start"])
    at_start = evaluation.get("at_start", False)
    if not isinstance(at_start, bool):
        raise CampaignError(f"evaluation.at_start must be true or false; given: {at_start!r}")
    metrics = tuple(listed("evaluation.metrics", evaluation["metrics"])) if "metrics" in evaluation else ()
    for path in metrics:
        function_named(path)
    every = positive("evaluation.every", evaluation.get("every", max(steps // 10, 1)))
    how = Evaluation(every, positive("evaluation.episodes", evaluation.get("episodes", 10)), metrics, at_start)

    checkpoints = checked("checkpoints", content.get("checkpoints", {}), ["every"])
    spacing = min(max(steps // 10, 1), MOST_STEPS_BETWEEN_CHECKPOINTS)
    checkpoint_every = positive("checkpoints.every", checkpoints.get("every", spacing))

    resources = Resources(**checked("resources", content.get("resources", {}), ["cpus", "gpus"]))
    for key, value in asdict(resources).items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise CampaignError(f"resources.{key} must be a number >= 0, not {value!r}")

    device = content.get("device", "auto")
    try:
        get_device(device)
    except (RuntimeError, TypeError) as error:
        raise CampaignError(f"device: {device!r} is none of PyTorch's ({error})") from error

    default = content.get("default", {})
    if not isinstance(default, dict):
        raise CampaignError(f"default must be a mapping, not {default!r}")
    if not isinstance(content["variants"], dict) or not content["variants"]:
        raise CampaignError("variants must be a mapping with at least one element")
    variants = {
        str(name): checked_variant(str(name), variant, default, environments) for name, variant in content["variants"].items()
    }
    settings = {
        (name, env_id): resolved_settings(name, variant, env_id)
        for name, variant in variants.items()
        for env_id in environments
    }
    runs = tuple(
        Run(
            variant=name,
            environment=env_id,
            seed=seed,
            algo=settings[name, env_id][0],
            settings=settings[name, env_id][1],
            steps=steps,
            evaluation=how,
            # ARS counts its progress from where its learn began.
            checkpoint_every=steps if settings[name, env_id][0] == "ars" else checkpoint_every,
            device=device,
            gym_packages=gym_packages,
            folder=str(out.resolve() / "runs" / name / env_id.replace("/", "_").replace(":", "_") / str(seed)),
        )
        for seed in seeds
        for env_id in environments
        for name in variants
    )
    return Campaign(file, runs, resources)
