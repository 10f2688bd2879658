#!/usr/bin/env bash
# One run on a TPU pod slice, started from a workstation with gcloud:
#
#   launch/tpu_pod.sh create  NAME ZONE v5litepod-16
#   launch/tpu_pod.sh install NAME ZONE
#   launch/tpu_pod.sh train   NAME ZONE --config=configs/voc.py:paper+forec --workdir=/mnt/shared/runs/voc ...
#   launch/tpu_pod.sh delete  NAME ZONE
#
# The pod's metadata tells each host who it is, and FOREC_JAX_JOIN=1 has it asked. --workdir must be on a disk
# that all hosts mount (Filestore, a gcsfuse mount).
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[[ $# -ge 3 ]] || usage
action=$1 name=$2 zone=$3; shift 3

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

case $action in
    create)
        [[ $# -eq 1 ]] || usage
        gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$1" --version=tpu-ubuntu2204-base
        ;;
    install)
        here=$(cd "$(dirname "$0")/.." && pwd)
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        git -C "$here" archive --output="$folder/forec_jax.tar.gz" HEAD    # what is committed: no .venv, no runs
        gcloud compute tpus tpu-vm scp "$folder/forec_jax.tar.gz" "$name:~/" --zone="$zone" --worker=all
        on_all_hosts "mkdir -p ~/forec_jax && rm -rf ~/forec_jax/forec_jax && tar -xzf ~/forec_jax.tar.gz -C ~/forec_jax"
        # The image's own Python is 3.10, which JAX no longer runs on.
        on_all_hosts "sudo apt-get install --quiet --yes python3.11-venv && python3.11 -m venv ~/venv && ~/venv/bin/pip install --quiet -e ~/forec_jax 'jax[tpu]'"
        ;;
    train)
        on_all_hosts "cd ~/forec_jax && FOREC_JAX_JOIN=1 ~/venv/bin/forec-jax train$(printf ' %q' "$@")"
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$name" --zone="$zone"
        ;;
    *)
        usage
        ;;
esac
