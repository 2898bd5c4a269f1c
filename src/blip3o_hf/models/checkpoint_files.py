"""What the safetensors files of a checkpoint hold, read from their headers; no tensor is read."""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    hf_hub_download,
    is_offline_mode,
    parse_safetensors_file_metadata,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

# Types of weights, in the words of safetensors.
FLOATING_POINT = ("F64", "F32", "BF16", "F16")
# Arguments of `from_pretrained` that say where to look.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


@dataclass(frozen=True)
class StoredTensor:
    """
    Args:
        file: name of the file that holds the tensor, relative to the checkpoint's folder.
        shape: the tensor's shape.
        dtype: its type, in the words of safetensors: `F32`, `BF16`, ...
    """

    file: str
    shape: tuple[int, ...]
    dtype: str


class LocalFiles:
    """The files of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def path(self, name: str) -> Path | None:
        """Where a file lies; `None` when there is none of that name."""
        path = self.folder / name
        return path if path.is_file() else None

    def header(self, name: str) -> dict[str, StoredTensor] | None:
        """The tensors in a file; `None` when there is none of that name."""
        path = self.path(name)
        return None if path is None else _stored_tensors(path, name)


class HubFiles:
    """The files of a repository on the Hub; headers are fetched without the tensors behind them."""

    def __init__(self, repo_id: str, subfolder: str = "", **download_arguments):
        self.repo_id = repo_id
        self.subfolder = subfolder
        self.download_arguments = download_arguments

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.subfolder}".rstrip("/")

    def _filename(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def path(self, name: str) -> Path | None:
        """
        Where a file lies once it is downloaded; `None` when there is none of that name, or none in the cache and the
        Hub may not be asked. When the Hub cannot be reached, its error is passed on.
        """
        try:
            return Path(hf_hub_download(self.repo_id, self._filename(name), **self.download_arguments))
        except LocalEntryNotFoundError:
            if self.download_arguments.get("local_files_only") or is_offline_mode():
                return None
            raise
        except EntryNotFoundError:
            return None

    def header(self, name: str) -> dict[str, StoredTensor] | None:
        """The tensors in a file; `None` when there is none of that name."""
        filename, where = self._filename(name), self.download_arguments
        cached = try_to_load_from_cache(self.repo_id, filename, where.get("cache_dir"), where.get("revision"))
        if isinstance(cached, str):
            return _stored_tensors(Path(cached), name)
        if where.get("local_files_only"):
            return None
        try:
            header = parse_safetensors_file_metadata(
                self.repo_id, filename, revision=where.get("revision"), token=where.get("token")
            )
        except (EntryNotFoundError, OfflineModeIsEnabled):
            return None
        except SafetensorsParsingError as error:
            raise ValueError(
                f"A checkpoint must be readable safetensors files. {self}/{name} on the Hub is none ({error}). "
                f"Report it to its owner."
            ) from error
        return {tensor: StoredTensor(name, tuple(info.shape), info.dtype) for tensor, info in header.tensors.items()}


def checkpoint_files(source: str | os.PathLike, **kwargs) -> LocalFiles | HubFiles:
    """
    The files of a checkpoint.

    Args:
        source: folder, a file in it, or Hub id.
        kwargs: arguments of `from_pretrained`; those that say where to look are used.
    """
    path, subfolder = Path(source), kwargs.get("subfolder") or ""
    if path.is_dir():
        return LocalFiles(path / subfolder)
    if path.is_file():
        return LocalFiles(path.parent)
    where = {name: kwargs[name] for name in _DOWNLOAD_ARGUMENTS if kwargs.get(name) is not None}
    return HubFiles(str(source), subfolder, **where)


@dataclass(frozen=True)
class TensorPlace:
    """
    Args:
        dtype, shape: the tensor's, as in [`StoredTensor`].
        begin, end: where its bytes lie in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_settings(path: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ValueError: when the file is damaged.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"A settings file must hold one JSON object. {path} does not. Save or download it again.")
    return settings


def check_config_file(source: str | os.PathLike, **kwargs) -> None:
    """Raise a `ValueError` when the `config.json` in a folder is damaged; arguments as of `config_settings`."""
    files = checkpoint_files(source, **kwargs)
    if isinstance(files, LocalFiles) and (path := files.path(CONFIG_NAME)):
        read_settings(path)


