"""Names of the files that hold weights: one file or shards, with or without a variant; torch is not loaded."""

import os
from collections.abc import Mapping
from pathlib import Path

TRANSFORMERS_STEM = "model"
DIFFUSERS_STEM = "diffusion_pytorch_model"
"""Of the names of the files that the libraries write."""


def weights_name(stem: str, variant: str | None = None) -> str:
    """
    The file that holds all tensors of a model, where there is one.

    >>> weights_name("model", "bf16")
    'model.bf16.safetensors'
    """
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def index_name(stem: str, variant: str | None = None) -> str:
    """
    The index of shards, where there is no such file.

    >>> index_name("model", "bf16")
    'model.safetensors.index.bf16.json'
    """
    return f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"


def weight_files(folder: str | os.PathLike, stem: str | None = None, variant: str | None = None) -> list[Path]:
    """
    The safetensors files in a folder, in the order of their names.

    Args:
        folder: on this machine; its subfolders are not looked into.
        stem: of one model's files, `STEM.safetensors` and shards `STEM-*.safetensors`; by default all files.
        variant: in the names of that model's files.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if stem is None:
        return files
    whole = weights_name(stem, variant)
    shard = f"{whole.removesuffix('.safetensors')}-"
    return [path for path in files if path.name == whole or path.name.startswith(shard)]


def shard_index(weight_map: Mapping[str, str], total_size: int) -> dict[str, dict]:
    """
    The index of shards, as the libraries read it.

    Args:
        weight_map: the file of each tensor.
        total_size: of all files or tensors, in bytes.
    """
    return {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}


__all__ = ["DIFFUSERS_STEM", "TRANSFORMERS_STEM", "index_name", "shard_index", "weight_files", "weights_name"]
