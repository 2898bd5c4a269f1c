"""A row of any table as a record: which of its columns is the image, the caption, the conversation."""

import logging
import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import is_inside
from .images import MAX_PIXELS, EncodedImage, decoded
from .paths import find_file
from .records import BadItem, Record
from .texts import clean, is_text, text_problem

logger = logging.getLogger(__name__)

CAPTION_NAMES = ("prompt", "text", "title")
"""Where a caption is looked for that is not under `caption`."""
USER_NAMES = ("human", "user")
ASSISTANT_NAMES = ("gpt", "assistant")


@dataclass(frozen=True)
class SourceSettings:
    """
    The settings of one source, keys of a recipe.

    Args:
        path: a folder, a file, a glob or braces such as `{000..127}` for several, a list of these, or a Hub name.
        format: `"auto"`, `"imagefolder"`, `"json"`, `"webdataset"` or `"hub"` (also parquet files and saved datasets).
        image: column or key of the image.
        caption: column or key of the caption.
        target: column or key of the image to generate where `image` is an input; `None` where it means something else.
        short_caption: column or key of a second, short caption, or `None`.
        short_caption_rate: share in [0, 1] of readings that take the short caption where an item has one.
        prompt_template: text around the caption, such as `"a photo: {caption}"`; `{folder}` is the image's folder.
        image_root: folder of relative image paths. Default: the folder of the file that names them.
        allow_outside: read images that rows name outside of their folder and of `image_root`, and links out of it.
        reconstruct: give images without captions, as input and target at once.
        max_pixels: larger images are bad items.
        min_size: images with a shorter side below are bad items.
        name: configuration of a Hub dataset.
        split: of a dataset that has several, in the words of `datasets.load_dataset`.
        seed: of the choice between captions.
    """

    path: str | list[str]
    format: str = "auto"
    image: str = "image"
    caption: str = "caption"
    target: str | None = "target"
    short_caption: str | None = None
    short_caption_rate: float = 0.1
    prompt_template: str | None = None
    image_root: str | None = None
    allow_outside: bool = False
    reconstruct: bool = False
    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    name: str | None = None
    split: str = "train"
    seed: int = 0

    def __post_init__(self):
        paths = self.path if isinstance(self.path, list | tuple) else [self.path]
        expanded = [os.path.expanduser(path) if isinstance(path, str) else path for path in paths]
        object.__setattr__(self, "path", expanded if isinstance(self.path, list | tuple) else expanded[0])
        if self.image_root is not None:
            object.__setattr__(self, "image_root", os.path.expanduser(self.image_root))
        if not 0 <= self.short_caption_rate <= 1:
            raise ValueError(f"`short_caption_rate` must be in [0, 1]. Got {self.short_caption_rate}. Example: 0.1.")
        if self.prompt_template is not None:
            try:
                parsed = list(string.Formatter().parse(self.prompt_template))
            except ValueError:  # an open brace
                parsed = []
            names = {name for _, name, _, _ in parsed if name is not None}
            is_plain = not any(width or conversion for _, _, width, conversion in parsed)
            if not names or not names <= {"caption", "folder"} or not is_plain:
                raise ValueError(
                    "`prompt_template` must hold {caption} or {folder} and nothing else in braces. "
                    f"Got {self.prompt_template!r}. Example: 'a photo: {{caption}}'."
                )


