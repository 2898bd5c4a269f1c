"""Sizes of published models, read from the shapes of their tensors: they stand in no config."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .headers import StoredTensor
from .published_names import EMBEDDINGS, QUERIES, TARGET_ENCODER, TRANSFORMER

GATE = f"{TRANSFORMER}layers.0.gate"
KEY = f"{TRANSFORMER}layers.0.attn1.to_k.weight"
FEED_FORWARD = f"{TRANSFORMER}layers.0.feed_forward.linear_1.weight"
PATCHES = f"{TRANSFORMER}patch_embedder.proj.weight"
_LAYER = re.compile(rf"^{re.escape(TRANSFORMER)}layers\.(\d+)\.")
# The tensors that tell a size, and how many dimensions they have.
_NUM_DIMENSIONS = {QUERIES: 3, EMBEDDINGS: 2, PATCHES: 2, GATE: 1, KEY: 2, FEED_FORWARD: 2}
_TOWER_DIMENSIONS = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}


@dataclass(frozen=True)
class PublishedSizes:
    """
    Args:
        num_queries: learned query tokens.
        vocab_size, hidden_size: of the backbone's input embeddings.
        feature_dim: channels of the features.
        dim, num_layers, num_attention_heads, num_key_value_heads: of the diffusion transformer.
        feed_forward_width: inner width of its feed-forward layers.
    """

    num_queries: int
    vocab_size: int
    hidden_size: int
    feature_dim: int
    dim: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    feed_forward_width: int


def published_sizes(tensors: Mapping[str, StoredTensor], source: str) -> PublishedSizes:
    """
    Args:
        tensors: of a published checkpoint, by their names.
        source: folder or Hub id, for errors.

    Raises:
        ValueError: when a tensor that tells a size is missing, has other dimensions or is empty.
    """
    missing = [name for name in _NUM_DIMENSIONS if name not in tensors]
    if missing:
        raise ValueError(
            f"A BLIP3-o checkpoint must hold queries and a diffusion transformer. {source} lacks "
            f"{', '.join(missing)}. To build on a plain backbone, use `from_backbone`."
        )
    for name, dims in _NUM_DIMENSIONS.items():
        if len(tensors[name].shape) != dims or 0 in tensors[name].shape:
            raise ValueError(
                f"{name} must have {dims} dimensions, none of them empty. In {source}/{tensors[name].file} it has the "
                f"shape {list(tensors[name].shape)}. Download the checkpoint again."
            )
    vocab_size, hidden_size = tensors[EMBEDDINGS].shape
    dim, feature_dim = tensors[PATCHES].shape
    (heads,) = tensors[GATE].shape
    return PublishedSizes(
        num_queries=tensors[QUERIES].shape[1],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        feature_dim=feature_dim,
        dim=dim,
        num_layers=len({index for name in tensors for index in _LAYER.findall(name)}),
        num_attention_heads=heads,
        num_key_value_heads=tensors[KEY].shape[0] * heads // dim,
        feed_forward_width=tensors[FEED_FORWARD].shape[0],
    )


def published_tower_sizes(tensors: Mapping[str, StoredTensor], source: str | os.PathLike) -> dict[str, int]:
    """
    Sizes of the EVA-CLIP tower in a published checkpoint, as fields of [`EvaClipVisionConfig`]. The image is as large
    as the positions times the patch; the number of heads leaves no trace in shapes.

    Args:
        tensors: of the tower, by their published names.
        source: folder or Hub id, for errors.

    Raises:
        ValueError: when a tensor that tells a size is missing, has other dimensions or is empty.
    """
    shapes = {name.removeprefix(TARGET_ENCODER): tensor.shape for name, tensor in tensors.items()}
    unclear = [
        name for name, dims in _TOWER_DIMENSIONS.items() if len(shapes.get(name, ())) != dims or 0 in shapes[name]
    ]
    if unclear:
        raise ValueError(
            f"The sizes of a tower are read from the shapes of {', '.join(_TOWER_DIMENSIONS)}. {source} lacks "
            f"{', '.join(unclear)}, or has it with other dimensions. Save or download it again."
        )
    hidden_size, num_channels, patch_size, _ = shapes["patch_embed.proj.weight"]
    return {
        "hidden_size": hidden_size,
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "num_channels": num_channels,
        "image_size": math.isqrt(shapes["pos_embed"][1] - 1) * patch_size,
        "patch_size": patch_size,
    }


__all__ = ["FEED_FORWARD", "PublishedSizes", "published_sizes", "published_tower_sizes"]
