"""Which checkpoint to resume from: the newest one that was written to its end."""

from pathlib import Path

COMPLETE = "COMPLETE"


def mark_complete(checkpoint: str | Path) -> None:
    """Leave the mark that everything of this checkpoint is on disk."""
    (Path(checkpoint) / COMPLETE).touch()


def last_complete_checkpoint(folder: str | Path) -> str:
    """
    The newest complete `checkpoint-*` in `folder`; one that was interrupted while being written is passed over.

    Raises:
        FileNotFoundError: when there is none.
    """
    complete = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    if not complete:
        raise FileNotFoundError(
            f"To resume, there must be a complete checkpoint. There is none in {folder}. Start without --resume."
        )
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))
