"""Folders of tiny random vision-language backbones, with the files that published ones have."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

CHATML = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{- 'IMAGE' -}}"
    "{%- else -%}{{- item['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# As those of LLaVA and SmolVLM: a content that is a string says nothing.
LISTS_ONLY = (
    "{% for message in messages %}{{ message['role'] | upper }}{% if message['content'][0]['type'] == 'image' %}:"
    "{% else %}: {% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "smolvlm", "idefics3", "internvl", "gemma3")
TILED = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
NAMES = {
    "idefics3": {},
    "llava": {},
    "smolvlm": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    },
    "internvl": {
        **{"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
        "video_token": "<video>",
    },
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
}
PLAIN = {"idefics3": ["<fake_token_around_image>", "<image>", "<global-img>", *TILED], "smolvlm": TILED}
IMAGE_TOKENS = {"llava": "<image>", "smolvlm": "<image>", "idefics3": "<image>", "internvl": "<IMG_CONTEXT>"}
IMAGE_TOKENS |= {"gemma3": "<image_soft_token>"}
WRITTEN = {"gemma3": "<start_of_image>"}


def make_tokenizer(family: str, trained: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer.__class__.from_str(trained.backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
        extra_special_tokens=NAMES.get(family, {}),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": PLAIN.get(family, [])})
    return tokenizer


def make_image_processor(family: str):
    if family.startswith("qwen"):
        area = {"shortest_edge": 256, "longest_edge": 1024}
        return Qwen2VLImageProcessorPil(patch_size=8, merge_size=1, temporal_patch_size=1, size=area)
    square = {"height": 16, "width": 16}
    if family == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=square)
    if family == "gemma3":
        return Gemma3ImageProcessorPil(size=square)
    if family == "internvl":
        return GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, min_patches=1, max_patches=3)
    tiled = {"smolvlm": SmolVLMImageProcessorPil, "idefics3": Idefics3ImageProcessorPil}[family]
    return tiled(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})


def make_config(family: str, tokenizer: PreTrainedTokenizerFast):
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS.get(family, "<|image_pad|>"))
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"image_size": 16, "patch_size": 8}
    if family.startswith("qwen"):
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
        vision |= {"spatial_merge_size": 1, "temporal_patch_size": 1, "out_hidden_size": 32}
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
        linear |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
        more = {
            "qwen2_vl": {"embed_dim": 16, "mlp_ratio": 2},
            "qwen2_5_vl": {"window_size": 32, "fullatt_block_indexes": [1]},
            "qwen3_vl": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            "qwen3_5": {"num_position_embeddings": 16},
        }[family]
        names = {"video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
        ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
        return AutoConfig.for_model(
            family,
            text_config={**text, "rope_parameters": rope, **(linear if family == "qwen3_5" else {})},
            vision_config={**vision, **more},
            image_token_id=image,
            **ids,
        )
    settings = {
        "llava": {"image_token_index": image, "vision_feature_layer": -1},
        "smolvlm": {"image_token_id": image, "scale_factor": 1},
        "idefics3": {"image_token_id": image, "scale_factor": 1},
        "internvl": {"image_token_id": image, "downsample_ratio": 1.0, "image_seq_length": 4},
        "gemma3": {"image_token_index": image, "mm_tokens_per_image": 4},
    }[family]
    kind = {"internvl": "qwen2", "gemma3": "gemma3_text"}.get(family, "llama")
    if family == "gemma3":
        text |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    if family == "internvl":
        tower |= {"image_size": [16, 16], "patch_size": [8, 8]}
    vision = AutoConfig.for_model("clip_vision_model", **tower) if family == "llava" else tower
    return AutoConfig.for_model(
        family, text_config=AutoConfig.for_model(kind, **text), vision_config=vision, **settings
    )


def make_folder(family: str, folder: Path, trained: PreTrainedTokenizerFast) -> Path:
    """A published backbone of a family, as its files would stand on the Hub."""
    tokenizer = make_tokenizer(family, trained)
    tokenizer.save_pretrained(folder)
    make_image_processor(family).save_pretrained(folder)
    config = make_config(family, tokenizer)
    auto = AutoModelForImageTextToText if type(config) in AutoModelForImageTextToText._model_mapping else None
    torch.manual_seed(0)
    backbone = (auto or AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.save_pretrained(folder)
    template = LISTS_ONLY if family in ("llava", "smolvlm", "idefics3") else CHATML
    written = WRITTEN.get(family, IMAGE_TOKENS.get(family, "<|vision_start|><|image_pad|><|vision_end|>"))
    (folder / "chat_template.jinja").write_text(template.replace("IMAGE", written))
    settings = {"llava": {"patch_size": 8, "vision_feature_select_strategy": "default"}}
    settings["llava"]["num_additional_image_tokens"] = 1
    settings |= {"smolvlm": {"image_seq_len": 4}, "idefics3": {"image_seq_len": 4}, "gemma3": {"image_seq_length": 4}}
    if family in settings:
        (folder / "processor_config.json").write_text(json.dumps(settings[family]))
    return folder
