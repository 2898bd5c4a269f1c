"""A recipe's run from its first step to what it leaves; and the run behind the command `finetune`."""

from pathlib import Path

import torch

from ..evaluation.sheets import curves
from .chain import Summary, summarize
from .checkpoints import last_complete_checkpoint
from .recipes import Recipe


def run_recipe(recipe: Recipe, resume: bool = False) -> Summary | None:
    """
    Train what a recipe says, evaluate it, and write the result, its curves and its summary to `output_dir`.

    Args:
        recipe: of any stage.
        resume: go on from the last complete checkpoint.

    Returns:
        What the run took and reached; `None` in other processes than the first.

    Raises:
        ValueError, FileNotFoundError: as [`Recipe.trainer`] does, and when there is no checkpoint to resume from.
    """
    stage = recipe.open_stage()
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = stage.trainer()
    trainer.on_log_history(lambda history: curves(history, folder / "curves.png"))
    trainer.train(
        resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir)
        if resume
        else trainer.args.resume_from_checkpoint
    )
    spent = trainer.clock_of_run.spent
    if trainer.has_evaluation:
        trainer.evaluate()
    trainer.save_result()
    if not trainer.is_world_process_zero():
        return None
    summary = summarize(trainer, spent, torch.get_num_threads())
    summary.write(folder)
    return summary
