"""Loading that refuses an incomplete or damaged checkpoint; the libraries would use random weights instead."""

import contextlib
import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME

from .config_check import check_config
from .headers import StoredTensor
from .lookup import HubFiles, LocalFiles, checkpoint_files
from .settings import read_settings
from .stored_weights import transformers_tensors
from .tensor_checks import check_floating_point, listed, located
from .weight_files import weight_files

_ALIGNMENT = 64  # bytes
_LARGEST_ALIGNED = 16 * 2**20  # bytes
_REPORTERS = ("transformers.modeling_utils", "transformers.configuration_utils", "diffusers.models.modeling_utils")
_REPORTS = re.compile("LOAD REPORT|weights of|An error occurred while|checkpoint seem corrupted|^Model config: ")
_BREAKS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What the libraries raise for settings that they cannot use."""
# Types of weights, by the words of safetensors.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_complete(
    load: Callable[..., tuple[Any, dict]],
    source,
    *args,
    ignore_mismatched_sizes: bool = False,
    may_hold_more: bool = False,
    **kwargs,
) -> tuple[Any, dict]:
    """
    Call a library's `from_pretrained` and check that every tensor came out of the checkpoint.

    Args:
        load: `from_pretrained` of transformers or diffusers.
        source: folder or Hub id.
        ignore_mismatched_sizes: accept tensors of the wrong shape, which are initialised anew.
        may_hold_more: accept tensors that the model has no place for, as where it is a part of what is stored.
        args, kwargs: passed on to `load`.

    Returns:
        The model, its weights aligned (see `align`), and the library's loading report.

    Raises:
        ValueError: naming the tensors that are missing, unexpected or have the wrong shape, or the damage; or what in
            the config cannot be true of the files, before a model is built.
    """
    files = None if source is None else checkpoint_files(source, **kwargs)
    stored = {}
    if isinstance(files, LocalFiles):  # a download lies there, too, before parts of it are loaded
        stored = tensors_in(files.folder)
        _check_config_of(files, stored)
    settings = {**kwargs, "ignore_mismatched_sizes": ignore_mismatched_sizes, "may_hold_more": may_hold_more}
    model, info = _load_whole(load, source, *args, **settings)
    if not may_hold_more and not getattr(model, "is_quantized", False):
        check_floating_point(stored, source)
    return model, info


def tensors_in(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all safetensors files in a folder, by their names."""
    files, stored = LocalFiles(folder), {}
    for path in weight_files(folder):
        stored |= files.header(path.name) or {}
    return stored


@contextlib.contextmanager
def _without_reports() -> Generator[None]:
    """Keep the libraries from printing, beside the error that is raised here, what of a checkpoint does not fit."""

    def is_none(record: logging.LogRecord) -> bool:
        return not _REPORTS.search(record.msg if isinstance(record.msg, str) else "")

    loggers = [logging.getLogger(name) for name in _REPORTERS]
    for logger in loggers:
        logger.addFilter(is_none)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_none)


