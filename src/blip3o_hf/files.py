"""Files appear whole or not at all; what cannot be written is refused before any work."""

import os
import tempfile
from collections.abc import Generator, Iterable
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


def check_can_write(folder: str | os.PathLike, name: str) -> Path:
    """
    A folder in which files can be written, or that can be made; nothing is left in it.

    Args:
        folder: that may not exist yet.
        name: what it is, for errors: an argument or a setting.

    Raises:
        OSError: when it cannot be written, or not be made.
    """
    path = expanded(folder)
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(f"{name} must be a folder. Got {path}, and {existing} is none. Choose another.")
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=_PREFIX):  # /proc and disks that are full only say it now
            pass
    except OSError as error:
        raise PermissionError(
            f"{name} must be a folder that can be written. Got {path}, and nothing can be written in {existing} "
            f"({error.strerror}). Choose another."
        ) from error
    return path


def is_inside(path: str | os.PathLike, folders: Iterable[str | os.PathLike]) -> bool:
    """
    Whether a file lies in one of the folders, once links are followed.

    Of a download in the Hub's cache, each file is a link from `snapshots/` to `blobs/` beside it, and inside.
    """
    target = os.path.realpath(path)
    for folder in folders:
        roots = [os.path.realpath(folder)]
        before, snapshots, _ = os.path.abspath(folder).partition(f"{os.sep}snapshots{os.sep}")
        if snapshots:
            roots.append(os.path.realpath(os.path.join(before, "blobs")))
        if any(target == root or target.startswith(root.rstrip(os.sep) + os.sep) for root in roots):
            return True
    return False


def delete_partial(folder: str | os.PathLike) -> None:
    """Delete the temporary files that killed processes left in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(f"{_PREFIX}*"):
        path.unlink()
