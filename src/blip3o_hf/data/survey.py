"""What is in a source and what is wrong with it: reads every item once, and proposes settings that fit better."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .paths import IMAGE_ENDINGS, ending
from .records import BadItem, Record
from .rows import CAPTION_NAMES, SourceSettings, given
from .sources import Source
from .texts import is_text

LIKELY_NAMES = ("caption", *CAPTION_NAMES, "capt", "text", "desc", "label", "instruct", "alt")
"""What the name of a column of captions may hold, the likeliest first."""
OTHER_NAMES = ("folder", "file_name", "id", "key", "url")
EXAMPLES = 50
"""So many bad items are looked at to propose settings."""


@dataclass
class Survey:
    """
    What the items of a source are.

    Attributes:
        num_read: how many were read.
        kinds: how many teach what.
        sizes: width and height of every image.
        lengths: words of every caption.
        bad: the items that cannot be used.
        duplicates: addresses of items that are the same as an earlier one, and of that.
        proposals: settings that would fit better, where most items are bad.
    """

    num_read: int = 0
    kinds: Counter = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bad: list[BadItem] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    proposals: dict[str, str] = field(default_factory=dict)

    def bad_by_reason(self) -> list[list[BadItem]]:
        """The bad items in groups of one reason each; numbers and names of files in it do not count."""
        groups: dict[str, list[BadItem]] = {}
        for item in self.bad:
            reason = re.sub(r"\d+", "#", item.reason.partition(" file at ")[0])
            groups.setdefault(reason, []).append(item)
        return list(groups.values())


def survey(source: Source, limit: int | None = None, check: Callable[[Record], Any] = lambda record: None) -> Survey:
    """
    Read a source.

    Args:
        source: what to read.
        limit: read so many items only, spread evenly.
        check: called with every good record; may raise [`BadItem`].
    """
    result = Survey(min(len(source), limit or len(source)))
    first_with: dict[bytes, str] = {}
    examples: list[Mapping[str, Any]] = []
    for step in range(result.num_read):
        index = step * len(source) // result.num_read
        try:
            record = source[index]
            check(record)
        except BadItem as item:
            result.bad.append(item)
            if len(examples) < EXAMPLES:
                examples += _content(source, index)
            continue
        result.kinds[record.kind] += 1
        if record.prompt is not None:
            result.lengths.append(len(record.prompt.split()))
        images = {id(image): image for image in (record.target, *record.images) if image is not None}.values()
        result.sizes += [image.size for image in images]
        digest = hashlib.blake2b(repr((record.prompt, record.turns)).encode(), digest_size=16)
        for image in images:
            digest.update(repr(image.size).encode() + image.tobytes())
        if first_with.setdefault(digest.digest(), record.key) != record.key:
            result.duplicates.append((record.key, first_with[digest.digest()]))
    if 2 * len(result.bad) > result.num_read:
        result.proposals = propose(examples, source.settings)
    return result


def _content(source: Source, index: int) -> list[Mapping[str, Any]]:
    """The columns of an item, or nothing where they cannot be read."""
    try:
        content = source.content(index)
    except BadItem:
        return []
    return [content] if isinstance(content, Mapping) else []


def propose(contents: Sequence[Mapping[str, Any]], settings: SourceSettings) -> dict[str, str]:
    """
    Settings under which items would have the image and the caption that they lack.

    Args:
        contents: columns of bad items.
        settings: those that they were read with.
    """
    names = dict.fromkeys(name for content in contents for name in content if isinstance(name, str))
    values = {
        name: [value for content in contents if (value := given(content.get(name))) is not None] for name in names
    }
    images = [name for name, column in values.items() if column and all(map(_is_image, column))]
    texts = [
        name
        for name, column in values.items()
        if column and name not in images and name.lower() not in OTHER_NAMES and all(map(_is_caption, column))
    ]
    proposals = {}
    if images and not values.get(settings.image):
        named = [name for name in images if name != settings.target]
        proposals["image"] = next((name for name in named if "im" in name.lower()), named[0] if named else "")
    if texts and not values.get(settings.caption) and len(set(CAPTION_NAMES) & set(texts)) != 1:
        proposals["caption"] = min(texts, key=lambda name: (_likelihood(name), -sum(map(len, values[name]))))
    return {key: value for key, value in proposals.items() if value}


def _is_image(value: Any) -> bool:
    if isinstance(value, str):
        return ending(Path(value)) in IMAGE_ENDINGS
    if isinstance(value, Mapping):
        return bool(value.keys() & {"bytes", "path"}) and not value.keys() - {"bytes", "path"}
    return isinstance(value, bytes | Image.Image) or callable(value)


def _is_caption(value: Any) -> bool:
    return is_text(value) and not re.match(r"\w+://", value)


def _likelihood(name: str) -> int:
    found = (rank for rank, part in enumerate(LIKELY_NAMES) if part in name.lower())
    return next(found, len(LIKELY_NAMES))
