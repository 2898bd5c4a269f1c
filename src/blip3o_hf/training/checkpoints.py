"""Checkpoints are whole: which one to resume from, and which ones to delete."""

import re
import shutil
from pathlib import Path

COMPLETE = "COMPLETE"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: str | Path) -> None:
    """Leave the mark that everything of this checkpoint is on disk."""
    (Path(checkpoint) / COMPLETE).touch()


def _by_step(folder: str | Path) -> list[Path]:
    """All checkpoints in `folder`, the newest last; other folders beside them are ignored."""
    steps = {path: _NAME.fullmatch(path.name) for path in Path(folder).glob("checkpoint-*") if path.is_dir()}
    found = {path: int(match[1]) for path, match in steps.items() if match}
    return sorted(found, key=found.__getitem__)


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE).is_file()


def _delete(checkpoint: Path) -> None:
    """The mark goes first: a deletion that is cut off leaves no checkpoint that looks complete."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def delete_incomplete(folder: str | Path) -> None:
    """Delete what interrupted runs left of checkpoints, before a new run writes the same ones."""
    for checkpoint in _by_step(folder):
        if not _is_complete(checkpoint):
            _delete(checkpoint)


def keep_newest(folder: str | Path, number: int | None, best: str | Path | None = None) -> None:
    """
    Delete the oldest complete checkpoints until `number` (at least 1) are left; `None` keeps all.

    Args:
        best: one that stays in any case.
    """
    complete = [checkpoint for checkpoint in _by_step(folder) if _is_complete(checkpoint)]
    for checkpoint in complete[: -max(number, 1)] if number is not None else []:
        if best is None or checkpoint.resolve() != Path(best).resolve():
            _delete(checkpoint)


def has_complete_checkpoint(folder: str | Path) -> bool:
    """Whether there is one to resume from."""
    return any(_is_complete(checkpoint) for checkpoint in _by_step(folder))


def last_complete_checkpoint(folder: str | Path) -> str:
    """
    The newest complete `checkpoint-*` in `folder`; one that was interrupted while being written is passed over.

    Raises:
        FileNotFoundError: when there is none.
    """
    complete = [checkpoint for checkpoint in _by_step(folder) if _is_complete(checkpoint)]
    if not complete:
        raise FileNotFoundError(
            f"To resume, there must be a complete checkpoint. There is none in {folder}. Start without --resume."
        )
    return str(complete[-1])
