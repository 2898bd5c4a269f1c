"""Understanding on two processes and every engine: `python step_shares_runs.py OUT`, for `test_step_shares.py`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from tests.processes import fork_ranks, wait
from tests.training.distributed_cases import ENGINES, RECIPES

from blip3o_hf import Blip3oTrainer, Blip3oTrainingArguments

ANSWERS = ("yes", "a red circle above a small blue square", "two", "there are three green triangles on black")
STEPS = 3


def conversations() -> list[dict]:
    """Rows with answers of different lengths."""
    return [
        {"messages": [{"role": "user", "content": f"what is in picture {n}?"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(ANSWERS)
    ]


def make_trainer(folder: Path, batch_size: int, accumulation: int, engine: str | None = None, **settings):
    """All four records are one step."""
    if engine == "fsdp2":
        settings |= {"fsdp": True, "fsdp_config": str(RECIPES / "accelerate" / "fsdp2.json")}
    elif engine is not None:
        settings["deepspeed"] = json.loads((RECIPES / "deepspeed" / f"{engine}.json").read_text(encoding="utf-8"))
    settings = {"task": "understanding", "train_dataset": conversations(), **settings}
    trainer_settings = {name: settings.pop(name) for name in ("task", "train_dataset")}
    args = Blip3oTrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "adam_epsilon": 1e-3,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **settings,
        },
    )
    if engine == "fsdp2":
        assert args.world_size == 2  # which makes the state
        # accelerate knows FSDP on accelerators only, although it runs on gloo.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Blip3oTrainer("blip3o-tiny", args, **trainer_settings)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(engine: str, out: Path) -> None:
    trainer = make_trainer(out / engine, 1, 2, ENGINES[engine])
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    if trainer.is_world_process_zero():
        (out / f"{engine}.json").write_text(json.dumps(losses(trainer)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ENGINES:
        codes = wait(fork_ranks(2, train, name, Path(sys.argv[1])))
        if any(codes):
            sys.exit(f"The processes of {name} ended with {codes}")
