"""Loading that refuses an incomplete or damaged checkpoint, where the libraries would go on with random weights."""

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError


def _names(keys, most: int = 5) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def load_complete(load: Callable[..., tuple[Any, dict]], source, *args, **kwargs) -> tuple[Any, dict]:
    """
    Call a library's `from_pretrained` and check that every tensor came out of the checkpoint.

    Args:
        load: `from_pretrained` of transformers or diffusers.
        source: folder or Hub id.
        args, kwargs: passed on to `load`.

    Returns:
        The model and the library's loading report.

    Raises:
        ValueError: naming the tensors that are missing or have the wrong shape, or the damage.
    """
    try:
        model, info = load(source, *args, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(
            f"A checkpoint must be readable safetensors files. Those of {source} are damaged ({error}). Save or "
            f"download it again."
        ) from error
    if info["missing_keys"]:
        missing = info["missing_keys"]
        raise ValueError(
            f"A checkpoint must hold every tensor of the model. {source} lacks {len(missing)}: {_names(missing)}. "
            f"Save or download it again."
        )
    return model, info
