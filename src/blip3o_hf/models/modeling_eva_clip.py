"""The EVA-CLIP vision tower: it computes the image features that BLIP3-o learns to generate."""

import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from ..checkpoints.headers import StoredTensor
from ..checkpoints.loading import check_finite, load_complete, load_saved
from ..checkpoints.lookup import HUB_ARGUMENTS, checkpoint_files
from ..checkpoints.published_names import TARGET_ENCODER
from ..checkpoints.published_sizes import published_tower_sizes
from ..checkpoints.settings import config_settings
from ..checkpoints.stored_weights import read_values, transformers_tensors
from ..checkpoints.tensor_checks import check_tensors, located
from .configuration_eva_clip import EvaClipVisionConfig
from .plain_weights import save_plain


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain matrix products: `[B, heads, N, D]` to `[B, N, heads, D]`, and its weights."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class EvaClipAttention(nn.Module):
    """Full self-attention with one projection for queries, keys and values."""

    def __init__(self, config: EvaClipVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]):
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(hidden_states).chunk(3, dim=-1)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.proj(attended.flatten(2)), weights


class EvaClipMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: EvaClipVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class EvaClipBlock(GradientCheckpointingLayer):
    """Transformer block that normalises what its layers add, not what they read: `x + norm(layer(x))`."""

    def __init__(self, config: EvaClipVisionConfig):
        super().__init__()
        self.attn = EvaClipAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EvaClipMLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attn(hidden_states, **kwargs)
        hidden_states = hidden_states + self.norm1(attended)
        return hidden_states + self.norm2(self.mlp(hidden_states))


class EvaClipPatchEmbed(nn.Module):
    """One linear map per patch: `[B, channels, H, W]` to `[B, N, hidden_size]`, row-major."""

    def __init__(self, config: EvaClipVisionConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class EvaClipVisionModel(PreTrainedModel):
    """
    EVA-CLIP-E-14-plus, the target encoder of BLIP3-o (paper section 5.1): a vision transformer with a class token,
    learned positions and post-norm residuals, without a final norm or head.

    Example:

    ```python
    >>> import torch

    >>> from blip3o_hf import EvaClipVisionConfig, EvaClipVisionModel

    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> model = EvaClipVisionModel(EvaClipVisionConfig(**sizes, image_size=28))
    >>> tuple(model(torch.zeros(1, 3, 28, 28)).last_hidden_state.shape)
    (1, 5, 32)

    ```
    """

    config_class = EvaClipVisionConfig
    config: EvaClipVisionConfig
    base_model_prefix = "eva_clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # ty: ignore[invalid-assignment]  # a tuple in the library's own models, too
    supports_gradient_checkpointing = True
    _no_split_modules = ["EvaClipBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": EvaClipBlock, "attentions": EvaClipAttention}

    def __init__(self, config: EvaClipVisionConfig):
        super().__init__(config)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embed = EvaClipPatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches + 1, config.hidden_size))
        self.blocks = nn.ModuleList(EvaClipBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EvaClipVisionModel):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.pos_embed, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        Load a tower from a folder or Hub repository that `save_pretrained` wrote, or from a published BLIP3-o
        checkpoint, which holds its tower under `model.gen_vision_tower.vision_tower.model.`

        Of a published checkpoint only the tower's tensors are read, and only the files that hold them. Its
        `config.json` does not know the tower, so the sizes are read from the shapes of its tensors; the image is as
        large as the positions times the patch. The number of heads leaves no trace in shapes: it is 16 for a width of
        1792 (EVA-CLIP-E-14-plus), and must be given for any other. Weights are never read from a pickle.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            kwargs: as in transformers. Fields of [`EvaClipVisionConfig`], such as `num_attention_heads`, replace what
                the checkpoint says.

        Raises:
            ValueError: naming the tensors that are missing, unexpected, not finite, or have the wrong shape; when
                there is no tower, or its number of heads is not known; when weights are damaged, or in pickles only.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        is_published = False
        if kwargs.get("config") is None:
            settings = config_settings(pretrained_model_name_or_path, **kwargs)
            is_published = settings.get("model_type") != EvaClipVisionConfig.model_type
        if is_published:
            kwargs["use_safetensors"] = True
            model, info = load_complete(cls._from_published, pretrained_model_name_or_path, *args, **kwargs)
        else:
            load = load_complete if pretrained_model_name_or_path is None else load_saved
            model, info = load(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        return (model, info) if wants_info else model

    @classmethod
    def _from_published(cls, source, *args, **kwargs):
        """`from_pretrained` for a published BLIP3-o checkpoint."""
        kwargs.pop("config", None)
        files = checkpoint_files(source, **{name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs})
        stored = transformers_tensors(files, TARGET_ENCODER)
        if not stored:
            raise ValueError(
                f"A checkpoint must hold an EVA-CLIP tower: tensors named {TARGET_ENCODER}*. {source} holds none. "
                f"Use a published BLIP3-o checkpoint, or a folder that EvaClipVisionModel.save_pretrained wrote."
            )
        sizes = {name: kwargs.pop(name) for name in inspect.get_annotations(EvaClipVisionConfig) if name in kwargs}
        config = published_tower_config(source, stored, sizes, compare_shapes=False)
        values = read_values(files, stored)
        tensors = {name.removeprefix(TARGET_ENCODER): value for name, value in values.items()}
        loaded: Any = super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)
        model, info = loaded
        check_finite(model, source, lambda name: located(stored, TARGET_ENCODER + name))
        model.name_or_path = model.config.name_or_path = str(source)
        return model, info

    # Wrapped for its signature: a pipeline of diffusers hands on only what that names, `variant` among it.
    @functools.wraps(PreTrainedModel.save_pretrained, assigned=())
    def save_pretrained(self, *args, **kwargs) -> None:
        """
        As in transformers, with plain weights: compiled and data-parallel parts are saved as what was wrapped. Other
        variants in the folder stay, and so does the `dtype` of the one without a variant.

        Raises:
            ValueError: when adapters are loaded into it; they would be saved in the place of its weights.
        """
        save_plain(self, super().save_pretrained, *args, **kwargs)

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """
        Args:
            pixel_values (`[B, num_channels, image_size, image_size]`): images as [`EvaClipImageProcessor`] prepares
                them.
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`.

        Returns:
            `BaseModelOutput` with `last_hidden_state` `[B, 1 + N, hidden_size]`: the class token, then the N patches
            row-major.

        Raises:
            ValueError: when the images do not have the config's size.
        """
        config = self.config
        expected = (config.num_channels, config.image_size, config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"The encoder reads images of shape [batch, {', '.join(map(str, expected))}]. Got "
                f"{list(pixel_values.shape)}. Prepare images with the encoder's image processor."
            )
        patches = self.patch_embed(pixel_values)
        hidden_states = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


