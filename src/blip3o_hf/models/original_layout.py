"""Published BLIP3-o checkpoints as they are: names of their tensors, their config, and what their shapes say.

The original code saves one flat Qwen2.5-VL config (as transformers 4.51 writes it, with the `model_type` `blip3o_qwen`
or `blip3o_qwen_inference`), the tensor names of that version, and the target encoder beside the model. The sizes of
its diffusion transformer stand in its source alone; here they are read from the shapes in the headers of the
safetensors files, without reading a tensor. transformers then loads the weights, under the names registered here.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import ConversionOps, PreTrainedConfig, PreTrainedModel, Qwen2_5_VLConfig, WeightConverter
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming
from transformers.utils import CONFIG_NAME, logging

from .checkpoint_files import (
    StoredTensor,
    check_tensors,
    checkpoint_files,
    config_settings,
    located,
    read_tensors,
    transformers_tensors,
)
from .configuration_blip3o import ORIGINAL_MODEL_TYPES, Blip3oConfig
from .loading import check_finite
from .transformer_next_dit import feed_forward_dim

logger = logging.get_logger(__name__)

# Names

QUERIES = "model.latent_queries"
EMBEDDINGS = "model.embed_tokens.weight"
OUTPUT_LAYER = "lm_head.weight"
TRANSFORMER = "model.dit.model."

# A published name begins as on the left, ours as on the right (in the files of `save_pretrained`; in memory the
# backbone's names are those of its own class).
_OWN_NAMES = (
    (r"^visual\.", "backbone.visual."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"backbone.model.\1."),
    (r"^lm_head\.", "backbone.lm_head."),
    (r"^model\.dit\.model\.", "transformer."),
    (r"^model\.latent_queries", "queries.weight"),
)
_ORIGINAL_NAMES = (
    (r"^backbone\.(model\.)?visual\.", "visual."),
    (r"^backbone\.model\.(language_model\.)?(?=(embed_tokens|layers|norm)\.)", "model."),
    (r"^backbone\.lm_head\.", "lm_head."),
    (r"^transformer\.", TRANSFORMER),
    (r"^queries\.weight$", QUERIES),
)
# The target encoder (EVA-CLIP) is a model of its own here, and the original's down projector is the identity.
LEFT_OUT = r"^model\.(gen_vision_tower|down_projector)\."


def own_name(name: str) -> str | None:
    """
    Our name of a published tensor, as `save_pretrained` writes it; `None` for what is left out.

    Raises:
        ValueError: when no published checkpoint has a tensor of that name.
    """
    if re.match(LEFT_OUT, name):
        return None
    return _renamed(name, _OWN_NAMES, "published")


def original_name(name: str) -> str:
    """
    The published name of a tensor of ours, in memory or in a saved file.

    Raises:
        ValueError: when the original has no such tensor.
    """
    return _renamed(name, _ORIGINAL_NAMES, "our")


def _renamed(name: str, table: tuple[tuple[str, str], ...], kind: str) -> str:
    for pattern, replacement in table:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    raise ValueError(
        f"A tensor must belong to the backbone, the queries or the transformer. Got the {kind} name {name!r}. "
        f"Known beginnings: {', '.join(pattern.removeprefix('^') for pattern, _ in table)}."
    )


def to_original_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    A model's tensors under their published names.

    Args:
        state_dict: of a [`Blip3oForConditionalGeneration`] on a Qwen2.5-VL backbone, or of a file it saved. An output
            layer that shares its memory with the input embeddings is left out, as published checkpoints do.

    Returns:
        The same tensors, not copies; the queries as `[1, num_queries, hidden_size]`.

    Raises:
        ValueError: when the original has no such tensor.
    """
    tensors = {original_name(name): tensor for name, tensor in state_dict.items()}
    output, embeddings = tensors.get(OUTPUT_LAYER), tensors.get(EMBEDDINGS)
    in_memory = output is not None and embeddings is not None and output.device.type != "meta"
    if in_memory and output.data_ptr() == embeddings.data_ptr():
        del tensors[OUTPUT_LAYER]
    if QUERIES in tensors:
        tensors[QUERIES] = tensors[QUERIES][None]
    return tensors


