#!/usr/bin/env bash
# Everything that a GPU has to show, in at most eight minutes, the largest questions first (benchmarks/gpu.py says which):
#
#     benchmarks/gpu.sh                  prints it, and keeps what is finished in gpu-results.md
#     benchmarks/gpu.sh --trial          with tiny sizes, on any machine
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$here/launch.sh" setup
export PATH="$here/.venv/bin:$PATH"
exec python "$here/benchmarks/gpu.py" "$@"
