"""
Stable-Baselines3's and sb3-contrib's own tests, run against the library's algorithms.

    python benchmarks/upstream_tests.py stable_baselines3
    python benchmarks/upstream_tests.py sb3_contrib [options of pytest]

The tests come with the source distribution of the installed version, which pip downloads into a temporary folder. There
``SAC``, ``PPO``, ``TQC`` and ``CrossQ`` are replaced by ours, and only tests that concern them run. Those that cannot pass,
because they are about what a diffusion policy does not have, are named below with the reason. The exit status is 1 if any
other test fails.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

CONFTEST = '''
import inspect
import re

import sb3_contrib
import stable_baselines3
import torch as th

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC

th.set_num_threads(1)
OURS = {
    "stable_baselines3": {"SAC": DiffSAC, "PPO": DiffPPO},
    "sb3_contrib": {"TQC": DiffTQC, "CrossQ": DiffCrossQ},
}[%r]
for name, algorithm in OURS.items():
    setattr(%s, name, algorithm)


def concerns_us(item):
    """Parametrized with one of ours, or, where no class is a parameter, written for the one that ours replaces."""
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    classes = [value for value in parameters if isinstance(value, type)]
    if classes:
        return any(value in OURS.values() for value in classes)
    return re.search(r"\\b(" + "|".join(OURS) + r")\\b", inspect.getsource(item.function)) is not None


def pytest_collection_modifyitems(config, items):
    deselected = [item for item in items if not concerns_us(item)]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]
'''

# What a failure may say, and why
REASONS = {
    r"only supports .*Box.* as action spaces": "a diffusion policy acts in boxes",
    r"use_sde=True": "gSDE is noise of a Gaussian policy",
    r"policy=.* has not the networks this needs": "the test brings a Gaussian policy of its own",
}
# Tests whose failure says something else
KNOWN = {
    r"test_ppo_warnings": "it expects the name PPO in a warning",
    r"test_ppo\[-0.2-": "a negative clip_range_vf is a ValueError here, an AssertionError there",
    r"test_flexible_mlp\[DiffPPO": "it expects a warning before a Discrete action space is refused",
    r"test_features?_extractor_target_net\[True-": "heads that start at zero pass a shared extractor no gradient in step one",
}


def reason_for(test: str, message: str) -> str | None:
    """:return: why this failure is no fault; None if it is one"""
    named = [reason for pattern, reason in KNOWN.items() if re.search(pattern, test)]
    said = [reason for pattern, reason in REASONS.items() if re.search(pattern, message)]
    return next(iter(named + said), None)


def main() -> int:
    """Download, run, and tell failures that are faults from those that are not."""
    parser = argparse.ArgumentParser(description="Run the tests of SB3 or sb3-contrib against this library's algorithms.")
    parser.add_argument("package", choices=["stable_baselines3", "sb3_contrib"], help="whose tests")
    arguments, options = parser.parse_known_args()
    package, version = arguments.package, importlib.metadata.version(arguments.package)
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package, "--dest", folder]
        subprocess.run([*download, f"{package}=={version}"], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        tests = Path(folder) / f"{package}-{version}" / "tests"
        (tests / "conftest.py").write_text(CONFTEST % (package, package))
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(tests), "-q", "--tb=short", "-p", "no:cacheprovider", *options]
        # Modules that need what is not installed are not ours to judge.
        subprocess.run([*command, "--continue-on-collection-errors", f"--junitxml={report}"], cwd=tests.parent, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    faults, excused = [], dict[str, int]()
    for case in cases:
        test, failure = f"{case.get('classname')}::{case.get('name')}", case.find("failure")
        if failure is None:
            continue
        reason = reason_for(test, f"{failure.get('message')} {failure.text}")
        if reason is None:
            faults.append(test)
        else:
            excused[reason] = excused.get(reason, 0) + 1
    skipped = sum(case.find("skipped") is not None for case in cases)
    print(f"\n{package} {version}: {len(cases)} tests, {skipped} skipped, {sum(excused.values())} cannot pass:")
    for reason, count in sorted(excused.items(), key=lambda item: -item[1]):
        print(f"  {count:4d}  {reason}")
    print(*(f"FAULT {test}" for test in faults), sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
