"""Runs of the generation stage over several processes; a script, because every case needs processes of its own.

`python distributed_runs.py INPUTS OUT CASE...` forks the processes of each case after the imports, which take far
longer than the training, and writes what each run was like to `OUT/CASE.json`.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from tests.processes import fork_ranks, wait
from tests.training.distributed_cases import CASES, make_recipe

from blip3o_hf.training.callbacks import SpikeCallback
from blip3o_hf.training.trainer import Blip3oTrainer


def draw(trainer: Blip3oTrainer) -> float:
    """The norm of sampled features."""
    pipeline = trainer.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": generator}
    return pipeline("two red circles", output_type="features", **arguments).image_features.norm().item()


def train(inputs: Path, out: Path, name: str) -> None:
    """One process of one case."""
    case = CASES[name]
    stage = make_recipe(inputs, out / name, case).open_stage()
    if case.engine == "fsdp2":
        # accelerate knows FSDP on accelerators only, although it runs on gloo.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = stage.trainer()
    if case.spoiled is not None:
        plain = trainer.compute_loss
        trainer.compute_loss = lambda *args, **kwargs: (
            plain(*args, **kwargs) * (float("nan") if trainer.state.global_step + 1 == case.spoiled else 1.0)
        )
    checkpoint = None
    if case.resumes is not None:
        checkpoint = out / case.resumes[0] / "checkpoints" / f"checkpoint-{case.resumes[1]}"
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if case.resumes is None and case.spoiled is None:
        trainer.evaluate_with(lambda trainer: {"drawn": draw(trainer)})
        trainer.evaluate()
    trainer.save_result()
    if trainer.is_world_process_zero():
        spikes = next(one for one in trainer.callback_handler.callbacks if isinstance(one, SpikeCallback))
        summary = {
            "left_out": spikes.skipped,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "evaluation": {key: value for key, value in trainer.state.log_history[-1].items() if "eval_" in key},
            "engine": type(trainer.model_wrapped).__name__,
            "distributed_type": trainer.accelerator.state.distributed_type.value,
            "num_processes": trainer.accelerator.num_processes,
        }
        (out / f"{name}.json").write_text(json.dumps(summary))


def run(inputs: Path, out: Path, name: str) -> None:
    """All processes of one case."""
    codes = wait(fork_ranks(CASES[name].num_processes, train, inputs, out, name))
    if any(codes):
        sys.exit(f"{name}: the processes ended with {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if any(CASES[case].engine not in (None, "fsdp2") for case in sys.argv[3:]):
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.muon_optimizer  # or every process would: it takes seconds

        # Otherwise the first run compiles a C++ extension that gloo does not need.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gc.freeze()  # what was imported is not collected in every process
    for case in sys.argv[3:]:
        run(Path(sys.argv[1]), Path(sys.argv[2]), case)
