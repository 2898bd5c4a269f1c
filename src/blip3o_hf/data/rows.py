"""A row of any table as a record: which of its columns is the image, the caption, the conversation."""

import logging
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import MAX_PIXELS, EncodedImage, decoded
from .records import BadItem, Record

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
        reconstruct: give images without captions, as input and target at once.
        max_pixels: larger images are bad items.
        min_size: images with a shorter side below are bad items.
        name: configuration of a Hub dataset.
        split: split of a Hub dataset.
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
    reconstruct: bool = False
    max_pixels: int = MAX_PIXELS
    min_size: int = 1
    name: str | None = None
    split: str = "train"
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.short_caption_rate <= 1:
            raise ValueError(f"`short_caption_rate` must be in [0, 1]. Got {self.short_caption_rate}. Example: 0.1.")
        if self.prompt_template is not None:
            names = {name for _, name, _, _ in string.Formatter().parse(self.prompt_template) if name is not None}
            if not names or not names <= {"caption", "folder"}:
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
        self._other_names: set[str] = set()

    def record(self, key: str, content: Any, is_short: bool = False) -> Record:
        """
        The record that a row is, its images still encoded.

        Args:
            key: the row's address.
            content: values by the names of columns.
            is_short: whether to take the short caption, where there is one.

        Raises:
            BadItem: when it is none.
        """
        if not isinstance(content, Mapping):
            raise BadItem(key, f"an item must be a mapping of keys, not {type(content).__name__}")
        try:
            return self._record(key, content, is_short)
        except ValueError as error:
            raise BadItem(key, str(error)) from error

    def _record(self, key: str, content: Mapping[str, Any], is_short: bool) -> Record:
        settings = self.settings
        image, target = content.get(settings.image), content.get(settings.target) if settings.target else None
        if settings.reconstruct:
            picture = self._image(key, image if target is None else target)
            return Record(key, target=picture, images=(picture,))
        turns = conversation(key, content)
        images = content.get("images")
        if not images:
            images = [] if image is None or (target is None and not turns) else image
        images = tuple(self._image(key, each) for each in (images if isinstance(images, list) else [images]))
        if turns:
            placeholders = sum(text.count("<image>") for turn in turns for text in turn)
            if placeholders and placeholders != len(images):
                raise BadItem(key, f"the turns hold {placeholders} times <image> and there are {len(images)} images")
            turns = tuple(tuple(text.replace("<image>", "").strip() for text in turn) for turn in turns)
            return Record(key, images=images, turns=turns)
        prompt = self._prompt(key, content, is_short)
        return Record(key, self._image(key, image if target is None else target), prompt, images)

    def _prompt(self, key: str, content: Mapping[str, Any], is_short: bool) -> str:
        settings = self.settings
        short = content.get(settings.short_caption) if is_short and settings.short_caption else None
        caption = short or content.get(settings.caption)
        template = settings.prompt_template or "{caption}"
        if "{caption}" in template and not _is_text(caption):
            caption = self._other_caption(key, content)
        if "{folder}" in template and "folder" not in content:
            raise BadItem(key, "`prompt_template` holds {folder}, which only images of an imagefolder have")
        return template.format(caption=(caption or "").strip(), folder=content.get("folder"))

    def _other_caption(self, key: str, content: Mapping[str, Any]) -> str:
        """The caption of a row that has none in its column: the one text under another usual name."""
        found = [name for name in CAPTION_NAMES if _is_text(content.get(name))]
        if len(found) != 1 or self.settings.caption != SourceSettings.caption:
            advice = f"; set caption={found[0]}" if found else ""
            raise BadItem(key, f"no text under '{self.settings.caption}'; there is {_names(content)}{advice}")
        if found[0] not in self._other_names:
            self._other_names.add(found[0])
            logger.info("There is no 'caption' in %s: captions are read from '%s'.", key, found[0])
        return content[found[0]]

    def _image(self, key: str, value) -> EncodedImage:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise BadItem(key, f"no image under '{self.settings.image}'")
        if isinstance(value, str):
            value = self._image_file(key, value)
        elif not isinstance(value, bytes | Image.Image) and not callable(value):
            raise BadItem(key, f"an image must be a path, encoded bytes or a PIL image, not {type(value).__name__}")
        return EncodedImage(value, key, self.settings.max_pixels, self.settings.min_size)

    def _image_file(self, key: str, name: str) -> Path:
        if self.settings.image_root is None:
            raise BadItem(key, f"image path {name!r} without `image_root`")
        return Path(self.settings.image_root, name)


def read_row(key: str, content: Mapping[str, Any]) -> Record:
    """
    A row with the usual columns as a record.

    Raises:
        BadItem: when it is none, or one of its images cannot be used.
    """
    return decoded(RowReader(SourceSettings(path="")).record(key, content))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in content) or "nothing"


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
    messages = content.get("conversations") or content.get("messages") or ()
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
