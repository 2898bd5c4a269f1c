"""Paths of data: what a name or pattern stands for, what is hidden, which split a file is of, where an image is."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, iglob
from itertools import islice
from pathlib import Path, PurePath

from ..checks import unknown_name

IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "avif", "gif", "bmp", "tif", "tiff")
UNREAD_ENDINGS = ("heic", "heif", "jxl", "jp2", "j2k", "jpf", "jpx", "svg", "eps", "psd", "ico", "tga", "dds", "dib")
UNREAD_ENDINGS += ("ppm", "pgm", "pbm", "pnm", "pcx", "exr", "hdr", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2")
"""Kinds of images that are known and not read."""
MAX_FILES = 1_000_000
"""That a pattern with braces may stand for."""
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders, and the splits that they stand for: those of `datasets`."""


def ending(path: PurePath) -> str:
    """The part of a file's name behind its last dot, in small letters."""
    return path.suffix.lower()[1:]


def is_metadata(path: PurePath) -> bool:
    """Whether a file tells of the images in its folder, and is no data by itself."""
    return path.stem.lower() == "metadata" and ending(path) in ("csv", "jsonl", "parquet")


def is_hidden(path: str | PurePath) -> bool:
    """Whether a file is one that a system or an editor put there: `.DS_Store`, `._a.png`, `.ipynb_checkpoints/`."""
    return any(map(_is_hidden_name, re.split(r"[/\\]", str(path))))


def _is_hidden_name(name: str) -> bool:
    return name == "__MACOSX" or (name.startswith(".") and name.strip(".") != "")


def walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders that are not hidden, as they come."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden_name(name)]
        yield from (Path(parent, name) for name in names if not _is_hidden_name(name))


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders that are not hidden, sorted."""
    return sorted(walk(folder))


def expand_paths(path: str | list[str]) -> list[Path]:
    """
    The existing files that globs and braces stand for, in a fixed order. What exists under its plain name is taken as
    it is, also where that holds brackets or braces; so are existing folders at the beginning of a pattern.

    Raises:
        FileNotFoundError: when a name or pattern stands for no file.
        ValueError: when braces stand for more than `MAX_FILES`.

    Example:
        >>> expand_paths("shards/{000..002}.tar")  # doctest: +SKIP
        [PosixPath('shards/000.tar'), PosixPath('shards/001.tar'), PosixPath('shards/002.tar')]
    """
    if not isinstance(path, str | Path):
        return [file for entry in path for file in expand_paths(entry)]
    folder, pattern = _existing_part(str(path))
    if not pattern:
        return [no_pipe(Path(path))]
    _check_number(pattern)
    files = []
    for name in _expand_braces(pattern):
        file = Path(folder, name)
        found = [file] if file.exists() else _globbed(str(Path(escape(folder), name)))
        if not found:
            raise FileNotFoundError(f"A source must be files that exist. There is none at {file}. Check the path.")
        files += map(no_pipe, found)
    return files


def _globbed(pattern: str) -> list[Path]:
    """
    The files that a glob stands for, sorted.

    Raises:
        ValueError: when these are more than `MAX_FILES`.
    """
    found = list(islice(iglob(pattern, recursive=True), MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise ValueError(
            f"A pattern stands for at most {MAX_FILES:,} files. {pattern:.80} stands for more. Name fewer."
        )
    return sorted(map(Path, found))


def no_pipe(path: Path) -> Path:
    """
    The path of a file or a folder as it is.

    Raises:
        ValueError: for a pipe or a device: it would be waited for, or never end.
    """
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"A source must be files or folders. {path} is a pipe or a device. Write it to a file.")
    return path


def _check_number(pattern: str) -> None:
    """Raise a `ValueError` when the braces of a pattern stand for more files than `MAX_FILES`."""
    number = 1
    for first, last, words in _BRACES.findall(pattern):
        if not words and int(first) > int(last):
            raise ValueError(f"Braces count up, as in {{0..9}}. Got {pattern:.80}. Exchange the two numbers.")
        number *= len(words.split(",")) if words else max(1, int(last) - int(first) + 1)
    if number > MAX_FILES:
        raise ValueError(
            f"A pattern stands for at most {MAX_FILES:,} files. {pattern:.80} stands for more. Name fewer, or a "
            f"pattern with *."
        )


def _existing_part(path: str) -> tuple[str, str]:
    """A path as the longest part at its beginning that exists by its plain name, and the pattern that follows."""
    if os.path.exists(path):
        return path, ""
    cut = len(path)
    while (cut := path.rfind("/", 0, cut)) > 0:
        if os.path.isdir(path[:cut]):
            return path[:cut], path[cut + 1 :]
    return ("/", path[1:]) if path.startswith("/") else ("", path)


def _expand_braces(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    if words is None:
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        words = words.split(",")
    return [
        name for word in words for name in _expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])
    ]


def find_file(name: str, folders: Sequence[str | Path]) -> Path:
    """
    Where a file is that a row names: in the first of the folders that has it, with its name as it is, with the home
    folder in the place of `~` at its beginning, with slashes in the place of backslashes (written on Windows), or with
    accents in the other form of Unicode (macOS).

    Returns:
        Its path; in the first folder, or the home folder, when it is in none.
    """
    for form in _forms(name):
        for folder in folders:
            path = os.path.join(folder, form)
            if os.path.isfile(path):
                return Path(path)
    return Path(folders[0], os.path.expanduser(name))


def _forms(name: str) -> Iterator[str]:
    """A name as it is, and only where that is not found its other forms."""
    yield name
    yield os.path.expanduser(name)
    name = os.path.expanduser(name.replace("\\", "/"))
    yield name
    yield from (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))


def split_of(path: PurePath, is_in_name: bool) -> str | None:
    """
    The split that a file is of.

    Args:
        path: of the file, within the folder of a source.
        is_in_name: whether a word in the name of the file counts, too, and not only the name of a folder.
    """
    words = [part.lower() for part in path.parts[:-1]]
    if is_in_name:
        words += re.split(r"[-._ \d]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def files_of_split(files: Iterable[Path], folder: Path, split: str, is_in_name: bool = False) -> list[Path]:
    """
    Those files of a folder that are of a split. Files that name none are of `train`; where all name the same one, that
    is `train`, too.

    Args:
        files: all files.
        folder: that they are in.
        split: the name of a split.
        is_in_name: as in [`split_of`].

    Raises:
        ValueError: when there is no such split.
    """
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        within = file.relative_to(folder) if file.is_relative_to(folder) else PurePath(file.name)
        splits.setdefault(split_of(within, is_in_name), []).append(file)
    if split == "train" and (len(splits) < 2 or splits.keys() == {None, "train"}):
        return sorted(file for group in splits.values() for file in group)
    splits["train"] = [*splits.get("train", ()), *splits.pop(None, ())]
    check_split(split, [name for name in dict.fromkeys(SPLIT_NAMES.values()) if splits.get(name)], folder)
    return sorted(splits[split])


def check_split(split: str, available: Sequence[str], path: object) -> None:
    """
    Raises:
        ValueError: when data has no split of a name.
    """
    if split not in available:
        raise ValueError(unknown_name("split", split, available or ["train"], f"key `split` of {path}"))
