# start_ranks GPUS SCRIPT [arguments]: run a door on every rank, in place of this shell; for dist_train.sh and dist_test.sh.

start_ranks() {
    local tools python options
    tools=$(dirname "${BASH_SOURCE[0]}")
    python=${PYTHON:-python}
    options=(--nproc_per_node="$1" --max_restarts="${MAX_RESTARTS:-0}")
    if [ "${NNODES:-1}" -gt 1 ] || [ -n "${PORT:-}" ]; then
        options+=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}")
        options+=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
    else
        options+=(--standalone --local_addr=127.0.0.1)
    fi
    exec "$python" "$tools/_torchrun.py" "${options[@]}" "${@:2}"
}
