"""Items in tars, in the layout of webdataset."""

import contextlib
import os
import re
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .paths import (
    IMAGE_ENDINGS,
    UNREAD_ENDINGS,
    check_split,
    ending,
    expand_paths,
    files_of_split,
    is_hidden,
    no_pipe,
    visible_files,
)
from .records import BadItem
from .rows import SourceSettings
from .sources import Source
from .texts import decode_text, is_text, parse_json

_BREAKS = (tarfile.TarError, OverflowError, ValueError)
"""What `tarfile` raises where a tar is damaged: the last two for sizes that no file has."""


class WebDatasetSource(Source):
    """
    Plain tars in the webdataset layout: members of one name before the first dot are one item.

    `jpg`, `png` or another ending of an image is the image, `txt` the caption, `json` any further keys, which win over
    `txt`. Of named images such as `0001.target.png` and `0001.input.png`, `target` is the target and the others are
    inputs. Hidden members are left out. A tar is a shard; only its headers are read to find the items, and nothing is
    ever unpacked to disk. Where the tars of a folder are named `train` and `test` or `validation`, those of the
    setting `split` are read.
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(settings)
        self.files: list[Path] = []
        for path in expand_paths(settings.path):
            if path.is_dir():
                tars = [file for file in visible_files(path) if ending(file) == "tar"]
                taken = files_of_split(tars, path, settings.split, is_in_name=True) if tars else []
                if len(taken) < len(tars):
                    self.note(f"split={settings.split}: {len(taken)} of {len(tars)} tars, by their names")
                self.files += map(no_pipe, taken)
            else:
                check_split(settings.split, ("train",), path)
                self.files.append(path)
        if not self.files:
            raise FileNotFoundError(f"A webdataset is .tar files. There is none in {settings.path}. Check the path.")
        self.num_shards = len(self.files)
        self._starts: dict[int, np.ndarray] = {}

    def _index(self, shard: int) -> np.ndarray:
        """Where the first header of each item stands."""
        if shard not in self._starts:
            path, starts, last = self.files[shard], [], None
            try:
                with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                    with contextlib.suppress(*_BREAKS):  # where it breaks off, an item cannot be read
                        for member in tar:
                            name = _split_name(member.name)[0]
                            if not _is_left_out(member):
                                starts += [member.offset] if name != last else []
                                last = name
                    rest = tar.offset if 0 <= tar.offset <= path.stat().st_size else path.stat().st_size
                    file.seek(rest)
                    if any(file.read(tarfile.BLOCKSIZE)):
                        starts.append(rest)
            except tarfile.TarError as error:
                raise ValueError(
                    f"A shard must be a plain tar, not compressed. {path} is not ({error}). Unpack or remove it."
                ) from error
            self._starts[shard] = np.array(starts, dtype=np.int64)
        return self._starts[shard]

    def _count(self, shard: int) -> int:
        return len(self._index(shard))

    def _fields(self, shard: int, position: int):
        path, start = self.files[shard], int(self._index(shard)[position])
        key, members = None, {}
        with open(path, "rb") as file, contextlib.suppress(*_BREAKS):  # a break after it is the next item's
            end = file.seek(0, os.SEEK_END)
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name, form = _split_name(member.name)
                    if _is_left_out(member):
                        continue
                    if key is not None and key != f"{path}:{name}":
                        break
                    key = f"{path}:{name}"
                    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
                        raise BadItem(key, f"the path of member {member.name!r} points outside the archive")
                    if not member.isfile() or member.issparse():
                        raise BadItem(key, f"member {member.name!r} is no regular file")
                    if form in members:
                        raise BadItem(key, f"two members of the name {member.name!r}")
                    if not 0 <= member.size <= end - member.offset_data:
                        raise BadItem(key, f"the tar ends within {member.name!r}")
                    read = partial(_read_part, path, member.offset_data, member.size)
                    members[form] = read if form.rpartition(".")[2] in IMAGE_ENDINGS else read()
        if key is None:
            raise BadItem(f"{path}@{start}", "broken tar, nothing after this byte can be read")
        return key, self._content(key, members)

    def _content(self, key: str, members: Mapping[str, Any]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if "txt" in members:
            try:
                content[self.settings.caption] = decode_text(members["txt"])
            except ValueError as error:
                raise BadItem(key, f"member txt is {error}") from error
        if "json" in members:
            try:
                further = parse_json(members["json"])
            except ValueError as error:
                raise BadItem(key, f"member json is not valid JSON ({error})") from error
            if not isinstance(further, dict):
                raise BadItem(key, "member json must be a mapping")
            if "txt" in members and not is_text(further.get(self.settings.caption)):
                further.pop(self.settings.caption, None)
            content.update(further)
        inputs = []
        for form, data in sorted(members.items()):
            name, _, image_format = form.rpartition(".")
            if image_format in IMAGE_ENDINGS and name in ("", self.settings.target):
                content[name or self.settings.image] = data
            elif image_format in IMAGE_ENDINGS:
                inputs.append(data)
        unread = [form for form in members if form.rpartition(".")[2] in UNREAD_ENDINGS]
        if unread and not inputs and not {self.settings.image, self.settings.target} & content.keys():
            raise BadItem(key, f"a .{unread[0]} image is not read; convert it to JPEG or PNG")
        return content | ({"images": inputs} if inputs else {})


def _is_left_out(member: tarfile.TarInfo) -> bool:
    return member.isdir() or is_hidden(member.name)


def _read_part(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    base, _, ending = file.partition(".")
    return folder + slash + base, ending.lower()
