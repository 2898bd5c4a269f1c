"""Small files from elsewhere, read within limits: settings, cards, lists and conversations."""

import json
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 32_000_000
"""Of a file that is read whole."""
MAX_CARD_BYTES = 300_000
"""Of a card."""


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """
    The bytes of a file.

    Raises:
        FileNotFoundError: when there is no file; a pipe or a device is none.
        ValueError: when it holds more than `max_bytes`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"A file of this kind holds at most {max_bytes:,} bytes. {path} holds more. Make it smaller.")
    return content


def read_text(path: str | os.PathLike, max_bytes: int = MAX_BYTES, errors: str = "strict") -> str:
    """As `read_bytes`, for text in UTF-8 with a byte order mark or without."""
    return read_bytes(path, max_bytes).decode("utf-8-sig", errors)


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """
    What a JSON file holds.

    Raises:
        FileNotFoundError, ValueError: as `read_bytes`; `ValueError` also when it is no JSON, with the path.
    """
    content = read_bytes(path, max_bytes)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "too many nested brackets" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} must hold JSON. It does not: {reason}. Save or download it again.") from error
