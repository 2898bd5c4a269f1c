"""Tiny repositories in the layout of published BLIP3-o checkpoints, with random weights.

Written from what is known of the reference alone, so that it can test the code that reads it: the flat config of
transformers 4.51, its tensor names, the tokenizer files of Qwen2.5-VL with three added tokens, and the diffusion
decoder beside the model. Every size differs from its neighbours where it can, so that nothing fits by accident.
"""

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

HIDDEN = 24
TEXT_LAYERS, TEXT_HEADS, TEXT_KV_HEADS, TEXT_FFN = 2, 4, 2, 56
VISION_HIDDEN, VISION_LAYERS, VISION_FFN, VISION_PATCH = 16, 2, 40, 14
DIM, DIT_LAYERS, DIT_HEADS, CHANNELS = 32, 3, 4, 12
NUM_QUERIES = 5
ENCODER_LAYERS, ENCODER_FFN = 1, 20

ARCHITECTURES = {"blip3o_qwen": "blip3oQwenForCausalLM", "blip3o_qwen_inference": "blip3oQwenForInferenceLM"}
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "[IMG]",
    "[/IMG]",
    "<image>",
)
VOCABULARY = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġ", "the"))
VOCAB = {token: index for index, token in enumerate([*VOCABULARY, *("".join(pair) for pair in MERGES)])}
TOKEN_IDS = {token: len(VOCAB) + index for index, token in enumerate(SPECIAL_TOKENS)}
VOCAB_SIZE = len(VOCAB) + len(SPECIAL_TOKENS)
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def feed_forward_width(multiplier: float | None = None, multiple_of: int = 256) -> int:
    """Width of the transformer's feed-forward layer, by the reference's rule."""
    width = math.floor(2 * (4 * DIM) / 3)
    if multiplier is not None:
        width = math.floor(multiplier * width)
    return multiple_of * math.ceil(width / multiple_of)


