#!/usr/bin/env bash
# capfilt on Slurm: a Ray cluster over the job's nodes, then one run on it. A template: set account, partition, paths.
#   sbatch pipelines/slurm.sh laion_subset /shared/runs/laion --set sources.0.download.contact=me@example.org
# A job that runs out of time continues when it is submitted again with the same line.
#SBATCH --job-name=capfilt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
pipeline=$1 out=$2
shift 2

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379"
export RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --node-ip-address="${address%:*}" --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
    ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
  sleep 20
fi

RAY_ADDRESS=$address exec capfilt run "$pipeline" --out "$out" "$@"
