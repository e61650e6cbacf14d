#!/usr/bin/env bash
# The job of sbatch_train.sh, of which Slurm runs a copy: TOOLS CONFIG WORK_DIR [arguments of tools/train.py]
set -uo pipefail
source "$1/_slurm.sh"
restarts=${SLURM_RESTART_COUNT:-0}
resume=(--resume auto)
if [ "$restarts" = 0 ] && [[ " ${*:4} " == *" --resume"[\ =]* ]]; then
    resume=() # the first time as its user wants it
fi
pointer=$3/last_checkpoint
before=$(cat "$pointer" 2> /dev/null)
(start_tasks --cpus-per-task="$SLURM_CPUS_PER_TASK" -- train.py "$2" --work-dir "$3" "${@:4}" "${resume[@]}")
code=$?
if [ $code != 75 ] && [ $code != 138 ]; then # 138: SIGUSR1 while Python starts
    exit $code
fi
if [ "$(cat "$pointer" 2> /dev/null)" = "$before" ]; then
    echo "error: job $SLURM_JOB_ID got Slurm's signal before its first step, and is not queued again, for it would not" \
        "get further: more time (--time), or a later signal (--signal=USR1@SECONDS) in SBATCH_ARGS" >&2
    exit $code
fi
if [ "$restarts" -ge "${MAX_REQUEUES:-100}" ]; then
    echo "error: job $SLURM_JOB_ID was queued again $restarts times, and is not done; for more: MAX_REQUEUES=N" >&2
    exit $code
fi
echo "job $SLURM_JOB_ID is queued again, to go on from its checkpoint (restart $((restarts + 1)))"
exec scontrol requeue "$SLURM_JOB_ID"