class RowReader:
    """
    Makes records of rows.

    Args:
        settings: which column is what.
    """

    def __init__(self, settings: SourceSettings):
        self.settings = settings
        self.notes: list[str] = []
        """What a user should know about the source as a whole."""

    def note(self, text: str) -> None:
        """Say something about the source, once."""
        if text not in self.notes:
            self.notes.append(text)
            logger.warning("%s: %s.", self.settings.path, text)

    def record(self, key: str, content: Any, is_short: bool = False) -> Record:
        """
        The record that a row is, its images still encoded.

        Args:
            key: the row's address.
            content: values by the names of columns.
            is_short: whether to take the short caption, where there is one.

        Raises:
            BadItem: when the row cannot be a record.
        """
        if not isinstance(content, Mapping):
            raise BadItem(key, f"an item must be a mapping of keys, not {type(content).__name__}")
        try:
            record = self._record(key, content, is_short)
        except ValueError as error:
            raise BadItem(key, str(error)) from error
        for text in (record.prompt or "", *(text for turn in record.turns for text in turn)):
            if problem := text_problem(text):
                raise BadItem(key, problem)
        return record

    def _record(self, key: str, content: Mapping[str, Any], is_short: bool) -> Record:
        settings = self.settings
        image = given(content.get(settings.image))
        target = given(content.get(settings.target)) if settings.target else None
        if settings.reconstruct:
            picture = self._image(key, image if target is None else target)
            return Record(key, target=picture, images=(picture,))
        turns = conversation(key, content)
        images = given(content.get("images"))
        if not images:
            images = [] if image is None or (target is None and not turns) else image
        images = tuple(self._image(key, each) for each in (images if isinstance(images, list) else [images]))
        if turns:
            placeholders = sum(text.count("<image>") for turn in turns for text in turn)
            if placeholders and placeholders != len(images):
                raise BadItem(key, f"the turns hold {placeholders} times <image> and there are {len(images)} images")
            turns = tuple((_without_placeholders(said), _without_placeholders(answer)) for said, answer in turns)
            return Record(key, images=images, turns=turns)
        prompt = self._prompt(key, content, is_short)
        if settings.image not in content and target is None:
            raise BadItem(key, f"no image under '{settings.image}'; there is {_names(content)}")
        return Record(key, self._image(key, image if target is None else target), prompt, images)

    def _prompt(self, key: str, content: Mapping[str, Any], is_short: bool) -> str:
        settings = self.settings
        short = content.get(settings.short_caption) if is_short and settings.short_caption else None
        caption = short if is_text(short) else content.get(settings.caption)
        template = settings.prompt_template or "{caption}"
        if "{caption}" in template and not is_text(caption):
            caption = self._other_caption(key, content)
        if "{folder}" in template and "folder" not in content:
            raise BadItem(key, "`prompt_template` holds {folder}, which only images of an imagefolder have")
        caption = clean(caption) if isinstance(caption, str) else ""
        return template.format(caption=caption, folder=content.get("folder"))

    def _other_names(self, content: Mapping[str, Any]) -> list[str]:
        """Usual names under which there is a text, where the caption has no name of its own."""
        if self.settings.caption != SourceSettings.caption:
            return []
        return [name for name in CAPTION_NAMES if is_text(content.get(name))]

    def has_caption(self, content: Mapping[str, Any]) -> bool:
        """Whether a row has a caption that is read."""
        return is_text(content.get(self.settings.caption)) or len(self._other_names(content)) == 1

    def _other_caption(self, key: str, content: Mapping[str, Any]) -> str:
        """The caption of a row that has none in its column: the one text under another usual name."""
        found = [name for name in CAPTION_NAMES if is_text(content.get(name))]
        if len(found) != 1 or not self._other_names(content):
            advice = f"; set caption={found[0]}" if found else ""
            value = given(content.get(self.settings.caption))
            kind = "" if value is None else f", but a value of the type {type(value).__name__}"
            raise BadItem(key, f"no text under '{self.settings.caption}'{kind}; there is {_names(content)}{advice}")
        self.note(f"captions are read from '{found[0]}' where there is no 'caption'")
        return content[found[0]]

    def _image(self, key: str, value) -> Any:  # an `EncodedImage`, until the record is completed
        if isinstance(value, Mapping):
            value = value.get("bytes") or given(value.get("path"))
        if value is None:
            raise BadItem(key, f"no image under '{self.settings.image}'")
        if isinstance(value, str):
            if re.match(r"\w+://|data:", value):
                raise BadItem(key, f"an image must be a path, not an address such as {value[:60]!r}; download it")
            value = self._inside(key, value, self._image_file(key, value))
        elif not isinstance(value, bytes | Image.Image) and not callable(value):
            raise BadItem(key, f"an image must be a path, encoded bytes or a PIL image, not {type(value).__name__}")
        return EncodedImage(value, key, self.settings.max_pixels, self.settings.min_size)

    def _inside(self, key: str, name: str, path: Path) -> Path:
        """The path, unless a row leads out of its folder: whoever wrote the rows need not be who reads them."""
        folders = None if self.settings.allow_outside else self._folders(key)
        if folders is not None and not is_inside(path, folders):
            among = " or ".join(dict.fromkeys(map(str, folders))) or "the data"
            raise BadItem(
                key,
                f"{name[:80]!r} leads out of {among}; move it there, name its folder as `image_root`, or, if you "
                f"trust the data, set allow_outside=true",
            )
        return path

    def _folders(self, key: str) -> Sequence[str | Path] | None:
        """The folders that a row's images may lie in; `None` where a program of the user gives the rows."""
        return [] if self.settings.image_root is None else [self.settings.image_root]

    def _image_file(self, key: str, name: str) -> Path:
        if self.settings.image_root is None:
            raise BadItem(key, f"image path {name!r} without `image_root`")
        return find_file(name, [self.settings.image_root])


def read_row(key: str, content: Mapping[str, Any]) -> Record:
    """
    A row with the usual columns as a record.

    Raises:
        BadItem: when the row cannot be a record, or one of its images cannot be used.
    """
    return decoded(RowReader(SourceSettings(path="")).record(key, content))


def given(value: Any) -> Any:
    """A value, or `None` for the other ways in which tables leave one out: a blank text, or NaN."""
    is_left_out = (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    return None if is_left_out else value


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in content) or "nothing"


def _without_placeholders(text: str) -> str:
    return clean(text.replace("<image>", ""))


def conversation(key: str, content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """
    The turns of an item: our `turns`, LLaVA's `conversations` or chat `messages`; empty when it has none.

    Raises:
        BadItem: when user and assistant do not take turns.
    """
    if content.get("turns"):
        turns = content["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
            raise BadItem(key, "turns must be a list of pairs, a user's text and its answer")
        return _texts(key, tuple(map(tuple, turns)))
    messages = content.get("conversations") or content.get("messages") or []
    if not isinstance(messages, list | tuple):
        raise BadItem(key, f"a conversation must be a list of messages, not {type(messages).__name__}")
    speakers, texts = [], []
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadItem(key, f"a message must be a mapping, not {type(message).__name__}")
        speakers.append(message.get("from") or message.get("role"))
        texts.append(_said(message.get("value", message.get("content"))))
    expected = (USER_NAMES, ASSISTANT_NAMES) * (len(speakers) // 2)
    if len(speakers) % 2 or any(speaker not in names for speaker, names in zip(speakers, expected, strict=True)):
        raise BadItem(key, f"user and assistant must take turns; the speakers are {', '.join(map(str, speakers))}")
    return _texts(key, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _said(content: Any) -> Any:
    """The text of a message whose content is a list of parts, with `<image>` for each image; else what is there."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return content
    return "".join("<image>" if part.get("type") == "image" else str(part.get("text") or "") for part in content)


def _texts(key: str, turns: tuple[tuple, ...]) -> tuple[tuple[str, str], ...]:
    if not all(isinstance(text, str) for turn in turns for text in turn):
        raise BadItem(key, "a message must be a text")
    return turns
