"""The tensors of a whole checkpoint, in one file or in shards, from the headers of its files."""

import os
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .headers import StoredTensor
from .lookup import HubFiles, LocalFiles
from .settings import read_settings
from .weight_files import TRANSFORMERS_STEM, index_name, weights_name


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
    files: LocalFiles | HubFiles, prefix: str = "", stem: str = TRANSFORMERS_STEM, variant: str | None = None
) -> dict[str, StoredTensor] | None:
    """
    A checkpoint's tensors by their names; `None` when there is neither a file of all tensors nor an index.

    Args:
        files: the checkpoint's files.
        prefix: beginning of the names that are asked for. Of shards, only those that hold such tensors are needed.
        stem: of the names of its files.
        variant: of the files, such as `bf16` in `model.bf16.safetensors`.

    Raises:
        ValueError: when a file is damaged, missing, lacks a tensor that the index places in it, or holds one that
            the index places elsewhere.
    """
    tensors = files.header(weights_name(stem, variant))
    if tensors is None:
        index = files.path(index_name(stem, variant))
        if index is None:
            return None
        tensors = _read_shards(files, index, prefix)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_shards(files: LocalFiles | HubFiles, index: Path, prefix: str) -> dict[str, StoredTensor]:
    weight_map = {name: file for name, file in read_index(index).items() if name.startswith(prefix)}
    headers: dict[str, dict[str, StoredTensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        header = files.header(file)
        if header is None:
            placed = min(name for name, named in weight_map.items() if named == file)
            raise ValueError(
                f"Every file that the index of shards names must be there. {index} places {placed} in {file}, which "
                f"is missing. Download it."
            )
        headers[file] = header
    for file, header in headers.items():
        for name in header:
            named = weight_map.get(name, tensors[name].file if name in tensors else file)
            if named != file:
                raise ValueError(
                    f"A tensor must have one place. {index} or another file places {name} in {named}, and {file} "
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


def transformers_tensors(
    files: LocalFiles | HubFiles, prefix: str = "", variant: str | None = None
) -> dict[str, StoredTensor]:
    """
    The tensors of a checkpoint whose files have the names of transformers.

    Args:
        files, prefix, variant: as in `read_tensors`.

    Raises:
        ValueError: as `read_tensors`, and when there are no weights, or nothing but pickles.
    """
    tensors = read_tensors(files, prefix, variant=variant)
    if tensors is not None:
        return tensors
    pickles = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if files.path(name)]
    raise ValueError(
        f"Weights are read from {weights_name(TRANSFORMERS_STEM, variant)}, or from shards with "
        f"{index_name(TRANSFORMERS_STEM, variant)}. "
        f"{files} has {f'only {pickles[0]}' if pickles else 'neither'}. "
        + (
            "Reading a pickle can run any program: save it again as safetensors, where it was written."
            if pickles
            else "Download the weights."
        )
    )


def read_values(files: LocalFiles | HubFiles, stored: dict[str, StoredTensor]) -> dict[str, Tensor]:
    """The values of these tensors of a checkpoint, by the same names; no other file and no other tensor is read."""
    values = {}
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(files.path(file), framework="pt") as handle:
            values |= {name: handle.get_tensor(name) for name in stored.keys() & handle.keys()}
    return values


__all__ = ["read_index", "read_tensors", "read_values", "transformers_tensors"]
