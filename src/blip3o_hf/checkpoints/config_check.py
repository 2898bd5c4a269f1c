"""Whether a config can be true of the tensors beside it, and names no code from elsewhere; before a model is built."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.utils import CONFIG_NAME

from .headers import StoredTensor

_LAYERS = re.compile(r"^(?!max_).*layers$|^depth$|blocks$|^n_layer$")
_COUNTS = re.compile(
    r"^num_(hidden_)?layers$|^num_(attention_|key_value_)?heads$|^(hidden|vocab|intermediate)_size$|^dim$"
)
_POSITIONS = re.compile(r"position")
_SIZES = re.compile(
    r"(^|_)(size|dim|multiple_of|channels|heads|experts|queries|rank|width|labels|state)$|vocab|hidden|intermediate|^d_|^n_embd$"
)
_KERNELS = re.compile(r"^_?(attn|experts)_implementation")
_FREE_SIZE, _FREE_POSITIONS, _LARGER = 4096, 262_144, 8
"""What no tensor has to bear out, and how many times the largest side of a tensor a size may be."""


def check_config(settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], source: str | os.PathLike) -> None:
    """
    Refuse a config that asks for more than the files hold: a library would take the memory and the time for it before
    it compares.

    Args:
        settings: the content of a `config.json`.
        stored: the tensors beside it; where there are none, sizes are not looked at.
        source: of both, for errors.

    Raises:
        ValueError: naming the key, its value and what the files hold; or when a kernel of the Hub is named, which is
            code.
    """
    largest = max((side for tensor in stored.values() for side in tensor.shape), default=None)
    for key, value in _values(settings):
        name = key.rpartition(".")[2]
        if _COUNTS.search(name) and (isinstance(value, bool) or not isinstance(value, int | None)):
            raise ValueError(
                f"{CONFIG_NAME} must describe the tensors beside it. `{key}` of {source} must be a whole number, and "
                f"is {value!r:.60}. Use the config that was saved with these weights."
            )
        if isinstance(value, bool):
            continue
        if isinstance(value, str):
            if _KERNELS.match(name) and not re.fullmatch(r"(paged\|)?\w+", value):
                raise ValueError(
                    f"A downloaded config may name no code to run. `{key}` of {source}/{CONFIG_NAME} is {value!r}, "
                    f"a kernel of the Hub. Delete it there; to use that kernel, pass `attn_implementation` yourself."
                )
            continue
        is_layers, is_positions = _LAYERS.search(name), _POSITIONS.search(name)
        is_size = is_layers or is_positions or _SIZES.search(name)
        if largest is None or not is_size or not isinstance(value, int):
            continue
        limit = len(stored) if is_layers else max(_FREE_POSITIONS if is_positions else _FREE_SIZE, _LARGER * largest)
        if not 0 <= value <= limit:
            held = f"{len(stored)} tensors" if is_layers else f"tensors of at most {largest} a side"
            raise ValueError(
                f"{CONFIG_NAME} must describe the tensors beside it. `{key}` is {value}, and {source} holds {held}. "
                f"Use the config that was saved with these weights."
            )


def _values(settings: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by their keys, those of nested settings as `vision_config.depth`."""
    if isinstance(settings, Mapping) and (settings or not before):
        for key, value in settings.items():
            yield from _values(value, f"{before}.{key}" if before else str(key))
    elif isinstance(settings, list):
        for value in settings:
            yield from _values(value, before)
    else:
        yield before, settings


__all__ = ["check_config"]
