"""What a safetensors file holds, read from its header; no tensor is read, and torch is not loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

NUM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Types of weights, in the words of safetensors, and the bytes of one number."""


@dataclass(frozen=True)
class StoredTensor:
    """
    Args:
        file: name of the file that holds the tensor, relative to the checkpoint's folder.
        shape: the tensor's shape.
        dtype: its type, in the words of safetensors: `F32`, `BF16`, ...
    """

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class HeaderEntry:
    """
    Args:
        dtype, shape: the tensor's, as in [`StoredTensor`].
        begin, end: where its bytes lie in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """
    The tensors in a safetensors file, which must hold each of them to its end, once, and nothing else.

    Raises:
        ValueError: when the file is no safetensors file, is cut short, or its header contradicts itself.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {}
        for name, stated in header.items():
            begin, end = stated["data_offsets"]
            entries[name] = HeaderEntry(stated["dtype"], tuple(stated["shape"]), 8 + length + begin, 8 + length + end)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"A checkpoint must be readable safetensors files. {path} has no readable header: it is damaged, or no "
            f"safetensors file. Download it again."
        ) from error
    cut = [name for name, entry in sorted(entries.items(), key=lambda item: item[1].end) if entry.end > size]
    if cut:
        raise ValueError(
            f"A checkpoint must be whole safetensors files. {path} is cut short: it has {size} bytes, and {cut[0]} "
            f"ends at byte {entries[cut[0]].end}. Download it again."
        )
    try:
        with safe_open(path, "np"):  # which checks sizes, gaps and overlaps
            return entries
    except SafetensorError as error:
        raise ValueError(
            f"The header of a safetensors file must describe its tensors. That of {path} does not ({error}). Download "
            f"it again."
        ) from error


def stored_tensors(path: Path, name: str) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, once its header is found right.

    Args:
        path: of the file.
        name: of the file, relative to the checkpoint's folder.

    Raises:
        ValueError: as `read_header`.
    """
    return {tensor: StoredTensor(name, entry.shape, entry.dtype) for tensor, entry in read_header(path).items()}


__all__ = ["NUM_BYTES", "HeaderEntry", "StoredTensor", "read_header", "stored_tensors"]
