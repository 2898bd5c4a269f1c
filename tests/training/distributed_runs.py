"""Runs of the generation stage over several processes; a script, because every case needs processes of its own.

`python distributed_runs.py INPUTS OUT CASE...` forks the processes of each case after the imports, which take far
longer than the training, and writes what each run was like to `OUT/CASE.json`.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
from tests.training.distributed_cases import CASES, make_recipe
from transformers import TrainerCallback

from blip3o_hf import Blip3oForConditionalGeneration
from blip3o_hf.training.checkpoints import last_complete_checkpoint
from blip3o_hf.training.stages import build_stage
from blip3o_hf.training.trainer import Blip3oTrainer


class StopAfter(TrainerCallback):
    """Ends a run early, as an interruption between two steps would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def train(inputs: Path, out: Path, name: str) -> None:
    """One process of one case."""
    case = CASES[name]
    trainer = Blip3oTrainer(build_stage(make_recipe(inputs, out / name, case)))
    checkpoint = None
    if case.stop_after is not None:
        trainer.add_callback(StopAfter(case.stop_after))
        trainer.train()
        trainer = Blip3oTrainer(build_stage(make_recipe(inputs, out / name, case)))
        checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    folder = trainer.save_result()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        saved = Blip3oForConditionalGeneration.from_pretrained(folder)
        summary = {
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "engine": type(trainer.model_wrapped).__name__,
            "distributed_type": trainer.accelerator.state.distributed_type.value,
            "num_processes": trainer.accelerator.num_processes,
            "resumed_from": checkpoint and Path(checkpoint).name,
            "saved_norm": sum(p.double().square().sum().item() for p in saved.parameters() if p.requires_grad),
        }
        (out / f"{name}.json").write_text(json.dumps(summary))


def run(inputs: Path, out: Path, name: str) -> None:
    """All processes of one case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(CASES[name].num_processes):
        pid = os.fork()
        if pid == 0:
            if CASES[name].num_processes > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(CASES[name].num_processes),
                    "LOCAL_WORLD_SIZE": str(CASES[name].num_processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            try:
                train(inputs, out, name)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"{name}: the processes ended with {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[3:]:
        if CASES[case].deepspeed:
            import deepspeed.ops

            # Otherwise the first run compiles a C++ extension that gloo does not need.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        run(Path(sys.argv[1]), Path(sys.argv[2]), case)
