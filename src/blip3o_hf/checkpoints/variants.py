"""Several variants of a model's weights in one folder: a save replaces the files of its own variant, and no others."""

import json
import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from .settings import read_settings
from .weight_files import index_name, weights_name

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")


@contextmanager
def one_variant(folder: str | os.PathLike, stem: str, variant: str | None = None) -> Generator[None]:
    """
    While the context lasts, a library saves one variant of a model's weights to a folder. Alone, it would delete the
    shards of variants whose names begin like this one's, leave the index or the file of an earlier save of this
    variant, which is then found first, and write this variant's `dtype` to a config that is the default's.

    Args:
        folder: where the library saves to; it need not exist yet.
        stem: of the model's files, `STEM.safetensors`.
        variant: which one is saved; the default has none.
    """
    folder = Path(folder)
    name = weights_name(stem, variant).removesuffix(".safetensors")
    is_shard = re.compile(re.escape(name) + _SHARD.pattern).fullmatch
    dtypes = _default_dtypes(folder, stem) if variant else None
    with _set_aside([path for path in _shards(folder, name) if not is_shard(path.name)], folder):
        yield
    # What the library wrote in one file has no shards any more: it deletes those of an earlier save.
    in_shards = any(is_shard(path.name) for path in _shards(folder, name))
    (folder / (weights_name if in_shards else index_name)(stem, variant)).unlink(missing_ok=True)
    if dtypes is not None and (folder / CONFIG_NAME).is_file():
        settings = _with_dtypes(read_settings(folder / CONFIG_NAME), dtypes)
        (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(folder: Path, name: str) -> list[Path]:
    """The shards in a folder whose names begin so."""
    return [path for path in folder.glob("*.safetensors") if path.name.startswith(name) and _SHARD.search(path.name)]


@contextmanager
def _set_aside(files: list[Path], folder: Path) -> Generator[None]:
    """Keep files out of a library's reach, in a folder of their own."""
    if not files:
        yield
        return
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".other-variants-"))
    try:
        for path in files:
            path.rename(aside / path.name)
        yield
    finally:
        for path in aside.iterdir():
            path.rename(folder / path.name)
        aside.rmdir()


def _default_dtypes(folder: Path, stem: str) -> dict[str, Any] | None:
    """The config of the weights without a variant; `None` where there are no such weights."""
    has_default = (folder / weights_name(stem)).is_file() or (folder / index_name(stem)).is_file()
    return read_settings(folder / CONFIG_NAME) if has_default and (folder / CONFIG_NAME).is_file() else None


def _with_dtypes(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The same settings, with each `dtype` of others, at any depth."""
    changed = {
        key: _with_dtypes(value, others[key])
        for key, value in settings.items()
        if isinstance(value, dict) and isinstance(others.get(key), dict)
    }
    if "dtype" in settings and "dtype" in others:
        changed["dtype"] = others["dtype"]
    return settings | changed


__all__ = ["one_variant"]
