"""Several sources as one dataset whose order is decided by a seed alone, so that training can go on where it was."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..checks import check_keys
from .images import decoded
from .records import Record
from .sources import Source, open_source
from .tolerance import TolerantSource

DRAWS = 1000
MIXTURE_TYPES: dict[str, Any] = {
    "sources": list,
    "seed": int,
    "length": int | None,
    "streaming": bool,
    "shuffle_buffer": int,
    "max_bad_share": float,
    "min_items": int,
}
MIXTURE_KEYS = tuple(MIXTURE_TYPES)


@lru_cache(maxsize=16)
def _permutation(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)


@lru_cache(maxsize=16)
def _draws(shares: tuple[float, ...], *seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources of `DRAWS` items in random order, their counts, and how often each item's source came before it."""
    exact = np.array(shares) * DRAWS
    counts = np.maximum(np.floor(exact), 1).astype(int)
    for source in np.argsort(counts - exact, kind="stable")[: max(0, DRAWS - counts.sum())]:
        counts[source] += 1
    counts[counts.argmax()] += DRAWS - counts.sum()
    drawn = np.repeat(np.arange(len(counts)), counts)[np.random.default_rng(seed).permutation(DRAWS)]
    before = np.zeros(DRAWS, dtype=int)
    for source, count in enumerate(counts):
        before[drawn == source] = np.arange(count)
    return drawn, counts, before


def _check_weights(name: str, weights: Sequence[float] | None, sources: Sequence[Sized]) -> tuple[float, ...]:
    weights = (1.0,) * len(sources) if weights is None else tuple(map(float, weights))
    if not sources or len(weights) != len(sources) or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(
            f"`{name}` must be one finite number above 0 for each of at least one source. "
            f"Got {weights} for {len(sources)} sources. Leave a source out to skip it."
        )
    return weights


class MixtureDataset(Dataset):
    """
    Map-style mixture: item `i` of a seed is always the same one, whatever the length.

    In every thousand items each source has its share, in seeded order; each pass through a source is a new
    permutation of it.

    Args:
        sources: sources, tolerant or not.
        weights: how often each source is drawn, relative to the others. Default: in proportion to their lengths.
        seed: of the order.
        length: number of items; more than the sources hold means further passes. Default: the sources' items together.
    """

    def __init__(
        self,
        sources: Sequence[Source | TolerantSource],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        length: int | None = None,
    ):
        self.sources = list(sources)
        for number, source in enumerate(self.sources):
            if not len(source):
                raise ValueError(f"A source must hold items. Source {number} is empty. Leave it out.")
        weights = [len(source) for source in self.sources] if weights is None else weights
        weights = _check_weights("weights", weights, self.sources)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.seed = seed
        self.length = sum(map(len, self.sources)) if length is None else length

    def __len__(self) -> int:
        return self.length

    def locate(self, index: int) -> tuple[int, int, int]:
        """Source, index in it, and number of the pass through it, of an item."""
        if not 0 <= index < self.length:
            raise IndexError(f"Items are numbered from 0 to {self.length - 1}. Got {index}.")
        block, position = divmod(index, DRAWS)
        drawn, counts, before = _draws(self.shares, self.seed, block)
        source = int(drawn[position])
        epoch, rank = divmod(int(block * counts[source] + before[position]), len(self.sources[source]))
        order = _permutation(len(self.sources[source]), self.seed, source, epoch)
        return source, int(order[rank]), epoch

    def __getitem__(self, index: int) -> Record:
        number, item, epoch = self.locate(index)
        source = self.sources[number]
        return source.read(*source.locate(item), epoch)


