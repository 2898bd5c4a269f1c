"""Two processes that draw from one stream: `python streaming_runs.py IMAGES OUT`, for `test_streaming.py`."""

import json
import sys
from pathlib import Path

import torch
from tests.processes import fork_ranks, wait

from blip3o_hf.training.recipes import Recipe

STEPS = 7
NUM_DRAWN = 6


def make_trainer(images: Path, folder: Path, num_workers: int = 0, data: dict | None = None, **training):
    """The decoder stage, which draws from the global generator, on a stream of shards with images."""
    settings = {
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_num_workers": num_workers,
        **training,
    }
    recipe = Recipe(
        stage="decoder",
        output_dir=str(folder),
        inputs={"model": "blip3o-tiny"},
        model={"feature_noise": 0.3, "recolor_rate": 0.5},
        data={
            "streaming": True,
            "seed": 3,
            "shuffle_buffer": 2,
            "sources": [{"path": f"{images}/*.jsonl"}],
            **(data or {}),
        },
        training=settings,
    )
    return recipe.trainer()


def draw(images: Path, out: Path) -> None:
    """Write what one process gets from its dataloader."""
    trainer = make_trainer(images, out, per_device_train_batch_size=1)
    assert trainer.accelerator.num_processes == 2
    trainer.data_collator = lambda records: records[0].prompt
    batches = iter(trainer.get_train_dataloader())
    prompts = [next(batches) for _ in range(NUM_DRAWN)]
    (out / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(prompts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    codes = wait(fork_ranks(2, draw, *map(Path, sys.argv[1:])))
    if any(codes):
        sys.exit(f"The processes ended with {codes}")
