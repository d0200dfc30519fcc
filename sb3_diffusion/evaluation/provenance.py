"""What a run was made with."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("stable_baselines3", "torch", "gymnasium", "mujoco", "numpy")


def provenance() -> dict[str, object]:
    """
    For the file beside a run's numbers.

    :return: "commit" of the clone that the library is in (empty outside git), and "versions" of the packages that matter
    """
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # MuJoCo is optional
            versions[package] = ""
    return {"commit": git.stdout.strip(), "versions": versions}