class StreamingMixture(IterableDataset):
    """
    Endless stream that touches one shard after the other, for data too large to be counted up front.

    Ranks and workers share the shards among themselves; with fewer shards than workers, the items of a shard. An epoch
    gives everything once, or `passes` times. The order is decided by seed, epoch and the number of ranks and workers.

    Args:
        sources: sources, tolerant or not.
        passes: how often each source is passed in an epoch; 0.5 is half of its items, in each epoch another half.
        seed: of the order.
        shuffle: whether shards, and items within blocks of `shuffle_buffer`, come in random order.
        shuffle_buffer: number of items that are shuffled together; only their places are held, not their images.
        epochs: stop after so many. Default: never.
        rank, world_size: this process and their number. Default: those of `torch.distributed` or of the launcher.
    """

    def __init__(
        self,
        sources: Sequence[Source | TolerantSource],
        passes: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_buffer: int = 10_000,
        epochs: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.sources = list(sources)
        self.passes = _check_weights("passes", passes, self.sources)
        given = (rank, world_size) != (None, None)
        if given and (rank is None or world_size is None or not 0 <= rank < world_size):
            raise ValueError(f"`rank` must be below `world_size`, or both left out. Got {rank} and {world_size}.")
        if shuffle_buffer < 1:
            raise ValueError(
                f"`shuffle_buffer` must be at least 1. Got {shuffle_buffer}. Use `shuffle=False` for none."
            )
        self.seed = seed
        self.shuffle = shuffle
        self.shuffle_buffer = shuffle_buffer
        self.epochs = epochs
        self.rank, self.world_size = rank, world_size
        self._done: dict[str, Any] = {"items": [], "first_worker": 0}

    def state_dict(self, batches: int, batch_size: int, num_workers: int = 0) -> dict[str, Any]:
        """
        The state after a `DataLoader` of this rank gave `batches` full batches, counted from the stream's beginning.

        Workers take turns, so the number of batches says what each of them has read.

        Example:
            >>> stream.load_state_dict(stream.state_dict(batches=1000, batch_size=16, num_workers=2))  # doctest: +SKIP
        """
        workers = max(1, num_workers)
        items = [len(range(worker, batches, workers)) * batch_size for worker in range(workers)]
        return {"order": self._order(), "items": items, "first_worker": batches % workers}

    def _order(self) -> dict[str, Any]:
        """All that the order depends on, save the data and the number of workers."""
        names = ("seed", "shuffle", "shuffle_buffer")
        order = {name: getattr(self, name) for name in names}
        return {**order, "passes": list(self.passes), "world_size": self._rank()[1]}

    def _rank(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Let the next iteration go on from a state.

        Raises:
            ValueError: when the state is of another order.
        """
        for name, value in self._order().items():
            if state["order"][name] != value:
                raise ValueError(
                    f"A stream must go on in the same order as before. Its state has `{name}` {state['order'][name]} "
                    f"and the stream has {value}. Set it back."
                )
        self._done = {"items": list(state["items"]), "first_worker": state["first_worker"]}

    def _reader(self) -> tuple[int, int, int]:
        """Which of how many readers this one is, and how many items it has given before."""
        rank, world_size = self._rank()
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        items = self._done["items"]
        if items and len(items) != workers:
            raise ValueError(
                f"A stream must go on with the same number of workers as before. Its state has {len(items)} and there "
                f"are {workers}. Set `num_workers` back."
            )
        worker = (worker + self._done["first_worker"]) % workers
        return rank * workers + worker, world_size * workers, items[worker] if items else 0

    def _shards(self, epoch: int, reader: int, readers: int) -> Iterator[np.ndarray]:
        """Places `[n, 3]` (source, shard, position) of each shard of a reader, in order and uncut by shuffling."""
        shards = [
            (source, shard, turn)
            for source, passes in enumerate(self.passes)
            for turn in range(int(np.ceil(passes)))
            for shard in range(self.sources[source].num_shards)
        ]
        if self.shuffle:
            shards = [shards[i] for i in np.random.default_rng((self.seed, epoch)).permutation(len(shards))]
        if len(shards) >= readers:
            mine, step, offset = shards[reader::readers], 1, 0
        else:
            number = reader % len(shards)
            mine, step, offset = [shards[number]], len(range(number, readers, len(shards))), reader // len(shards)
        for source, shard, turn in mine:
            positions = np.arange(self.sources[source].shard_length(shard))
            share = self.passes[source] - turn
            if share < 1:
                rng = np.random.default_rng((self.seed, epoch, source, shard))
                positions = positions[rng.random(len(positions)) < share]
            positions = positions[offset::step]
            yield np.stack([np.full_like(positions, source), np.full_like(positions, shard), positions], axis=1)

    def _blocks(self, epoch: int, reader: int, readers: int) -> Iterator[np.ndarray]:
        """The same places in blocks that are shuffled as a whole."""
        waiting = np.zeros((0, 3), dtype=int)
        for places in self._shards(epoch, reader, readers):
            waiting = np.concatenate([waiting, places])
            while len(waiting) >= self.shuffle_buffer:
                yield waiting[: self.shuffle_buffer]
                waiting = waiting[self.shuffle_buffer :]
        yield waiting

    def __iter__(self) -> Iterator[Record]:
        reader, readers, skip = self._reader()
        for epoch in itertools.count() if self.epochs is None else range(self.epochs):
            is_empty = True
            for number, block in enumerate(self._blocks(epoch, reader, readers)):
                is_empty = is_empty and not len(block)
                skipped = min(skip, len(block))
                skip -= skipped
                if skipped == len(block):
                    continue
                if self.shuffle:
                    block = np.random.default_rng((self.seed, epoch, reader, number)).permutation(block)
                for source, shard, position in block[skipped:].tolist():
                    yield self.sources[source].read(shard, position, epoch)
            if is_empty and self.epochs is None:
                raise ValueError(
                    f"Every worker must have items to read. Reader {reader} of {readers} has none in epoch {epoch}. "
                    f"Use fewer workers, or more data."
                )


def open_mixture(
    settings: Mapping[str, Any], complete: Callable[[str, Record], Any] | None = None
) -> MixtureDataset | StreamingMixture:
    """
    The dataset that a recipe's `data` section describes.

    Args:
        settings: `sources`, a list of settings of [`~data.sources.open_source`], each with an optional `weight` (with
            `streaming`: passes in an epoch); `seed`, `length`, `streaming`, `shuffle_buffer`, `max_bad_share` and
            `min_items`.
        complete: what the mixture gives of a source's `identity` and a record whose images are still encoded. By
            default the record, decoded.

    Raises:
        ValueError: for an unknown key, or one that the other kind of mixture has.
    """
    check_keys(settings, MIXTURE_KEYS, "the data settings")
    streaming = settings.get("streaming", False)
    misplaced = "length" if streaming else "shuffle_buffer"
    if misplaced in settings:
        raise ValueError(f"`{misplaced}` has no meaning with `streaming: {str(streaming).lower()}`. Leave it out.")
    if not settings.get("sources"):
        raise ValueError("The data settings must list `sources`. There is none. Example: sources: [{path: photos}].")
    tolerance = {key: settings[key] for key in ("max_bad_share", "min_items") if key in settings}
    order = {key: settings[key] for key in ("seed", "length", "shuffle_buffer") if key in settings}
    sources, weights = [], [entry.get("weight") for entry in settings["sources"]]
    for entry in settings["sources"]:
        given = {"seed": settings.get("seed", 0), **entry}
        given.pop("weight", None)
        source = open_source(given)
        if complete is not None:
            source.complete = partial(complete, source.identity)
        sources.append(TolerantSource(source, **tolerance))
    if len({weight is None for weight in weights}) > 1:
        raise ValueError("`weight` must be given for all sources or for none. Some have none. Add them.")
    weights = None if weights[0] is None else weights
    if streaming:
        return StreamingMixture(sources, weights, **order)
    return MixtureDataset(sources, weights, **order)


def with_complete(
    mixture: MixtureDataset | StreamingMixture, complete: Callable[[str, Record], Any]
) -> MixtureDataset | StreamingMixture:
    """
    A mixture whose sources give what `complete` makes of a source's `identity` and a record; those that were opened
    with a function of their own keep it.

    Args:
        mixture: its sources are changed.
        complete: as in [`open_mixture`].
    """
    for source in mixture.sources:
        reader = source.source if isinstance(source, TolerantSource) else source
        if reader.complete is decoded:
            reader.complete = partial(complete, reader.identity)
    return mixture
