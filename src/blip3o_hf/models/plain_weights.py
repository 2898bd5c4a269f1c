"""A model's plain weights, saved and found: no names of wrapped parts, no adapters, the folder that has them."""

import functools
import inspect
import os
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..checkpoints.lookup import checkpoint_files
from ..checkpoints.stored_weights import read_index
from ..checkpoints.variants import one_variant
from ..checkpoints.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM

# What `torch.compile` and PyTorch's data parallelism put before the names of the weights that they wrap.
_COMPILED, _PARALLEL = "_orig_mod", "module"


def _wrapped(part: nn.Module) -> nn.Module | None:
    """What a compiled or data-parallel part wraps; `None` for every other part."""
    is_parallel = isinstance(part, nn.DataParallel | DistributedDataParallel)
    return dict(part.named_children()).get(_PARALLEL if is_parallel else _COMPILED)


def _innermost(part: nn.Module) -> nn.Module:
    """What is inside of all that wraps a part."""
    while (inner := _wrapped(part)) is not None:
        part = inner
    return part


@contextmanager
def unwrapped(model: nn.Module) -> Generator[None]:
    """
    While the context lasts, what `torch.compile` or data parallelism wrapped stands in the place of the wrapped parts.
    Parts that are replaced meanwhile are not wrapped again.
    """
    wrappers = []
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            plain = _innermost(part)
            if plain is not part and _wrapped(parent) is None:
                wrappers.append((parent, name, part, plain))
    for parent, name, _, plain in wrappers:
        setattr(parent, name, plain)
    try:
        yield
    finally:
        for parent, name, part, plain in wrappers:
            if getattr(parent, name) is plain:
                setattr(parent, name, part)


def _plain_names(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same tensors under the names that they have in a model whose parts nothing wraps."""
    with unwrapped(model):
        known = model.state_dict().keys()
    return {_plain_name(name, known): tensor for name, tensor in state_dict.items()}


def _plain_name(name: str, known: Collection[str]) -> str:
    """A part of the model may itself be called `module`, so that goes only where the model then knows the name."""
    steps = [step for step in name.split(".") if step != _COMPILED]
    shorter = ".".join(step for step in steps if step != _PARALLEL)
    return shorter if name not in known and shorter in known else ".".join(steps)


def check_no_adapters(model: nn.Module) -> None:
    """
    Raises:
        ValueError: when layers of the model are wrapped by adapters, so that its weights have other names.
    """
    wrapped = [
        name for name, module in model.named_modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    if wrapped:
        ways = "`merge_and_unload()` of PEFT"
        if isinstance(model, ModelMixin):
            ways = f"`unload_lora()` of the model, or {ways}"
        raise ValueError(
            f"A model is saved with its plain weights. This one has adapters in {len(wrapped)} places, such as "
            f"{wrapped[0]}. Unload them first: `unload_lora_weights()` of the pipeline, after `fuse_lora()` to keep "
            f"what they do, or {ways}."
        )


def save_plain(model: nn.Module, save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """
    Call a library's `save_pretrained` so that it writes the model's plain weights, and replaces in the folder what an
    earlier save of the same variant left there, and nothing else.

    Args:
        model: of transformers or diffusers.
        save: its `save_pretrained`.
        args, kwargs: for `save`.

    Raises:
        ValueError: when the model's layers carry adapters, unless a `state_dict` without them is given.
    """
    call = inspect.signature(save).bind(*args, **kwargs)
    given = call.arguments
    # Of adapters that it loaded itself, transformers writes those alone; diffusers would write both.
    saves_adapters = isinstance(model, PreTrainedModel) and getattr(model, "_hf_peft_config_loaded", False)
    state_dict = given.get("state_dict")
    if not saves_adapters and (state_dict is None or any("base_layer" in name.split(".") for name in state_dict)):
        check_no_adapters(model)
    if state_dict is not None:
        given["state_dict"] = _plain_names(state_dict, model)
    writes_weights = given.get("is_main_process", True) and not saves_adapters
    variant = _variant(model, given["save_directory"], given.get("variant")) if writes_weights else nullcontext()
    with unwrapped(model), variant:
        save(*call.args, **call.kwargs)


class PlainModelMixin(ModelMixin):
    """A model of diffusers that saves its plain weights."""

    # Wrapped for its signature: a pipeline of diffusers hands on only what that names, `variant` among it.
    @functools.wraps(ModelMixin.save_pretrained, assigned=())
    def save_pretrained(self, *args, **kwargs) -> None:
        """
        As in diffusers, with plain weights: compiled and data-parallel parts are saved as what was wrapped. Other
        variants in the folder stay.

        Raises:
            ValueError: when adapters are loaded into it; they would be saved in the place of its weights.
        """
        save_plain(self, super().save_pretrained, *args, **kwargs)


@contextmanager
def plain_parts(parts: Mapping[str, Any], folder: str | os.PathLike, variant: str | None = None) -> Generator[None]:
    """
    While the context lasts, a pipeline of diffusers saves its parts below `folder`, as `save_plain` saves one model:
    parts of the libraries' own classes, too.

    Raises:
        ValueError: when the layers of a part carry adapters.
    """
    with ExitStack() as stack:
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                part = _innermost(part)
                check_no_adapters(part)
                stack.enter_context(unwrapped(part))
                stack.enter_context(_variant(part, Path(folder, name), variant))
        yield


def _variant(model: nn.Module, folder: str | os.PathLike, variant: str | None) -> AbstractContextManager[None]:
    """`one_variant` of the files that the model's library writes; of several processes, the first one writes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
        return nullcontext()
    return one_variant(folder, TRANSFORMERS_STEM if isinstance(model, PreTrainedModel) else DIFFUSERS_STEM, variant)


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


__all__ = ["PlainModelMixin", "check_no_adapters", "folder_of_shards", "plain_parts", "save_plain", "unwrapped"]
