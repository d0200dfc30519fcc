"""Saving that cannot destroy an earlier file."""

import errno
import io
import json
import os
import pathlib
import secrets
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_diffusion.common.finite import NotFinite, weights_not_finite

SelfSafeSave = TypeVar("SelfSafeSave", bound="SafeSaveMixin")
LONGEST_SUFFIX = 32  # of a temporary name
CHECKSUM_MARK = b"sb3_diffusion CRC-32:"  # behind a pickle, which ends where it says so
OWN_ATTRIBUTE = "latents_per_state"  # All our algorithms have it and no other.


@contextmanager
def replacing(path: str | pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """
    A temporary path beside ``path`` that takes its place only if the block succeeds. An earlier file's permissions stay. Other
    hard links to it keep the earlier content: what is replaced is the name, so that no moment leaves half a file.

    :param path: the target; ``suffix`` is added where it has none, as SB3 does
    :param suffix: with the dot
    :raises PermissionError: if the earlier file is write-protected
    """
    target = pathlib.Path(path)
    if not target.suffix:
        target = target.with_name(target.name + suffix)
    target = target.resolve()  # a symbolic link stays one
    while target.is_dir():  # SB3's way out when a folder has the name
        target = target.with_name(target.name + "_2")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    # Short, where the target's own name has no room for more
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix[:LONGEST_SUFFIX]}")
    try:
        yield temporary
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_description(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    What a model's file says of the model, after all of the file has been checked against its checksums. Executes nothing.

    :param path: of the file, or the file itself
    :return: SB3's member "data": attributes as they are in JSON
    :raises ValueError: naming the file, for one that is damaged or holds no model
    """
    file: Any = open_path(path, "r", suffix="zip")
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            broken, members = archive.testzip(), archive.namelist()
            missing = [member for member in ("data", "policy.pth") if member not in members]
            description = {} if broken or missing else json.loads(archive.read("data"))
    except zipfile.BadZipFile as error:
        # SB3's words and why
        raise ValueError(f"Error: the file {path} wasn't a zip-file, or is damaged: {error}") from error
    # zipfile has no one error for all that can be wrong with a file
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no file of a model: {type(error).__name__}: {error}") from error
    finally:
        file.seek(start)
        if isinstance(path, (str, pathlib.Path)):
            file.close()
    if broken:
        raise ValueError(f"{path} is damaged: its member {broken!r} is not what was saved")
    if missing:
        raise ValueError(f"{path} holds no model of Stable-Baselines3: it has no member {missing[0]!r}")
    return description


def algorithms() -> dict[str, str]:
    """The names of all algorithms that have been imported, by the folder that each has to itself."""
    known, found = [BaseAlgorithm], dict[str, str]()
    while known:
        algorithm = known.pop()
        known += algorithm.__subclasses__()
        folder = algorithm.__module__.split(".")[-2:-1]
        if folder == [algorithm.__name__.lower()]:
            found[folder[0]] = algorithm.__name__
    return found


def algorithm_of(description: dict[str, Any]) -> str | None:
    """
    :param description: of a file, as :func:`read_description` gives it, or the attributes of a model
    :return: the algorithm that saved the file, judged by the module of its policy class; None if that is a user's own
    """
    policy_class = description.get("policy_class")
    module = policy_class.get("__module__", "") if isinstance(policy_class, dict) else getattr(policy_class, "__module__", "")
    package, *_, folder = str(module).split(".")[:-1] or [""]
    if package not in ("stable_baselines3", "sb3_contrib", "sb3_diffusion"):
        return None
    if folder == "common":
        return "PPO" if "clip_range" in description else "A2C"
    if package == "sb3_diffusion" and OWN_ATTRIBUTE not in description:
        folder = folder.removeprefix("diff")  # SB3's algorithm with our policy
    return algorithms().get(folder)


def refuse_other_loaders() -> None:
    """
    For the constructors of our policies. SB3's ``load`` builds the policy after it has given the model the file's attributes,
    but does not tell the policy for whom; so the caller is looked up.

    :raises ValueError: if another library's algorithm loads the file of one of ours
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "_setup_model":
        frame = frame.f_back
    model = frame.f_locals.get("self")
    if isinstance(model, BaseAlgorithm) and not isinstance(model, SafeSaveMixin) and OWN_ATTRIBUTE in vars(model):
        holds = algorithm_of(vars(model)) or "diffusion"
        raise ValueError(f"This file holds a {holds} model: load it with {holds}.load, not with {type(model).__name__}.load")


class UnfitParameters(ValueError, RuntimeError):
    """Parameters of another model. SB3's ``load`` passes a RuntimeError on; a mere ValueError it would take for an old DQN."""


class DiffusionStateMixin(th.nn.Module):
    """For policies and actors: weights that were trained for another diffusion are refused in one sentence."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        :raises UnfitParameters: for weights of another number of diffusion steps and, unless ``strict=False``, of another
            noise schedule, kernel or prior
        """
        actor: Any = getattr(self, "actor", self)
        prefix = "" if actor is self else "actor."
        table = state_dict.get(prefix + "denoiser.step_table.weight")
        if table is not None and len(table) != actor.diffusion_steps:
            raise UnfitParameters(
                f"These are weights of a policy with diffusion_steps={len(table)}; this one has "
                f"diffusion_steps={actor.diffusion_steps}, and the number cannot change"
            )
        # State dicts of earlier versions say nothing.
        trained_for = getattr(state_dict, "_metadata", {}).get(prefix + "schedule", {})
        for name, here in actor.schedule.choices().items():
            there = trained_for.get(name, here)
            if strict and there != here:
                raise UnfitParameters(
                    f"These weights were trained with {name}={there!r}, and would act differently with {name}={here!r}; "
                    "policy.load_state_dict(…, strict=False) loads them nevertheless"
                )
        return super().load_state_dict(state_dict, strict, assign)


class SafeSaveMixin(BaseAlgorithm):
    """
    SB3's ``save``, written beside the target first: a failed save leaves the earlier file; and SB3's ``set_parameters``, with
    which ``load`` ends, with clear errors for a learned temperature that has no place and for other algorithms' parameters.
    """

    ent_coef: Any
    ent_coef_optimizer: th.optim.Adam | None

    @classmethod
    def load(
        cls: type[SelfSafeSave],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSafeSave:
        """:raises ValueError: before anything is loaded, for a damaged file and for one of another algorithm"""
        holds = algorithm_of(read_description(path) | (custom_objects or {}))
        # A subclass in a user's module reads the files of ours.
        own = next(known.__name__ for known in cls.__mro__ if algorithms().get(known.__name__.lower()) == known.__name__)
        if holds not in (own, None):
            raise ValueError(f"{path} holds a {holds} model: load it with {holds}.load, not with {cls.__name__}.load")
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """:raises UnfitParameters: for those of another algorithm; for a learned temperature if this model has a given one"""
        given = load_path_or_dict
        if not isinstance(given, dict):
            read_description(given)
        parameters = given if isinstance(given, dict) else load_from_zip_file(given, device=device, load_data=False)[1]
        has_pull, with_pull = getattr(self, "reference_actor", None) is not None, "reference_actor" in parameters
        if with_pull and not has_pull:
            parameters = {name: value for name, value in parameters.items() if name != "reference_actor"}
        elif has_pull and not with_pull and exact_match:
            raise UnfitParameters(
                "these parameters have no reference, but this model is pulled to one; allowed: after set_reference(None), or "
                "with exact_match=False"
            )
        if "ent_coef_optimizer" in parameters and self.ent_coef_optimizer is None:
            raise UnfitParameters(
                f"ent_coef={self.ent_coef!r}, but these parameters come with a learned temperature; allowed: 'auto', or to "
                "copy the policy alone, model.policy.load_state_dict(other.policy.state_dict())"
            )
        try:
            super().set_parameters(parameters, exact_match, device)
        except UnfitParameters:
            raise
        except ValueError as error:
            name = type(self).__name__
            raise UnfitParameters(
                f"The parameters are not those of {name} with {self.policy_class.__name__}: {error}"
            ) from error

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """:raises NotFinite: for weights that are not finite, so that they cannot take a good file's place"""
        problem = weights_not_finite(self.policy)
        if problem is not None:
            raise NotFinite(f"Nothing is saved: {problem}. To keep such weights, th.save(model.get_parameters(), …)")
        if not isinstance(path, (str, pathlib.Path)):
            return super().save(path, exclude, include)
        with replacing(path, ".zip") as temporary:
            super().save(temporary, exclude, include)


def checksum_of(file: BinaryIO, size: int) -> bytes:
    """CRC-32 of the first ``size`` bytes of a file, in 4 bytes."""
    file.seek(0)
    checksum = 0
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum.to_bytes(4, "big")


class SafeOffPolicySaveMixin(SafeSaveMixin, OffPolicyAlgorithm):
    """
    The same for ``save_replay_buffer``, which adds a checksum behind what SB3 writes: SB3 reads the file as before, and
    ``load_replay_buffer`` refuses a damaged one. Files without a checksum load as before.
    """

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        if not isinstance(path, (str, pathlib.Path)):
            return super().save_replay_buffer(path)
        with replacing(path, ".pkl") as temporary:
            super().save_replay_buffer(temporary)
            with temporary.open("r+b") as file:
                checksum = checksum_of(file, temporary.stat().st_size)
                file.write(CHECKSUM_MARK + checksum)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """:raises ValueError: for a damaged file and for a buffer that is not this model's kind; its own one stays then"""
        if isinstance(path, (str, pathlib.Path)):
            with open_path(path, "r", suffix="pkl") as file:
                length = len(CHECKSUM_MARK) + 4
                content = max(0, file.seek(0, os.SEEK_END) - length)
                file.seek(content)
                mark = file.read()
                if mark.startswith(CHECKSUM_MARK) and mark != CHECKSUM_MARK + checksum_of(file, content):
                    raise ValueError(f"{path} is damaged: it is not what was saved")
        # Who loads one may have deleted the other.
        earlier = getattr(self, "replay_buffer", None)
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            loaded: Any = self.replay_buffer
            fitting = (get_obs_shape(self.observation_space), get_action_dim(self.action_space))
            if (loaded.obs_shape, loaded.action_dim) != fitting:
                raise ValueError(f"{path} holds a replay buffer of other observations or actions than this model's")
            kinds = [(type(buffer).__name__, getattr(buffer, "n_steps", 1)) for buffer in (loaded, earlier)]
            if earlier is not None and kinds[0] != kinds[1]:
                told, own = (f"{name} with n_steps={n_steps}" for name, n_steps in kinds)
                raise ValueError(f"{path} holds a {told}, but this model has a {own}: make the model with that one")
        except (OSError, ValueError, AssertionError):
            loaded, self.replay_buffer = self.replay_buffer, earlier
            if not isinstance(loaded, ReplayBuffer):
                raise ValueError(f"{path} holds no replay buffer, but a {type(loaded).__name__}") from None
            raise
        # pickle has no one error for all that can be wrong with a file
        except Exception as error:
            self.replay_buffer = earlier
            raise ValueError(f"{path} is damaged, or no file of a replay buffer: {type(error).__name__}: {error}") from error
