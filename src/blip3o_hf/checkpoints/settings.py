"""Settings files of a checkpoint, refused by their path when they are damaged."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..reading import read_bytes
from .lookup import HUB_ARGUMENTS, LocalFiles, checkpoint_files, given_arguments


def read_settings(path: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ValueError: when the file is damaged.
    """
    try:
        settings = json.loads(read_bytes(path).decode())  # with no byte order mark, as the libraries read it
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
    hub_arguments = given_arguments(HUB_ARGUMENTS, kwargs)
    check_config_file(source, **hub_arguments)
    return PreTrainedConfig.get_config_dict(source, **hub_arguments)[0]


__all__ = ["check_config_file", "config_settings", "read_settings"]
