"""Pictures that you have, with new captions, a long and a short one each (paper section 5.2, stage 1)."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import EncodedImage, image_kind
from ..data.records import BadItem
from ..data.sources import Source
from ..data.texts import clean, is_text, text_problem
from ..hub.provenance import public_name
from .captioners import Captioner
from .collect import Progress
from .endpoint import unicode_text
from .folder import CollectionFolder
from .shards import Dropped
from .teachers import Answer


@dataclass(frozen=True)
class Picture:
    """
    A picture of a source.

    Args:
        number: its place in the source.
        key: its address there, as [`public_key`].
        image: decoded.
        data: as it was encoded.
        caption: that it had, or `None`.
    """

    number: int
    key: str
    image: Image.Image
    data: bytes
    caption: str | None

    @property
    def id(self) -> str:
        """Its number and a hash of its bytes, so that no other picture gets its captions."""
        return f"{self.number:08d}-{hashlib.sha256(self.data).hexdigest()[:16]}"


def read_picture(source: Source, number: int) -> Picture:
    """
    A picture of a source, with the bytes that it is stored as.

    Args:
        source: opened with `reconstruct: true`, so that captions need not be there.
        number: its place.

    Raises:
        BadItem: when it cannot be used.
    """
    found: list[EncodedImage] = []

    def take(record):
        found.append(record.target)
        return record

    source.complete = take
    record = source[number]
    encoded = found[0]
    said = source.content(number).get(source.settings.caption)
    caption = unicode_text(said) if isinstance(said, str) and is_text(said) else None
    return Picture(number, public_key(source, record.key), encoded.decode(), _bytes(encoded.data), caption)


def public_key(source: Source, key: str) -> str:
    """The address of a picture, without the folders of this machine that lead to its source."""
    root = str(source.settings.path)
    if Path(root).is_absolute() and key.startswith(root):
        return Path(root).name + key.removeprefix(root)
    return public_name(key)


def _bytes(data: Any) -> bytes:
    if isinstance(data, Image.Image):
        answer = Answer.of_image(data).data
        assert answer is not None
        return answer
    if isinstance(data, bytes):
        return data
    return data() if callable(data) else Path(data).read_bytes()


@dataclass
class Recaptioner:
    """
    Writes tars with the pictures of a source and new captions: the long one as the item's text, the short one under
    the key `short`.

    Args:
        folder: opened for this run.
        source: as in [`read_picture`].
        captioner: writes the captions.
        instructions: what it is asked for, by `long` and `short`.
        shard_size: pictures of the source in a shard.
        provenance: what every manifest says beside.
        report: called with the number of pictures that are done.
    """

    folder: CollectionFolder
    source: Source
    captioner: Captioner
    instructions: Mapping[str, str]
    shard_size: int = 500
    provenance: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[int], None] = lambda number: None

    def run(self) -> Progress:
        """
        Describe what is not described yet, and write the shards.

        Raises:
            OSError: when an endpoint does not answer. What was written is kept, and the next run goes on there.
        """
        progress = Progress(len(self.source))
        for shard, start in enumerate(range(0, len(self.source), self.shard_size)):
            numbers = range(start, min(start + self.shard_size, len(self.source)))
            if self.folder.manifest(shard) is None:
                self._write(shard, numbers)
            else:
                self.report(len(numbers))
            self.folder.forget(_names(numbers))
            progress.add(len(numbers), self.folder.manifest(shard))
        return progress

    def _write(self, shard: int, numbers: range) -> None:
        dropped: list[Dropped] = []
        tar = self.folder.write_shard(shard, self._items(numbers, dropped))
        counts = Counter(each.reason for each in dropped)
        manifest = {
            "complete": True,
            "items": [numbers[0], numbers[-1]],
            "pairs": len(numbers) - len(dropped),
            "open": [],
            "dropped": {"counts": dict(sorted(counts.items())), "items": [asdict(each) for each in dropped]},
            **self.provenance,
        }
        self.folder.write_manifest(shard, {**tar, **manifest})

    def _items(self, numbers: range, dropped: list[Dropped]) -> Iterator[tuple[str, dict[str, bytes]]]:
        for start in range(0, len(numbers), self.captioner.group_size):
            group = numbers[start : start + self.captioner.group_size]
            pictures = [each for number in group if (each := self._picture(number, dropped)) is not None]
            captions = self._captions(group, pictures)
            for picture in pictures:
                said = captions[picture.id]
                problem = _problem(said)
                if problem is not None:
                    dropped.append(Dropped(picture.key, *problem))
                    continue
                yield f"{picture.number:08d}", _members(picture, said)
            self.report(len(group))

    def _picture(self, number: int, dropped: list[Dropped]) -> Picture | None:
        try:
            return read_picture(self.source, number)
        except BadItem as item:
            dropped.append(Dropped(public_key(self.source, item.key), "no picture that can be used", item.reason))
            return None

    def _captions(self, group: range, pictures: Sequence[Picture]) -> dict[str, Any]:
        """By the ids of pictures: each kind of caption, or why there is none; asked once, also after a kill."""
        name, ids = _name(group), [picture.id for picture in pictures]
        kept = self.folder.kept(name)
        if kept is not None and list(kept[0]) == ids:
            return kept[0]
        said: dict[str, Any] = {id_: {} for id_ in ids}
        for kind, instruction in self.instructions.items() if pictures else ():
            texts = self.captioner.describe([picture.image for picture in pictures], instruction)
            for id_, (text, problem) in zip(ids, texts, strict=True):
                said[id_][kind] = {"text": clean(text or ""), "problem": problem}
        self.folder.keep(name, said)
        return said


def _name(group: range) -> str:
    return f"captions-{group[0]:08d}"


def _names(numbers: range) -> list[str]:
    return [f"captions-{number:08d}" for number in numbers]


def _problem(said: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """Why a picture with these captions is dropped; `None` where it is kept."""
    for kind, caption in said.items():
        if caption["problem"]:
            reason, _, detail = caption["problem"].partition(": ")
            return f"{kind} caption {reason}", detail
        if not caption["text"]:
            return f"{kind} caption is empty", ""
        if problem := text_problem(caption["text"]):
            return f"{kind} caption cannot be learned from", problem
    return None


def _members(picture: Picture, said: Mapping[str, Mapping[str, str]]) -> dict[str, bytes]:
    kind = image_kind(picture.data)
    assert kind is not None  # it was decoded
    about = {"short": said["short"]["text"]} if "short" in said else {}
    if picture.caption is not None:
        about["original_caption"] = picture.caption
    return {
        kind: picture.data,
        "txt": said["long"]["text"].encode(),
        "json": json.dumps(about, ensure_ascii=False).encode(),
    }
