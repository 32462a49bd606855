#!/usr/bin/env bash
# Trains on a Cloud TPU VM or slice, which is made where there is none:
#   PROJECT=my-project ZONE=us-east5-b NAME=xl launch/tpu_vm.sh \
#     --config=configs/d2it_xl.py --workdir=/shared/xl --config.data.path=/shared/imagenet
# The same line follows a run that goes on, and resumes one that has ended. The workdir is a folder
# that every host sees; SETUP, which each host runs first, mounts it.
set -euo pipefail
PROJECT=${PROJECT:-}
ZONE=${ZONE:-}
NAME=${NAME:-}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v6e-8}
VERSION=${VERSION:-v2-alpha-tpuv6e} # v5p: v2-alpha-tpuv5; v5e: v2-alpha-tpuv5-lite
SPOT=${SPOT:-}                      # yes: cheaper, and may be taken away
EXTRAS=${EXTRAS:-tpu,demo}          # demo: LPIPS weights
SETUP=${SETUP:-}
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
need gcloud $# PROJECT ZONE NAME
where=(--project="$PROJECT" --zone="$ZONE")

vm() { gcloud compute tpus tpu-vm "$1" "$NAME" "${where[@]}" "${@:2}"; }
create() { vm create --accelerator-type="$ACCELERATOR_TYPE" --version="$VERSION" ${SPOT:+--spot}; }

state=$(vm describe --format='value(state)' 2> /dev/null) || state=none
case $state in
  READY) ;;
  STOPPED) vm start ;;
  PREEMPTED | TERMINATED)
    vm delete --quiet
    create
    ;;
  none) create ;;
  *) fail "the TPU VM $NAME is $state; wait until it is READY and try again" ;;
esac
on_tpu_vm "$@"
