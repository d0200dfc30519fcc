#!/usr/bin/env bash
# Sets up .venv on the first call (and again when the requirements change), then runs the demo or the tests in it.
#
#   ./run.sh demo [options of examples/train_mujoco.py]
#   ./run.sh test [options of pytest]
#
# PYTHON and TORCH may be set, for example
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
        "$PYTHON" -m venv --clear .venv
        touch .venv/installed
        # torch first and by itself: it alone decides between the CPU and the CUDA build.
        # shellcheck disable=SC2086
        .venv/bin/pip install --quiet --disable-pip-version-check $TORCH
        .venv/bin/pip install --quiet --disable-pip-version-check -e '.[mujoco,plots,zoo,experiments,cluster,demonstrations,export,tests]'
        echo "$wanted" > .venv/installed
    fi
}

case "${1:-}" in
    demo) setup; shift; exec .venv/bin/python examples/train_mujoco.py "$@" ;;
    test) setup; shift; exec .venv/bin/python -m pytest -n 2 "$@" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
