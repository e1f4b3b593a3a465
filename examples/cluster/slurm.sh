#!/usr/bin/env bash
# Two machines of eight GPUs under SLURM: sbatch examples/cluster/slurm.sh CONFIG [KEY=VALUE ...]
#SBATCH --job-name=visalign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
# SIGTERM comes two minutes before the time is over: the step is finished and saved. A job that is queued again goes on.
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a restart does not meet the addresses of processes that died
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
  --rdzv_backend c10d --rdzv_endpoint "$first:29500" --rdzv_id "$SLURM_JOB_ID" --max-restarts 3 \
  -m alignment.train "$@" parallel.shard="$SLURM_GPUS_ON_NODE" --resume auto
