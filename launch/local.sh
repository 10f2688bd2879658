#!/usr/bin/env bash
# One run in N processes on this machine:
#
#   launch/local.sh N forec-jax train --config=configs/shapes.py:forec --workdir=runs/two
#
# A real multi-process run that needs no cluster: on CPUs with virtual devices (DEVICES a process, 1 by default), on a
# machine with N GPUs with one GPU a process. The processes meet on the loopback address alone.
#
# When one process ends, or a signal comes, the others have GRACE seconds (120 by default: longer than a step and a checkpoint)
# to end too. When one fails they get SIGTERM first. One that is stopped (SIGSTOP) for GRACE seconds counts as failed. What is still there
# then gets SIGKILL. The exit code is that of the first failure.
set -euo pipefail
set -m    # a process group each: Ctrl-C reaches the processes once, through this script, and not a second time

usage() { echo "usage: $0 PROCESSES COMMAND [ARGUMENT ...]" >&2; exit 2; }
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
processes=$1; shift

port=${PORT:-$((20000 + RANDOM % 20000))}
grace=${GRACE:-120}
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
    env "${environment[@]}" "$@" --coordinator="127.0.0.1:$port" --processes="$processes" --process="$process" &
    pids+=($!)
done
code=0 reason='' deadline='' stopped_since=''
pass_on() { stop_all; deadline=${deadline:-$((SECONDS + grace))}; }
trap pass_on INT TERM
((!interrupted)) || pass_on

fail() { # CODE REASON: the first failure decides
    ((code == 0)) || return 0
    code=$1 reason=$2
    ((code == 130 || code == 143)) || stop_all    # those two: all of them heard of the signal
}

collect() { # what has ended, and how
    local process status
    for process in "${!pids[@]}"; do
        kill -0 "${pids[process]}" 2>/dev/null && continue
        wait "${pids[process]}" && status=0 || status=$?
        unset "pids[process]"
        deadline=${deadline:-$((SECONDS + grace))}
        ((status == 0)) || fail "$status" "process $process of $processes ended with exit code $status"
    done
}

look_for_stopped() { # a stopped process answers nobody; one that goes on in time is forgiven
    local process
    if [[ -z $(jobs -sp) ]]; then stopped_since=''; return; fi
    stopped_since=${stopped_since:-$SECONDS}
    ((SECONDS - stopped_since >= grace)) || return 0
    for process in "${!pids[@]}"; do
        jobs -sp | grep -qx "${pids[process]}" && fail 137 "process $process of $processes is stopped (SIGSTOP)"
    done
    deadline=${deadline:-$((SECONDS + grace))}
}

kill_the_rest() { # with their groups: data workers go too
    local rest="${!pids[*]}" pid
    fail 137 "process ${rest// /, } of $processes did not end"
    for pid in "${pids[@]}"; do
        disown "$pid" || true # or the shell's own word on its end could come after the last line
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    reason+="; killed after $grace seconds: process ${rest// /, }"
    pids=()    # not waited for: a process that hangs in a disk's driver does not even die
}

# `wait -n` would return at once for a stopped process, again and again: a nap is waited for, which signals cut short.
while collect; look_for_stopped; ((${#pids[@]})); do
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then kill_the_rest; break; fi
    sleep 0.2 & wait $! || true
done
[[ -z $reason ]] || echo "$0: $reason; the same command goes on from the last checkpoint" >&2
exit "$code"
