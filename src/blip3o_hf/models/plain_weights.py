"""A model's plain weights, saved and found: no names of compiled parts, no adapters, the folder that has them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..checkpoints.lookup import checkpoint_files
from ..checkpoints.stored_weights import read_index


@contextmanager
def uncompiled(model: nn.Module) -> Generator[None]:
    """While the context lasts, what `torch.compile` compiled stands in the place of the compiled parts."""
    compiled = [
        (parent, name, part)
        for parent in model.modules()
        for name, part in parent.named_children()
        if hasattr(part, "_orig_mod") and parent is not part
    ]
    for parent, name, part in compiled:
        setattr(parent, name, part._orig_mod)
    try:
        yield
    finally:
        for parent, name, part in compiled:
            setattr(parent, name, part)


def check_no_adapters(model: nn.Module) -> None:
    """
    Raises:
        ValueError: when layers of the model are wrapped by adapters, so that its weights have other names.
    """
    wrapped = [
        name for name, module in model.named_modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    if wrapped:
        raise ValueError(
            f"A model is saved with its plain weights. This one has adapters in {len(wrapped)} places, such as "
            f"{wrapped[0]}. Unload them first: `unload_lora_weights()` of the pipeline, after `fuse_lora()` to keep "
            f"what they do, or `merge_and_unload()` of PEFT."
        )


def folder_of_shards(source: str | os.PathLike | None, **kwargs: Any) -> dict[str, str]:
    """
    Where the weights of a pipeline's repository are, by the index at its root: the argument `subfolder`, or nothing
    where they are at the root. The library joins their folder twice for weights that stay on disk.
    """
    if source is None:
        return {}
    infix = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    index = checkpoint_files(source, **kwargs).path(SAFE_WEIGHTS_INDEX_NAME.replace(".json", f"{infix}.json"))
    folders = {PurePosixPath(file).parent.as_posix() for file in read_index(index).values()} if index else {"."}
    return {"subfolder": folders.pop()} if len(folders) == 1 and folders != {"."} else {}


__all__ = ["check_no_adapters", "folder_of_shards", "uncompiled"]
