"""From the answers of a teacher to the items of a shard: opened, looked at, compared; what is dropped is listed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..data.images import MAX_RATIO, decode_image, image_kind
from ..data.records import BadItem
from .checks import SafetyFilter, problem_of, safety_reasons, verdicts
from .duplicates import SeenPictures, fingerprint
from .folder import CollectionFolder
from .prompts import Prompt

GROUP = 16
"""So many pictures are decoded, and shown to a check, at once."""


@dataclass(frozen=True)
class Dropped:
    """A pair that is not kept: why, in words that are counted, and what there is to say about this one."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class _Opened:
    prompt: Prompt
    data: bytes
    image: Image.Image
    notes: dict[str, Any]


@dataclass
class ShardItems:
    """
    The items of one shard.

    Args:
        folder: that keeps the answers.
        shard: its number.
        seen: pictures of earlier shards; those of this one are added.
        check, safety: as in [`~collection.collect.Collector`].

    Attributes:
        dropped: pairs that are not kept, after [`of`] was read to its end.
        fingerprints: of the pairs that are, by id.
    """

    folder: CollectionFolder
    shard: int
    seen: SeenPictures
    check: Any = None
    safety: SafetyFilter | None = None
    dropped: list[Dropped] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def of(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members of each pair that is kept, in the order of the prompts, which all have an answer."""
        for start in range(0, len(prompts), GROUP):
            group = [each for prompt in prompts[start : start + GROUP] if (each := self._opened(prompt)) is not None]
            looked = self._looked(group) if self.check or self.safety else {}
            for each in group:
                print_ = fingerprint(each.image)
                problem = self._problem(each, looked.get(each.prompt.id, {}), print_)
                if problem is not None:
                    self.dropped.append(problem)
                    continue
                self.seen.add(each.prompt.id, print_)
                self.fingerprints[each.prompt.id] = print_
                yield each.prompt.id, self._members(each, looked.get(each.prompt.id, {}))

    def _opened(self, prompt: Prompt) -> _Opened | None:
        kept = self.folder.kept(prompt.id)
        assert kept is not None
        header, data = kept
        if header["problem"] is not None:
            reason, _, detail = header["problem"].partition(": ")
            self.dropped.append(Dropped(prompt.id, reason, detail))
            return None
        try:
            return _Opened(prompt, data, decode_image(data, prompt.id, max_ratio=MAX_RATIO), header["notes"])
        except BadItem as item:
            self.dropped.append(Dropped(prompt.id, "no picture that can be read", item.reason))
            return None

    def _looked(self, group: Sequence[_Opened]) -> dict[str, dict[str, Any]]:
        """What check and safety filter say, by id; asked once for each picture, also when a run goes on."""
        kept = self.folder.kept(look_name(self.shard))
        said: dict[str, dict[str, Any]] = {} if kept is None else kept[0]
        new = [each for each in group if each.prompt.id not in said]
        if not new:
            return said
        images, texts = [each.image for each in new], [each.prompt.text for each in new]
        said |= {each.prompt.id: {} for each in new}
        if self.safety is not None:
            for each, reason in zip(new, safety_reasons(self.safety, images, texts), strict=True):
                said[each.prompt.id]["unsafe"] = reason
        if self.check is not None:
            for each, verdict in zip(new, verdicts(self.check, images, texts), strict=True):
                said[each.prompt.id]["check"] = verdict
        self.folder.keep(look_name(self.shard), said)
        return said

    def _problem(self, each: _Opened, said: dict[str, Any], print_: str) -> Dropped | None:
        if said.get("unsafe") is not None:
            return Dropped(each.prompt.id, "refused by the safety filter", said["unsafe"])
        problem = problem_of(said.get("check"))
        if problem is not None:
            return Dropped(each.prompt.id, *problem)
        earlier = self.seen.find(print_)
        return None if earlier is None else Dropped(each.prompt.id, "looks like an earlier picture", earlier)

    @staticmethod
    def _members(each: _Opened, said: dict[str, Any]) -> dict[str, bytes]:
        about: dict[str, Any] = {"category": each.prompt.category, **each.notes}
        if "check" in said:
            about["check"] = round(said["check"], 4)
        kind = image_kind(each.data)
        assert kind is not None  # it was decoded
        return {
            kind: each.data,
            "txt": each.prompt.text.encode(),
            "json": json.dumps(about, ensure_ascii=False).encode(),
        }


def look_name(shard: int) -> str:
    """Under which name the folder keeps what was said of the pictures of a shard."""
    return f"look-{shard:05d}"
