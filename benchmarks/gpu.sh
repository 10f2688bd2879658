#!/usr/bin/env bash
# All that is measured on one GPU, in the order of its worth and within a time limit:
#
#   VOC=VOCdevkit benchmarks/gpu.sh              # the tests, the step times, the ladder of methods on VOC's part
#   benchmarks/gpu.sh --dry-run                  # what would run, and what is done already; runs nothing
#   SIZE=tiny benchmarks/gpu.sh steps            # one part, at sizes that a CPU can rehearse
#
# The same command goes on: what is done is left as it is, and a part that is cut off keeps what it had. Results are JSON
# in OUT: suite.json (suite_cut_off.json where the time was up), steps/NAME.json, ladder/ROW/SEED/summary.json; ladder.md is
# the sweep's own table. benchmarks/gpu_tables.py makes the tables of docs/performance.md from them.
#
#   OUT      folder of the results (runs/gpu of the repository)
#   VOC      folder that holds VOC2012/; without it there is no ladder
#   WHEELS   folder of wheels to install first, for a machine without a network
#   SIZE     full, or tiny
#   LIMIT    seconds for all parts together (1500)
#   PYTHON   the interpreter (python3)
set -euo pipefail

absolute() { if [[ -n $1 ]]; then realpath --canonicalize-missing --no-symlinks -- "$1"; fi; }
out=$(absolute "${OUT:-}") voc=$(absolute "${VOC:-}") wheels=$(absolute "${WHEELS:-}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-runs/gpu} size=${SIZE:-full} limit=${LIMIT:-1500} python=${PYTHON:-python3}
dry=0 parts=()
for argument in "$@"; do
    case $argument in
        --dry-run) dry=1 ;;
        suite | steps | ladder) parts+=("$argument") ;;
        *) echo "usage: $0 [--dry-run] [suite] [steps] [ladder]" >&2; exit 2 ;;
    esac
done
((${#parts[@]})) || parts=(suite steps ladder)
[[ $size == full || $size == tiny ]] || { echo "SIZE=$size: full or tiny" >&2; exit 2; }

# The ladder's share of the time, which the steps leave alone where it follows them.
kept=0
if [[ " ${parts[*]} " == *" ladder "* && (-n $voc || $size == tiny) ]]; then kept=$((limit * 2 / 5)); fi

say() { echo "[$SECONDS s] $*" >&2; }
left() { echo $((limit - SECONDS)); }
least() { echo $(($1 < $2 ? $1 : $2)); }

# At most SECONDS, and no longer than is left. The last GRACE of them begin with SIGINT, at which a training ends with a
# checkpoint and pytest with a report. A script in the background passes on that SIGINT is ignored: hence env.
bounded() { # SECONDS GRACE COMMAND ...
    local most grace=$2
    most=$(($(least "$1" "$(left)") - grace))
    shift 2
    if ((most <= 0)); then return 124; fi
    timeout --signal=INT --kill-after="$grace" "$most" env --default-signal=INT "$@"
}

prepare() {
    mkdir -p "$out/steps"
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
    if [[ -n $wheels ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$out/site" "$wheels"/*.whl
        PYTHONPATH="$PWD:$out/site:${PYTHONPATH#"$PWD"}"
    fi
    export XLA_PYTHON_CLIENT_PREALLOCATE=false    # two frameworks share the GPU
}

# The files of the suite whose numbers come from the device. Products of full precision: the tests' tolerances are float32's.
suite() {
    local files code=0 name=suite
    if [[ -e $out/suite.json ]]; then say "suite: done"; return; fi
    if [[ $size == tiny ]]; then files=(tests/losses); else mapfile -t files < <("$python" benchmarks/gpu_plan.py tests); fi
    say "suite: ${files[*]}"
    ((!dry)) || return 0
    XLA_FLAGS='' JAX_DEFAULT_MATMUL_PRECISION=highest bounded 240 30 "$python" -m pytest -p no:cacheprovider \
        --junitxml="$out/suite.xml" "${files[@]}" >"$out/suite.log" 2>&1 || code=$?
    say "suite: exit code $code, $(tail -n 1 "$out/suite.log")"
    if ((code > 1)); then name=suite_cut_off; fi    # the next call tries again
    if [[ -e $out/suite.xml ]]; then
        "$python" benchmarks/gpu_plan.py counts "$out/suite.xml" >"$out/$name.json.part"
        mv "$out/$name.json.part" "$out/$name.json"
    fi
}

steps() {
    local name flags framework=both most=300 turns=(--rounds=5 --steps=10)
    "$python" -c 'import torch' 2>/dev/null || framework=jax
    if [[ $size == tiny ]]; then most=900 turns=(--rounds=2 --steps=1 --matmul=256); fi    # a CPU compiles slowly
    while IFS=$'\t' read -r name flags; do
        if [[ -e $out/steps/$name.json ]]; then say "step $name: done"; continue; fi
        if (($(left) < kept + 30)); then say "step $name: no time is left"; continue; fi
        say "step $name: train_step.py --framework=$framework $flags"
        ((!dry)) || continue
        # shellcheck disable=SC2086    # the flags are words
        if bounded "$(least "$most" $(($(left) - kept)))" 10 "$python" benchmarks/train_step.py --framework=$framework $flags "${turns[@]}" --json \
            >"$out/steps/$name.part" 2>"$out/steps/$name.log" </dev/null; then
            tail -n 1 "$out/steps/$name.part" >"$out/steps/$name.json.part"
            mv "$out/steps/$name.json.part" "$out/steps/$name.json"
        else
            say "step $name: exit code $?, see $out/steps/$name.log"
        fi
        rm -f "$out/steps/$name.part"
    done < <("$python" benchmarks/gpu_plan.py steps --size="$size")
}

ladder() {
    local sweep=configs/sweeps/voc_gpu.toml options=("--config.data.root=$voc")
    if [[ $size == tiny ]]; then
        sweep=configs/sweeps/tiny.toml
        options=(--config.steps=2 --config.evaluate_every=2 --config.checkpoint_every=2 --config.data.shapes.size=48
            --config.data.crop=33 --config.eval.split=tune --config.eval.bucket=64 --config.eval.pictures=0
            --config.model.encoder=unet --config.model.unet.width=0.03125)
    elif [[ -z $voc ]]; then
        say "ladder: VOC is not set"
        return
    fi
    say "ladder: forec_jax sweep --sweep=$sweep --workdir=$out/ladder ${options[*]}"
    ((!dry)) || return 0
    bounded "$limit" 90 "$python" -m forec_jax sweep --sweep="$sweep" --workdir="$out/ladder" "${options[@]}" \
        >"$out/ladder.log" 2>&1 </dev/null || say "ladder: exit code $?, see $out/ladder.log"
    # What there is so far, also where runs are missing.
    if "$python" -m forec_jax table --workdirs="$out/ladder" --format=markdown >"$out/ladder.md.part" 2>>"$out/ladder.log"; then
        mv "$out/ladder.md.part" "$out/ladder.md"
    else
        say "ladder: no table, see $out/ladder.log"
    fi
}

((dry)) || prepare
for part in "${parts[@]}"; do "$part"; done
say "results in $out; the tables: $python benchmarks/gpu_tables.py $out"
