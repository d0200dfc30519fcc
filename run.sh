#!/usr/bin/env bash
# Sets up .venv on the first call (and again when the requirements change), then runs the demo or the tests in it.
#
#   ./run.sh demo [options of examples/train_mujoco.py]    5 minutes on two free cores
#   ./run.sh test --smoke                                  the most important tests: a minute on two free cores
#   ./run.sh test [options of pytest]                      all but the slow tests: a quarter of an hour on two cores, more on busy ones
#   ./run.sh test -m slow                                  the slow ones: longer than the rest together
#
# The set-up downloads 1 GB (with the CUDA packages several) and takes some minutes. PYTHON and TORCH may be set, for example
#   TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"   without the CUDA packages
set -euo pipefail
cd "$(dirname "$0")"

PYTHON="${PYTHON:-python3}"
TORCH="${TORCH:-torch==2.13.0}"

setup() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python >= 3.10 is needed (PYTHON=$PYTHON)" >&2; exit 1; }
    local wanted
    wanted="$(cat setup.cfg pyproject.toml sb3_diffusion/version.txt; "$PYTHON" --version; echo "$TORCH $PWD")"
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
        if [ -e .venv ] && [ ! -e .venv/installed ]; then
            echo "$PWD/.venv was not made by this script: move it away or remove it" >&2
            exit 1
        fi
        echo "Setting up $PWD/.venv with $("$PYTHON" --version); once, some minutes" >&2
        "$PYTHON" -m venv --clear .venv
        touch .venv/installed
        # torch first and by itself: it alone decides between the CPU and the CUDA build.
        echo "1/2 PyTorch: pip install $TORCH" >&2
        # shellcheck disable=SC2086
        .venv/bin/pip install --quiet --disable-pip-version-check $TORCH
        local extras='mujoco,plots,zoo,experiments,cluster,demonstrations,export,docs,tests'
        echo "2/2 sb3_diffusion and what it needs: pip install -e .[$extras]" >&2
        .venv/bin/pip install --quiet --disable-pip-version-check -e ".[$extras]"
        echo "Set up" >&2
        echo "$wanted" > .venv/installed
    fi
}

# The mathematics, the losses, a recorded training, prediction, arguments: what a fault in any part is likely to touch.
SMOKE=(tests/test_diffusion.py tests/test_losses.py tests/test_fingerprint.py tests/test_signatures.py tests/test_envs.py)

run_tests() {
    if [ "${1:-}" = "--smoke" ]; then
        shift
        echo "The most important tests: about a minute on two free cores" >&2
        exec .venv/bin/python -m pytest -n 2 -q "${SMOKE[@]}" "$@"
    fi
    [ $# -gt 0 ] || echo "All but the slow tests: about a quarter of an hour on two cores (--smoke: a minute)" >&2
    exec .venv/bin/python -m pytest -n 2 "$@"
}

case "${1:-}" in
    demo) setup; shift; exec .venv/bin/python examples/train_mujoco.py "$@" ;;
    test) setup; shift; run_tests "$@" ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
