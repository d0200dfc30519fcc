"""What a benchmark run was made with, for the JSON file beside its numbers."""

import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("stable_baselines3", "torch", "gymnasium", "mujoco", "numpy")


def provenance() -> dict[str, object]:
    """:return: the commit of this checkout (empty outside git) and the versions of the packages that matter"""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {"commit": git.stdout.strip(), "versions": {package: version(package) for package in PACKAGES}}
