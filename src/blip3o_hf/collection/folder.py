"""The folder of a collection: one run at a time, answers kept as they come, shards written whole with manifests."""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import check_can_write, delete_partial, written_whole
from ..hub.provenance import now, versions
from ..reading import read_json

SETTINGS_FILE = "collection.json"
FORMAT = 1


@contextmanager
def opened(folder: str | os.PathLike) -> Generator["CollectionFolder"]:
    """
    The folder of a collection, for this run alone.

    Raises:
        OSError: when another run writes into it, or it cannot be written.
        FileExistsError: when it holds files of something else.
    """
    path = check_can_write(folder, "OUT")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OSError(
            f"Two runs must not write into one folder. Another one writes into {path}. Wait for it, or choose another "
            f"folder."
        ) from error
    try:
        names = [file.name for file in sorted(path.iterdir()) if not file.name.startswith(".partial-")]
        strange = [name for name in names if name not in (".lock", "work", SETTINGS_FILE)]
        if strange and not (path / SETTINGS_FILE).is_file():
            raise FileExistsError(
                f"OUT must be a new folder, or one of an earlier run. {path} holds {strange[0]!r} and no "
                f"{SETTINGS_FILE}. Choose another."
            )
        (path / "work").mkdir(exist_ok=True)
        delete_partial(path)
        delete_partial(path / "work")
        yield CollectionFolder(path)
    finally:
        lock.release()


class CollectionFolder:
    """
    Files of a collection. `work` holds answers until their shard is whole.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.work = path / "work"

    def _saved_settings(self) -> dict[str, Any]:
        file = self.path / SETTINGS_FILE
        saved = read_json(file) if file.is_file() else {"format": FORMAT}
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise ValueError(f"{file} must be that of a collection of format {FORMAT}. It is not. Use another folder.")
        return saved

    def saved(self, section: str) -> dict[str, Any] | None:
        """Settings of an earlier run; `None` where it saved none."""
        return self._saved_settings().get(section)

    def check_settings(self, section: str, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
        """
        Compare settings with those of an earlier run, if there was one.

        Args:
            section: of the settings.
            settings: of this run.
            free: those that may change, such as `teacher.base_url`.

        Raises:
            ValueError: when another one has changed.
        """
        before = self.saved(section)
        if before is None:
            return
        wanted, before = _flat(json.loads(_encoded(settings))), _flat(before)
        for key in dict.fromkeys([*wanted, *before]):
            if key not in free and wanted.get(key) != before.get(key):
                was, is_now = _shown(before.get(key), wanted.get(key))
                raise ValueError(
                    f"A collection goes on with the settings that it began with. `{key}` was {was}, and is now "
                    f"{is_now}. Set it back, or use another folder."
                )

    def save_settings(self, section: str, settings: Mapping[str, Any]) -> None:
        """Keep settings, for [`check_settings`] of later runs; what comes after them depends on them."""
        write_json(self.path / SETTINGS_FILE, {**self._saved_settings(), section: settings})

    def keep(self, name: str, header: Mapping[str, Any], data: bytes = b"") -> None:
        """Keep an answer: what is said about it, and its bytes."""
        with written_whole(self.work / name) as temporary:
            temporary.write_bytes(_encoded(header) + b"\n" + data)

    def kept(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """An answer that was kept; `None` where there is none."""
        file = self.work / name
        if not file.is_file():
            return None
        header, _, data = file.read_bytes().partition(b"\n")
        try:
            return json.loads(header), data
        except ValueError as error:
            raise ValueError(f"{file} must be as it was written. It was changed. Delete it to ask again.") from error

    def has(self, name: str) -> bool:
        """Whether an answer was kept."""
        return (self.work / name).is_file()

    def forget(self, names: Iterable[str]) -> None:
        """Delete answers."""
        for name in names:
            (self.work / name).unlink(missing_ok=True)

    def manifest(self, shard: int) -> dict[str, Any] | None:
        """
        What was written about a shard; `None` where it was not written.

        Raises:
            ValueError: when its tar is not there, or has another size than it was written with.
        """
        file, tar = self.path / f"{shard:05d}.json", self.path / f"{shard:05d}.tar"
        if not file.is_file():
            return None
        found = read_json(file)
        size = tar.stat().st_size if tar.is_file() else None
        if not isinstance(found, dict) or found.get("bytes") != size:
            raise ValueError(
                f"A shard must be as its manifest says. {tar} has {size} bytes, and {file.name} says otherwise. Put "
                f"the shard back, or delete both to write it again."
            )
        return found

    def write_shard(self, shard: int, items: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict[str, Any]:
        """
        Write a tar with these items, each by its key and members; a manifest of an earlier one is deleted.

        Returns:
            `dict`: what a manifest says of the tar: its name, its size and its hash.
        """
        tar = self.path / f"{shard:05d}.tar"
        (self.path / f"{shard:05d}.json").unlink(missing_ok=True)
        with written_whole(tar) as temporary:
            write_tar(temporary, items)
            size, digest = temporary.stat().st_size, _digest(temporary)
        return {"shard": tar.name, "bytes": size, "sha256": digest}

    def write_manifest(self, shard: int, manifest: Mapping[str, Any]) -> None:
        """What there is to know of a shard; it is the mark that the shard is written."""
        head = {"format": FORMAT, "written": now(), "versions": versions()}
        write_json(self.path / f"{shard:05d}.json", {**head, **manifest})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names of all keys on the way to them, such as `teacher.options.size`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _shown(*values: Any) -> list[str]:
    """Two values for an error: of long texts the part in which they differ."""
    texts = ["not set" if value is None else repr(value) for value in values]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    start = max(0, sum(1 for _ in same) - 20) if max(map(len, texts)) > 80 else 0
    return [f"{'...' if start else ''}{text[start : start + 80]}" for text in texts]


def _encoded(content: Any) -> bytes:
    """JSON in UTF-8; half a character becomes `?`."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_tar(path: Path, items: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """A tar in the layout of webdataset, the same bytes for the same items."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in items:
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_json(path: Path, content: Any) -> None:
    """JSON for people, whole or not at all."""
    with written_whole(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        temporary.write_bytes(text.encode("utf-8", "replace"))  # half a character, as in names of files, becomes ?
