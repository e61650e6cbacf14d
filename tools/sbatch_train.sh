#!/usr/bin/env bash
# Submit a training that goes on by itself after each time limit of Slurm, until it is done:
#     GPUS=16 SBATCH_ARGS='--time=24:00:00' tools/sbatch_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [as for train.py]
# Two minutes before the limit Slurm sends SIGUSR1: the run saves its checkpoint and ends, the job is queued again, and
# goes on from there. So does one that is preempted or loses a node. One that fails is not queued again.
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS, PYTHON: as for slurm_train.sh; SBATCH_ARGS: more options of sbatch;
# MAX_REQUEUES (100): how often. The log is WORK_DIR/slurm-<job>.log.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/_slurm.sh"
resources "$1" "$2"
mkdir -p "$4"
# shellcheck disable=SC2086  # SBATCH_ARGS is several
exec sbatch "${resources[@]}" --signal=USR1@120 --requeue --open-mode=append --output="$4/slurm-%j.log" \
    ${SBATCH_ARGS:-} "$tools/_slurm_job.sh" "$tools" "$3" "$4" "${@:5}"
