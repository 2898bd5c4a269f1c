"""Safetensors files under other names and in other files, copied byte by byte: memory stays small at any size."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints.weight_files import shard_index, weights_name
from ..files import written_whole

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CHUNK = 16 * 2**20  # bytes in memory at a time
_ALIGNMENT = 64  # bytes: where the tensors of a file begin


@dataclass(frozen=True)
class TensorCopy:
    """
    One tensor on its way.

    Args:
        name: of the tensor in the new file.
        shape: in the new file; as many numbers as before.
        dtype: in the words of safetensors.
        num_bytes: size of its values.
        source_name: of the tensor in the source.
        source_file: which holds it, relative to the source.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    source_name: str
    source_file: str


@dataclass(frozen=True)
class Shard:
    """
    One new file.

    Args:
        file: its name.
        copies: its tensors, in order.
    """

    file: str
    copies: tuple[TensorCopy, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all its values."""
        return sum(copy.num_bytes for copy in self.copies)


def plan_shards(copies: Sequence[TensorCopy], stem: str, max_shard_size: int) -> list[Shard]:
    """
    Files for tensors in the order in which the source holds them, each filled up to `max_shard_size` bytes.

    Args:
        copies: the tensors; one that is larger than a shard gets a file of its own.
        stem: name of the files: `stem.safetensors`, or `stem-00001-of-00002.safetensors`.
        max_shard_size: in bytes.
    """
    groups: list[list[TensorCopy]] = []
    filled = 0
    for copy in sorted(copies, key=lambda copy: copy.source_file):
        if not groups or filled + copy.num_bytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(copy)
        filled += copy.num_bytes
    if len(groups) == 1:
        return [Shard(weights_name(stem), tuple(groups[0]))]
    return [
        Shard(weights_name(f"{stem}-{index:05d}-of-{len(groups):05d}"), tuple(group))
        for index, group in enumerate(groups, start=1)
    ]


def index_of(shards: Sequence[Shard]) -> dict[str, dict]:
    """The index of several shards, as the libraries read it."""
    weight_map = {copy.name: shard.file for shard in shards for copy in shard.copies}
    return shard_index(weight_map, sum(shard.num_bytes for shard in shards))


def _header(shard: Shard) -> bytes:
    """What a file begins with: the length of its table of tensors, and the table."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for copy in shard.copies:
        end = offset + copy.num_bytes
        entries[copy.name] = {"dtype": copy.dtype, "shape": copy.shape, "data_offsets": [offset, end]}
        offset = end
    table = json.dumps(entries, separators=(",", ":")).encode()
    table += b" " * (-(8 + len(table)) % _ALIGNMENT)
    return len(table).to_bytes(8, "little") + table


def is_written(shard: Shard, folder: Path) -> bool:
    """Whether a file is there in full length."""
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == len(_header(shard)) + shard.num_bytes


def write_shard(
    shard: Shard,
    folder: Path,
    locate: Callable[[TensorCopy], tuple[Path, int]],
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """
    Write one file; it appears whole or not at all.

    Args:
        shard: what it holds.
        folder: where.
        locate: a tensor's file, and the byte at which its values begin there.
        progress: told the number of bytes after each piece.

    Raises:
        ValueError: naming a tensor and its file, when a value is NaN or infinite, or the file ends too early.
    """
    with written_whole(folder / shard.file) as temporary, temporary.open("wb") as target:
        target.write(_header(shard))
        for copy in shard.copies:
            _copy_values(copy, *locate(copy), target, progress)


def _copy_values(copy: TensorCopy, path: Path, begin: int, target, progress: Callable[[int], object]) -> None:
    buffer = bytearray(min(_CHUNK, copy.num_bytes))
    left = copy.num_bytes
    with path.open("rb") as source:
        source.seek(begin)
        while left:
            piece = memoryview(buffer)[: min(left, len(buffer))]
            size = source.readinto(piece)
            if size != len(piece):
                raise ValueError(
                    f"A file must not change while it is read. {path} ends within {copy.source_name}. Download it "
                    f"again."
                )
            lowest, highest = torch.frombuffer(piece, dtype=_TYPES[copy.dtype]).aminmax()
            if not (lowest.isfinite() and highest.isfinite()):
                raise ValueError(
                    f"Weights must be finite numbers. {copy.source_name} (in {copy.source_file}) holds NaN or "
                    f"infinity. Download it again, or take a checkpoint from before the training diverged."
                )
            target.write(piece)
            left -= size
            progress(size)


__all__ = ["Shard", "TensorCopy", "index_of", "is_written", "plan_shards", "write_shard"]
