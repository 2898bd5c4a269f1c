"""What a step of an arm computes, counted on one batch."""

import json
import shutil

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..files import written_whole
from ..training.recipes import load_recipe
from .studies import Arm, Study


def flops_per_step(study: Study, arm: Arm) -> float:
    """
    Floating-point operations of a step's forward and backward pass, as PyTorch counts those of matrix products,
    attention and convolutions. Counted once, and kept.

    Args:
        study: whose runs are finished, so that what the arm starts from is there.
        arm: that is counted.
    """
    path = study.folder / "flops" / f"{arm.name}.json"
    if path.is_file():
        return float(json.loads(path.read_text())["flops"])
    where, overrides = study.recipe(arm, study.seeds[0], folder=study.folder / "flops" / arm.name)
    recipe = load_recipe(where, overrides)
    accumulated = recipe.training.get("gradient_accumulation_steps", 1)
    recipe.training["compile_transformer"] = False
    recipe.training["gradient_accumulation_steps"] = 1
    trainer = recipe.trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    shutil.rmtree(recipe.output_dir, ignore_errors=True)  # which the Trainer has made
    flops = float(counter.get_total_flops()) * accumulated
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"flops": flops}) + "\n")
    return flops


__all__ = ["flops_per_step"]
