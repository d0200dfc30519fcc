#!/bin/bash
# All that wants a GPU: the tests, and the speed of training beside SB3's SAC and sb3-contrib's CrossQ. The tables go to
# benchmarks/results (OUT=folder), under the card's name. On 11 cores beside an H100 the tests took three minutes and the first table
# stood before six and a half, when the session ended; the second one, of large batches, is not measured.
# A dry run without a GPU: DEVICE=cpu OUT=/tmp/dry ROUNDS=1 benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
card=${CARD:-$("$python" -c "import torch; print(torch.cuda.get_device_name() if '$device' != 'cpu' else 'CPU dry run')")}
scratch=$(mktemp -d)
waiting=()
trap 'kill "${waiting[@]}" 2> /dev/null || true; rm -rf "$scratch"' EXIT

speed() { "$python" benchmarks/cost.py speed --device "$device" --crossq-width 1024 "$@"; }
batch_4096=(--batch-size 4096 --n-envs 16)

# What compiles goes to PyTorch's cache on disk, several at a time; only then is anything timed, one by one.
for algorithm in DiffSAC DiffCrossQ; do
    for k in 4 16; do
        speed --algorithms $algorithm --diffusion-steps $k --compiled-steps $k --rounds 1 --out "$scratch/$algorithm-$k" \
            > "$scratch/$algorithm-$k.log" 2>&1 &
        waiting+=($!)
    done
    speed --algorithms $algorithm --diffusion-steps 4 --compiled-steps 4 "${batch_4096[@]}" --rounds 1 --out "$scratch/$algorithm" \
        > "$scratch/$algorithm.log" 2>&1 &
    waiting+=($!)
done
"$python" -m pytest -q -n 4 tests/test_gpu.py
for job in "${waiting[@]}"; do
    wait "$job" || { cat "$scratch"/*.log; exit 1; }
done

common=(--rounds "${ROUNDS:-5}" --out "${OUT:-benchmarks/results}" --algorithms DiffSAC DiffCrossQ)
speed --session "$card" "${common[@]}" --diffusion-steps 4 16 --compiled-steps 4 16
speed --session "$card, batch 4096, 16 environments" "${common[@]}" "${batch_4096[@]}" --diffusion-steps 4 --compiled-steps 4
