"""Saving that cannot destroy an earlier file."""

import errno
import io
import os
import pathlib
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TensorDict

LONGEST_SUFFIX = 32  # of a temporary name


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


class UnfitParameters(ValueError, RuntimeError):
    """Parameters of another model. SB3's ``load`` passes a RuntimeError on; a mere ValueError it would take for an old DQN."""


class SafeSaveMixin(BaseAlgorithm):
    """
    SB3's ``save``, written beside the target first: a failed save leaves the earlier file; and SB3's ``set_parameters``, with
    which ``load`` ends, with clear errors for a learned temperature that has no place and for other algorithms' parameters.
    """

    ent_coef: Any
    ent_coef_optimizer: th.optim.Adam | None

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """:raises UnfitParameters: for those of another algorithm; for a learned temperature if this model has a given one"""
        given = load_path_or_dict
        parameters = given if isinstance(given, dict) else load_from_zip_file(given, device=device, load_data=False)[1]
        if "ent_coef_optimizer" in parameters and self.ent_coef_optimizer is None:
            raise UnfitParameters(
                f"ent_coef={self.ent_coef!r}, but these parameters come with a learned temperature; allowed: 'auto', or to "
                "copy the policy alone, model.policy.load_state_dict(other.policy.state_dict())"
            )
        try:
            super().set_parameters(parameters, exact_match, device)
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
        if not isinstance(path, (str, pathlib.Path)):
            return super().save(path, exclude, include)
        with replacing(path, ".zip") as temporary:
            super().save(temporary, exclude, include)


class SafeOffPolicySaveMixin(SafeSaveMixin, OffPolicyAlgorithm):
    """The same for ``save_replay_buffer``."""

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        if not isinstance(path, (str, pathlib.Path)):
            return super().save_replay_buffer(path)
        with replacing(path, ".pkl") as temporary:
            super().save_replay_buffer(temporary)
