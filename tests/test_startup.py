"""What starting costs: importing the library beside Stable-Baselines3, and compiling what was compiled before."""

import json
import os
import subprocess
import sys
from pathlib import Path
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


COMPILE = """
import resource
import torch
torch.set_num_threads(1)
from sb3_diffusion import DiffSAC
model = DiffSAC("MlpPolicy", "Pendulum-v1", device="cpu", seed=0, learning_starts=10, torch_compile=True).learn(14)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(each.ru_utime + each.ru_stime for each in used))
"""


def result_of(script: str, **variables: str) -> Any:
    environment = {**os.environ, **variables}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
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


@pytest.mark.slow
def test_a_process_after_the_first_compiles_within_fifteen_seconds_of_processor_time(tmp_path: Path) -> None:
    first, second = (result_of(COMPILE, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert second <= 15
    assert second <= 0.5 * first
