"""The prompts of a collection as files: chosen once, and the same in all later runs, since pictures are of them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import written_whole
from .folder import CollectionFolder
from .prompts import DroppedPrompt, Prompt, Selection

PROMPTS_FILE = "prompts.jsonl"
DROPPED_FILE = "dropped_prompts.jsonl"


def settled(folder: CollectionFolder, settings: Mapping[str, Any], select: Callable[[], Selection]) -> Selection:
    """
    The prompts that a folder has, or, in the first run, those of `select`.

    Args:
        folder: opened for this run.
        settings: that the prompts depend on.
        select: chooses prompts.

    Raises:
        ValueError: when settings or prompts are not those of an earlier run.
    """
    folder.check_settings("prompts", settings)
    before, file = folder.saved("selection"), folder.path / PROMPTS_FILE
    selection = None if before and file.is_file() else select()
    content = file.read_bytes() if selection is None else _encoded(selection.prompts)
    found = {"sha256": hashlib.sha256(content).hexdigest()}
    if before not in (None, found):
        raise ValueError(
            f"A collection goes on with the prompts that it began with. {file} has changed, or others would be chosen "
            f"now. Put it back as it was, or use another folder, to which you can give a file as --prompts."
        )
    if selection is not None:
        for name, data in ((DROPPED_FILE, _encoded(selection.dropped)), (PROMPTS_FILE, content)):
            with written_whole(folder.path / name) as temporary:
                temporary.write_bytes(data)
    folder.save_settings("prompts", settings)
    folder.save_settings("selection", found)
    return read_selection(folder.path)


def _encoded(items: Sequence[Prompt] | Sequence[DroppedPrompt]) -> bytes:
    """As lines of JSON; half a character becomes `?`."""
    text = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    return text.encode("utf-8", "replace")


def read_selection(folder: Path) -> Selection:
    """The prompts in a folder; `dropped_prompts.jsonl`, of which nothing is made, need not be there."""
    dropped = _lines(folder / DROPPED_FILE) if (folder / DROPPED_FILE).is_file() else []
    prompts = [Prompt(**each) for each in _lines(folder / PROMPTS_FILE)]
    return Selection(prompts, [DroppedPrompt(**each) for each in dropped])


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
