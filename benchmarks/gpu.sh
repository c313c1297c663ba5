#!/usr/bin/env bash
# Calibration, the exact search and pruning on a model of Mixtral-8x7B's shape, timed on this machine's GPU:
#
#     benchmarks/gpu.sh                  as many of the 32 layers as fit, 128 x 2,048 tokens
#     benchmarks/gpu.sh --layers 2 --hidden 64 --width 128 --sequences 4 --length 32     a trial, on CPU too
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$here/launch.sh" setup
export PATH="$here/.venv/bin:$PATH"
exec python "$here/benchmarks/gpu.py" "$@"
