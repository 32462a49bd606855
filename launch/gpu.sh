#!/usr/bin/env bash
# Trains on all GPUs of this host:
#   launch/gpu.sh --config=configs/d2it_xl.py --workdir=runs/xl --config.data.path=imagenet
# On several hosts: the same line on each, with its own number I (0, 1, ...), a workdir that all of
# them see, and --coordinator=HOST0:1234 --num_processes=2 --process_id=I. The same lines resume.
set -euo pipefail
EXTRAS=${EXTRAS:-cuda,demo}                     # demo: LPIPS weights
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} # a GPU that jax cannot use is an error
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
need nvidia-smi $#

install .venv "$EXTRAS" "${PYTHONS[@]}"
exec "$python" -m dit_jax.main "$@"
