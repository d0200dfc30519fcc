"""What a run was made with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("sb3_diffusion", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "gymnasium", "mujoco", "numpy")


def processor() -> str:
    """The name of the CPU, as precise as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def provenance() -> dict[str, object]:
    """
    For the file beside a run's numbers.

    :return: "commit" of the clone that the library is in (empty outside git), "machine", the name of the CPU, and "versions"
        of the packages that matter
    """
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # MuJoCo is optional
            versions[package] = ""
    return {"commit": git.stdout.strip(), "machine": processor(), "versions": versions}
