"""Bad items: counted, reported with their address, and tolerated up to a stated share."""

import logging

from .records import BadItem, Record
from .sources import Source

logger = logging.getLogger(__name__)


class TooManyBadItems(ValueError, RuntimeError):
    """The share of bad items is past what was tolerated: an error in a user's data, which commands say in one line."""


class BadItemCounter:
    """
    Counts bad items and logs each with its address.

    Args:
        max_bad_share: tolerated share in [0, 1] of bad items among those read.
        min_items: the share is taken of at least so many items, so that one early bad item does not stop a run.
    """

    def __init__(self, max_bad_share: float = 0.01, min_items: int = 100):
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` must be in [0, 1]. Got {max_bad_share}. Example: 0.01.")
        self.max_bad_share = max_bad_share
        self.min_items = min_items
        self.num_read = 0
        self.num_bad = 0
        self.bad_items: dict[str, str] = {}

    def count(self, item: BadItem) -> None:
        """
        One more; one that was met before, in an earlier pass over the data, counts once.

        Raises:
            TooManyBadItems: when that is too many.
        """
        if item.key in self.bad_items:
            return
        self.num_bad += 1
        self.bad_items[item.key] = item.reason
        logger.warning("Bad item %s", item)
        self.check(max(self.num_read, self.min_items))

    def check(self, num_items: int | None = None) -> None:
        """
        Compare the share of bad items with the tolerance; without an argument, among exactly the items read so far.

        Raises:
            TooManyBadItems: when it is passed.
        """
        if self.num_bad > self.max_bad_share * (num_items or self.num_read):
            raise TooManyBadItems(
                f"At most {self.max_bad_share:.2%} of the items may be bad (`max_bad_share`). {self.num_bad} of "
                f"{self.num_read} are. {self.examples()} Repair or remove them."
            )

    def examples(self) -> str:
        """The first bad items, in words."""
        shown = [f"{key}: {reason}" for key, reason in list(self.bad_items.items())[:5]]
        return f"The first of {len(self.bad_items)}: " + "; ".join(shown) + "."


class TolerantSource(BadItemCounter):
    """
    A source that goes on after bad items: each is counted and logged with its address, and the next good item of its
    shard is used instead. So the item at a position never depends on what was read before.

    Args:
        source: the source to read.
        max_bad_share, min_items: as in [`BadItemCounter`].

    Raises:
        TooManyBadItems: on reading, as soon as the tolerance is passed.
    """

    def __init__(self, source: Source, max_bad_share: float = 0.01, min_items: int = 100):
        super().__init__(max_bad_share, min_items)
        self.source = source

    @property
    def num_shards(self) -> int:
        return self.source.num_shards

    def __len__(self) -> int:
        return len(self.source)

    def shard_length(self, shard: int) -> int:
        return self.source.shard_length(shard)

    def locate(self, index: int) -> tuple[int, int]:
        return self.source.locate(index)

    def __getitem__(self, index: int) -> Record:
        return self.read(*self.locate(index))

    def read(self, shard: int, position: int, epoch: int = 0) -> Record:
        """The item there, or the next good one of the shard."""
        length = self.shard_length(shard)
        for offset in range(length):
            self.num_read += 1
            try:
                return self.source.read(shard, (position + offset) % length, epoch)
            except BadItem as item:
                self.count(item)
        raise TooManyBadItems(f"A shard must hold at least one good item. {self.examples()} Repair or remove it.")
