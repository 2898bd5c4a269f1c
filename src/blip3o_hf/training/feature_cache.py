"""What was computed once of training data: a folder of rows, found by the address of the record they belong to."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.images import as_picture, decoded
from ..data.records import Record
from ..files import expanded, written_whole
from .fingerprints import digest

KINDS = ("targets", "conditions")
MANIFEST = "manifest.json"
OPEN_SHARDS = 256


def _hash(*parts: str | bytes) -> int:
    """64 bits as a signed integer: among 30 million things, two are equal by chance once in 40,000 caches."""
    encoded = (part.encode(errors="surrogatepass") if isinstance(part, str) else part for part in parts)
    return int.from_bytes(digest(encoded), "little", signed=True)


def target_address(identity: str, record: Record) -> int:
    """Of a record's target, in a source of that `identity`."""
    return _hash(identity, record.key)


def condition_address(identity: str, record: Record) -> int:
    """Of a record's prompt with its input images; its long and its short caption have two."""
    return _hash(identity, record.key, record.prompt or "")


def content_hash(text: str, images: Iterable[Image.Image]) -> int:
    """The same text with images of the same pixels has the same hash."""
    return _hash(text, *(part for image in images for part in (repr(image.size), image.tobytes())))


@dataclass(frozen=True)
class CachedRecord:
    """
    A record of generation with what the cache holds in the place of its images.

    Args:
        key, prompt, history: as in [`Record`].
        target, images: as in [`Record`]; `None` and empty where the cache takes their place.
        target_features (`[C, H, W]`, *optional*): target features of the target.
        condition (`[num_queries, hidden_size]`, *optional*): the condition of prompt and images.
    """

    key: str
    prompt: str | None
    target: Image.Image | None
    images: tuple[Image.Image, ...]
    target_features: torch.Tensor | None
    condition: torch.Tensor | None
    history: tuple[dict[str, Any], ...] = ()
    turns: ClassVar[tuple[tuple[str, str], ...]] = ()
    """A cache holds pictures, and no conversations."""


