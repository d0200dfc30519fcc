#!/bin/bash
# All that wants a GPU, in under eight minutes: the tests, and the speed of training beside SB3's SAC and sb3-contrib's CrossQ.
# The tables go to benchmarks/results (OUT=folder), under the card's name. A dry run without a GPU: DEVICE=cpu OUT=/tmp/dry ROUNDS=1 benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
card=${CARD:-$("$python" -c "import torch; print(torch.cuda.get_device_name() if '$device' != 'cpu' else 'CPU dry run')")}
common=(--device "$device" --rounds "${ROUNDS:-5}" --out "${OUT:-benchmarks/results}" --diffusion-steps 4 16 --compiled-steps 4 16
        --algorithms DiffSAC DiffCrossQ --crossq-width 1024)

"$python" -m pytest -q tests/test_gpu.py
"$python" benchmarks/cost.py speed --session "$card" "${common[@]}"
"$python" benchmarks/cost.py speed --session "$card, batch 4096, 16 environments" --batch-size 4096 --n-envs 16 "${common[@]}"
