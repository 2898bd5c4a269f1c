"""Tiny random backbones of many families, and prompts for them, with images where they see."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

VOCABULARY, IMAGE, VIDEO, START, END = 64, 60, 61, 62, 63
HIDDEN = 32
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LAYERS = ["linear_attention", "full_attention"]
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
MAMBA |= {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 64}

GPT = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 128}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
LATENT |= {"first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 4, "head_dim": 4}
HEADS = {"num_heads": 8, "n_groups": 1, "chunk_size": 4}
SLIDING = ["sliding_attention", "full_attention"]

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}

TEXT_FAMILIES: dict[str, dict] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "cohere2": {"sliding_window": 6},
    "ctrl": {**GPT, "dff": 48},
    "deepseek_v3": LATENT,
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "layer_types": SLIDING},
    "gemma3n_text": {
        **{"num_hidden_layers": 4, "layer_types": 2 * SLIDING, "sliding_window": 6, "num_kv_shared_layers": 0},
        **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4},
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        **{"num_hidden_layers": 4, "layer_types": 2 * SLIDING, "sliding_window": 6, "num_kv_shared_layers": 2},
        **{"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    },
    "gpt2": GPT,
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"sliding_window": 6, **EXPERTS},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": {},
    "llama": {},
    "llama4_text": {**EXPERTS, "attention_chunk_size": 16, "intermediate_size_mlp": 48},
    "mistral": {"sliding_window": 6},
    "modernbert-decoder": {"local_attention": 6, "layer_types": SLIDING},
    "moshi": {"sliding_window": 6, "num_codebooks": 2, "ffn_dim": 48},
    "mpt": {"d_model": HIDDEN, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
    "phi3": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "roberta": {**NO_DROPOUT, "is_decoder": True},
    "roformer": {**NO_DROPOUT, "is_decoder": True, "embedding_size": HIDDEN},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "trocr": {"d_model": HIDDEN, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": MAMBA,
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "git": {"vision_config": SIGLIP},
    "granitemoehybrid": {**MAMBA, **EXPERTS, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{**EXPERTS, "mamba_d_state": 8, "use_mamba_kernels": False},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "head_dim": 8, **HEADS},
    "minimax": {**EXPERTS, "block_size": 4, "layer_types": LAYERS},
    "nemotron_h": {
        **{**MAMBA, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8},
        **{"ssm_state_size": 8, "n_groups": 1, "chunk_size": 4},
    },
    "olmo_hybrid": {**LINEAR, "layer_types": LAYERS, "num_key_value_heads": 4},
    "qwen3_5_text": {**LINEAR, "layer_types": LAYERS},
    "qwen3_next": {**EXPERTS, **LINEAR, "layer_types": LAYERS},
    "recurrent_gemma": {"lru_width": HIDDEN, "attention_window_size": 6, "num_hidden_layers": 3},
    "rwkv": {"attention_hidden_size": HIDDEN, "context_length": 128},
    "xlm": {"emb_dim": HIDDEN, "n_layers": 2, "n_heads": 4, "n_langs": 1, "causal": True},
    "zamba2": {
        **{**MAMBA, "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 4, "num_mem_blocks": 1},
        **{"layers_block_type": ["mamba", "hybrid"], "use_mem_rope": True, "num_key_value_heads": 4},
        "attention_head_dim": 16,
    },
}


def _qwen_vision(**settings) -> dict:
    return {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 1,
        "temporal_patch_size": 1,
        "out_hidden_size": HIDDEN,
        **settings,
    }


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def _text(family: str, **settings):
    return AutoConfig.for_model(family, **{**TEXT, **settings})


VISION_FAMILIES: dict[str, Callable[[], dict]] = {
    "qwen2_vl": lambda: {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": {**_qwen_vision(embed_dim=16, mlp_ratio=2), "hidden_size": HIDDEN},
    },
    "qwen2_5_vl": lambda: {
        "text_config": {**TEXT, "rope_parameters": ROPE},
        "vision_config": _qwen_vision(window_size=16, fullatt_block_indexes=[1]),
    },
    "qwen3_vl": lambda: {
        "text_config": {**TEXT, "num_hidden_layers": 3, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        "vision_config": _qwen_vision(deepstack_visual_indexes=[0, 1], num_position_embeddings=16),
    },
    "qwen3_5": lambda: {
        "text_config": {
            **{**TEXT, **LINEAR, "layer_types": LAYERS},
            "rope_parameters": {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
        },
        "vision_config": _qwen_vision(num_position_embeddings=16),
    },
    "llava": lambda: {
        "text_config": _text("llama"),
        "vision_config": AutoConfig.for_model("clip_vision_model", **SIGLIP),
        "vision_feature_layer": -1,
        "image_token_index": IMAGE,
        "image_seq_length": 4,
    },
    "smolvlm": lambda: {
        "text_config": _text("llama"),
        "vision_config": SIGLIP,
        "scale_factor": 1,
    },
    "idefics3": lambda: {
        "text_config": _text("llama"),
        "vision_config": SIGLIP,
        "scale_factor": 1,
    },
    "internvl": lambda: {
        "text_config": _text("qwen2"),
        "vision_config": {**SIGLIP, "image_size": [8, 8], "patch_size": [4, 4]},
        "downsample_ratio": 1.0,
        "image_seq_length": 4,
    },
    "gemma3": lambda: {
        "text_config": _text("gemma3_text", sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
    },
}


FAMILIES = (*VISION_FAMILIES, *TEXT_FAMILIES)


def backbone_config(family: str) -> PreTrainedConfig:
    if family in TEXT_FAMILIES:
        return AutoConfig.for_model(family, **{**TEXT, **TEXT_FAMILIES[family]})
    settings = VISION_FAMILIES[family]()
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    return AutoConfig.for_model(family, **({} if "image_token_index" in settings else ids), **settings)


@dataclass(frozen=True)
class Prompts:
    """Prompts of several lengths, with images of four placeholders each where the family sees."""

    rows: list[torch.Tensor]
    num_images: list[int]
    pixels: dict[str, torch.Tensor]

    @classmethod
    def of(cls, family: str, lengths: tuple[int, ...] = (9, 14, 5)) -> "Prompts":
        generator = torch.Generator().manual_seed(3)
        num_images = [1, 2, 1] if family in VISION_FAMILIES else [0, 0, 0]
        rows = []
        for length, number in zip(lengths, num_images, strict=True):
            ids = torch.randint(3, 50, (length,), generator=generator).tolist()
            for _ in range(number):
                ids[2:2] = [START, *[IMAGE] * 4, END]
            rows.append(torch.tensor(ids))
        pixels = _pixels(family, num_images, generator) if any(num_images) else {}
        return cls(rows, num_images, pixels)

    def batch(self, side: str = "left") -> dict[str, torch.Tensor]:
        longest = max(map(len, self.rows))
        ids, mask = [], []
        for row in self.rows:
            padding = torch.zeros(longest - len(row), dtype=torch.long)
            order = (padding, row) if side == "left" else (row, padding)
            ids.append(torch.cat(order))
            mask.append(torch.cat([torch.ones_like(part) if part is row else part for part in order]))
        return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask), **self.pixels}

    def alone(self, index: int) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": self.rows[index][None]}
        begin, end = sum(self.num_images[:index]), sum(self.num_images[: index + 1])
        for name, value in self.pixels.items():
            if name == "pixel_values" and "image_grid_thw" in self.pixels:
                inputs[name] = value[4 * begin : 4 * end]
            elif value.ndim == 5:
                inputs[name] = value[index : index + 1, : self.num_images[index]]
            else:
                inputs[name] = value[begin:end]
        return inputs


def _pixels(family: str, num_images: list[int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    total = sum(num_images)
    if family.startswith("qwen"):
        grids = torch.tensor([[1, 2, 2]] * total)
        return {"pixel_values": torch.randn(4 * total, 3 * 16, generator=generator), "image_grid_thw": grids}
    pixels = torch.randn(total, 3, 8, 8, generator=generator)
    if family in ("smolvlm", "idefics3"):
        rows = torch.zeros(len(num_images), max(num_images), 3, 8, 8)
        for row, images in zip(rows, pixels.split(num_images), strict=True):
            row[: len(images)] = images
        return {"pixel_values": rows}
    return {"pixel_values": pixels}
