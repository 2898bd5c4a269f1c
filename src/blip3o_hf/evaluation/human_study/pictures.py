"""What a study is made of: prompts by their ids, and each system's picture of each of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...checks import check_unicode
from ...data.images import as_input_image
from ...files import expanded
from ...reading import read_text
from ..benchmarks.base import RUN_PICTURES, RUN_SETTINGS, Item, check_ids, json_lines

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SHOWN = 5
"""So many names stand in an error."""


def read_prompts(path: str | os.PathLike) -> list[Item]:
    """
    Prompts by their ids.

    Args:
        path: a .jsonl file with `id` and `prompt` in each line; a .txt file with `id<TAB>prompt` in each line, or one
            prompt a line, whose id is the number of its line from 00000 on; or a folder of .txt files, one prompt
            each, whose name is its id, as DPG-Bench has them.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when an id or a prompt is missing, or an id is there twice.
    """
    path = expanded(path)
    if path.is_dir():
        items = [Item(file.stem, read_text(file).strip()) for file in sorted(path.glob("*.txt"))]
    elif path.suffix == ".jsonl":
        items = [_item(row) for row in json_lines(path)]
    elif path.suffix == ".txt":
        items = _lines(path)
    else:
        raise ValueError(f"Prompts must be a .jsonl or .txt file, or a folder of .txt files. Got {path}. Rename it.")
    if not items:
        raise ValueError(f"A study needs prompts. {path} has none. Choose another file.")
    check_ids([item.id for item in items], path)
    check_unicode([item.prompt for item in items], "A prompt")
    for item in items:
        if not isinstance(item.prompt, str) or not item.prompt.strip():
            raise ValueError(
                f"Each id must have a prompt, a text. {item.id} of {path} has {item.prompt!r:.40}. Add it."
            )
    return items


def _item(row: Mapping) -> Item:
    name = row.get("id")
    is_number = isinstance(name, int) and not isinstance(name, bool)
    return Item(str(name) if is_number else name, row.get("prompt"))  # ty: ignore[invalid-argument-type] (checked above)


def _lines(path: Path) -> list[Item]:
    lines = [line.strip() for line in read_text(path).split("\n")]
    filled = [line for line in lines if line]
    named = [line.partition("\t") for line in filled if "\t" in line]
    if named and len(named) < len(filled):
        raise ValueError(
            f"Either all lines have an id, then a tab, or none has. {path} has {len(named)} with a tab, of "
            f"{len(filled)}. Add ids or take them out."
        )
    if named:
        return [Item(name.strip(), prompt.strip()) for name, _, prompt in named]
    return [Item(f"{number:05d}", line) for number, line in enumerate(lines) if line]


@dataclass(frozen=True)
class SystemPictures:
    """
    The pictures of one system.

    Args:
        name: of the system.
        paths: of its pictures, by the ids of the prompts.
        others: names in the folder that belong to no prompt.
    """

    name: str
    paths: Mapping[str, Path]
    others: Sequence[str] = field(default_factory=list)

    @classmethod
    def find(cls, name: str, folder: str | os.PathLike, ids: Sequence[str]) -> "SystemPictures":
        """
        Args:
            name: of the system.
            folder: with `<id>.png` (or another kind of picture), or `<id>/<number>.png`, of which the first is taken;
                or the folder of a run of `blip3o-hf evaluate`.
            ids: of the prompts.

        Raises:
            NotADirectoryError: when there is no such folder.
            ValueError: when an id has two pictures.
        """
        folder = expanded(folder)
        if not folder.is_dir():
            raise NotADirectoryError(
                f"A system needs a folder of pictures. {name} has {folder}, which is none. Check it."
            )
        if (folder / RUN_SETTINGS).is_file():
            folder /= RUN_PICTURES
        found: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            picture = _first(path) if path.is_dir() else path if path.suffix.lower() in ENDINGS else None
            if picture is None:
                continue
            stem = path.name if path.is_dir() else path.stem
            if stem in found:
                raise ValueError(
                    f"Each prompt must have one picture, or a folder of numbered ones. {folder} has "
                    f"{found[stem].name} and {path.name} for {stem!r:.60}. Take one away."
                )
            found[stem] = picture
        return cls(name, {i: found[i] for i in ids if i in found}, sorted(set(found) - set(ids)))

    def open(self, prompt_id: str) -> Image.Image:
        """
        The picture of a prompt, upright, in RGB.

        Raises:
            ValueError: when it cannot be read.
        """
        return as_input_image(self.paths[prompt_id])


def _first(folder: Path) -> Path | None:
    numbered = [path for path in folder.iterdir() if path.stem.isdecimal() and path.suffix.lower() in ENDINGS]
    return min(numbered, key=lambda path: (int(path.stem), path.name), default=None)


def prompts_with_pictures(
    prompts: Sequence[Item], systems: Sequence[SystemPictures], skip_missing: bool = False
) -> list[Item]:
    """
    The prompts of which every system has a picture.

    Args:
        prompts: all of them.
        systems: with their pictures.
        skip_missing: leave the others out, instead of refusing them.

    Raises:
        ValueError: when pictures are missing, with their number and names by system; or no prompt is left.
    """
    missing = {system.name: [p.id for p in prompts if p.id not in system.paths] for system in systems}
    if any(missing.values()) and not skip_missing:
        told = "; ".join(f"{name} lacks {_some(ids)}" for name, ids in missing.items() if ids)
        raise ValueError(
            f"Each system must have a picture of each of the {len(prompts)} prompts. {told}. Draw them, or leave "
            f"these prompts out with --skip-missing."
        )
    absent = {name for ids in missing.values() for name in ids}
    left = [prompt for prompt in prompts if prompt.id not in absent]
    if not left:
        raise ValueError(
            f"A study needs prompts of which every system has a picture. There is none among {len(prompts)}. Compare "
            f"the ids of the prompts with the names of the pictures."
        )
    return left


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"
