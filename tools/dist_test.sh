#!/usr/bin/env bash
# Evaluate on several GPUs, or processes of a CPU:
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# NNODES, NODE_RANK, MASTER_ADDR, PORT, JOIN_TIMEOUT, PYTHON: as for dist_train.sh.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/_ranks.sh"
start_ranks "$3" "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
