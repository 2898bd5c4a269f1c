"""`blip3o-hf` as `accelerate launch` starts it in `test_launch.py`: without DeepSpeed's C++ extension for CPUs."""

import sys

import deepspeed.ops

from blip3o_hf.cli import main

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
sys.exit(main())
