#!/bin/bash
# A training run on Slurm: `sbatch --nodes=3 --gpus-per-node=8 jobs/slurm.sh jobs/configs/paper-7b-cluster.toml`
# Options after the config are the run's. The cluster is Ray's own, starts and ends with the job, and has a token of its own.
# A job that is preempted comes again (--requeue), one that ran out of time is submitted again: it goes on from the newest
# checkpoint. So `checkpoint_every` is what is lost at most.
#SBATCH --job-name=g1-ray
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)}
config=$1 && shift
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m jobs.train "$config" --resume auto "$@"
