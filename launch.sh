#!/usr/bin/env bash
# Sets everything up in .venv and runs a recipe on one GPU, all GPUs of this machine, or those of several machines.
#
#     ./launch.sh                                     recipes/playground.yaml: the whole job with the embedded model
#     ./launch.sh recipes/math.yaml [key=value …]     another recipe, with overrides
#     ./launch.sh sweep recipes/math.yaml pruning.keep=6,4,2 …    how far can it be pruned?
#     ./launch.sh test [fast]                         formatting, lint, types and tests (fast: those that take two minutes)
#     ./launch.sh setup [EXTRA …]                     only sets up; extras: lm-eval, server, gguf, nearest-shots, tensorboard, docs,
#                                                     dev (for `test`)
#
#     ./launch.sh --ranks 4 RECIPE …                  four ranks instead of one per visible GPU (without a GPU: two)
#     CUDA_VISIBLE_DEVICES=2,3 ./launch.sh RECIPE …   these GPUs
#     ./launch.sh --hostfile HOSTS RECIPE …           several machines: a line `name slots=8` for each (slots: ranks)
#     sbatch -N 2 --gpus-per-node 8 launch.sh RECIPE …    a SLURM job, one torchrun on each of its nodes
#
# Several machines share this folder and the one it is called in, at the same paths: docs/running.md.
set -euo pipefail

stop() { echo "launch.sh: $*" >&2; exit 1; }

# What sbatch was given runs as a copy in a spool folder: SLURM knows where it was.
find_home() {
    local folder submitted=""
    [ -z "${SLURM_JOB_ID:-}" ] ||
        submitted=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p') || true
    for folder in "$(dirname "${BASH_SOURCE[0]}")" "${submitted%/*}" "${SLURM_SUBMIT_DIR:-}"; do
        if [ -f "$folder/toolkit/train.py" ]; then cd "$folder" && pwd && return; fi
    done
    stop "cannot find the folder it belongs to: submit it from there (sbatch launch.sh …)"
}

find_python() {
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$python"; return; }
    done
    stop "needs Python 3.11 or newer (found: $(python3 --version 2>&1)). Install it, or name it: PYTHON=/path/to/python3.12 $0"
}

# Installs what a run needs, and the named extras of pyproject.toml. What was installed, for which versions, is kept beside it:
# .venv/pollard-set-up for a run, .venv/pollard-set-up.EXTRA for an extra.
set_up() {
    local wanted extra python missing="" extras=" " stamp="$here/.venv/pollard-set-up"
    wanted=$(cat "$here/pyproject.toml" "$here/constraints.txt" | sha256sum)
    for extra in "$@"; do
        grep -q "^$extra = \[" "$here/pyproject.toml" ||
            stop "there is no extra \`$extra\`; there are: $(sed -n '/^\[project.optional/,/^\[project.scripts/s/^\([a-z-]*\) = \[.*/\1/p' "$here/pyproject.toml" | xargs)"
    done
    for extra in "" "$@"; do
        [ "$(cat "$stamp${extra:+.$extra}" 2>/dev/null)" = "$wanted" ] || missing=yes
    done
    [ -n "$missing" ] || return 0
    python=$(find_python)
    for extra in "$@" $(cd "$here/.venv" 2>/dev/null && ls pollard-set-up.* 2>/dev/null | sed 's/^pollard-set-up\.//'); do
        [[ $extras == *" $extra "* ]] || extras+="$extra "
    done
    extras=${extras# } extras=${extras% }
    {
        echo "Setting up .venv with $("$python" --version)${extras:+, with $extras} (once). A run needs about 65 packages: 1.4 GB on"
        echo "disk with a CPU build of torch, several GB more with CUDA's. That takes as long as the network needs to fetch them."
    } >&2
    [ -x "$here/.venv/bin/python" ] || "$python" -m venv "$here/.venv" || stop "cannot make a virtual environment. On Debian: apt install python3-venv"
    install_packages -c "$here/constraints.txt" -e "$here${extras:+[${extras// /,}]}"
    for extra in "" $extras; do
        echo "$wanted" >"$stamp${extra:+.$extra}"
    done
    echo "Set up in $SECONDS s: $(du -sh "$here/.venv" | cut -f 1) in .venv" >&2
}

# uv does in a third of the time what pip does
install_packages() {
    # Who is root in a container need not be told so
    local -x PIP_ROOT_USER_ACTION=ignore
    local pip=("$here/.venv/bin/python" -m pip --disable-pip-version-check) uv
    uv=$(command -v uv || echo "$here/.venv/bin/uv")
    if [ -x "$uv" ] || "${pip[@]}" install --quiet uv 2>/dev/null; then
        # Of all indexes the newest version, as pip takes it
        # Where Python may not keep what it compiles, every process would compile all that it imports: it is done once, here
        (settings_of_pip && "$uv" pip install --quiet ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} \
            --python "$here/.venv/bin/python" --index-strategy unsafe-best-match "$@") && return
        echo "uv could not install this; pip tries, which takes longer" >&2
    else
        echo "uv cannot be had here; pip takes longer" >&2
    fi
    "${pip[@]}" install --quiet "$@"
}

