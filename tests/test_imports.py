"""What importing the library costs beside importing Stable-Baselines3."""

import json
import subprocess
import sys
from typing import Any

import pytest

IMPORT = """
import json, sys, time
import stable_baselines3
before, start = set(sys.modules), time.process_time()
import sb3_diffusion
print(json.dumps(dict(seconds=time.process_time() - start, added=sorted(set(sys.modules) - before))))
"""
IMPORT_BASE = "import time; start = time.process_time(); import stable_baselines3; print(time.process_time() - start)"


def result_of(script: str) -> Any:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_importing_the_library_imports_only_itself_beside_stable_baselines3() -> None:
    foreign = {module.split(".")[0] for module in result_of(IMPORT)["added"]} - {"sb3_diffusion"}
    heavy = ("torch", "sympy", "matplotlib", "scipy", "rl_zoo3", "optuna", "onnx", "onnxruntime", "joblib", "ray", "pandas")
    assert not foreign & set(heavy)
    assert len(foreign) <= 10, foreign


@pytest.mark.slow
def test_importing_the_library_takes_at_most_a_tenth_longer_than_stable_baselines3() -> None:
    base = min(result_of(IMPORT_BASE) for _ in range(5))
    assert min(result_of(IMPORT)["seconds"] for _ in range(5)) <= 0.1 * base
