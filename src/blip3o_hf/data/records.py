"""What a training item is, for all kinds of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

RECONSTRUCT = "Please reconstruct the given image."
"""What the published reconstruction data asks for."""


class BadItem(Exception):
    """
    One item that cannot be used.

    Args:
        key: its address, a file or shard and the place in it.
        reason: what is wrong with it.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """
    One training item. What it teaches (`kind`) follows from what is there.

    Args:
        key: its address, a file or shard and the place in it.
        target: the image to learn to generate.
        prompt: the target's caption, or the instruction of an edit.
        images: input images that the prompt or the turns speak of.
        turns: pairs of a user's text and the answer to learn.
        image_words: for each of `images`, what its tokens learn to say, a word for each in their order; or nothing.
        history: chat messages before the prompt or the turns, with their images (`{"type": "image", "image": ...}`).

    Raises:
        ValueError: when the parts do not make one of the four kinds.

    Example:
        >>> Record("a.jsonl:1", turns=(("What is 1 + 1?", "2"),)).kind
        'understanding'
    """

    key: str
    target: Image.Image | None = None
    prompt: str | None = None
    images: tuple[Image.Image, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    image_words: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self):
        if self.prompt is not None and not (isinstance(self.prompt, str) and self.prompt.strip()):
            raise ValueError(f"A prompt must say something. Got {self.prompt!r}. Write one or drop the item.")
        for turn in self.turns:
            texts = isinstance(turn, tuple | list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
            if not texts or not all(text.strip() for text in turn):
                raise ValueError(f"A turn must be a user's text and its answer. Got {turn!r}. Complete or drop it.")
        if self.target is None and not self.turns:
            raise ValueError("A record must have a target image or turns. It has neither. Add one.")
        if self.target is not None and self.turns:
            raise ValueError("A record must not have both a target image and turns. It has both. Make it two records.")
        if self.target is None and self.prompt is not None:
            raise ValueError("A prompt must come with a target image. There is none. Use turns for questions.")
        if self.history and self.prompt is None and not self.turns:
            raise ValueError("After a history there must be a prompt or turns. There are none. Add them.")
        if self.target is not None and self.prompt is None and not self._shows_its_target:
            raise ValueError("A target image must come with a prompt. There is none. Add a caption or instruction.")

    @property
    def _shows_its_target(self) -> bool:
        return len(self.images) == 1 and self.images[0] is self.target

    @property
    def kind(self) -> str:
        """`"generation"`, `"editing"`, `"reconstruction"` or `"understanding"`."""
        if self.turns:
            return "understanding"
        if self._shows_its_target:
            return "reconstruction"
        return "editing" if self.images else "generation"


class HasTarget(Protocol):
    """A record, or what a cache of features gives of one."""

    @property
    def target(self) -> Image.Image | None: ...


def targets(records: Sequence[HasTarget]) -> list[Image.Image]:
    """
    The images to learn to generate.

    Raises:
        ValueError: naming the first record that has none.
    """
    images = []
    for record in records:
        if record.target is None:
            assert isinstance(record, Record)  # a cache keeps the targets that are asked for
            raise ValueError(
                f"Generation learns from images with captions. {record.key} is a record of {record.kind}. Leave its "
                f"source to the understanding or joint stage."
            )
        images.append(record.target)
    return images
