"""What the commands say of themselves and of packages that they miss."""

import sys


def program(command: str) -> str:
    """:return: how this command was called, for its usage line: by ``sb3-diffusion`` or by ``python -m``"""
    called = f"sb3-diffusion {command}"
    return called if sys.argv[0] == called else f"python -m sb3_diffusion.{command}"


def missing(what: str, error: ImportError, *extras: str) -> str:
    """
    :param what: needs a package, as the beginning of a sentence in the singular
    :param error: the package's import
    :param extras: of ours that bring it
    :return: one sentence that says so, or what else failed in a package that is there
    """
    if not isinstance(error, ModuleNotFoundError):
        return f"{what} cannot import what it needs: {error}"
    names = " and ".join(repr(extra) for extra in extras)
    package = (error.name or "").partition(".")[0]
    return f"{what} needs the package {package}: install sb3_diffusion with its extra{'s' * (len(extras) > 1)} {names}"
