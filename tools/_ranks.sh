# start_ranks GPUS SCRIPT [arguments]: run a door on every rank, in place of this shell; for dist_train.sh and dist_test.sh.
# refuse, whole: for _slurm.sh too.

refuse() {
    echo "error: $1" >&2
    exit 2
}

whole() { # NAME VALUE LEAST
    [[ $2 =~ ^[0-9]{1,5}$ ]] && [ "$2" -ge "$3" ] || refuse "$1=$2: must be a whole number, $3 or more"
}

start_ranks() {
    local tools nodes=${NNODES:-1} rank=${NODE_RANK:-0} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
    local restarts=${MAX_RESTARTS:-0} options
    [[ $nodes != *:* ]] || refuse "NNODES=$nodes: another number of machines is another training; give one number"
    whole GPUS "$1" 1
    whole NNODES "$nodes" 1
    whole MAX_RESTARTS "$restarts" 0
    options=(--nproc_per_node="$1" --max_restarts="$restarts")
    if [ "$nodes" -eq 1 ]; then
        options+=(--standalone --local_addr=127.0.0.1)
    else
        whole NODE_RANK "$rank" 0
        whole PORT "$port" 1
        [ "$rank" -lt "$nodes" ] || refuse "NODE_RANK=$rank: of NNODES=$nodes machines the last is $((nodes - 1))"
        options+=(--nnodes="$nodes" --rdzv_backend=by_node_rank --rdzv_endpoint="$address:$port")
        options+=(--rdzv_conf="node_rank=$rank,is_host=$((rank == 0)),read_timeout=${JOIN_TIMEOUT:-600}")
    fi
    tools=$(dirname "${BASH_SOURCE[0]}")
    exec "${PYTHON:-python}" "$tools/_torchrun.py" "${options[@]}" "${@:2}"
}