@contextlib.contextmanager
def named_errors(source: str | os.PathLike) -> Generator[None]:
    """
    Errors of the libraries about what a repository holds, as one error with its name; they seldom say which it was.

    Args:
        source: folder or Hub id.

    Raises:
        ValueError: in their place.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _BREAKS as error:
        if str(source) in str(error):
            raise
        reason, way_out = " ".join(str(error).split()), ""
        if type(error) is not ValueError:  # which says itself what to do
            reason, way_out = f"{type(error).__name__}: {reason:.300}.", " Save or download it again."
        raise ValueError(
            f"{source} must be as `save_pretrained` wrote it. It cannot be opened: {reason}{way_out}"
        ) from error


def _load_whole(
    load: Callable[..., tuple[Any, dict]],
    source,
    *args,
    ignore_mismatched_sizes: bool = False,
    may_hold_more: bool = False,
    **kwargs,
) -> tuple[Any, dict]:
    """`load_complete` once the config is checked."""
    try:
        with _without_reports():
            model, info = load(source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(
            f"A checkpoint must be readable safetensors files. Those of {source} are damaged ({error}). Save or "
            f"download it again."
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"A checkpoint must hold every tensor of the model. {source} lacks {len(missing)}: {listed(missing)}. "
            f"Save or download it again."
        )
    if info["mismatched_keys"] and not ignore_mismatched_sizes:
        key, found, expected = min(info["mismatched_keys"])
        raise ValueError(
            f"A checkpoint's tensors must have the model's shapes. {source} has {len(info['mismatched_keys'])} that "
            f"do not: {key} is {list(found)}, the config asks for {list(expected)}. Use the config that was saved "
            f"with these weights, or download them again."
        )
    if info["unexpected_keys"] and not may_hold_more:
        unexpected = sorted(info["unexpected_keys"])
        raise ValueError(
            f"A checkpoint must hold every tensor of the model and no other. {source} has {len(unexpected)} too many: "
            f"{listed(unexpected)}. Use the config that was saved with these weights, or download them again."
        )
    align(model)
    return model, info


def _check_config_of(files: LocalFiles | HubFiles, stored: Mapping[str, StoredTensor]) -> None:
    if config := files.path(CONFIG_NAME):
        check_config(read_settings(config), stored, str(files))


def load_saved(load: Callable[..., tuple[Any, dict]], source: str | os.PathLike, *args, **kwargs) -> tuple[Any, dict]:
    """
    `load_complete` of what `save_pretrained` of transformers wrote: from safetensors alone, whose headers are checked
    before, and whose values after a tensor is read. A `variant` is loaded in the `dtype` of its weights, unless one is
    given: that of the config is for the weights without a variant.

    Raises:
        ValueError: naming what is missing, damaged, outside of the folder, a pickle, or not a finite number.
    """
    files = checkpoint_files(source, **kwargs)
    if adapter := files.path(ADAPTER_CONFIG_NAME):  # the weights are those of the base that it names
        base = read_settings(adapter)["base_model_name_or_path"]
        files = checkpoint_files(base, **{**kwargs, "subfolder": None, "revision": None})
    stored = transformers_tensors(files, variant=kwargs.get("variant"))
    _check_config_of(files, stored)
    if settings := files.path(GENERATION_CONFIG_NAME):
        read_settings(settings)  # of one that it cannot read, transformers says nothing
    if kwargs.get("variant") and all(kwargs.get(name) in (None, "auto") for name in ("dtype", "torch_dtype")):
        kwargs = {name: value for name, value in kwargs.items() if name != "torch_dtype"}
        kwargs["dtype"] = _common_dtype(stored) or "auto"
    model, info = _load_whole(load, source, *args, **{**kwargs, "use_safetensors": True})
    if not getattr(model, "is_quantized", False):
        check_floating_point(stored, source)
    check_finite(model, source, partial(located, stored))
    return model, info


def _common_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype | None:
    """The type of most of the weights; `None` where they are quantised, or there are none."""
    counts: Counter[str] = Counter()
    for tensor in stored.values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    return _DTYPES[counts.most_common(1)[0][0]] if counts and counts.keys() <= _DTYPES.keys() else None


def align(model: nn.Module) -> None:
    """
    Put small weights on the memory boundaries of PyTorch's own allocator.

    transformers maps a file into memory as it is, and CPU kernels round differently by where a small matrix begins:
    the same weights in two files would give outputs that differ in the last bits. Large matrices are packed by the
    kernels, and stay mapped.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        is_plain = type(tensor.data) is torch.Tensor and tensor.device.type == "cpu"
        if is_plain and tensor.nbytes <= _LARGEST_ALIGNED and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def check_finite(model: nn.Module, source: str | os.PathLike, locate: Callable[[str], str]) -> None:
    """
    Check that no loaded weight is NaN or infinite; one pass over memory, where the weights lie.

    Weights that were offloaded to disk, or quantised to integers, are passed over.

    Args:
        model: a loaded model.
        source: folder or Hub id, for the error.
        locate: the name of a parameter to the name and file of its tensor, for the error.

    Raises:
        ValueError: naming the tensor and its file.
    """
    for name, parameter in model.named_parameters():
        is_plain = type(parameter.data) is torch.Tensor and parameter.is_floating_point() and parameter.itemsize > 1
        if parameter.device.type == "meta" or not is_plain or not parameter.numel():
            continue
        lowest, highest = parameter.detach().aminmax()  # either is NaN when any weight is
        if not (lowest.isfinite() and highest.isfinite()):
            raise ValueError(
                f"Weights must be finite numbers. {locate(name)} of {source} holds NaN or infinity. Download it "
                f"again, or take a checkpoint from before the training diverged."
            )


__all__ = ["align", "check_finite", "load_complete", "load_saved", "named_errors", "tensors_in"]
