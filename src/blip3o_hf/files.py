"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".partial-"


@contextmanager
def written_whole(path: str | os.PathLike) -> Generator[Path]:
    """
    A temporary path beside `path`, with its ending, that takes its name when the block ends without an error.

    Nothing is left behind when the block fails, and what stood at `path` stays. What a killed process leaves,
    `delete_partial` finds.

    Example:
        >>> with written_whole("scores.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def expanded(path: str | os.PathLike) -> Path:
    """
    A path as the system takes it: `~` at its beginning is the home folder, also where no shell has replaced it.

    Example:
        >>> expanded("runs/mine") == Path("runs/mine")
        True
    """
    return Path(path).expanduser()


def delete_partial(folder: str | os.PathLike) -> None:
    """Delete the temporary files that killed processes left in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(f"{_PREFIX}*"):
        path.unlink()
