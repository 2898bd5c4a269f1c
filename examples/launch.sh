#!/bin/bash
# finetune.py on several processes: `bash launch.sh 2 photos/ --output runs/mine`. On accelerators there is one for each.
# DeepSpeed ZeRO and FSDP2 are started in the same way, see recipes/launch/README.md.
set -euo pipefail
processes=$1
shift
accelerate launch --num_processes "$processes" --mixed_precision no "$(dirname "$0")/finetune.py" "$@"