def published_config(model_type: str = "blip3o_qwen_inference", tied: bool = True, dtype: str = "float32") -> dict:
    """`config.json` as the reference saves it."""
    return {
        "architectures": [ARCHITECTURES[model_type]],
        "attention_dropout": 0.0,
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "eos_token_id": TOKEN_IDS["<|im_end|>"],
        "gen_hidden_size": CHANNELS,
        "gen_pooling": "early_pool2d_4",
        "gen_vision_tower": "eva-clip-E-14-plus",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "image_token_id": TOKEN_IDS["<|image_pad|>"],
        "initializer_range": 0.02,
        "intermediate_size": TEXT_FFN,
        "max_position_embeddings": 128000,
        "max_window_layers": 80,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": model_type,
        "n_query": NUM_QUERIES,
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": TEXT_LAYERS,
        "num_key_value_heads": TEXT_KV_HEADS,
        "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [1, 1, 1], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "transformers_version": "4.51.3",
        "use_cache": False,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "video_token_id": TOKEN_IDS["<|video_pad|>"],
        "vision_config": {
            "depth": VISION_LAYERS,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "hidden_size": VISION_HIDDEN,
            "in_channels": 3,
            "in_chans": 3,
            "intermediate_size": VISION_FFN,
            "model_type": "qwen2_5_vl",
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "patch_size": VISION_PATCH,
            "spatial_merge_size": 2,
            "spatial_patch_size": VISION_PATCH,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
        "vision_start_token_id": TOKEN_IDS["<|vision_start|>"],
        "vision_tower_pretrained": None,
        "vocab_size": VOCAB_SIZE,
    }


def published_shapes(
    tied: bool = True,
    num_key_value_heads: int = DIT_HEADS,
    ffn_dim_multiplier: float | None = None,
    target_encoder: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by its published name."""
    kv_text = HIDDEN // TEXT_HEADS * TEXT_KV_HEADS
    merged = 4 * VISION_HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "model.latent_queries": (1, NUM_QUERIES, HIDDEN),
        "visual.patch_embed.proj.weight": (VISION_HIDDEN, 3, 2, VISION_PATCH, VISION_PATCH),
        "visual.merger.ln_q.weight": (VISION_HIDDEN,),
        "visual.merger.mlp.0.weight": (merged, merged),
        "visual.merger.mlp.0.bias": (merged,),
        "visual.merger.mlp.2.weight": (HIDDEN, merged),
        "visual.merger.mlp.2.bias": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (VOCAB_SIZE, HIDDEN)
    for layer in range(TEXT_LAYERS):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", HIDDEN), ("k", kv_text), ("v", kv_text)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (width, HIDDEN)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
        shapes |= {
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}mlp.gate_proj.weight": (TEXT_FFN, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (TEXT_FFN, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, TEXT_FFN),
            f"{prefix}input_layernorm.weight": (HIDDEN,),
            f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
        }
    for layer in range(VISION_LAYERS):
        prefix = f"visual.blocks.{layer}."
        shapes |= {f"{prefix}norm1.weight": (VISION_HIDDEN,), f"{prefix}norm2.weight": (VISION_HIDDEN,)}
        for name, out_dim, in_dim in (
            ("attn.qkv", 3 * VISION_HIDDEN, VISION_HIDDEN),
            ("attn.proj", VISION_HIDDEN, VISION_HIDDEN),
            ("mlp.gate_proj", VISION_FFN, VISION_HIDDEN),
            ("mlp.up_proj", VISION_FFN, VISION_HIDDEN),
            ("mlp.down_proj", VISION_HIDDEN, VISION_FFN),
        ):
            shapes |= {f"{prefix}{name}.weight": (out_dim, in_dim), f"{prefix}{name}.bias": (out_dim,)}
    shapes |= _transformer_shapes(num_key_value_heads, feed_forward_width(ffn_dim_multiplier))
    if target_encoder:
        shapes |= _target_encoder_shapes()
    return shapes


def _transformer_shapes(num_key_value_heads: int, ffn: int) -> dict[str, tuple[int, ...]]:
    prefix, embedding = "model.dit.model.", min(DIM, 1024)
    kv = DIM // DIT_HEADS * num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out_dim, in_dim in (
        ("caption_projection.linear_1", DIM, HIDDEN),
        ("caption_projection.linear_2", DIM, DIM),
        ("patch_embedder.proj", DIM, CHANNELS),
        ("time_caption_embed.timestep_embedder.linear_1", embedding, 256),
        ("time_caption_embed.timestep_embedder.linear_2", embedding, embedding),
        ("time_caption_embed.caption_embedder.1", embedding, DIM),
        ("norm_out.linear_1", DIM, embedding),
        ("norm_out.linear_2", CHANNELS, DIM),
    ):
        shapes |= {f"{prefix}{name}.weight": (out_dim, in_dim), f"{prefix}{name}.bias": (out_dim,)}
    shapes[f"{prefix}time_caption_embed.caption_embedder.0.weight"] = (DIM,)
    shapes[f"{prefix}time_caption_embed.caption_embedder.0.bias"] = (DIM,)
    for layer in range(DIT_LAYERS):
        block = f"{prefix}layers.{layer}."
        shapes[f"{block}gate"] = (DIT_HEADS,)
        for attention in ("attn1", "attn2"):
            for name, width in (("q", DIM), ("k", kv), ("v", kv)):
                shapes[f"{block}{attention}.to_{name}.weight"] = (width, DIM)
            for name, width in (("q", DIM), ("k", kv)):
                shapes[f"{block}{attention}.norm_{name}.weight"] = (width,)
                shapes[f"{block}{attention}.norm_{name}.bias"] = (width,)
        shapes |= {
            f"{block}attn2.to_out.0.weight": (DIM, DIM),
            f"{block}feed_forward.linear_1.weight": (ffn, DIM),
            f"{block}feed_forward.linear_2.weight": (DIM, ffn),
            f"{block}feed_forward.linear_3.weight": (ffn, DIM),
            f"{block}norm1.linear.weight": (4 * DIM, embedding),
            f"{block}norm1.linear.bias": (4 * DIM,),
            **{f"{block}{name}.weight": (DIM,) for name in ("norm1.norm", "norm2", "ffn_norm1", "ffn_norm2")},
            f"{block}norm1_context.weight": (DIM,),
        }
    return shapes


def _target_encoder_shapes() -> dict[str, tuple[int, ...]]:
    prefix = "model.gen_vision_tower.vision_tower.model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}cls_token": (1, 1, CHANNELS),
        f"{prefix}pos_embed": (1, 1025, CHANNELS),
        f"{prefix}patch_embed.proj.weight": (CHANNELS, 3, 14, 14),
        f"{prefix}patch_embed.proj.bias": (CHANNELS,),
    }
    for layer in range(ENCODER_LAYERS):
        block = f"{prefix}blocks.{layer}."
        for name, shape in (
            ("norm1", (CHANNELS,)),
            ("attn.qkv", (3 * CHANNELS, CHANNELS)),
            ("attn.proj", (CHANNELS, CHANNELS)),
            ("norm2", (CHANNELS,)),
            ("mlp.fc1", (ENCODER_FFN, CHANNELS)),
            ("mlp.fc2", (CHANNELS, ENCODER_FFN)),
        ):
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype=torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Values that no initialisation would give: gates, norms and biases are random, too."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 and "latent_queries" not in name else 4
        values = values / math.sqrt(fan_in) + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
        tensors[name] = values.to(dtype)
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """`model.safetensors`, or shards with their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        in_shard = names[shard::shards]
        save_file({name: tensors[name] for name in in_shard}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(in_shard, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(folder: Path, fast: bool = True) -> None:
    """`tokenizer.json`, or only `vocab.json` and `merges.txt`; either with `tokenizer_config.json`."""
    (folder / "vocab.json").write_text(json.dumps(VOCAB, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(TOKEN_IDS))
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, index in TOKEN_IDS.items()
    }
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 512,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if fast:
        tokenizer = Tokenizer(models.BPE(VOCAB, list(MERGES)))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern=Regex(SPLIT_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.save(str(folder / "tokenizer.json"))


def write_image_processor(folder: Path) -> None:
    """`preprocessor_config.json` as Qwen2.5-VL has it, with small areas."""
    settings = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 112 * 112,
        "merge_size": 2,
        "min_pixels": 56 * 56,
        "patch_size": VISION_PATCH,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def write_diffusion_decoder(folder: Path) -> None:
    """`diffusion-decoder/{unet,vae,scheduler}` with random weights."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=CHANNELS,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=CHANNELS + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    for name, component in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        component.save_pretrained(folder / "diffusion-decoder" / name)


def write_published_checkpoint(
    folder: Path,
    *,
    model_type: str = "blip3o_qwen_inference",
    tied: bool = True,
    shards: int = 1,
    num_key_value_heads: int = DIT_HEADS,
    ffn_dim_multiplier: float | None = None,
    target_encoder: bool = False,
    diffusion_decoder: bool = False,
    tokenizer: str | None = "fast",
    image_processor: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """
    Write a repository as the reference publishes it.

    Args:
        folder: created where missing.
        model_type: `blip3o_qwen` (the training class) or `blip3o_qwen_inference`.
        tied: whether the output layer is the input embeddings, as in the 4B model, and so not stored.
        shards: 1 for a single file.
        num_key_value_heads: key-value heads of the transformer, at most 4.
        ffn_dim_multiplier: factor on the width of its feed-forward layers.
        target_encoder: whether the EVA tower is stored, too, as training does.
        diffusion_decoder: whether `diffusion-decoder/` is written.
        tokenizer: `"fast"` (`tokenizer.json`), `"slow"` (`vocab.json` and `merges.txt` alone) or `None`.
        image_processor: whether `preprocessor_config.json` is written.

    Returns:
        Every tensor by its published name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = published_shapes(tied, num_key_value_heads, ffn_dim_multiplier, target_encoder)
    tensors = random_tensors(shapes, dtype, seed)
    write_weights(folder, tensors, shards)
    config = published_config(model_type, tied, str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {
        "_from_model_config": True,
        **{name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")},
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    if tokenizer is not None:
        write_tokenizer(folder, fast=tokenizer == "fast")
    if image_processor:
        write_image_processor(folder)
    if diffusion_decoder:
        write_diffusion_decoder(folder)
    return tensors
