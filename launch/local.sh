#!/usr/bin/env bash
# One run in N processes on this machine:
#
#   launch/local.sh N forec-jax train --config=configs/shapes.py:forec --workdir=runs/two
#
# A real multi-process run that needs no cluster: on CPUs with virtual devices (DEVICES a process, 1 by default), on a
# machine with N GPUs with one GPU a process. When one process fails the others are stopped, and its exit code is returned.
set -euo pipefail
set -m    # a process group each: Ctrl-C reaches the processes once, through this script, and not a second time

usage() { echo "usage: $0 PROCESSES COMMAND [ARGUMENT ...]" >&2; exit 2; }
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
processes=$1; shift

port=${PORT:-$((20000 + RANDOM % 20000))}
export JAX_NUM_CPU_DEVICES=${DEVICES:-1}

pids=()
stop_all() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
interrupted=0
trap 'interrupted=1' INT TERM    # one that comes now is passed on when all are there to hear it

for ((process = 0; process < processes; process++)); do
    environment=()
    if command -v nvidia-smi >/dev/null 2>&1 && [[ -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
        environment=("CUDA_VISIBLE_DEVICES=$process")
    fi
    env "${environment[@]}" "$@" --coordinator="localhost:$port" --processes="$processes" --process="$process" &
    pids+=($!)
done
trap stop_all INT TERM
((!interrupted)) || stop_all

# The first failure decides; a process that is waiting for the one that failed must not keep the others.
code=0
while ((${#pids[@]})); do
    wait -n || true    # until a process ends or a signal comes; what ended, and how, is asked by process
    for process in "${!pids[@]}"; do
        kill -0 "${pids[process]}" 2>/dev/null && continue
        wait "${pids[process]}" && status=0 || status=$?
        unset "pids[process]"
        if ((status != 0 && code == 0)); then
            code=$status
            ((status == 130 || status == 143)) || stop_all    # those two: all of them heard of the signal
        fi
    done
done
exit "$code"