# uv reads no settings of pip: where packages come from is told to it, unless it has been told already
settings_of_pip() {
    local key value
    while IFS="=" read -r key value; do
        value=${value#[\'\"]} value=${value%[\'\"]}
        case ${key##*.} in # those of the environment come first, and the first one stays
        index-url) : "${UV_DEFAULT_INDEX:=$value}" ;;
        extra-index-url) : "${UV_INDEX:=$value}" ;;
        find-links) : "${UV_FIND_LINKS:=${value// /,}}" ;;
        constraint) : "${UV_CONSTRAINT:=$value}" ;;
        cert) : "${SSL_CERT_FILE:=$value}" ;;
        trusted-host) : "${UV_INSECURE_HOST:=$value}" ;;
        proxy) : "${ALL_PROXY:=$value}" ;;
        default-timeout | timeout) : "${UV_HTTP_TIMEOUT:=$value}" ;;
        no-index) : "${UV_NO_INDEX:=$value}" ;;
        esac
    done < <("${pip[@]}" config list)
    for key in UV_DEFAULT_INDEX UV_INDEX UV_FIND_LINKS UV_CONSTRAINT SSL_CERT_FILE UV_INSECURE_HOST ALL_PROXY UV_HTTP_TIMEOUT UV_NO_INDEX; do
        [ -z "${!key:-}" ] || export "${key?}"
    done
}

# A port of its own, so that two runs on one machine do not meet
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

# DeepSpeed's runner answers Ctrl-C with a traceback and SIGTERM by leaving its ranks behind. In the background it hears neither;
# its child, which the ranks belong to, is told, and they say how to go on.
interruptible() {
    local runner status=0 stopped=""
    "$@" &
    runner=$!
    # shellcheck disable=SC2064
    trap "stopped=130; kill -TERM \$(cat /proc/$runner/task/$runner/children) 2>/dev/null" INT TERM
    while kill -0 "$runner" 2>/dev/null; do wait "$runner" && status=0 || status=$?; done
    exit "${stopped:-$status}"
}

