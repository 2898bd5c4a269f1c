"""Where the files of a checkpoint are: in a folder, in the Hub's cache, or on the Hub."""

import os
from collections.abc import Mapping
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

from .headers import StoredTensor, stored_tensors

# Arguments of `from_pretrained` that say where to look.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Those of them that say how to download.
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def given_arguments(names: tuple[str, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that have one of these names, and a value."""
    return {name: arguments[name] for name in names if arguments.get(name) is not None}


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
        return None if path is None else stored_tensors(path, name)


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
        filename, arguments = self._filename(name), self.download_arguments
        revision = arguments.get("revision")
        cached = try_to_load_from_cache(self.repo_id, filename, arguments.get("cache_dir"), revision)
        if isinstance(cached, str):
            return stored_tensors(Path(cached), name)
        if arguments.get("local_files_only"):
            return None
        try:
            header = parse_safetensors_file_metadata(
                self.repo_id, filename, revision=revision, token=arguments.get("token")
            )
        except (EntryNotFoundError, OfflineModeIsEnabled):
            return None
        except SafetensorsParsingError as error:
            raise ValueError(
                f"A checkpoint must be readable safetensors files. {self}/{name} on the Hub is not ({error}). "
                f"Report it to its owner."
            ) from error
        return {tensor: StoredTensor(name, tuple(info.shape), info.dtype) for tensor, info in header.tensors.items()}


def checkpoint_files(source: str | os.PathLike, **kwargs) -> LocalFiles | HubFiles:
    """
    The files of a checkpoint.

    Args:
        source: folder, a file in it, or Hub id.
        kwargs: arguments of `from_pretrained`; those that say where to look are used.

    Raises:
        FileNotFoundError: when it is written as a path (with `/`, `./`, `../` or `~` in front), and nothing is there.
    """
    path, subfolder = Path(source).expanduser(), kwargs.get("subfolder") or ""
    if path.is_dir():
        return LocalFiles(path / subfolder)
    if path.is_file():
        return LocalFiles(path.parent)
    if str(source).startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(
            f"A path must be of a folder or a file that exists. Got {source}, and there is none at {path.absolute()}. "
            f"Check it; a Hub id is written owner/name."
        )
    return HubFiles(str(source), subfolder, **given_arguments(DOWNLOAD_ARGUMENTS, kwargs))


__all__ = ["DOWNLOAD_ARGUMENTS", "HUB_ARGUMENTS", "HubFiles", "LocalFiles", "checkpoint_files", "given_arguments"]
