"""Texts of unknown origin become Unicode without byte order marks, or an error with the reason."""

import codecs
import json
import re
from typing import Any

WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins as that of UTF-16, so it is tried first
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks of the encodings whose characters have several bytes."""
CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "[IMG]",
)
"""What our chat template and prompts are built with. In a caption it would end a turn, or ask for an image."""


def decode_text(data: bytes, keep_bad_bytes: bool = False) -> str:
    """
    A text in UTF-8, or in what its byte order mark says; the mark is left out.

    Args:
        data: the text, encoded.
        keep_bad_bytes: let each byte that is no UTF-8 become a lone surrogate, as Python does in file names. Of the
            items of a file, [`text_problem`] then finds the bad ones.

    Raises:
        ValueError: saying what cannot be decoded.
    """
    encoding = next((encoding for mark, encoding in WIDE_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding, "surrogateescape" if keep_bad_bytes and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {encoding.upper()} text (byte 0x{data[error.start]:02x} at {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("not UTF-8 text (it holds zero bytes, as UTF-16 without its mark does); save it as UTF-8")
    return text.removeprefix("\ufeff")


def parse_json(data: bytes) -> Any:
    """
    JSON in any of its encodings. Bytes that are no UTF-8 become lone surrogates, which [`text_problem`] finds.

    Raises:
        ValueError: when it is not valid.
    """
    try:
        return json.loads(data.decode(json.detect_encoding(data), "surrogateescape"))
    except RecursionError as error:
        raise ValueError("too many nested brackets") from error


def clean(text: str) -> str:
    """A text without white space and byte order marks at its ends."""
    while (shorter := text.strip().strip("\ufeff")) != text:
        text = shorter
    return text


def is_text(value: Any) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(clean(value))


def text_problem(text: str, tokens: tuple[str, ...] = CONTROL_TOKENS) -> str | None:
    """
    Why a text cannot be learned from, or `None`.

    Args:
        text: a caption, an instruction or a message.
        tokens: special tokens that must not stand in it.
    """
    if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
        number = ord(lone[0])
        if 0xDC80 <= number <= 0xDCFF:
            return f"not UTF-8 text (byte 0x{number - 0xDC00:02x}); save it as UTF-8"
        return f"not Unicode text (half a character, U+{number:04X}); save it as UTF-8"
    found = next((token for token in tokens if token in text), None)
    return found and f"the text holds the special token {found}; take it out"
