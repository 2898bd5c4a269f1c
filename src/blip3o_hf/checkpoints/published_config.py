"""The `config.json` of published checkpoints: the arguments of our config that it gives, and the way back.

The reference saves one flat Qwen2.5-VL config, as transformers 4.51 writes it, with the `model_type` `blip3o_qwen` or
`blip3o_qwen_inference`. The sizes of its diffusion transformer are not in it; see `published_sizes.py`.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from .settings import config_settings

# `model_type` of published checkpoints, of the reference's training and inference class.
PUBLISHED_MODEL_TYPES = ("blip3o_qwen", "blip3o_qwen_inference")
# `use_cache` is left out: training switched it off, and it says nothing about the model.
_TEXT_FIELDS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "sliding_window",
    "use_sliding_window",
    "vocab_size",
)
_ROPE_FIELDS = ("rope_scaling", "rope_theta")
_VISION_TOKENS = (
    "image_token_id",
    "video_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
)
_VISION_FIELDS = (
    "depth",
    "fullatt_block_indexes",
    "hidden_act",
    "hidden_size",
    "in_channels",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
    "window_size",
)
# What the reference adds to the config of Qwen2.5-VL, with the published values. None of it sizes the model.
_PUBLISHED_FIELDS = {
    "architectures": ["blip3oQwenForCausalLM"],
    "model_type": "blip3o_qwen",
    "gen_pooling": "early_pool2d_4",
    "gen_vision_tower": "eva-clip-E-14-plus",
    "mm_patch_merge_type": "flat",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "use_mm_proj": True,
    "vision_tower_pretrained": None,
}
# How the reference trains and samples, whatever the defaults of our config.
_REFERENCE_SETTINGS = {
    "objective": "feature_flow",
    "feature_size": 8,
    "condition_dropout": 0.1,
    "noise_distribution": "discrete_uniform",
    "image_positions": "sequential",
    "noise_shift": 1.0,
}


def published_settings(source: str | os.PathLike | None, **kwargs) -> dict[str, Any] | None:
    """
    The `config.json` of a published checkpoint; `None` when there is none, or one of another `model_type`.

    Args:
        source: folder, file `config.json` in it, or Hub id.
        kwargs: arguments of `from_pretrained`; those that say where to look are used.

    Raises:
        ValueError: when the file is damaged.
    """
    if source is None:
        return None
    try:
        settings = config_settings(source, **kwargs)
    except OSError:
        return None
    return settings if settings.get("model_type") in PUBLISHED_MODEL_TYPES else None


def is_published(source: str | os.PathLike | None, **kwargs) -> bool:
    """Whether there is a published checkpoint at `source`; arguments and errors as of `published_settings`."""
    return published_settings(source, **kwargs) is not None


def backbone_config(settings: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """The config of the backbone that a published config describes."""
    known = (*_TEXT_FIELDS, *_ROPE_FIELDS, *_VISION_TOKENS, "vision_config", "tie_word_embeddings")
    fields = deepcopy({name: settings[name] for name in known if name in settings})
    return Qwen2_5_VLConfig(**fields, dtype=_dtype(settings))


def config_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Arguments of our config: what a published one says, and what the reference's source does.

    Args:
        settings: the published `config.json`. The sizes of the transformer are not in it.
    """
    return {"backbone_config": backbone_config(settings), "dtype": _dtype(settings), **_REFERENCE_SETTINGS}


def _dtype(settings: Mapping[str, Any]) -> str | None:
    return settings.get("dtype", settings.get("torch_dtype"))


def published_config(config: PreTrainedConfig) -> dict[str, Any]:
    """
    The config that the reference reads, of one of ours.

    Args:
        config ([`Blip3oConfig`]): of the model to write.

    Raises:
        ValueError: when the reference has no such model: another backbone than Qwen2.5-VL, another objective than
            `feature_flow`, features standardised by statistics, or a flow map.
    """
    received = None
    if config.backbone_config.model_type != "qwen2_5_vl":
        received = f"the backbone {config.backbone_config.model_type}"
    elif config.objective != "feature_flow":
        received = f"the objective {config.objective}"
    elif config.feature_mean is not None:
        received = "feature statistics"
    elif config.is_flow_map:
        received = "a flow map"
    if received:
        raise ValueError(
            f"The published layout is for a Qwen2.5-VL backbone with flow matching on plain features. Got {received}. "
            f"Save this model with `save_pretrained`."
        )
    backbone, text, vision = config.backbone_config, config.get_text_config(), config.backbone_config.vision_config
    rope = dict(text.rope_parameters)
    dtype = config.dtype
    settings = {
        **_PUBLISHED_FIELDS,
        **{name: getattr(text, name) for name in _TEXT_FIELDS if getattr(text, name) is not None},
        **{name: getattr(backbone, name) for name in _VISION_TOKENS if hasattr(backbone, name)},
        "gen_hidden_size": config.feature_dim,
        "n_query": config.num_queries,
        "rope_scaling": {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"},
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": config.tie_word_embeddings,
        "vision_config": {
            **{name: getattr(vision, name) for name in _VISION_FIELDS},
            "in_chans": vision.in_channels,
            "model_type": "qwen2_5_vl",
            "spatial_patch_size": vision.patch_size,
        },
    }
    if dtype is not None:
        settings["torch_dtype"] = str(dtype).removeprefix("torch.")
    return settings


__all__ = [
    "PUBLISHED_MODEL_TYPES",
    "backbone_config",
    "config_arguments",
    "is_published",
    "published_config",
    "published_settings",
]