on_this_machine() {
    local gpus where chosen
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    ranks=${ranks:-$((gpus > 0 ? gpus : 2))}
    [ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu # or DeepSpeed looks for others, and warns
    where=(--num_gpus "$ranks") chosen=${CUDA_VISIBLE_DEVICES:+CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES }
    if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then # which DeepSpeed would forget beside --num_gpus
        [[ $CUDA_VISIBLE_DEVICES =~ ^[0-9,]+$ ]] || stop "DeepSpeed takes GPUs by number only, e.g. CUDA_VISIBLE_DEVICES=0,1"
        where=(--include "localhost:$(cut -d, -f "1-$ranks" <<<"$CUDA_VISIBLE_DEVICES")")
        unset CUDA_VISIBLE_DEVICES
    fi
    export POLLARD_LAUNCHER="$chosen$called --ranks $ranks"
    echo "Starting $ranks rank$([ "$ranks" = 1 ] || echo s): first they show what will be done, and how long that takes" >&2
    interruptible deepspeed --quiet "${where[@]}" --master_port "$(free_port)" "${deepspeed_entry[@]}" "$@"
}

on_the_hosts() {
    [ -z "$ranks" ] || stop "--ranks and --hostfile exclude each other: the hostfile's slots are the ranks of each machine"
    python "$here/toolkit/runtime/nodes.py" hostfile "$hostfile" "$recipe"
    export POLLARD_LAUNCHER="$called --hostfile $(printf %q "$hostfile")"
    exec deepspeed --quiet --hostfile "$hostfile" --force_multi --master_port "$(free_port)" "${deepspeed_entry[@]}" "$@"
}

on_the_job() {
    local first
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    ranks=$(python "$here/toolkit/runtime/nodes.py" slurm ${ranks:+--ranks "$ranks"} "$recipe")
    export POLLARD_LAUNCHER="sbatch --nodes=$SLURM_NNODES${SLURM_GPUS_PER_NODE:+ --gpus-per-node=$SLURM_GPUS_PER_NODE}"
    POLLARD_LAUNCHER+="${SLURM_JOB_PARTITION:+ --partition=$SLURM_JOB_PARTITION} $(printf %q "$here/launch.sh")"
    local cores=$((${SLURM_CPUS_ON_NODE:-1} / ranks))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 1 ? cores : 1))}
    # --overlap: also from a shell that is a step of the job. The port: another for another job, below those the system gives away
    exec srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 \
        "$here/.venv/bin/torchrun" --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" --rdzv-backend=c10d \
        --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" "${torchrun_entry[@]}" "$@"
}

# How this was called, as it can be pasted again: `bash launch.sh` names a file that no path holds
export POLLARD_CALLED_FROM=$PWD
case $0 in */*) called=$0 ;; *) called=./$0 ;; esac
[ -x "$called" ] && called=$(printf %q "$called") || called="bash $(printf %q "$called")"
here=$(find_home)
case "${1:-}" in
setup) set_up "${@:2}" ;;
test) set_up dev ;;
*) set_up ;;
esac
export PATH="$here/.venv/bin:$PATH" # ninja and deepspeed are found there
ranks="" hostfile=""
while true; do
    case "${1:-}" in
    --ranks) ranks=${2:-} && [[ $ranks =~ ^[1-9][0-9]*$ ]] || stop "--ranks takes a number, e.g. --ranks 4" ;;
    --hostfile) hostfile=${2:-} && [ -n "$hostfile" ] || stop "--hostfile takes a file with a line \`name slots=8\` for each machine" ;;
    *) break ;;
    esac
    shift 2
done
case "${1:-}" in
setup) echo "Ready: $here/.venv" ;;
test)
    cd "$here"
    tests=()
    case "${*:2}" in
    fast) tests=(-m "not launcher and not slow") ;;
    ?*) stop "\`test\` runs everything, \`test fast\` what takes two minutes; one file: .venv/bin/pytest FILE" ;;
    esac
    ruff format --check .
    ruff check .
    mypy
    exec pytest -n 2 --dist loadfile --no-loadscope-reorder "${tests[@]}" # a file's launches are shared by its tests, and long files come first
    ;;
*)
    [ $# -gt 0 ] || { cd "$here" && called=./launch.sh && set -- recipes/playground.yaml; }
    deepspeed_entry=("$here/toolkit/train.py") torchrun_entry=("$here/toolkit/train.py") recipe=$1
    [ "$1" != sweep ] || { deepspeed_entry=(--module toolkit.cli) torchrun_entry=(-m toolkit.cli) recipe=${2:-}; }
    if [ -n "$hostfile" ]; then
        on_the_hosts "$@"
    elif [ -n "${SLURM_JOB_ID:-}" ]; then
        on_the_job "$@"
    else
        on_this_machine "$@"
    fi
    ;;
esac
