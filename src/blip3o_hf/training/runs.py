"""A recipe's run from its first step to what it leaves; and the run behind the command `finetune`."""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..evaluation.sheets import curves
from ..files import check_can_write, written_whole
from .chain import SUMMARY, Summary, summarize
from .checkpoints import delete_incomplete, last_complete_checkpoint
from .interrupts import InterruptCallback, TrainingInterrupted
from .recipes import Recipe
from .trainer import Blip3oTrainer

HISTORY = "history.json"
"""What a run has logged, beside its result: a list of dictionaries with `step`, losses and scores."""


def run_recipe(recipe: Recipe, resume: bool = False) -> Summary | None:
    """
    Train what a recipe says, evaluate it, and write the result, its curves, its history and its summary to
    `output_dir`.

    Args:
        recipe: of any stage.
        resume: go on from the last complete checkpoint.

    Returns:
        What the run took and reached; `None` in other processes than the first.

    Raises:
        ValueError, FileNotFoundError: as [`Recipe.trainer`] does, when there is no checkpoint to resume
            from, and when another process trains in the same folder.
        OSError: when `output_dir` cannot be written.
        FileExistsError: when `output_dir` holds a finished run, and this one does not go on from it.
        TrainingInterrupted: after Ctrl-C, when a whole checkpoint was written; of one process alone.
        KeyboardInterrupt: after a second one; a checkpoint that was being written then is deleted.
    """
    folder = check_can_write(recipe.output_dir, "`output_dir`")
    stage = recipe.open_stage()
    if not resume:
        check_not_finished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = stage.trainer()
    with _alone_in(trainer.args.output_folder) if trainer.is_world_process_zero() else contextlib.nullcontext():
        if not resume:
            check_not_finished(folder)  # by a process that was at work here until now
        return _run(trainer, folder, resume)


def _run(trainer: Blip3oTrainer, folder: Path, resume: bool) -> Summary | None:
    """The run of a trainer, which nobody else writes to the folder of meanwhile."""
    trainer.on_log_history(lambda history: curves(history, folder / "curves.png"))
    interrupts = InterruptCallback()
    trainer.add_callback(interrupts)
    checkpoints = trainer.args.output_folder
    start = last_complete_checkpoint(checkpoints) if resume else trainer.args.resume_from_checkpoint
    is_alone = trainer.args.world_size == 1
    try:
        with interrupts.listening() if is_alone else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=start)
    except KeyboardInterrupt:
        if is_alone:
            delete_incomplete(checkpoints)
        raise
    if interrupts.is_interrupted:
        raise TrainingInterrupted(f"everything is saved up to step {trainer.state.global_step}, in {checkpoints}")
    spent = trainer.clock_of_run.spent
    if trainer.has_evaluation and not _is_evaluated(trainer):
        trainer.evaluate()
    trainer.save_result()
    if trainer.is_world_process_zero():
        with written_whole(folder / HISTORY) as temporary:
            temporary.write_text(json.dumps(trainer.state.log_history) + "\n")
    if not trainer.is_world_process_zero():
        return None
    summary = summarize(trainer, spent, torch.get_num_threads())
    summary.write(folder)
    return summary


def _is_evaluated(trainer: Blip3oTrainer) -> bool:
    """Whether the last step was one of `evaluation_steps`: the weights are still the same."""
    return any(
        entry["step"] == trainer.state.global_step and any(name.startswith("eval_") for name in entry)
        for entry in trainer.state.log_history
    )


@contextlib.contextmanager
def _alone_in(checkpoints: Path) -> Generator[None]:
    """
    Raises:
        ValueError: when another process writes checkpoints there, such as one that outlived a killed study.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(checkpoints / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"One process trains in a folder. Another one is at work in {checkpoints.parent}. Wait for it, stop it, "
            f"or choose another output_dir."
        ) from None
    with held:
        yield


def check_not_finished(folder: Path) -> None:
    """
    Raises:
        FileExistsError: when a run in `folder` is done, whose result another one would replace.
    """
    if Summary.read(folder) is not None:
        raise FileExistsError(
            f"A run must not replace a finished one. {folder} holds the result of one ({SUMMARY}). Choose another "
            f"output folder, delete this one, or go on from its last checkpoint with --resume."
        )
