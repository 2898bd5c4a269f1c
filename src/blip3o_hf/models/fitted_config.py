"""Our config of a published checkpoint: what its `config.json` says, with the sizes of its tensors."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_config import config_arguments
from ..checkpoints.published_names import EMBEDDINGS
from ..checkpoints.published_sizes import FEED_FORWARD, PublishedSizes
from .feed_forward import feed_forward_arguments, feed_forward_dim

_RELEASED_DIM = 1792
_Config = TypeVar("_Config", bound=PreTrainedConfig)


def config_of(
    checkpoint: PublishedCheckpoint,
    config_class: type[_Config],
    transformer_config: Mapping[str, Any] | None = None,
) -> _Config:
    """
    Our config of a published checkpoint; where its files are out of reach, with our default sizes.

    Args:
        config_class: [`Blip3oConfig`], which imports this module.
        transformer_config: arguments of the transformer that no header tells. `ffn_dim` accepts a feed-forward
            width that is otherwise taken for a mistake.

    Raises:
        ValueError: when the config describes no model, or it and the tensors contradict each other.
    """
    with checkpoint.blaming_config():
        checkpoint.check_num_layers()
        config = config_class(**config_arguments(checkpoint.settings))
    config.transformer_config = {**config.transformer_config, **(transformer_config or {})}
    return config if checkpoint.tensors is None else fitted(config, checkpoint)


def fitted(config: _Config, checkpoint: PublishedCheckpoint) -> _Config:
    """
    A copy of `config` with the sizes of the stored tensors: transformer, queries, features and vocabulary.

    Args:
        config ([`Blip3oConfig`]): with a Qwen2.5-VL backbone.

    Raises:
        ValueError: when a tensor that tells a size is missing, when the config contradicts the tensors, or when
            the transformer was built by a library that widens it.
    """
    sizes = checkpoint.sizes()
    config = deepcopy(config)
    if sizes.hidden_size != config.hidden_size:
        raise ValueError(
            f"config.json must describe the tensors beside it. It says hidden_size={config.hidden_size}, and "
            f"{EMBEDDINGS} in {checkpoint.path_of(EMBEDDINGS)} is {[sizes.vocab_size, sizes.hidden_size]}. Use the "
            f"config that was saved with these weights."
        )
    config.num_queries = sizes.num_queries
    config.feature_dim = sizes.feature_dim
    config.transformer_config = {
        **_with_feed_forward_width(config.transformer_config or {}, sizes, checkpoint),
        "dim": sizes.dim,
        "num_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "in_channels": sizes.feature_dim,
        "sample_size": config.feature_size,
        "condition_dim": sizes.hidden_size,
    }
    config.backbone_config.text_config.vocab_size = sizes.vocab_size
    if checkpoint.ties_embeddings is not None:
        config.backbone_config.tie_word_embeddings = checkpoint.ties_embeddings
        config.tie_word_embeddings = checkpoint.ties_embeddings
    return config


def _with_feed_forward_width(
    transformer_config: dict[str, Any], sizes: PublishedSizes, checkpoint: PublishedCheckpoint
) -> dict[str, Any]:
    """These arguments of the transformer, with those that give the stored feed-forward width."""
    dim, width = sizes.dim, sizes.feed_forward_width
    if transformer_config.get("ffn_dim") == width:
        return transformer_config
    if dim == _RELEASED_DIM and width == 4 * dim:
        raise ValueError(
            f"The released transformer has a feed-forward width of {feed_forward_dim(dim)}: two thirds of 4 * {dim}, "
            f"rounded up to a multiple of 256. {FEED_FORWARD} in {checkpoint.path_of(FEED_FORWARD)} has {width}, the "
            f"whole 4 * {dim}, which the reference builds on diffusers 0.33 and newer; released weights do not load "
            f"into that, so these are not the released ones. Take the released checkpoint, or, if this one was "
            f'trained at that width, pass `transformer_config={{"ffn_dim": {width}}}`.'
        )
    arguments = {name: value for name, value in transformer_config.items() if name != "ffn_dim"}
    return arguments | feed_forward_arguments(dim, width)


__all__ = ["config_of", "fitted"]
