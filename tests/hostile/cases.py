"""What a case of the campaign is, and the damage that all kinds of cases share."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_hf.assets import packaged_model_path

REFUSED, COUNTED, RIGHT = "refused", "counted", "right"
EITHER = (REFUSED, COUNTED, RIGHT)
BAD = (REFUSED, COUNTED)
OUTSIDE = "outside"
"""A folder beside those of all cases; no case may read or write there."""
SECRET = "secret"
"""The stem of the files in it."""


@dataclass(frozen=True)
class Case:
    """
    One bad input, and what may come of it.

    Args:
        what: what is bad about it, in words.
        arguments: of the command line; or `expression`: Python, with the names of the module `preloaded`.
        names: an error must hold one of these: the name of a file, a key, an argument.
        expected: what may come of it.
        writes: paths in the case's folder that a success may write.
        typed: what comes in by a pipe.
    """

    what: str
    arguments: tuple[str, ...] = ()
    expression: str = ""
    names: tuple[str, ...] = ()
    expected: tuple[str, ...] = EITHER
    writes: tuple[str, ...] = ()
    typed: str = ""


Maker = Callable[[np.random.Generator, Path], Case]
"""Makes a case, and its files in a folder; files of `folder.parent / OUTSIDE` are bait."""


def command(line: str, *more: str, **case: Any) -> Case:
    """A case of the words of a command line, and further ones that may hold spaces."""
    return Case(arguments=(*line.split(), *more), **case)


def pick(rng: np.random.Generator, choices: Sequence) -> Any:
    """One of some values, of any kind."""
    return choices[int(rng.integers(len(choices)))]


def damaged(rng: np.random.Generator, data: bytes) -> tuple[bytes, str]:
    """Bytes with one kind of damage, and which."""
    at = int(rng.integers(len(data) + 1))
    size = int(rng.integers(1, max(2, len(data) // 4)))
    kind = pick(rng, ("truncated", "flipped", "flipped", "flipped", "zeroed", "repeated", "with noise", "empty"))
    if kind == "truncated":
        return data[:at], f"truncated at {at}"
    if kind == "flipped":
        content = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(len(content), size=int(rng.integers(1, 20)))
        content[places] ^= rng.integers(1, 256, size=len(places)).astype(np.uint8)
        return content.tobytes(), f"with {len(places)} bytes flipped"
    if kind == "zeroed":
        return data[:at] + bytes(len(data[at : at + size])) + data[at + size :], f"with {size} zeros at {at}"
    if kind == "repeated":
        return data[: at + size] + data[at:], f"with {size} bytes repeated at {at}"
    if kind == "with noise":
        return data[:at] + rng.bytes(size) + data[at:], f"with {size} random bytes at {at}"
    return b"", "empty"


def hostile_value(rng: np.random.Generator) -> Any:
    """A value of JSON or YAML that is seldom what was meant."""
    values: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 10**12, 10**30, -(10**18), float("nan"), float("inf"))
    values += ("", " ", "x", "\0", "\ud800", "../x", "/etc/passwd", "%s%n", "${HOME}", "{0}", "x" * 100_000, "1e400")
    values += ([], {}, [[]], [None], {"": None}, {"x": {}}, [1, "x", {}], [0] * 10_000)
    return pick(rng, values)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def set_at(content: Any, path: Sequence, value: Any) -> None:
    """Change a value that lies deep in a mapping."""
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = value


def paths_in(content: Any, before: tuple = ()) -> list[tuple]:
    """The ways to all values in a mapping."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path for name, value in items for path in [(*before, name), *paths_in(value, (*before, name))]]


def link_or_copy(source: str, target: str) -> str:
    """Link weights, which are large and which no case changes in their place; copy settings."""
    return os.link(source, target) if source.endswith(".safetensors") else shutil.copyfile(source, target)


def packaged(folder: Path, name: str = "model") -> Path:
    """The packaged pipeline with its target encoder, in a folder of the case."""
    linked = folder.parent / OUTSIDE / "linked"  # of the same file system as the case
    if not linked.exists():
        shutil.copytree(packaged_model_path(), linked)
    return Path(shutil.copytree(linked, folder / name, copy_function=link_or_copy))


def put_no_file(path: Path, kind: str) -> None:
    """A `pipe`, `folder` or `device` in the place of a file, or, for a `loop`, a link to itself."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name}[kind])


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whose old content may be linked elsewhere."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
