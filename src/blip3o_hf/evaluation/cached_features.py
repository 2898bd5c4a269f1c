"""Features of a folder's pictures, computed some at a time and kept, so that a run that stopped goes on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from ..checks import check_sizes
from ..files import written_whole
from .extractors import Extractor
from .folders import PictureFile, PictureFolder, Preparation, open_pictures, raise_damaged

PART_SIZE = 512
"""Pictures whose features are in one file."""


def features_of(
    pictures: PictureFolder,
    extractor: Extractor,
    prepare: Preparation,
    cache: Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> np.ndarray:
    """
    Features of all pictures.

    Args:
        pictures: of one folder.
        extractor: what gives their features.
        prepare: how they are resized before.
        cache: folder for the features; what is there is not computed again. A file there belongs to the bytes of the
            pictures, the extractor with its weights, and `prepare`, so that it is never used for others.
        batch_size: pictures that the extractor sees at once.
        progress: show a bar.

    Returns:
        `np.ndarray` `[N, D]`, float32, in the order of `pictures.files`.

    Raises:
        ValueError: naming the pictures that cannot be opened, or the file of the cache that is damaged.
    """
    check_sizes(batch_size=batch_size)
    if cache is not None:
        cache.mkdir(exist_ok=True)
    parts, damaged = [], []
    with tqdm(total=len(pictures.files), desc=pictures.folder.name, unit="picture", disable=not progress) as bar:
        for files in _chunks(pictures.files, PART_SIZE):
            path = None if cache is None else cache / f"{_key(files, extractor, prepare)}.safetensors"
            if path is not None and path.exists():
                features = _read(path, len(files))
                bar.update(len(files))
            else:
                features, unread = _extract(files, extractor, prepare, batch_size, bar)
                damaged += unread
                if path is not None and not unread:
                    with written_whole(path) as temporary:
                        save_file({"features": features}, temporary)
            parts.append(features)
    raise_damaged(pictures.folder, damaged)
    return np.concatenate(parts)


def _extract(
    files: Sequence[PictureFile], extractor: Extractor, prepare: Preparation, batch_size: int, bar: tqdm
) -> tuple[np.ndarray, list[str]]:
    """Features of the pictures that can be opened, and what is wrong with the others."""
    features, damaged = [], []
    for batch in _chunks(files, batch_size):
        images, unread = open_pictures(batch, prepare)
        damaged += unread
        if images and not damaged:
            features.append(extractor(images))
        bar.update(len(batch))
    return np.concatenate(features or [np.zeros((0, 1), np.float32)]), damaged


def _chunks(files: Sequence[PictureFile], size: int) -> Iterator[Sequence[PictureFile]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _key(files: Sequence[PictureFile], extractor: Extractor, prepare: Preparation) -> str:
    content = {
        "pictures": [file.sha256 for file in files],
        "extractor": [extractor.name, extractor.about, dict(extractor.settings)],
        "prepare": str(prepare),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path, count: int) -> np.ndarray:
    try:
        with safe_open(path, "np") as file:
            features = file.get_tensor("features")
    except SafetensorError as error:
        raise ValueError(
            f"Kept features must be as they were written. {path} is damaged ({error}). Delete it; it is then computed."
        ) from error
    if len(features) != count:
        raise ValueError(f"{path} must hold features of {count} pictures. It holds {len(features)}. Delete it.")
    return features
