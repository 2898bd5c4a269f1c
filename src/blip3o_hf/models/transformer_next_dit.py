"""The flow-matching transformer of BLIP3-o: a Next-DiT that denoises image features under a condition.

It predicts the velocity of the target features X from the noisy features, the noise level and the condition
Q (the backbone's hidden states at the query tokens). The paper takes the architecture from Lumina-Next
(section 3.2, "CLIP + Flow Matching"); this file owns every layer whose shape a checkpoint depends on, because
the private building blocks of diffusers change their widths between releases.

Shapes: B batch, S = (H / patch) * (W / patch) feature tokens, Q query tokens, D = `dim`, E = min(D, 1024).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from ..checks import check_sizes
from .condition_cache import Blip3oConditionCache, Blip3oModulation
from .feed_forward import feed_forward_dim
from .plain_weights import PlainModelMixin

TIME_FREQUENCY_DIM = 256
# Intervals are embedded by low frequencies: training a flow map differentiates by time, and high ones blow that up.
INTERVAL_SCALE = 0.01
ROPE_THETA = 10000.0
# These three are fixed in the reference, whatever `norm_eps` (which is for the RMSNorms alone).
QK_NORM_EPS = 1e-5
CAPTION_NORM_EPS = 1e-5
NORM_OUT_EPS = 1e-6
# Names of modules, as patterns: the blocks, what adds to the hidden states in them, and what comes after them.
_BLOCKS = r"layers\.\d+"
_BLOCK_PARTS = rf"{_BLOCKS}\.(attn[12]|feed_forward)"
_STACK_OUTPUT = "norm_out"


def timestep_sinusoid(timestep: Tensor, dim: int = TIME_FREQUENCY_DIM) -> Tensor:
    """
    Fourier features `[cos, sin]` of the timestep, in float32.

    Args:
        timestep (`Tensor` of shape `[B]`): 1000 * sigma, so 1000 is pure noise.
        dim (`int`): Number of features, half of them cosines.

    Returns:
        `Tensor` of shape `[B, dim]`.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_table(height: int, width: int, head_dim: int, device: torch.device | None = None) -> Tensor:
    """
    Cosines and sines of the two-dimensional rotary embedding of a grid, row-major.

    Angles alternate between the axes: row, column, row, column, ...; both use the same frequencies. The table
    is computed anew in every forward: a buffer would hold uninitialised memory after a meta-device load.

    Returns:
        float32 `Tensor` of shape `[height * width, head_dim / 2, 2]`, last axis `(cos, sin)`.
    """
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device) / (head_dim // 2)
    frequencies = 1.0 / (ROPE_THETA**exponent)
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * frequencies
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * frequencies
    rows = rows[:, None].expand(height, width, -1)
    columns = columns[None].expand(height, width, -1)
    angles = torch.stack([rows, columns], dim=-1).reshape(height * width, head_dim // 2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rotary(hidden_states: Tensor, rotary_emb: Tensor) -> Tensor:
    """
    Rotate adjacent pairs of channels, in float32.

    Args:
        hidden_states (`Tensor` of shape `[B, S, heads, head_dim]`): Queries or keys.
        rotary_emb (`Tensor` of shape `[S, head_dim / 2, 2]`): From [`rotary_table`].
    """
    if hidden_states.device.type == "cpu" and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(hidden_states.float().unflatten(-1, (-1, 2)))  # the same products, in one pass
        rotated = torch.view_as_real(pairs * torch.view_as_complex(rotary_emb)[:, None])
        return rotated.flatten(-2).type_as(hidden_states)
    return rotate_pairs(hidden_states, rotary_emb)


def rotate_pairs(hidden_states: Tensor, rotary_emb: Tensor) -> Tensor:
    """The same in products of real numbers, which compile."""
    cos, sin = rotary_emb[:, None].unbind(-1)
    first, second = hidden_states.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.flatten(-2).type_as(hidden_states)


class Blip3oRMSNorm(nn.RMSNorm):
    """RMSNorm in its weight's dtype: float32 under autocast, as the reference's, and one fused kernel."""

    # Called with its one argument by position.
    def forward(self, hidden_states: Tensor) -> Tensor:  # ty: ignore[lost-keyword-for-regular-parameter]
        return super().forward(hidden_states.to(self.weight.dtype))


class Blip3oPatchEmbed(nn.Module):
    """Cut the feature map into patches, row-major, and project each one: `[B, C, H, W]` to `[B, S, D]`."""

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * patch_size**2, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        patch = self.patch_size
        patches = hidden_states.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return self.proj(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class Blip3oConditionProjection(nn.Module):
    """Two-layer map of the backbone's width to the transformer's."""

    def __init__(self, condition_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(condition_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(encoder_hidden_states), approximate="tanh"))


class Blip3oTimestepEmbedding(nn.Module):
    """Two-layer map of the timestep's Fourier features."""

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIME_FREQUENCY_DIM, embedding_dim)
        self.linear_2 = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class Blip3oTimeConditionEmbedding(nn.Module):
    """
    The two summands of the modulation vector: embedded timestep and pooled condition, each `[B, E]`. A flow map also
    embeds the interval to the timestep that its step goes to; at first this adds nothing, so that a map which is made
    of a flow ([`~Blip3oTransformer2DModel.as_flow_map`]) begins as that flow.
    """

    def __init__(self, dim: int, embedding_dim: int, is_flow_map: bool = False):
        super().__init__()
        self.timestep_embedder = Blip3oTimestepEmbedding(embedding_dim)
        self.caption_embedder = nn.Sequential(nn.LayerNorm(dim, eps=CAPTION_NORM_EPS), nn.Linear(dim, embedding_dim))
        self.interval_embedder = None
        if is_flow_map:
            self.interval_embedder = Blip3oTimestepEmbedding(embedding_dim)
            nn.init.zeros_(self.interval_embedder.linear_2.weight)
            nn.init.zeros_(self.interval_embedder.linear_2.bias)

    def embed_time(self, timestep: Tensor, dtype: torch.dtype, r_timestep: Tensor | None = None) -> Tensor:
        embedded = self.timestep_embedder(timestep_sinusoid(timestep).to(dtype))
        if self.interval_embedder is None:
            return embedded
        interval = torch.zeros_like(timestep) if r_timestep is None else timestep - r_timestep
        return embedded + self.interval_embedder(timestep_sinusoid(INTERVAL_SCALE * interval).to(dtype))

    def embed_condition(self, context: Tensor) -> Tensor:
        return self.caption_embedder(context.float().mean(dim=1).to(context.dtype))


class Blip3oAttnProcessor:
    """Scaled dot-product attention through the diffusers dispatcher; heads stay apart for the gate."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: Blip3oAttention, hidden_states: Tensor, key: Tensor, value: Tensor, rotary_emb: Tensor
    ) -> Tensor:
        query = apply_rotary(attn.project_query(hidden_states), rotary_emb)
        if attn.kv_groups > 1:
            # Repeating serves every backend; consecutive query heads share a key head.
            key = key.repeat_interleave(attn.kv_groups, dim=2)
            value = value.repeat_interleave(attn.kv_groups, dim=2)
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )


class Blip3oAttention(nn.Module, AttentionModuleMixin):
    """
    Grouped-query attention with query and key normalised over the whole width, before the split into heads.

    Self-attention and cross-attention of a block share one output projection, which the cross-attention owns;
    hence `forward` returns the heads unmixed, `[B, S, heads, head_dim]`.
    """

    _default_processor_cls = Blip3oAttnProcessor
    _available_processors = (Blip3oAttnProcessor,)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, has_output: bool):
        super().__init__()
        self.heads = num_heads
        self.head_dim = dim // num_heads
        self.is_cross_attention = has_output  # by which caches of diffusers tell the two attentions apart
        self.kv_groups = num_heads // num_kv_heads
        kv_dim = num_kv_heads * self.head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, kv_dim, bias=False)
        self.to_v = nn.Linear(dim, kv_dim, bias=False)
        self.norm_q = nn.LayerNorm(dim, eps=QK_NORM_EPS)
        self.norm_k = nn.LayerNorm(kv_dim, eps=QK_NORM_EPS)
        if has_output:
            self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])
        self.set_processor(self._default_processor_cls())

    # Under autocast a LayerNorm returns float32; the casts keep query, key and value in one dtype.
    def project_query(self, hidden_states: Tensor) -> Tensor:
        query = self.to_q(hidden_states)
        return self.norm_q(query).type_as(query).unflatten(-1, (-1, self.head_dim))

    def project_key_value(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.to_k(hidden_states), self.to_v(hidden_states)
        key = self.norm_k(key).type_as(key).unflatten(-1, (-1, self.head_dim))
        return key, value.unflatten(-1, (-1, self.head_dim))

    def forward(self, hidden_states: Tensor, key: Tensor, value: Tensor, rotary_emb: Tensor) -> Tensor:
        return self.processor(self, hidden_states, key, value, rotary_emb)


class Blip3oFeedForward(nn.Module):
    """SwiGLU without biases; the gate's SiLU is taken in float32."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, ffn_dim, bias=False)
        self.linear_2 = nn.Linear(ffn_dim, dim, bias=False)
        self.linear_3 = nn.Linear(dim, ffn_dim, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate = self.linear_1(hidden_states)
        return self.linear_2(F.silu(gate.float()).to(gate.dtype) * self.linear_3(hidden_states))


class Blip3oAdaptiveRMSNorm(nn.Module):
    """RMSNorm scaled by the modulation vector, which also yields the other three modulations of the block."""

    def __init__(self, dim: int, embedding_dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(embedding_dim, 4 * dim)
        self.norm = Blip3oRMSNorm(dim, eps=eps)

    def modulation(self, temb: Tensor) -> Tensor:
        """Scales and gates of the block, `[B, 1, 4 * D]`, of modulation vectors `[B, E]`."""
        return self.linear(F.silu(temb))[:, None]

    def forward(
        self, hidden_states: Tensor, temb: Tensor, modulation: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        modulation = self.modulation(temb) if modulation is None else modulation
        scale_msa, gate_msa, scale_mlp, gate_mlp = modulation.chunk(4, dim=-1)
        return self.norm(hidden_states) * (1 + scale_msa), gate_msa, scale_mlp, gate_mlp


class Blip3oAdaptiveOutput(nn.Module):
    """LayerNorm scaled by the modulation vector, and the projection back to feature channels."""

    def __init__(self, dim: int, embedding_dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_OUT_EPS, elementwise_affine=False)
        self.linear_1 = nn.Linear(embedding_dim, dim)
        self.linear_2 = nn.Linear(dim, out_dim)

    def modulation(self, temb: Tensor) -> Tensor:
        """The scale, `[B, 1, D]`, of modulation vectors `[B, E]`."""
        return self.linear_1(F.silu(temb))[:, None]

    def forward(self, hidden_states: Tensor, temb: Tensor, scale: Tensor | None = None) -> Tensor:
        scale = self.modulation(temb) if scale is None else scale
        return self.linear_2(self.norm(hidden_states) * (1 + scale))


class Blip3oTransformerBlock(nn.Module):
    """
    Self-attention over the feature tokens plus gated cross-attention to the condition, then feed-forward.

    `tanh(gate)` weighs the cross-attention per head. With the usual `gate_init` of 0 an untrained block sees
    nothing of the condition but its pooled part in `temb`.
    """

    def __init__(
        self,
        dim: int,
        embedding_dim: int,
        num_heads: int,
        num_kv_heads: int,
        ffn_dim: int,
        norm_eps: float,
        gate_init: float,
    ):
        super().__init__()
        self.gate = nn.Parameter(torch.full((num_heads,), float(gate_init)))
        self.attn1 = Blip3oAttention(dim, num_heads, num_kv_heads, has_output=False)
        self.attn2 = Blip3oAttention(dim, num_heads, num_kv_heads, has_output=True)
        self.feed_forward = Blip3oFeedForward(dim, ffn_dim)
        self.norm1 = Blip3oAdaptiveRMSNorm(dim, embedding_dim, norm_eps)
        self.norm2 = Blip3oRMSNorm(dim, eps=norm_eps)
        self.ffn_norm1 = Blip3oRMSNorm(dim, eps=norm_eps)
        self.ffn_norm2 = Blip3oRMSNorm(dim, eps=norm_eps)
        self.norm1_context = Blip3oRMSNorm(dim, eps=norm_eps)

    def project_condition(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, `[B, Q, kv_heads, head_dim]`, of the projected condition."""
        return self.attn2.project_key_value(self.norm1_context(context))

    # The first argument keeps this name: the caching hooks of diffusers look it up.
    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: Tensor,
        context: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        constant: Tensor | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        if context is not None:
            key, value = self.project_condition(context)
        normed, gate_msa, scale_mlp, gate_mlp = self.norm1(hidden_states, temb, modulation)

        self_key, self_value = self.attn1.project_key_value(normed)
        self_attention = self.attn1(normed, apply_rotary(self_key, rotary_emb), self_value, rotary_emb)
        if constant is None:
            cross_attention = self.attn2(normed, key, value, rotary_emb)
        else:
            others = self.attn2(normed[len(constant) :], key, value, rotary_emb)
            cross_attention = torch.cat([constant.expand(-1, normed.shape[1], -1, -1), others])
        mixed = self_attention + self.gate.tanh()[:, None] * cross_attention
        attended = self.attn2.to_out[0](mixed.flatten(2))
        hidden_states = hidden_states + gate_msa.tanh() * self.norm2(attended)

        transformed = self.feed_forward(self.ffn_norm1(hidden_states) * (1 + scale_mlp))
        return hidden_states + gate_mlp.tanh() * self.ffn_norm2(transformed)


class Blip3oTransformer2DModel(PlainModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin, AttentionMixin):
    """
    Next-DiT that predicts the velocity of noisy image features.

    Args:
        in_channels (`int`): Channels of the features, in and out (1792 for EVA-CLIP-E).
        sample_size (`int`): Side of the feature grid the model was trained on. Other grids run too.
        patch_size (`int`): Side of a patch, in feature cells.
        dim (`int`): Width D.
        num_layers (`int`): Number of blocks.
        num_attention_heads (`int`): Number of query heads; the head width must be a multiple of 4.
        num_key_value_heads (`int`, *optional*): Number of key and value heads, by default as many.
        condition_dim (`int`): Width of the condition, which is the backbone's hidden size.
        multiple_of (`int`): The feed-forward width is rounded up to a multiple of this.
        ffn_dim_multiplier (`float`, *optional*): Factor on the feed-forward width before rounding.
        ffn_dim (`int`, *optional*): Feed-forward width, taken as it is instead of the rule above.
        norm_eps (`float`): Epsilon of the RMSNorms.
        gate_init (`float`): Initial cross-attention gate, before its tanh.
        is_flow_map (`bool`): Whether it predicts the mean velocity between two noise levels, for models of few steps
            (MeanFlow, arXiv 2505.13447), and so takes `r_timestep`.

    Raises:
        ValueError: If a size is no whole number of at least 1, the heads do not divide the width, or the key-value
            heads do not divide the heads.

    Example:

    >>> model = Blip3oTransformer2DModel(in_channels=4, dim=16, num_layers=1, num_attention_heads=2,
    ...                                  condition_dim=6, multiple_of=8)
    >>> model(torch.randn(2, 4, 8, 8), 500, encoder_hidden_states=torch.randn(2, 5, 6)).sample.shape
    torch.Size([2, 4, 8, 8])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Blip3oTransformerBlock",)
    _repeated_blocks = ("Blip3oTransformerBlock",)
    _skip_layerwise_casting_patterns = ("patch_embedder", "time_caption_embed", "norm")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1792,
        sample_size: int = 8,
        patch_size: int = 1,
        dim: int = 1792,
        num_layers: int = 24,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = None,
        condition_dim: int = 3584,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        ffn_dim: int | None = None,
        norm_eps: float = 1e-5,
        gate_init: float = 0.0,
        is_flow_map: bool = False,
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "sample_size": sample_size, "patch_size": patch_size, "dim": dim}
        sizes |= {"num_attention_heads": num_attention_heads, "condition_dim": condition_dim}
        check_sizes(**sizes, multiple_of=multiple_of, **({} if ffn_dim is None else {"ffn_dim": ffn_dim}))
        check_sizes(0, num_layers=num_layers)
        num_kv_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        if dim % num_attention_heads or (dim // num_attention_heads) % 4:
            raise ValueError(
                "`dim` must be `num_attention_heads` times a multiple of 4, which the two-axis rotary "
                f"embedding needs; received dim={dim} and num_attention_heads={num_attention_heads}. Choose "
                f"for instance dim={num_attention_heads * max(4, dim // num_attention_heads // 4 * 4)}."
            )
        if num_kv_heads < 1 or num_attention_heads % num_kv_heads:
            raise ValueError(
                "`num_key_value_heads` must divide `num_attention_heads`; received "
                f"num_key_value_heads={num_kv_heads} and num_attention_heads={num_attention_heads}. "
                "Leave it at None for one key-value head per query head."
            )
        embedding_dim = min(dim, 1024)
        if ffn_dim is None:
            ffn_dim = feed_forward_dim(dim, multiple_of, ffn_dim_multiplier)

        self.head_dim = dim // num_attention_heads
        self.patch_embedder = Blip3oPatchEmbed(in_channels, dim, patch_size)
        self.caption_projection = Blip3oConditionProjection(condition_dim, dim)
        self.time_caption_embed = Blip3oTimeConditionEmbedding(dim, embedding_dim, is_flow_map)
        self.layers = nn.ModuleList(
            Blip3oTransformerBlock(dim, embedding_dim, num_attention_heads, num_kv_heads, ffn_dim, norm_eps, gate_init)
            for _ in range(num_layers)
        )
        self.norm_out = Blip3oAdaptiveOutput(dim, embedding_dim, in_channels * patch_size**2)
        self.gradient_checkpointing = False

    def as_flow_map(self) -> Blip3oTransformer2DModel:
        """
        A flow map with the same weights, which predicts the same until it is trained; a new module.

        Raises:
            ValueError: If this is a flow map already.
        """
        if self.config.is_flow_map:
            raise ValueError(
                "A flow map is made of a transformer that predicts velocities; received one with is_flow_map=True. "
                "Start from the model that this one was made of."
            )
        settings = {name: value for name, value in self.config.items() if not name.startswith("_")}
        with torch.device(self.device):
            flow_map = type(self)(**{**settings, "is_flow_map": True})
        new = {name: tensor.to(self.dtype) for name, tensor in flow_map.state_dict().items()}
        weights = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
        flow_map.load_state_dict({**new, **weights}, assign=True)
        flow_map.gradient_checkpointing = self.gradient_checkpointing
        return flow_map

    def enable_cache(self, config) -> None:
        """
        Enable a diffusers cache of block outputs, e.g. `FirstBlockCacheConfig(threshold=0.1)`.

        A `TaylorSeerCacheConfig` that names no modules is for the attentions and feed-forwards of all blocks; its
        `use_lite_mode` is for the whole stack of blocks.
        """
        _register_block_for_caching()
        super().enable_cache(_with_our_names(config))

    def precompute_condition(self, encoder_hidden_states: Tensor, project_layers: bool = True) -> Blip3oConditionCache:
        """
        Do the work that depends on the condition alone, once for all denoising steps.

        Args:
            encoder_hidden_states (`Tensor` of shape `[B, Q, condition_dim]`): The condition. All zeros is the
                null condition of classifier-free guidance.
            project_layers (`bool`): Whether to compute every layer's keys and values now. False leaves that
                to the blocks, as a training step wants: parameter sharding, block offloading and gradient
                checkpointing all act on a block's own forward.

        Raises:
            ValueError: If the shape is not `[B, Q, condition_dim]`.
        """
        condition_dim = self.config.condition_dim
        if encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[-1] != condition_dim:
            raise ValueError(
                f"`encoder_hidden_states` must have shape [batch, query tokens, {condition_dim}]; received "
                f"{list(encoder_hidden_states.shape)}. Pass the backbone's hidden states at the query "
                "tokens, or build the transformer with `condition_dim` equal to the backbone's hidden size."
            )
        context = self.caption_projection(encoder_hidden_states)
        pooled = self.time_caption_embed.embed_condition(context)
        if not project_layers:
            return Blip3oConditionCache(pooled=pooled, context=context)
        keys, values = zip(*(layer.project_condition(context) for layer in self.layers), strict=True)
        return Blip3oConditionCache(pooled=pooled, keys=keys, values=values)

    def precompute_modulations(
        self, timesteps: Tensor, pooled: Tensor, r_timesteps: Tensor | None = None
    ) -> list[Blip3oModulation]:
        """
        What noise levels do in the blocks, of several denoising steps in one product for each block.

        Args:
            timesteps (`Tensor` of shape `[T]`): 1000 * sigma of each step.
            pooled (`Tensor` of shape `[B, E]`): Of the [`Blip3oConditionCache`].
            r_timesteps (`Tensor` of shape `[T]`, *optional*): Of a flow map, where each step goes.

        Returns:
            `list` of T [`Blip3oModulation`], for the argument `modulation` of the step's forward.
        """
        times = self.time_caption_embed.embed_time(timesteps, pooled.dtype, r_timesteps)
        temb = (times[:, None] + pooled).flatten(0, 1)
        blocks = [layer.norm1.modulation(temb).unflatten(0, (len(times), -1)) for layer in self.layers]
        output = self.norm_out.modulation(temb).unflatten(0, (len(times), -1))
        return [Blip3oModulation(tuple(block[step] for block in blocks), output[step]) for step in range(len(times))]

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        condition_cache: Blip3oConditionCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        modulation: Blip3oModulation | None = None,
        r_timestep: Tensor | float | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """
        Predict the velocity (noise minus features) at a noise level.

        Args:
            hidden_states (`Tensor` of shape `[B, in_channels, H, W]`): Noisy features.
            timestep (`Tensor` of shape `[B]`, or a scalar): 1000 * sigma; 1000 is pure noise. Keep it in
                float32 or integers: bfloat16 cannot tell 966 from 968.
            encoder_hidden_states (`Tensor` of shape `[B, Q, condition_dim]`, *optional*): The condition.
            condition_cache ([`Blip3oConditionCache`], *optional*): The same from [`precompute_condition`].
                Exactly one of the two must be given.
            attention_kwargs (`dict`, *optional*): Only `scale`, the weight of the active LoRA adapters.
            return_dict (`bool`): Whether to return an output object instead of a tuple.
            modulation ([`Blip3oModulation`], *optional*): From [`precompute_modulations`], for this timestep.
            r_timestep (`Tensor` of shape `[B]`, or a scalar, *optional*): Of a flow map, the timestep that the step
                goes to: the prediction is the mean velocity between both. By default the velocity at `timestep`.

        Returns:
            [`Transformer2DModelOutput`] whose `sample` is the velocity, `[B, in_channels, H, W]`.

        Raises:
            ValueError: If the shapes, the batch sizes or the choice of condition break the contract above.
        """
        if attention_kwargs:
            raise ValueError(
                f"`attention_kwargs` takes only the key 'scale'; received also {sorted(attention_kwargs)}. "
                "Choose an attention implementation with `set_attention_backend` instead."
            )
        if (encoder_hidden_states is None) == (condition_cache is None):
            received = "neither" if condition_cache is None else "both"
            raise ValueError(
                "Exactly one of `encoder_hidden_states` and `condition_cache` must be given; received "
                f"{received}. Pass the condition itself, or the result of `precompute_condition` when many "
                "steps share it."
            )
        batch, height, width = self._check_sample(hidden_states)
        if condition_cache is None:
            assert encoder_hidden_states is not None
            condition_cache = self.precompute_condition(encoder_hidden_states, project_layers=False)
        if condition_cache.batch_size != batch:
            raise ValueError(
                "The condition must have the batch size of `hidden_states`; received "
                f"{condition_cache.batch_size} conditions for {batch} samples. Repeat the condition first, "
                "e.g. `condition_cache.repeat_interleave(num_images_per_prompt)`."
            )
        if condition_cache.context is None and len(condition_cache.keys) != len(self.layers):
            raise ValueError(
                "`condition_cache` must come from this transformer; received keys of "
                f"{len(condition_cache.keys)} layers where the model has {len(self.layers)}. Call this "
                "model's own `precompute_condition`."
            )

        if r_timestep is not None and not self.config.is_flow_map:
            raise ValueError(
                "`r_timestep` is for a flow map; received it for a transformer with is_flow_map=False. Leave it out, "
                "or train a flow map first: docs/speed.md."
            )
        if modulation is not None and (len(modulation.blocks), len(modulation.output)) != (len(self.layers), batch):
            raise ValueError(
                f"`modulation` must be of this transformer and batch, {len(self.layers)} layers and {batch} samples; "
                f"received {len(modulation.blocks)} layers and {len(modulation.output)} samples. Call "
                "`precompute_modulations` with the `pooled` of `condition_cache`."
            )
        timestep = self._expand_timestep(timestep, batch, hidden_states.device)
        temb = condition_cache.pooled
        if modulation is None:
            to = None if r_timestep is None else self._expand_timestep(r_timestep, batch, hidden_states.device)
            temb = temb + self.time_caption_embed.embed_time(timestep, hidden_states.dtype, to)
        rotary_emb = rotary_table(height, width, self.head_dim, device=hidden_states.device)
        hidden_states = self.patch_embedder(hidden_states)

        for index, layer in enumerate(self.layers):
            condition = condition_cache.of_layer(index)
            if modulation is not None:
                condition = (*condition, modulation.blocks[index])
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(layer, hidden_states, temb, rotary_emb, *condition)
            else:
                hidden_states = layer(hidden_states, temb, rotary_emb, *condition)

        scale = None if modulation is None else modulation.output
        velocity = self._unpatchify(self.norm_out(hidden_states, temb, scale), height, width)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _check_sample(self, hidden_states: Tensor) -> tuple[int, int, int]:
        """Batch size, and rows and columns of the patch grid."""
        channels, patch = self.config.in_channels, self.config.patch_size
        shape = hidden_states.shape
        if len(shape) != 4 or shape[1] != channels or shape[2] % patch or shape[3] % patch:
            raise ValueError(
                f"`hidden_states` must have shape [batch, {channels}, height, width] with sides divisible by "
                f"{patch}; received {list(shape)}. Arrange feature tokens [batch, tokens, channels] as a "
                "map, and crop or pad its sides."
            )
        return shape[0], shape[2] // patch, shape[3] // patch

    @staticmethod
    def _expand_timestep(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
        timestep = torch.as_tensor(timestep, device=device)
        if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
            raise ValueError(
                f"`timestep` must be a scalar or have shape [{batch}], one per sample; received "
                f"{list(timestep.shape)}. Repeat it like the samples."
            )
        return timestep.expand(batch)

    def _unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """`[B, S, patch * patch * C]` to `[B, C, H, W]`; inside a token the channel is the fastest axis."""
        patch = self.config.patch_size
        patches = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (height, width))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _with_our_names(config: Any) -> Any:
    """A config of TaylorSeer with the names of this transformer's modules, where diffusers would look for others."""
    from diffusers import TaylorSeerCacheConfig  # with every hook of diffusers, hence late

    if not isinstance(config, TaylorSeerCacheConfig):
        return config
    if config.use_lite_mode:
        return replace(
            config, use_lite_mode=False, skip_predict_identifiers=[_BLOCKS], cache_identifiers=[_STACK_OUTPUT]
        )
    if config.skip_predict_identifiers is None and config.cache_identifiers is None:
        return replace(config, cache_identifiers=[_BLOCK_PARTS])
    return config


def _register_block_for_caching() -> None:
    """
    Tell diffusers how to read the block's output.

    The registry is not public and imports every transformer of diffusers, hence late and guarded. Without it
    the caches that need no registry still work, and diffusers itself refuses the others.
    """
    try:
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    except ImportError:
        return
    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    TransformerBlockRegistry.register(Blip3oTransformerBlock, metadata)
