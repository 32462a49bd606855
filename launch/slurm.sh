#!/usr/bin/env bash
# Trains on the GPUs of a Slurm job, one process a GPU. From the root of the repository:
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#     --config=configs/d2it_xl.py --workdir=/shared/xl --config.data.path=/shared/imagenet
# The same line resumes. The repository and the workdir are on a file system that all nodes see.
#SBATCH --job-name=dit_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
EXTRAS=${EXTRAS:-cuda,demo} # demo: LPIPS weights
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # sbatch runs a copy of this file
[ -e launch/cluster.sh ] || { echo "slurm.sh: $PWD is not the root; sbatch there" >&2; exit 2; }
source launch/cluster.sh
[ "${SLURM_JOB_ID:-}" ] || fail "this is no Slurm job; put sbatch before launch/slurm.sh"
need srun $# SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK

install .venv "$EXTRAS" "${PYTHONS[@]}"
# A task takes the GPU of its number on the node, so each must see all of them: no binding. srun
# does not inherit the CPUs of a task.
exec srun --ntasks-per-node="$SLURM_NTASKS_PER_NODE" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  --gpu-bind=none --kill-on-bad-exit=1 --label "$python" -m dit_jax.main "$@"
