#!/bin/bash
# One training run over the nodes of a Slurm job: one task a node, one process a GPU.
#
#   export RECIPE=recipes/tiny/generation.yaml ENGINE=ddp GPUS_PER_NODE=8
#   sbatch --nodes=4 recipes/launch/slurm.sh training.use_cpu=false
#
# Words after the script replace values of the recipe, or are --resume. Submit from the root of the repository.
#SBATCH --job-name=blip3o
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail

export RECIPE=${RECIPE:?a file in recipes/, such as recipes/tiny/generation.yaml}
export ENGINE=${ENGINE:?a file in recipes/accelerate/: ddp, zero2, zero3 or fsdp2}
export GPUS_PER_NODE=${GPUS_PER_NODE:?how many GPUs a node has}
export NODES=${SLURM_JOB_NUM_NODES:?set by Slurm; submit this script with sbatch}
NODE_LIST=${SLURM_JOB_NODELIST:?set by Slurm; submit this script with sbatch}
HOST_NAMES=$(scontrol show hostnames "$NODE_LIST")
export MAIN_ADDRESS=${HOST_NAMES%%$'\n'*}
export MAIN_PORT=${MAIN_PORT:-29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch \
    --config_file "recipes/accelerate/$ENGINE.yaml" --deepspeed_multinode_launcher standard \
    --num_machines "$NODES" --num_processes "$((NODES * GPUS_PER_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" \
    --module blip3o_hf.cli train "$RECIPE" "$@"' launch "$@"
