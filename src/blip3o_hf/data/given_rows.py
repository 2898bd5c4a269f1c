"""Rows and records that a user passes as they are, such as a list: a bad one is counted, under its index."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from .records import BadItem, Record
from .rows import read_row
from .tolerance import BadItemCounter, TooManyBadItems

Complete = Callable[[str, Record], Any]
"""What is given of an identity, here none, and a record, as in [`~data.mixture.open_mixture`]."""


class _Given:
    """
    What a list and a stream have in common. Other attributes are those of the dataset itself.

    Args:
        dataset: of rows with the columns of docs/data.md, or of records; what is neither is given as it is.
        name: of the dataset, for addresses such as `train_dataset[3]`.
        complete: makes what is given of a record; may raise [`BadItem`].
    """

    def __init__(self, dataset: Any, name: str, complete: Complete):
        self.dataset, self.name, self.complete = dataset, name, complete
        self.bad_items = BadItemCounter()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # not there yet, while a worker process unpickles it
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def _completed(self, index: int, item: Any) -> Any:
        """What is given of an item; raises [`BadItem`] with its index in the dataset."""
        address = f"{self.name}[{index}]"
        try:
            record = read_row(address, item) if isinstance(item, dict) else item
            return self.complete("", record) if isinstance(record, Record) else record
        except BadItem as bad:
            raise self._addressed(index, bad) from bad

    def _addressed(self, index: int, item: BadItem) -> BadItem:
        """A bad item under its index in the dataset, with the address that its record has."""
        address = f"{self.name}[{index}]"
        return BadItem(address if item.key in ("", address) else f"{address} ({item.key})", item.reason)


class GivenRows(_Given, Dataset):
    """
    A list, or any dataset with `__getitem__` and `__len__`. In the place of a bad item the next good one is given.

    Raises:
        TooManyBadItems: on reading, when more than 1 % are bad.
    """

    def __getitem__(self, index: int) -> Any:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"Items are numbered from 0 to {length - 1}. Got {index}.")
        for offset in range(length):
            number = (int(index) + offset) % length
            self.bad_items.num_read += 1
            try:
                return self._read(number)
            except BadItem as item:
                self.bad_items.count(item)
        raise TooManyBadItems(
            f"`{self.name}` must hold at least one good item. {self.bad_items.examples()} Repair or remove them."
        )

    def _read(self, number: int) -> Any:
        try:
            item = self.dataset[number]
        except BadItem as bad:
            raise self._addressed(number, bad) from bad
        return self._completed(number, item)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several items at once, as a PyTorch dataset may have them: read at once where the user's can."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        try:
            items = self.dataset.__getitems__(list(indices))
            completed = [self._completed(index, item) for index, item in zip(indices, items, strict=True)]
        except BadItem:
            return [self[index] for index in indices]
        self.bad_items.num_read += len(completed)
        return completed


class GivenStream(_Given, IterableDataset):
    """
    A user's `IterableDataset`. A bad item is logged, counted and left out; its index counts what this process read.

    Raises:
        TooManyBadItems: on reading, when more than 1 % are bad.
    """

    def __iter__(self) -> Iterator[Any]:
        for index, item in enumerate(self.dataset):
            self.bad_items.num_read += 1
            try:
                yield self._completed(index, item)
            except BadItem as bad:
                self.bad_items.count(bad)


def check_given(dataset: Any, name: str, complete: Complete) -> Any:
    """
    What a user passes as a dataset of its own kind, whose bad items are then counted.

    Args:
        dataset, name, complete: as for both.

    Returns:
        The dataset in [`GivenRows`] or [`GivenStream`]; one that is in it, or says `is_checked`, as it is.
    """
    if isinstance(dataset, _Given) or getattr(dataset, "is_checked", False):
        return dataset
    return (GivenStream if isinstance(dataset, IterableDataset) else GivenRows)(dataset, name, complete)


def as_given(dataset: Any) -> Any:
    """A dataset as the user passed it: for a data collator of the user's own, which may read other items."""
    return dataset.dataset if isinstance(dataset, _Given) else dataset
