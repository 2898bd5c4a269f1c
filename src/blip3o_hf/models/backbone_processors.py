"""What [`Blip3oProcessor`] takes over from a backbone: the chat template, and how images become tokens."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from .backbones import image_token_id
from .configuration_blip3o import has_vision

# Llama's template names the day; without its own default, prompts would change from day to day.
FIXED_DATE = "{%- set date_string = date_string | default('26 Jul 2024') -%}"
# Templates of many vision-language models drop a content that is a string, without an error.
LISTED_CONTENTS = (
    "{%- set listed = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}"
    "{%- set content = [{'type': 'text', 'text': message['content']}] -%}"
    "{%- else -%}{%- set content = message['content'] -%}{%- endif -%}"
    "{%- set listed.messages = listed.messages + [{'role': message['role'], 'content': content}] -%}"
    "{%- endfor -%}"
    "{%- set messages = listed.messages -%}"
)
BEGIN = "{{- bos_token -}}"
TILE_SIZES = ("rows", "cols")
"""What image processors that cut images into tiles return of each image (Idefics 3, SmolVLM)."""
UNREAD = (*TILE_SIZES, "num_crops", "num_patches")
"""What image processors return for the text alone; the backbone does not read it."""


def fitted_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    A backbone's chat template, so that its text is complete: it reads contents that are strings, and begins as the
    tokenizer would begin it.
    """
    if "date_string" in template:
        template = FIXED_DATE + template
    if "is string" not in template and re.search(r"""['".]type\b""", template):
        template = LISTED_CONTENTS + template
    word = "circle"
    messages = [{"role": "user", "content": word}]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert isinstance(text, str)  # it is not tokenized
    begin = tokenizer.bos_token
    adds_begin = begin is not None and tokenizer(word)["input_ids"][:1] == [tokenizer.bos_token_id]
    if adds_begin and not text.startswith(begin):
        template = BEGIN + template
    # Gemma 3 writes one token for an image and reads others; here the text names those that are read.
    if (boi := getattr(tokenizer, "boi_token", None)) and getattr(tokenizer, "image_token", None):
        template = template.replace(boi, tokenizer.image_token)
    return template


def image_token_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The placeholder that a backbone reads as an image; None for one that reads text only."""
    index = image_token_id(config)
    if index is None:
        return None
    token = tokenizer.convert_ids_to_tokens(index)
    assert not isinstance(token, list)  # of one id
    return token


def tokens_per_tile(config: PreTrainedConfig, settings: Mapping[str, Any]) -> int | None:
    """
    How many placeholders a backbone has for one picture that its vision tower reads; None where grids tell.

    Args:
        config: the backbone's.
        settings: those of its own processor, as saved.
    """
    if not has_vision(config):
        return None
    for name in ("image_seq_len", "image_seq_length"):
        if settings.get(name) is not None:
            return settings[name]
    if getattr(config, "mm_tokens_per_image", None) is not None:
        return config.mm_tokens_per_image
    patch, size = (getattr(config.vision_config, name, None) for name in ("patch_size", "image_size"))
    patch, size = (value[0] if isinstance(value, (list, tuple)) else value for value in (patch, size))
    if settings.get("patch_size") is not None and size is not None:
        number = (size // settings["patch_size"]) ** 2 + settings.get("num_additional_image_tokens", 0)
        return number - (settings.get("vision_feature_select_strategy") == "default")
    if getattr(config, "scale_factor", None) is not None and patch and size:
        return (size // patch) ** 2 // config.scale_factor**2
    return getattr(config, "image_seq_length", None)


def image_text(processor, image_inputs: Mapping[str, Any], image_idx: int) -> str:
    """
    The placeholders of an image with the marks around them, told by what the image processor returns.

    Args:
        processor: a [`Blip3oProcessor`].
        image_inputs: what its image processor returned.
        image_idx: which image.

    Raises:
        ValueError: when that does not tell how many placeholders an image has.
    """
    token, tokenizer, number = processor.image_token, processor.tokenizer, processor.num_image_tokens
    if image_inputs.get("image_grid_thw") is not None and number is None:
        grid = image_inputs["image_grid_thw"][image_idx]
        return token * (int(grid.prod()) // processor.image_processor.merge_size**2)
    if number is None:
        raise ValueError(
            f"An image processor must tell how many tokens an image has: by `image_grid_thw`, or by a fixed number. "
            f"{type(processor.image_processor).__name__} returns {', '.join(sorted(image_inputs))}. Set "
            f"`num_image_tokens`."
        )
    if all(name in image_inputs for name in TILE_SIZES):
        sizes = [[int(size) for row in image_inputs[name] for size in row] for name in TILE_SIZES]
        return _tiled_text(token * number, tokenizer, *(values[image_idx] for values in sizes))
    if "num_crops" in image_inputs:
        whole = f"\n\n{tokenizer.boi_token}{token * number}{tokenizer.eoi_token}\n\n"
        if not (num_crops := int(image_inputs["num_crops"][image_idx])):
            return whole
        crops = " ".join([whole] * num_crops)
        return f"Here is the original image {whole} and here are some crops to help you see better {crops}"
    if "num_patches" in image_inputs and getattr(tokenizer, "start_image_token", None):
        tiles = token * (number * int(image_inputs["num_patches"][image_idx]))
        return f"{tokenizer.start_image_token}{tiles}{tokenizer.end_image_token}"
    return token * number


def _tiled_text(placeholders: str, tokenizer: PreTrainedTokenizerBase, num_rows: int, num_columns: int) -> str:
    """An image as Idefics 3 and SmolVLM read it: its tiles row by row, then the whole of it, each with its mark."""
    mark = getattr(tokenizer, "fake_image_token", None) or "<fake_token_around_image>"
    whole = getattr(tokenizer, "global_image_token", None) or "<global-img>"
    rows = (
        "".join(f"{mark}<row_{row + 1}_col_{column + 1}>{placeholders}" for column in range(num_columns)) + "\n"
        for row in range(num_rows)
    )
    tiles = "".join(rows) + "\n" if num_rows else ""
    return f"{tiles}{mark}{whole}{placeholders}{mark}"


__all__ = ["FIXED_DATE", "TILE_SIZES", "UNREAD", "fitted_template", "image_text", "image_token_of", "tokens_per_tile"]