class FeatureCache:
    """
    Reads what `blip3o-hf precompute` wrote; rows are read from disk when they are asked for.

    Args:
        folder: with `manifest.json`, an index and shards.

    Raises:
        FileNotFoundError: when the folder is not a cache.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = expanded(folder)
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(
                f"A cache is a folder that `blip3o-hf precompute` wrote. There is no {self.folder / MANIFEST}. Run "
                f"the command on this recipe first."
            )
        self.manifest: dict[str, dict[str, Any]] = json.loads((self.folder / MANIFEST).read_bytes())
        self._shard = lru_cache(OPEN_SHARDS)(self._open)

    def __reduce__(self):
        return FeatureCache, (self.folder,)  # a process that was not forked opens the files anew

    def _open(self, name: str):
        try:
            return safe_open(self.folder / name, "pt")
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(
                f"A cache must have all of its files. {self.folder / name} is missing or damaged ({error}). Delete "
                f"what is left of it and run `blip3o-hf precompute` again: it computes what is missing."
            ) from error

    @cached_property
    def _indices(self) -> dict[str, tuple]:
        """Of each kind: sorted addresses, the shard and the row of each, the names of the shards, all contents."""
        indices = {}
        for kind in self.manifest:
            file = self._open(f"index-{kind}.safetensors")
            tensors = (file.get_tensor(name) for name in ("addresses", "shards", "rows", "contents"))
            indices[kind] = (*tensors, json.loads(file.metadata()["names"]))
        return indices

    def addresses(self, kind: str) -> torch.Tensor:
        """The addresses that have a row, `[n]`, in order."""
        return self._indices[kind][0]

    def contents(self, kind: str) -> set[int]:
        """The hashes of everything that has a row."""
        return set(self._indices[kind][3].tolist())

    def shape(self, kind: str) -> tuple[int, ...]:
        """The shape of a row."""
        for name in self._indices[kind][4]:
            if shape := self._shard(name).get_slice("values").get_shape()[1:]:
                return tuple(shape)
        raise ValueError(f"A cache must hold rows. {self.folder} has no {kind}. Run `blip3o-hf precompute` again.")

    def _location(self, kind: str, address: int) -> tuple[str, int] | None:
        addresses, shards, rows, _, names = self._indices[kind]
        index = int(torch.searchsorted(addresses, address))
        if index == len(addresses) or addresses[index] != address:
            return None
        return names[shards[index]], int(rows[index])

    def has(self, kind: str, address: int) -> bool:
        """Whether there is a row of that address."""
        return self._location(kind, address) is not None

    def read(self, kind: str, address: int) -> torch.Tensor | None:
        """The row of that address; `None` when there is none."""
        location = self._location(kind, address)
        if location is None:
            return None
        name, row = location
        return self._shard(name).get_slice("values")[row].clone()

    def complete(self, kinds: Collection[str], identity: str, record: Record) -> CachedRecord:
        """
        A record with what the cache holds of it; only images that are still needed are decoded.

        Args:
            kinds: of [`KINDS`], to take from the cache.
            identity: of the record's source.
            record: its images may be encoded.

        Raises:
            BadItem: when one of its images cannot be used.
            ValueError: when the cache lacks the record.
        """
        features = condition = None
        if "targets" in kinds:
            features = self._read_or_raise("targets", target_address(identity, record), record)
        if "conditions" in kinds:
            condition = self._read_or_raise("conditions", condition_address(identity, record), record)
        target = None if features is not None else as_picture(record.target)
        given = () if condition is not None else record.images
        images = tuple(picture for image in given if (picture := as_picture(image)) is not None)
        return CachedRecord(record.key, record.prompt, target, images, features, condition, record.history)

    def _read_or_raise(self, kind: str, address: int, record: Record) -> torch.Tensor:
        row = self.read(kind, address)
        if row is None:
            decoded(record)  # a bad item is not in the cache; it says so itself
            raise ValueError(
                f"With `data.cache`, every record must be in the cache. {self.folder} has no {kind} of {record.key} "
                f"with the prompt {record.prompt!r}. Run `blip3o-hf precompute` on this recipe again: it computes "
                f"what is missing."
            )
        return row


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """What differs between two descriptions of what rows depend on, in words; empty when nothing does."""
    names = [name for name in {**recorded, **current} if recorded.get(name) != current.get(name)]
    return "; ".join(f"{name} was {recorded.get(name)!r} and is now {current.get(name)!r}" for name in names)


class ShardWriter:
    """
    Collects rows and the addresses that share them, and writes them as shards, each whole or not at all.

    Args:
        folder: of the cache.
        kind: of [`KINDS`].
        rank: of this process; each writes files of its own.
        dtype: of the rows on disk.
        num_rows: in a shard.
    """

    def __init__(self, folder: Path, kind: str, rank: int, dtype: torch.dtype, num_rows: int):
        self.folder, self.kind, self.rank, self.dtype, self.num_rows = folder, kind, rank, dtype, num_rows
        self.number = 0
        self._empty()

    def _empty(self) -> None:
        self.values: list[torch.Tensor] = []
        self.contents: list[int] = []
        self.addresses: list[int] = []
        self.linked: list[int] = []

    def add(self, contents: list[int], values: torch.Tensor) -> None:
        """Rows `[n, ...]` and the hash of each one's content."""
        self.contents += contents
        self.values += values.to("cpu", self.dtype).unbind()

    def link(self, addresses: list[int], contents: list[int]) -> None:
        """Addresses and the content of each, whose row may be anyone's."""
        self.addresses += addresses
        self.linked += contents
        if len(self.values) >= self.num_rows:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self.addresses:
            return
        while (path := self.folder / f"{self.kind}-{self.rank:04d}-{self.number:06d}.safetensors").exists():
            self.number += 1
        tensors = {
            "values": torch.stack(self.values) if self.values else torch.empty(0, dtype=self.dtype),
            **{
                name: torch.tensor(getattr(self, name), dtype=torch.int64)
                for name in ("contents", "addresses", "linked")
            },
        }
        with written_whole(path) as temporary:
            save_file(tensors, temporary)
        self._empty()


def write_index(folder: Path, kind: str) -> None:
    """
    Write where the row of every address is, from all shards of a kind.

    An address whose row was not written, because a process ended before, is left out.
    """
    names = sorted(path.name for path in folder.glob(f"{kind}-*.safetensors"))
    parts = {name: [np.zeros(0, np.int64)] for name in ("contents", "shards", "rows", "addresses", "linked")}
    for number, name in enumerate(names):
        try:
            with safe_open(folder / name, "np") as file:
                tensors = {key: file.get_tensor(key) for key in ("contents", "addresses", "linked")}
        except SafetensorError as error:
            raise ValueError(
                f"The shards of a cache must be whole. {folder / name} is damaged ({error}). Delete it and run "
                f"`blip3o-hf precompute` again: it computes what is missing."
            ) from error
        size = len(tensors["contents"])
        for key, values in {**tensors, "shards": np.full(size, number), "rows": np.arange(size)}.items():
            parts[key].append(values)
    merged = {key: np.concatenate(values) for key, values in parts.items()}
    contents, first = np.unique(merged["contents"], return_index=True)
    is_written = np.isin(merged["linked"], contents)
    addresses, chosen = np.unique(merged["addresses"][is_written], return_index=True)
    rows = first[np.searchsorted(contents, merged["linked"][is_written][chosen])]
    index = {
        "addresses": addresses,
        "shards": merged["shards"][rows].astype(np.int32),
        "rows": merged["rows"][rows].astype(np.int32),
        "contents": contents,
    }
    with written_whole(folder / f"index-{kind}.safetensors") as temporary:
        save_file(
            {key: torch.from_numpy(value) for key, value in index.items()}, temporary, {"names": json.dumps(names)}
        )