def config_settings(source: str | os.PathLike, **kwargs) -> dict[str, Any]:
    """
    The `config.json` of a checkpoint; empty when there is none.

    Args:
        source: folder, file `config.json` in it, or Hub id.
        kwargs: arguments of `from_pretrained`; those that say where to look are used.

    Raises:
        ValueError: when the file is damaged.
        OSError: when there is no such folder, and the Hub has no such repository or cannot be reached.
    """
    places = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    check_config_file(source, **places)
    return PreTrainedConfig.get_config_dict(source, **places)[0]


def read_header(path: Path) -> dict[str, TensorPlace]:
    """
    The tensors in a safetensors file, which must hold each of them to its end, once, and nothing else.

    Raises:
        ValueError: when the file is no safetensors file, is cut short, or its header contradicts itself.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 8 + length <= size else None
        header.pop("__metadata__", None)
        places = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            places[name] = TensorPlace(entry["dtype"], tuple(entry["shape"]), 8 + length + begin, 8 + length + end)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"A checkpoint must be readable safetensors files. {path} has no readable header: it is damaged, or no "
            f"safetensors file. Download it again."
        ) from error
    cut = [name for name, place in sorted(places.items(), key=lambda item: item[1].end) if place.end > size]
    if cut:
        raise ValueError(
            f"A checkpoint must be whole safetensors files. {path} is cut short: it has {size} bytes, and {cut[0]} "
            f"ends at byte {places[cut[0]].end}. Download it again."
        )
    try:
        with safe_open(path, framework="pt"):  # which checks sizes, gaps and overlaps
            return places
    except SafetensorError as error:
        raise ValueError(
            f"The header of a safetensors file must describe its tensors. That of {path} does not ({error}). Download "
            f"it again."
        ) from error


def _stored_tensors(path: Path, name: str) -> dict[str, StoredTensor]:
    return {tensor: StoredTensor(name, place.shape, place.dtype) for tensor, place in read_header(path).items()}


def read_index(path: Path) -> dict[str, str]:
    """
    File of each tensor by an index of shards.

    Raises:
        ValueError: when the index is damaged, or names a file outside of its folder.
    """
    try:
        index = read_settings(path)
        weight_map = index["weight_map"]
        well_formed = isinstance(index["metadata"], dict) and all(isinstance(v, str) for v in weight_map.values())
    except (ValueError, KeyError, AttributeError):
        well_formed = False
    if not well_formed:
        raise ValueError(
            f"An index of shards must hold `metadata`, and in `weight_map` the file of each tensor. {path} does not. "
            f"Download it again."
        )
    for tensor, file in weight_map.items():
        if os.path.isabs(file) or os.path.normpath(file).split(os.sep)[0] == os.pardir:
            raise ValueError(
                f"A shard must lie in the checkpoint's folder. {path} places {tensor} in {file!r}, outside of it. "
                f"Download the checkpoint again, from a source you trust."
            )
    return weight_map


def read_tensors(
    files: LocalFiles | HubFiles,
    prefix: str = "",
    weights_name: str = SAFE_WEIGHTS_NAME,
    index_name: str = SAFE_WEIGHTS_INDEX_NAME,
) -> dict[str, StoredTensor] | None:
    """
    A checkpoint's tensors by their names; `None` when there is no safetensors file.

    Args:
        files: the checkpoint's files.
        prefix: beginning of the names that are asked for. Of shards, only those that hold such tensors are needed.
        weights_name: the file that holds all tensors, where there is one.
        index_name: the index of shards, where there is none.

    Raises:
        ValueError: when a file is damaged, missing, lacks a tensor that the index places in it, or holds one that
            the index places elsewhere.
    """
    tensors = files.header(weights_name)
    if tensors is None:
        index = files.path(index_name)
        if index is None:
            return None
        tensors = _read_shards(files, index, prefix)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_shards(files: LocalFiles | HubFiles, index: Path, prefix: str) -> dict[str, StoredTensor]:
    weight_map = {name: file for name, file in read_index(index).items() if name.startswith(prefix)}
    headers = {file: files.header(file) for file in sorted(set(weight_map.values()))}
    tensors: dict[str, StoredTensor] = {}
    for file, header in headers.items():
        if header is None:
            placed = min(name for name, place in weight_map.items() if place == file)
            raise ValueError(
                f"Every file that the index of shards names must be there. {index} places {placed} in {file}, which "
                f"is missing. Download it."
            )
    for file, header in headers.items():
        for name in header:
            place = weight_map.get(name, tensors[name].file if name in tensors else file)
            if place != file:
                raise ValueError(
                    f"A tensor must have one place. {index} or another file places {name} in {place}, and {file} "
                    f"holds one of that name, too. Download the checkpoint again."
                )
        tensors.update(header)
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise ValueError(
            f"A shard must hold the tensors that the index places in it. {index} places {absent[0]} in "
            f"{weight_map[absent[0]]}, which has no tensor of that name. Download both again."
        )
    return tensors


def located(tensors: Mapping[str, StoredTensor], name: str) -> str:
    """A tensor's name and file, for messages; the name alone when it is not among `tensors`."""
    return f"{name} (in {tensors[name].file})" if name in tensors else name


