#!/usr/bin/env bash
# Queues for a Cloud TPU, waits until it is there and trains on it:
#   PROJECT=my-project ZONE=us-east5-b NAME=xl SPOT=yes launch/tpu_queued.sh \
#     --config=configs/d2it_xl.py --workdir=/shared/xl --config.data.path=/shared/imagenet
# The same line waits on, follows or resumes; a spot TPU that was taken away is queued for again.
# The workdir is a folder that every host sees; SETUP, which each host runs first, mounts it.
set -euo pipefail
PROJECT=${PROJECT:-}
ZONE=${ZONE:-}
NAME=${NAME:-} # of the queued resource and of its TPU VM
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v6e-8}
VERSION=${VERSION:-v2-alpha-tpuv6e} # v5p: v2-alpha-tpuv5; v5e: v2-alpha-tpuv5-lite
SPOT=${SPOT:-}                      # yes: cheaper, and may be taken away
POLL=${POLL:-60}                    # seconds between two looks at the queue
EXTRAS=${EXTRAS:-tpu,demo}          # demo: LPIPS weights
SETUP=${SETUP:-}
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
need gcloud $# PROJECT ZONE NAME
where=(--project="$PROJECT" --zone="$ZONE")

queued() { gcloud compute tpus queued-resources "$1" "$NAME" "${where[@]}" "${@:2}"; }

created=
while true; do
  state=$(queued describe --format='value(state.state)' 2> /dev/null) || state=none
  case $state in
    ACTIVE) break ;;
    none)
      queued create --node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" \
        --runtime-version="$VERSION" ${SPOT:+--spot}
      created=yes
      ;;
    FAILED | SUSPENDED) # of an earlier call: queued for again
      [ -z "$created" ] || fail "the request for $NAME is $state; see queued-resources describe"
      queued delete --force --quiet
      ;;
    *) echo "$NAME is $state; looking again in $POLL s" && sleep "$POLL" ;;
  esac
done
on_tpu_vm "$@"
