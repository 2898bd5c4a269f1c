"""The embedded default's decoder: one small transformer from a grid of features to pixels, a patch per feature."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from ..checkpoints.loading import check_finite, load_complete
from ..checks import check_sizes
from .plain_weights import PlainModelMixin


@dataclass
class Blip3oPatchDecoderOutput(BaseOutput):
    """`sample` (`torch.Tensor` `[B, 3, H, W]`): images, 1 white and -1 black."""

    sample: torch.Tensor


class Blip3oPatchDecoderBlock(nn.Module):
    """Pre-norm transformer block with full self-attention."""

    def __init__(self, dim: int, num_attention_heads: int):
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(hidden_states)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + self.proj(attended)
        return hidden_states + self.fc2(F.gelu(self.fc1(self.norm2(hidden_states))))


class Blip3oPatchDecoder(PlainModelMixin, ConfigMixin):
    """
    Features to pixels, deterministic (the role of the paper's diffusion decoder, at toy scale).

    Args:
        in_channels: channels of the features.
        sample_size: height and width of the grid of features.
        patch_size: height and width in pixels of the patch that each feature becomes.
        dim, num_layers, num_attention_heads: width, depth and heads of the transformer.

    Raises:
        ValueError: for a size that is no whole number of at least 1.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 64,
        sample_size: int = 8,
        patch_size: int = 8,
        dim: int = 128,
        num_layers: int = 2,
        num_attention_heads: int = 4,
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "sample_size": sample_size, "patch_size": patch_size, "dim": dim}
        check_sizes(**sizes, num_attention_heads=num_attention_heads)
        check_sizes(0, num_layers=num_layers)
        self.proj_in = nn.Linear(in_channels, dim)
        self.position = nn.Parameter(torch.randn(sample_size**2, dim) * 0.02)
        self.blocks = nn.ModuleList(Blip3oPatchDecoderBlock(dim, num_attention_heads) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, 3 * patch_size**2)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        As in diffusers, but from safetensors alone, and an incomplete checkpoint is refused.

        Raises:
            ValueError: naming the tensors that are missing, not finite, or have the wrong shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True
        model, info = load_complete(super().from_pretrained, pretrained_model_name_or_path, **kwargs)
        check_finite(model, pretrained_model_name_or_path, str)
        return (model, info) if wants_info else model

    def forward(self, features: torch.Tensor, return_dict: bool = True):
        """
        Args:
            features (`[B, C, H, W]`): features as the target encoder gives them.

        Returns:
            [`Blip3oPatchDecoderOutput`] with images `[B, 3, H * patch_size, W * patch_size]`.

        Raises:
            ValueError: when the features are not `[B, in_channels, sample_size, sample_size]`.
        """
        config = self.config
        expected = (config.in_channels, config.sample_size, config.sample_size)
        if tuple(features.shape[1:]) != expected:
            raise ValueError(
                f"The decoder reads features of shape [batch, {', '.join(map(str, expected))}]. Got "
                f"{list(features.shape)}. Use the decoder that was trained for this model's features."
            )
        hidden_states = self.proj_in(features.flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            hidden_states = block(hidden_states)
        patches = self.proj_out(self.norm_out(hidden_states)).transpose(1, 2)
        size = config.sample_size * config.patch_size
        sample = F.fold(patches, (size, size), config.patch_size, stride=config.patch_size)
        return Blip3oPatchDecoderOutput(sample=sample) if return_dict else (sample,)


__all__ = ["Blip3oPatchDecoder", "Blip3oPatchDecoderOutput"]
