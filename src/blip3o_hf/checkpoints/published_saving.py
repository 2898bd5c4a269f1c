"""A model of ours written in the published layout, as the reference reads it."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from .published_config import published_config
from .published_names import EMBEDDINGS, OUTPUT_LAYER, QUERIES, published_name
from .weight_files import weight_files

logger = logging.get_logger(__name__)


def to_published_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    A model's tensors under their published names.

    Args:
        state_dict: of a [`Blip3oForConditionalGeneration`] on a Qwen2.5-VL backbone, or of a file it saved. An output
            layer that shares its memory with the input embeddings is left out, as published checkpoints do.

    Returns:
        The same tensors, not copies; the queries as `[1, num_queries, hidden_size]`.

    Raises:
        ValueError: when no published checkpoint has such a tensor.
    """
    tensors = {published_name(name): tensor for name, tensor in state_dict.items()}
    output, embeddings = tensors.get(OUTPUT_LAYER), tensors.get(EMBEDDINGS)
    in_memory = output is not None and embeddings is not None and output.device.type != "meta"
    if in_memory and output.data_ptr() == embeddings.data_ptr():
        del tensors[OUTPUT_LAYER]
    if QUERIES in tensors:
        tensors[QUERIES] = tensors[QUERIES][None]
    return tensors


def save_published_layout(
    model: PreTrainedModel, folder: str | os.PathLike, max_shard_size: int | str = "5GB"
) -> None:
    """
    Save a model as the reference reads it: flat config, published names, safetensors; no target encoder.

    The reference builds its transformer with the released sizes, whatever a checkpoint holds. Everything is written to
    a temporary folder first and moved when it is whole, the config last.

    Args:
        model ([`Blip3oForConditionalGeneration`]): on a Qwen2.5-VL backbone.
        folder: created where missing; must hold no weights yet.
        max_shard_size: largest file, in bytes or like `"5GB"`.

    Raises:
        ValueError: when the reference has no such model, when `folder` has weights already, or when weights are
            offloaded to disk.
    """
    settings = published_config(model.config)
    if model.config.image_positions != "sequential":
        logger.warning(
            "When it draws, the reference numbers the image tokens of a prompt one after another, also if the model "
            "was trained with other positions. Prompts without images are drawn the same."
        )
    tensors = to_published_layout(model.state_dict())
    offloaded = [name for name, tensor in tensors.items() if tensor.device.type == "meta"]
    if offloaded:
        raise ValueError(
            f"Every weight must be in memory to be saved. {offloaded[0]} is offloaded to disk. Load the model without "
            f"`device_map`."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted([*weight_files(folder), *folder.glob("*.safetensors.index.json")])
    if present:
        raise ValueError(
            f"A checkpoint is saved to a folder without weights, since old and new ones would mix. {folder} holds "
            f"{present[0].name}. Choose another folder."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        save_torch_state_dict(tensors, temporary, max_shard_size=max_shard_size)
        model.generation_config.save_pretrained(temporary)
        (Path(temporary) / CONFIG_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        written = sorted(Path(temporary).iterdir(), key=lambda path: path.name == CONFIG_NAME)
        for path in written:
            path.replace(folder / path.name)


__all__ = ["save_published_layout", "to_published_layout"]
