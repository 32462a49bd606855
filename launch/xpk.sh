#!/usr/bin/env bash
# Trains as a workload of a GKE cluster, through xpk:
#   PROJECT=my-project ZONE=us-east5-b CLUSTER=tpus NAME=xl STORAGE=runs launch/xpk.sh \
#     --config=configs/d2it_xl.py --workdir=/shared/xl --config.data.path=/shared/imagenet
# The same line resumes; xpk asks before it replaces a workload of this name. The workdir lies in a
# storage of the cluster, which every pod mounts: xpk storage attach.
set -euo pipefail
PROJECT=${PROJECT:-}
ZONE=${ZONE:-}
CLUSTER=${CLUSTER:-}
NAME=${NAME:-}
TPU_TYPE=${TPU_TYPE:-v6e-8}
SLICES=${SLICES:-1}
STORAGE=${STORAGE:-}        # empty: the storages that the cluster mounts by itself
IMAGE=${IMAGE:-python:3.12} # has pip; this tree is laid on top of it
EXTRAS=${EXTRAS:-tpu,demo}  # demo: LPIPS weights
RESTARTS=${RESTARTS:-10}    # after preemptions and dead processes, each from the last checkpoint
GRACE=${GRACE:-300}         # seconds in which a pod that must go can save
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
need xpk $# PROJECT ZONE CLUSTER NAME

tree=$(mktemp -d)
trap 'rm -r "$tree"' EXIT
cp -R "${SHIPPED[@]}" "$tree"
# One line: xpk writes it into an indented block of YAML. exec: so that python gets the SIGTERM.
xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$NAME" \
  --tpu-type="$TPU_TYPE" --num-slices="$SLICES" ${STORAGE:+"--storage=$STORAGE"} \
  --base-docker-image="$IMAGE" --script-dir="$tree" --max-restarts="$RESTARTS" \
  --termination-grace-period-seconds="$GRACE" \
  --command="python -m pip install -qq -e '.[$EXTRAS]' -c constraints.txt && \
exec python -m dit_jax.main$(printf ' %q' "$@")"
