#!/usr/bin/env bash
# Train with Slurm, here and now, one process per GPU:
#     GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8, or GPUS if that is less), CPUS_PER_TASK (5); SRUN_ARGS: more options of srun, such as
# --time=8:00:00, or --gres=none where there are no GPUS; PYTHON: the interpreter.
# A training that is longer than Slurm's time limit: sbatch_train.sh.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/_slurm.sh"
resources "$1" "$2"
start_tasks "${resources[@]}" -- train.py "$3" --work-dir "$4" "${@:5}"
