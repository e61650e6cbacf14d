# What slurm_train.sh, slurm_test.sh and sbatch_train.sh share.

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$tools/_ranks.sh"

# resources PARTITION JOB_NAME: what a job asks for, into the array of that name.
resources() {
    local gpus=${GPUS:-8} per_node cores=${CPUS_PER_TASK:-5}
    whole GPUS "$gpus" 1
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    whole GPUS_PER_NODE "$per_node" 1
    whole CPUS_PER_TASK "$cores" 1
    resources=(--partition="$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="$gpus")
    resources+=(--ntasks-per-node="$per_node" --cpus-per-task="$cores")
}

# start_tasks SRUN_OPTIONS -- DOOR [arguments]: a door as one process per GPU, in place of this shell. When one fails,
# Slurm ends the others.
start_tasks() {
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # shellcheck disable=SC2086  # SRUN_ARGS is several
    exec srun "${options[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$tools/$2" "${@:3}" --launcher slurm
}