class QueriesToMatrix(ConversionOps):
    """Published queries `[1, num_queries, hidden_size]` to ours, `[num_queries, hidden_size]`."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs
    ) -> dict[str, Tensor]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: tensor.flatten(0, -2)}


def register_with_transformers(model_class: type[PreTrainedModel]) -> None:
    """Make `from_pretrained` of this class read published names as well as ours. Idempotent."""
    renamings = [WeightRenaming(pattern, own) for pattern, own in _OWN_NAMES if own != "queries.weight"]
    queries = [
        WeightConverter(pattern, own, operations=[QueriesToMatrix()])
        for pattern, own in _OWN_NAMES
        if own == "queries.weight"
    ]
    register_checkpoint_conversion_mapping(model_class.__name__, renamings + queries, overwrite=True)


def keep_own_names(model: PreTrainedModel) -> None:
    """
    See to it that `save_pretrained` writes our names.

    transformers saves a model under the names it was read from, and a new one under those of the registered mapping;
    only the mappings of the parts (which have a scope) are to be undone.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [conversion for conversion in conversions if not isinstance(conversion, PrefixChange)]
    model._weight_conversions = [conversion for conversion in conversions if conversion.scope_prefix is not None]


# Config

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
# What the original adds to the config of Qwen2.5-VL, with the published values. None of it sizes the model.
_ORIGINAL_FIELDS = {
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
# How the original trains and samples, whatever the defaults here.
_REFERENCE_SETTINGS = {
    "objective": "feature_flow",
    "feature_size": 8,
    "condition_dropout": 0.1,
    "noise_distribution": "discrete_uniform",
    "image_positions": "sequential",
    "noise_shift": 1.0,
}
_RELEASED_DIM = 1792


def convert_config(settings: Mapping[str, Any]) -> Blip3oConfig:
    """Our config of a published one, with the sizes that stand in the original's source."""
    known = (*_TEXT_FIELDS, *_ROPE_FIELDS, *_VISION_TOKENS, "vision_config", "tie_word_embeddings")
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    backbone = Qwen2_5_VLConfig(**deepcopy({name: settings[name] for name in known if name in settings}), dtype=dtype)
    return Blip3oConfig(backbone_config=backbone, dtype=dtype, **_REFERENCE_SETTINGS)


def original_config(config: Blip3oConfig) -> dict[str, Any]:
    """
    The config that the original code reads, of one of ours.

    Raises:
        ValueError: when the original code has no such model: another backbone than Qwen2.5-VL, another objective than
            `feature_flow`, or features standardised by statistics.
    """
    received = None
    if config.backbone_config.model_type != "qwen2_5_vl":
        received = f"the backbone {config.backbone_config.model_type}"
    elif config.objective != "feature_flow":
        received = f"the objective {config.objective}"
    elif config.feature_mean is not None:
        received = "feature statistics"
    if received:
        raise ValueError(
            f"The original layout is for a Qwen2.5-VL backbone with flow matching on plain features. Got {received}. "
            f"Save this model with `save_pretrained`."
        )
    backbone, text, vision = config.backbone_config, config.get_text_config(), config.backbone_config.vision_config
    rope = dict(text.rope_parameters)
    dtype = config.dtype
    settings = {
        **_ORIGINAL_FIELDS,
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


def feed_forward_arguments(dim: int, width: int) -> dict[str, int | float | None]:
    """
    Arguments of [`Blip3oTransformer2DModel`] that give exactly this feed-forward width, the plainest ones.

    >>> feed_forward_arguments(1792, 4864)
    {'multiple_of': 256, 'ffn_dim_multiplier': None}
    >>> feed_forward_arguments(1792, 6400)
    {'multiple_of': 256, 'ffn_dim_multiplier': 1.3}
    """
    granules = [256 >> shift for shift in range(9)]
    for multiple_of in granules:
        if feed_forward_dim(dim, multiple_of) == width:
            return {"multiple_of": multiple_of, "ffn_dim_multiplier": None}
    multiple_of = next(granule for granule in granules if width % granule == 0)
    ratio = width / feed_forward_dim(dim, 1)
    for digits in range(18):
        below = math.floor(ratio * 10**digits)
        for multiplier in (below / 10**digits, (below + 1) / 10**digits):
            if feed_forward_dim(dim, multiple_of, multiplier) == width:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    raise AssertionError(f"no multiplier gives the width {width} at dim {dim}")


# Checkpoint


@dataclass(frozen=True)
class OriginalCheckpoint:
    """
    A published checkpoint, known by its config and the headers of its files.

    Args:
        source: folder or Hub id.
        settings: its `config.json`.
        tensors: every tensor by its published name; `None` where the files are out of reach.
    """

    source: str
    settings: dict[str, Any]
    tensors: dict[str, StoredTensor] | None

    @classmethod
    def find(cls, source: str | os.PathLike | None, **kwargs) -> "OriginalCheckpoint | None":
        """
        The published checkpoint at `source`; `None` when there is none, going by the `model_type` of its config.

        Args:
            source: folder, file `config.json` in it, or Hub id.
            kwargs: arguments of `from_pretrained`; those that say where to look are used.

        Raises:
            ValueError: when the files are damaged, incomplete, or pickles.
        """
        settings = original_settings(source, **kwargs)
        return None if settings is None else cls.open(source, settings, **kwargs)

    @classmethod
    def open(
        cls, source: str | os.PathLike, settings: dict[str, Any], must_exist: bool = True, **kwargs
    ) -> "OriginalCheckpoint":
        """
        The checkpoint with these settings, once its headers are read.

        Args:
            must_exist: whether weights must be found.

        Raises:
            ValueError: when the files are damaged, incomplete, or pickles.
        """
        files = checkpoint_files(source, **kwargs)
        return cls(str(files), settings, transformers_tensors(files) if must_exist else read_tensors(files))

    def config(self, transformer_config: Mapping[str, Any] | None = None) -> Blip3oConfig:
        """
        Our config of this checkpoint.

        Args:
            transformer_config: arguments of the transformer that no header tells. `ffn_dim` accepts a feed-forward
                width that is otherwise taken for a mistake.

        Raises:
            ValueError: when the config describes no model, or it and the tensors contradict each other.
        """
        with self._blaming_config():
            self._check_num_layers()
            config = convert_config(self.settings)
        config.transformer_config = {**config.transformer_config, **(transformer_config or {})}
        return config if self.tensors is None else self.fitted(config)

    def fitted(self, config: Blip3oConfig) -> Blip3oConfig:
        """
        A copy of `config` with the sizes of the stored tensors: transformer, queries, features and vocabulary.

        Raises:
            ValueError: when a tensor that tells a size is missing, when the config contradicts the tensors, or when
                the transformer was built by a library that widens it.
        """
        gate = f"{TRANSFORMER}layers.0.gate"
        key = f"{TRANSFORMER}layers.0.attn1.to_k.weight"
        ffn = f"{TRANSFORMER}layers.0.feed_forward.linear_1.weight"
        patches = f"{TRANSFORMER}patch_embedder.proj.weight"
        telling = {QUERIES: 3, EMBEDDINGS: 2, patches: 2, gate: 1, key: 2, ffn: 2}
        missing = [name for name in telling if name not in self.tensors]
        if missing:
            raise ValueError(
                f"A BLIP3-o checkpoint must hold queries and a diffusion transformer. {self.source} lacks "
                f"{', '.join(missing)}. To build on a plain backbone, use `from_backbone`."
            )
        for name, dims in telling.items():
            if len(self.tensors[name].shape) != dims or 0 in self.tensors[name].shape:
                raise ValueError(
                    f"{name} must have {dims} dimensions, none of them empty. In {self._place(name)} it has the shape "
                    f"{list(self.tensors[name].shape)}. Download the checkpoint again."
                )
        config = deepcopy(config)
        vocab_size, hidden_size = self.tensors[EMBEDDINGS].shape
        if hidden_size != config.hidden_size:
            raise ValueError(
                f"{CONFIG_NAME} must describe the tensors beside it. It says hidden_size={config.hidden_size}, and "
                f"{EMBEDDINGS} in {self._place(EMBEDDINGS)} is {[vocab_size, hidden_size]}. Use the config that was "
                f"saved with these weights."
            )
        layer = re.compile(rf"^{re.escape(TRANSFORMER)}layers\.(\d+)\.")
        dim, channels = self.tensors[patches].shape
        (heads,) = self.tensors[gate].shape
        width = self.tensors[ffn].shape[0]
        given = config.transformer_config or {}
        if given.get("ffn_dim") != width:
            if dim == _RELEASED_DIM and width == 4 * dim:
                raise ValueError(
                    f"The released transformer has a feed-forward width of {feed_forward_dim(dim)}: two thirds of "
                    f"4 * {dim}, rounded up to a multiple of 256. {ffn} in {self._place(ffn)} has {width}, the whole "
                    f"4 * {dim}, which the original code builds on diffusers 0.33 and newer; released weights do not "
                    f"load into that, so these are not the released ones. Take the released checkpoint, or, if this "
                    f'one was trained at that width, pass `transformer_config={{"ffn_dim": {width}}}`.'
                )
            given = {name: value for name, value in given.items() if name != "ffn_dim"}
            given |= feed_forward_arguments(dim, width)
        config.num_queries = self.tensors[QUERIES].shape[1]
        config.feature_dim = channels
        config.transformer_config = {
            **given,
            "dim": dim,
            "num_layers": len({index for name in self.tensors for index in layer.findall(name)}),
            "num_attention_heads": heads,
            "num_key_value_heads": self.tensors[key].shape[0] * heads // dim,
            "in_channels": channels,
            "sample_size": config.feature_size,
            "condition_dim": hidden_size,
        }
        config.backbone_config.text_config.vocab_size = vocab_size
        if "tie_word_embeddings" not in self.settings:
            config.backbone_config.tie_word_embeddings = OUTPUT_LAYER not in self.tensors
            config.tie_word_embeddings = config.backbone_config.tie_word_embeddings
        return config

    def empty_model(
        self, model_class: type[PreTrainedModel], config: Blip3oConfig, compare_shapes: bool = True
    ) -> PreTrainedModel:
        """
        A model of this checkpoint's config on the meta device, where it costs neither memory nor time, once `check`
        finds that the stored tensors are its own.

        Raises:
            ValueError: when the config describes no model, and as `check`.
        """
        with self._blaming_config(), torch.device("meta"):
            model = model_class(config)
        self.check(model, compare_shapes)
        return model

    def check(self, model: PreTrainedModel, compare_shapes: bool = True) -> None:
        """
        Check names and shapes before any tensor is read.

        Args:
            model: one of this checkpoint's config.
            compare_shapes: whether shapes must agree, too.

        Raises:
            ValueError: naming missing, unexpected and ill-shaped tensors, and their files.
        """
        expected = {original_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        expected[QUERIES] = (1, *expected[QUERIES])
        check_tensors(
            self.tensors,
            expected,
            self.source,
            optional={OUTPUT_LAYER} if model.config.tie_word_embeddings else (),
            left_out=LEFT_OUT,
            compare_shapes=compare_shapes,
        )

    def check_values(self, model: PreTrainedModel) -> None:
        """Check that no loaded weight is NaN or infinite; see [`~models.loading.check_finite`]."""
        check_finite(model, self.source, lambda name: self._located(original_name(name)))

    def _check_num_layers(self) -> None:
        """Refuse more layers than tensors at once, which the library would build for as long as memory lasts."""
        vision = self.settings.get("vision_config") or {}
        num_layers = max(self.settings.get("num_hidden_layers", 0), vision.get("depth", 0))
        if self.tensors is not None and num_layers > len(self.tensors):
            raise ValueError(
                f"{CONFIG_NAME} must describe the tensors beside it. It asks for {num_layers} layers, and "
                f"{self.source} holds {len(self.tensors)} tensors. Use the config that was saved with these weights."
            )

    @contextmanager
    def _blaming_config(self) -> Iterator[None]:
        """Turn what a library says of a bad config into an error that names the file."""
        try:
            yield
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            StrictDataclassError,
            TypeError,
        ) as error:
            raise ValueError(
                f"{CONFIG_NAME} must describe a Qwen2.5-VL model. That of {self.source} does not "
                f"({type(error).__name__}: {error}). Use the config that was saved with these weights."
            ) from error

    def _place(self, name: str) -> str:
        return f"{self.source}/{self.tensors[name].file}"

    def _located(self, name: str) -> str:
        return located(self.tensors, name)


def original_settings(source: str | os.PathLike | None, **kwargs) -> dict[str, Any] | None:
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
    return settings if settings.get("model_type") in ORIGINAL_MODEL_TYPES else None


class OriginalConfig(PreTrainedConfig):
    """What `AutoConfig` finds under the published names; it becomes a [`Blip3oConfig`] at once."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        A [`Blip3oConfig`] with the sizes of the tensors beside the file.

        `AutoConfig` does not tell subfolder and revision. Where the same config is not found without them, the sizes
        are those of the original's source, and `from_pretrained` of the model corrects them.
        """
        source = kwargs.get("name_or_path")
        checkpoint = OriginalCheckpoint("", config_dict, None)
        if source and original_settings(source) == config_dict:
            checkpoint = OriginalCheckpoint.open(source, config_dict, must_exist=False)
        config = checkpoint.config(kwargs.pop("transformer_config", None))
        return Blip3oConfig.from_dict(config.to_dict(), **kwargs)


class OriginalTrainingConfig(OriginalConfig):
    model_type = ORIGINAL_MODEL_TYPES[0]


class OriginalInferenceConfig(OriginalConfig):
    model_type = ORIGINAL_MODEL_TYPES[1]


# Saving


def save_original_layout(model: PreTrainedModel, folder: str | os.PathLike, max_shard_size: int | str = "5GB") -> None:
    """
    Save a model as the original code reads it: flat config, published names, safetensors; no target encoder.

    The original builds its transformer with the released sizes, whatever a checkpoint holds. Everything is written to
    a temporary folder first and moved when it is whole, the config last.

    Args:
        model ([`Blip3oForConditionalGeneration`]): on a Qwen2.5-VL backbone.
        folder: created where missing; must hold no weights yet.
        max_shard_size: largest file, in bytes or like `"5GB"`.

    Raises:
        ValueError: when the original code has no such model, when `folder` has weights already, or when weights are
            offloaded to disk.
    """
    settings = original_config(model.config)
    if model.config.image_positions != "sequential":
        logger.warning(
            "The original code counts positions on over the images in a prompt to draw from, whatever the model was "
            "trained with. Prompts without images are drawn the same."
        )
    tensors = to_original_layout(model.state_dict())
    offloaded = [name for name, tensor in tensors.items() if tensor.device.type == "meta"]
    if offloaded:
        raise ValueError(
            f"Every weight must be in memory to be saved. {offloaded[0]} is offloaded to disk. Load the model without "
            f"`device_map`."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")])
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


__all__ = [
    "OriginalCheckpoint",
    "OriginalInferenceConfig",
    "OriginalTrainingConfig",
    "convert_config",
    "feed_forward_arguments",
    "keep_own_names",
    "original_config",
    "original_name",
    "original_settings",
    "own_name",
    "register_with_transformers",
    "save_original_layout",
    "to_original_layout",
]
