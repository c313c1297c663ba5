#!/usr/bin/env bash
# Sets everything up in .venv and runs a recipe through the DeepSpeed launcher.
#
#     ./launch.sh                                     recipes/playground.yaml: the whole job with the embedded model
#     ./launch.sh recipes/math.yaml [key=value …]     another recipe, with overrides
#     ./launch.sh sweep recipes/math.yaml pruning.keep=6,4,2 …    how far can it be pruned?
#     ./launch.sh test                                formatting, lint, types and tests
#     ./launch.sh setup                               only sets up
#
# One rank per visible GPU; two ranks on a machine without one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

stop() { echo "launch.sh: $*" >&2; exit 1; }

find_python() {
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$python"; return; }
    done
    stop "needs Python 3.11 or newer (found: $(python3 --version 2>&1)). Install it, or name it: PYTHON=/path/to/python3.12 $0"
}

set_up() {
    local wanted python
    wanted=$(cat "$here/pyproject.toml" "$here/constraints.txt" | sha256sum)
    [ "$(cat "$here/.venv/pollard-set-up" 2>/dev/null)" = "$wanted" ] && return
    command -v g++ >/dev/null || command -v c++ >/dev/null ||
        stop "DeepSpeed compiles its communication module on first use and finds no C++ compiler. Install one, e.g.: apt install g++"
    python=$(find_python)
    "$python" -c 'import pathlib, sysconfig, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
        stop "DeepSpeed compiles its communication module on first use and finds no Python headers. Install them, e.g.: apt install python3-dev"
    echo "Setting up .venv with $("$python" --version) (a few minutes, once)"
    "$python" -m venv "$here/.venv" || stop "cannot make a virtual environment. On Debian: apt install python3-venv"
    "$here/.venv/bin/pip" install --quiet --disable-pip-version-check -c "$here/constraints.txt" -e "$here[dev]"
    echo "$wanted" >"$here/.venv/pollard-set-up"
}

set_up
export PATH="$here/.venv/bin:$PATH" # ninja and deepspeed are found there
case "${1:-}" in
setup) echo "Ready: $here/.venv" ;;
test)
    cd "$here"
    ruff format --check .
    ruff check .
    mypy
    exec pytest -n 2 --dist loadfile # a file's launches are shared by its tests
    ;;
*)
    [ $# -gt 0 ] || { cd "$here" && set -- recipes/playground.yaml; }
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    ranks=$((gpus > 0 ? gpus : 2))
    [ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu # or DeepSpeed looks for others, and warns
    # Ranks share the cores: more threads than cores only wait for each other
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + ranks - 1) / ranks))}
    # A port of its own, so that two runs on one machine do not meet
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    [ "$1" = sweep ] && entry=(--module toolkit.cli) || entry=("$here/toolkit/train.py")
    exec deepspeed --quiet --num_gpus "$ranks" --master_port "$port" "${entry[@]}" "$@"
    ;;
esac