def published_tower_config(
    source: str | os.PathLike,
    stored: Mapping[str, StoredTensor],
    sizes: Mapping[str, int] | None = None,
    compare_shapes: bool = True,
) -> EvaClipVisionConfig:
    """
    The configuration that the tensors of a tower in a published checkpoint imply, once they are those of a tower.

    Args:
        source: folder or Hub id, for errors.
        stored: the tower's tensors by their published names.
        sizes: fields of the configuration that the caller knows better.
        compare_shapes: whether the shapes of all tensors must agree, too.

    Raises:
        ValueError: when a tensor that tells a size is missing or has other dimensions, or the number of heads is not
            known; naming missing, unexpected and ill-shaped tensors.
    """
    sizes = sizes or {}
    inferred = published_tower_sizes(stored, source)
    hidden_size = inferred["hidden_size"]
    if "num_attention_heads" not in sizes and hidden_size != EvaClipVisionConfig.hidden_size:
        raise ValueError(
            f"The number of attention heads must be known, and a checkpoint does not tell it. {source} has a tower of "
            f"width {hidden_size}; only that of EVA-CLIP-E-14-plus, {EvaClipVisionConfig.hidden_size}, has a default. "
            f"Pass num_attention_heads=... to from_pretrained."
        )
    settings: dict[str, Any] = {**inferred, **sizes}
    config = EvaClipVisionConfig(**settings)
    with torch.device("meta"):
        tower = EvaClipVisionModel(config)
    expected = {TARGET_ENCODER + name: tuple(value.shape) for name, value in tower.state_dict().items()}
    check_tensors(stored, expected, source, compare_shapes=compare_shapes)
    return config


__all__ = ["EvaClipVisionModel", "published_tower_config"]
