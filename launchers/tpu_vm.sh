#!/bin/bash
# Run a program on all workers of a TPU slice of VMs, and start it again on new ones after a preemption
# (docs/cluster.md). Run this where gcloud is signed in, on a machine that stays up.
#
#   ZONE=us-west4-a TYPE=v5litepod-32 CLONE=https://…/sdecor.git launchers/tpu_vm.sh sdecor-32 \
#     train.py --config=configs/imagenet2012.py:method=sdecor --workdir=gs://BUCKET/runs/sdecor
#
# The first argument names the queued resource and its node. The slice is deleted in the end; KEEP=1 keeps it.
# https://docs.cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create
# https://docs.cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/ssh

set -euo pipefail

ZONE=${ZONE:?the zone, for example us-west4-a}
TYPE=${TYPE:?the accelerator type, for example v5litepod-32}
CLONE=${CLONE:?the address of the repository, for git clone}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # the VM image that belongs to the type
CAPACITY=${CAPACITY:---spot}            # an option of "queued-resources create": --spot, --reserved or --guaranteed
MOST_STARTS=${MOST_STARTS:-100}
PAUSE=${PAUSE:-30} # seconds between two looks at the queue
NAME=${1:?the name of the slice}
shift
((${#})) || { echo "tpu_vm.sh: name the program, for example train.py --config=… --workdir=gs://…" >&2 && exit 2; }

# shellcheck source=launchers/job_status.sh
source "$(dirname "$0")/job_status.sh"

gcloud_tpus() {
  gcloud compute tpus "$@" --zone="$ZONE" --quiet
}

on_all_workers() {
  gcloud_tpus tpu-vm ssh "$NAME" --worker=all --command="$1"
}

delete() {
  gcloud_tpus queued-resources delete "$NAME" --force || true
}

state() {
  gcloud_tpus queued-resources describe "$NAME" --format="value(state.state)" 2>/dev/null || echo NONE
}

# Create the slice, unless it is there, and wait for it; return 1 if it is lost meanwhile.
create() {
  # shellcheck disable=SC2086
  [[ $(state) != NONE ]] || gcloud_tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" $CAPACITY || exit 1 # gcloud has said why
  while :; do
    case $(state) in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | NONE) return 1 ;;
    esac
    sleep "$PAUSE"
  done
}

# gcloud does not say how each worker ended, so each prints its status.
program="cd sdecor && .venv/bin/python $(printf '%q ' "$@")--distributed; echo worker-status=\$?"
# The images of Ubuntu 22.04 have Python 3.10, and sdecor needs 3.11: there uv brings 3.12.
enough="python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))'"
brought="python3 -m pip install -q --user uv && python3 -m uv venv -q --seed --python=3.12 .venv"
install="test -d sdecor || git clone --depth=1 '$CLONE' sdecor; cd sdecor"
install+=" && { test -x .venv/bin/pip || if $enough; then python3 -m venv .venv; else $brought; fi; }"
install+=" && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]' gcsfs"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

status=$RETRY
for ((start = 1; start <= MOST_STARTS; start++)); do
  echo "tpu_vm.sh: start $start"
  status=$RETRY # also for a slice that is lost
  if create; then
    if on_all_workers "$install"; then
      on_all_workers "$program" 2>&1 | tee "$log" || true
      mapfile -t left < <(grep -o 'worker-status=[0-9]*' "$log" | cut -d= -f2)
      # A worker that was lost leaves no status; its peers end with 75.
      ((${#left[@]} == 0)) || status=$(job_status "${left[@]}")
    elif [[ $(state) == ACTIVE ]]; then
      status=1 # the slice is there, so the installation itself fails
    fi
  fi
  if ! continues "$status"; then
    break
  fi
  echo "tpu_vm.sh: status $status: new workers"
  delete
done
[[ -n ${KEEP:-} ]] || delete
echo "tpu_vm.sh: status $status"
exit "$status"
