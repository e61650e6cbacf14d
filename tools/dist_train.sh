#!/usr/bin/env bash
# Train on several GPUs, or processes of a CPU:
#     tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several machines, on each with its own NODE_RANK:
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8
# MAX_RESTARTS=1 starts all ranks again when one of them fails. It needs --resume auto, by which they go on from the
# last checkpoint, and which begins at step 0 where there is none yet.
# PYTHON: the interpreter. Without PORT, one machine takes a free one.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
if [ "${MAX_RESTARTS:-0}" -gt 0 ] && [[ " ${*:3} " != *" --resume"[\ =]"auto "* ]]; then
    echo "error: MAX_RESTARTS=$MAX_RESTARTS needs --resume auto: without it ranks that start again begin a new run" >&2
    exit 2
fi
tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/_ranks.sh"
start_ranks "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
