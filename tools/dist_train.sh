#!/usr/bin/env bash
# Train on several GPUs, or processes of a CPU:
#     tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several machines, on each with its own NODE_RANK:
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8
# MAX_RESTARTS=1 starts all ranks again when one of them ends, unless by a mistake, which would end them again. It needs
# --resume auto, by which they go on from the last checkpoint, and which begins at step 0 where there is none yet.
# JOIN_TIMEOUT: seconds in which all machines must be there (600). PYTHON: the interpreter. One machine takes a free
# port, whatever PORT says.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
if [[ ${MAX_RESTARTS:-0} =~ ^[1-9] ]] && [[ " ${*:3} " != *" --resume"[\ =]"auto "* ]]; then
    echo "error: MAX_RESTARTS=$MAX_RESTARTS needs --resume auto: without it ranks that start again begin a new run" >&2
    exit 2
fi
tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/_ranks.sh"
start_ranks "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