def check_floating_point(stored: Mapping[str, StoredTensor], source: str | os.PathLike) -> None:
    """Raise a `ValueError` that names a tensor, and its file, of another type than floating-point numbers."""
    integers = {name: tensor for name, tensor in stored.items() if tensor.dtype not in FLOATING_POINT}
    if integers:
        name = min(integers)
        raise ValueError(
            f"Weights must be floating-point numbers ({', '.join(FLOATING_POINT)}). {located(stored, name)} of "
            f"{source} is {integers[name].dtype}. Download it again, or take the checkpoint that was published in "
            f"full or half precision."
        )


def check_tensors(
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    source: str | os.PathLike,
    optional: Collection[str] = (),
    left_out: str = r"(?!)",
    compare_shapes: bool = True,
) -> None:
    """
    Compare a checkpoint's tensors with those of a model, before any is read.

    Args:
        stored: the checkpoint's tensors by their names.
        expected: shapes of the model's tensors by the same names.
        source: folder or Hub id, for errors.
        optional: names of tensors that may be missing.
        left_out: pattern of the names of tensors that may be there besides.
        compare_shapes: whether shapes must agree, too.

    Raises:
        ValueError: naming tensors that are missing, unexpected, ill-shaped or no floating-point numbers, and their
            files.
    """
    check_floating_point(stored, source)
    missing = sorted(expected.keys() - stored.keys() - set(optional))
    unexpected = sorted(name for name in stored.keys() - expected.keys() if not re.match(left_out, name))
    findings = []
    if missing:
        findings.append(f"lacks {len(missing)}: {_listed(missing)}")
    if unexpected:
        findings.append(f"has {len(unexpected)} too many: {_listed([located(stored, name) for name in unexpected])}")
    if findings:
        raise ValueError(
            f"A checkpoint must hold every tensor of the model and no other. {source} {', and '.join(findings)}. "
            f"Download it again, with the {CONFIG_NAME} that was saved with it."
        )
    differing = [
        f"{located(stored, name)} is {list(stored[name].shape)}, not {list(expected[name])}"
        for name in sorted(expected.keys() & stored.keys())
        if stored[name].shape != expected[name]
    ]
    if differing and compare_shapes:
        raise ValueError(
            f"{CONFIG_NAME} must describe the tensors beside it. In {source} {len(differing)} have another shape than "
            f"it asks for: {_listed(differing, most=2)}. Use the config that was saved with these weights."
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def transformers_tensors(
    files: LocalFiles | HubFiles, prefix: str = "", variant: str | None = None
) -> dict[str, StoredTensor]:
    """
    The tensors of a checkpoint whose files have the names of transformers.

    Args:
        files: the checkpoint's files.
        prefix: as in `read_tensors`.
        variant: of the files, such as `bf16` in `model.bf16.safetensors`.

    Raises:
        ValueError: as `read_tensors`, and when there are no weights, or nothing but pickles.
    """
    infix = f".{variant}" if variant else ""
    weights_name = SAFE_WEIGHTS_NAME.replace(".safetensors", f"{infix}.safetensors")
    index_name = SAFE_WEIGHTS_INDEX_NAME.replace(".json", f"{infix}.json")
    tensors = read_tensors(files, prefix, weights_name, index_name)
    if tensors is not None:
        return tensors
    pickles = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if files.path(name)]
    raise ValueError(
        f"Weights are read from {weights_name}, or from shards with {index_name}. {files} has "
        f"{f'only {pickles[0]}' if pickles else 'neither'}. "
        + (
            "Reading a pickle can run any program: save it again as safetensors, where it was written."
            if pickles
            else "Download the weights."
        )
    )


__all__ = [
    "HUB_ARGUMENTS",
    "HubFiles",
    "LocalFiles",
    "StoredTensor",
    "TensorPlace",
    "check_config_file",
    "check_floating_point",
    "check_tensors",
    "checkpoint_files",
    "config_settings",
    "located",
    "read_header",
    "read_index",
    "read_settings",
    "read_tensors",
    "transformers_tensors",
]
