"""What the model needs from any backbone: reading prompts with images, and a cache for the queries after them."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.configuration_utils import PreTrainedConfig

# Layers of a cache that hold one entry for each token. All others hold a state that stands for many tokens at once.
_TOKEN_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    DynamicIndexedLayer,
    # Newer than the transformers of other engines, which exported code also runs on.
    getattr(cache_utils, "DummyLayer", DynamicLayer),
)
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which backbones take the kind of each token: 0 for text, 1 for an image, 2 for a video."""


def vision_or_text_model(backbone_config: PreTrainedConfig):
    """The Auto class that builds `backbone_config`: image-text-to-text where it exists, else causal LM."""
    if type(backbone_config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@torch.no_grad()
def embed_new_tokens(backbone: PreTrainedModel, first: int, end: int) -> None:
    """Give the tokens from `first` up to `end` the mean of all embeddings before them."""
    embeddings = backbone.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # the library resizes no others
    if end > embeddings.num_embeddings:
        backbone.resize_token_embeddings(end)
        embeddings = backbone.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
    weight = embeddings.weight
    weight[first:end] = weight[:first].float().mean(dim=0).to(weight.dtype)


def accepts(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has an argument of this name."""
    return name in signature(module.forward).parameters


def check_backbone_config(config: PreTrainedConfig) -> None:
    """
    A check before a backbone is built: of an encoder with a decoder, the library may build the decoder alone, and it
    then changes this config to that of a decoder.

    Raises:
        ValueError: when the config is of an encoder with a decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"A backbone must be one autoregressive model that reads the prompt and the queries after it. Got "
            f"{config.model_type!r}, which is an encoder with a decoder. Choose a model without an encoder of text."
        )


def check_backbone(backbone: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: when the backbone is not autoregressive, so that nothing could be read in the middle of its
            sequence; or when it cannot read queries, which are embeddings without token ids.
    """
    config = backbone.config
    check_backbone_config(config)
    text_config = config.get_text_config(decoder=True)
    is_bidirectional = getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    # Without `add_cross_attention`, nothing but the word is set by `is_decoder` (GPT-NeoX).
    is_encoder = getattr(text_config, "is_decoder", True) is False and hasattr(
        type(text_config), "add_cross_attention"
    )
    if is_bidirectional or is_encoder:
        raise ValueError(_attends_both_ways(backbone))
    if hasattr(type(text_config), "lsh_attn_chunk_length"):
        raise ValueError(
            f"A backbone must read sequences of any length. Got {config.model_type!r}, which reads them in chunks of "
            f"one length. Choose another backbone."
        )
    _check_reads_embeddings(backbone)


def _attends_both_ways(backbone: PreTrainedModel) -> str:
    return (
        f"A backbone must be autoregressive: no token may see those after it. Got {backbone.config.model_type!r}, "
        f"which attends in both directions. Choose a causal model, or set `is_decoder=True` where its config has it."
    )


def _check_reads_embeddings(backbone: PreTrainedModel) -> None:
    """Raise `ValueError` when a text stack cannot read queries."""
    decoder, kind = text_stack(backbone), backbone.config.model_type
    reads_ids = "A backbone must read embeddings in the place of token ids, for queries have no ids."
    if not accepts(decoder, "inputs_embeds"):
        raise ValueError(f"{reads_ids} Got {kind!r}, which takes no `inputs_embeds`. Choose another backbone.")
    embeddings, hidden_size = backbone.get_input_embeddings(), backbone.config.get_text_config().hidden_size
    # Parts that must be given ids (hashed experts, n-grams). Those that take either have a default.
    for part in {type(module): module for module in decoder.modules()}.values():
        parameter = signature(part.forward).parameters.get("input_ids")
        is_table = isinstance(part, (nn.Embedding, type(embeddings)))
        if parameter is not None and parameter.default is parameter.empty and not is_table:
            raise ValueError(
                f"{reads_ids} Got {kind!r}, whose {type(part).__name__} reads ids. Choose another backbone, or a "
                f"config without this part."
            )
    if isinstance(embeddings, nn.Embedding) and embeddings.embedding_dim != hidden_size:
        raise ValueError(
            f"A backbone must have embeddings as wide as its hidden states, for queries are as wide as both. Got "
            f"{kind!r} with {embeddings.embedding_dim} and {hidden_size}. Choose a backbone in which they are equal."
        )


def image_token_id(config: PreTrainedConfig) -> int | None:
    """The id of the placeholder of images, which backbones name in several ways; None where there is none."""
    names = ("image_token_id", "image_token_index")
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def text_stack(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone's text stack without its output layer."""
    decoder = backbone.get_decoder()
    if not isinstance(decoder, PreTrainedModel):  # ModernBERT has its output layer under this name
        decoder = cast("PreTrainedModel", backbone.base_model)
    while decoder.get_output_embeddings() is not None:
        inner = [module for module in decoder.children() if isinstance(module, PreTrainedModel)]
        if len(inner) != 1:
            raise ValueError(
                f"A backbone must have a text stack that gives hidden states. {type(decoder).__name__} of "
                f"{backbone.config.model_type!r} has none that could be found. Choose another backbone."
            )
        decoder = inner[0]
    return decoder


def reading_model(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone without its output layer: what reads token ids, and images with them, and gives hidden states."""
    base_model: PreTrainedModel = backbone.base_model  # ty: ignore[invalid-assignment]  # typed as any module
    return text_stack(backbone) if base_model.get_output_embeddings() is not None else base_model


def token_types(backbone: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    The kind of each token, under each name that a vision-language backbone takes it. Placeholder ids tell it. Without
    it the libraries fall back to a causal mask over images, or to positions of text, and say nothing.
    """
    image = image_token_id(backbone.config)
    if image is None:
        return {}  # GIT puts images before the prompt
    kinds = (input_ids == image).int()
    video = getattr(backbone.config, "video_token_id", None)
    if video is not None:
        kinds = kinds + 2 * (input_ids == video).int()
    return {name: kinds for name in TOKEN_TYPES if accepts(backbone, name)}


def left_aligned(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, others: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """
    Prompts with their padding on the left. Queries follow the last real token then, which recurrent layers and
    sliding windows need: they count padding as tokens.

    Args:
        input_ids, attention_mask (`[B, L]`): prompts padded on either side.
        others: further inputs; those of the prompts' shape are moved alike.
    """
    length = input_ids.shape[1]
    steps = torch.arange(length, device=input_ids.device)
    num_padding = length - 1 - (attention_mask.long() * steps).amax(-1, keepdim=True)  # on the right
    order = (steps - num_padding) % length
    moved = {name: value.gather(1, order) if name in TOKEN_TYPES else value for name, value in others.items()}
    return input_ids.gather(1, order), attention_mask.gather(1, order), moved


def read(
    backbone: PreTrainedModel,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_inputs: Mapping[str, torch.Tensor],
    inputs_embeds: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
) -> torch.Tensor:
    """
    Hidden states of a prompt by the backbone's own forward, which also puts images at their placeholders.

    Args:
        input_ids (`[B, L]`), position_ids (`[B, L + Q]` or `[3, B, L + Q]`), attention_mask (`[B, L + Q]`): the
            prompt; where it follows a cache, the mask is that of all tokens.
        image_inputs: what the processor returns for input images.
        inputs_embeds (`[B, L + Q, hidden_size]`, *optional*): embeddings of the prompt and of what follows it; the
            backbone then finds placeholders by their embedding.
        past_key_values (*optional*): takes in the prompt.

    Returns:
        `torch.Tensor` `[B, L + Q, hidden_size]`.

    Raises:
        ValueError: when images do not fit the placeholders, or need inputs that queries have not.
    """
    model, decoder = reading_model(backbone), text_stack(backbone)
    inputs: dict[str, torch.Tensor | Cache | bool | None]
    inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    inputs |= {"attention_mask": attention_mask, **_positions_for(decoder, position_ids)}
    if past_key_values is not None:
        inputs |= {"past_key_values": past_key_values, "use_cache": True}
    elif accepts(model, "use_cache"):
        inputs["use_cache"] = False
    if image_inputs.get("pixel_values") is None:
        return model(**inputs).last_hidden_state
    if not accepts(model, "pixel_values"):
        raise ValueError(
            f"A backbone that sees must read images without its output layer. {backbone.config.model_type!r} cannot. "
            f"Use a backbone such as Qwen2.5-VL, or prompts without images."
        )
    if image_token_id(backbone.config) is None:
        raise ValueError(_no_placeholders(backbone, "has none"))
    _check_token_inputs(backbone, input_ids, image_inputs)
    num_queries = 0 if inputs_embeds is None else inputs_embeds.shape[1] - input_ids.shape[1]
    kinds = token_types(model, input_ids)
    kinds |= {name: value for name, value in image_inputs.items() if name in kinds}
    inputs |= {name: nn.functional.pad(value, (0, num_queries)) for name, value in kinds.items()}  # queries are text
    image_inputs = {name: value for name, value in image_inputs.items() if name not in TOKEN_TYPES}
    try:
        hidden_states = model(**inputs, **image_inputs).last_hidden_state
    except ValueError as error:
        if "image tokens" not in str(error):
            raise
        raise ValueError(
            f"The prompt must hold one image placeholder per image feature. The backbone says: {error}. "
            f"Prepare prompts and images together with the processor."
        ) from error
    if hidden_states.shape[1] != input_ids.shape[1] + num_queries:
        raise ValueError(_no_placeholders(backbone, "puts them before the prompt"))
    return hidden_states


def read_after(
    decoder: PreTrainedModel,
    past_key_values: Cache,
    inputs_embeds: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Hidden states of embeddings `[B, Q, hidden_size]` that follow the tokens in a cache, which takes them in."""
    return decoder(
        inputs_embeds=inputs_embeds.clone(),  # CTRL scales them in place; they may be the queries themselves
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        use_cache=True,
        **_positions_for(decoder, position_ids),
        **_per_layer_inputs(decoder, inputs_embeds),
    ).last_hidden_state


def _positions_for(decoder: nn.Module, position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Positions for a text stack that takes any; others count the attention mask, or the tokens, or need none. Those of
    RoBERTa begin after that of padding.
    """
    if not accepts(decoder, "position_ids"):
        return {}
    table = getattr(getattr(decoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return {"position_ids": position_ids if padding is None else position_ids + padding + 1}


def _per_layer_inputs(decoder: PreTrainedModel, inputs_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    What Gemma 4 adds to queries in each layer: the same as to images, which have no ids of their own, either. Left to
    itself it would look for the ids of these embeddings. Gemma 3n goes on without.
    """
    look_up = getattr(decoder, "get_per_layer_inputs", None)
    if look_up is None or not needs_token_ids(decoder) or "inputs_embeds" not in signature(look_up).parameters:
        return {}
    padding = decoder.config.pad_token_id or 0
    ids = torch.full(inputs_embeds.shape[:2], padding, dtype=torch.long, device=inputs_embeds.device)
    return {"per_layer_inputs": look_up(ids)}


def _check_token_inputs(backbone: PreTrainedModel, input_ids: torch.Tensor, inputs: Mapping[str, object]) -> None:
    for name, value in inputs.items():
        is_tensor = isinstance(value, torch.Tensor) and value.ndim > 1
        if name not in TOKEN_TYPES and is_tensor and value.shape[:2] == input_ids.shape:
            raise ValueError(_no_placeholders(backbone, f"wants {name!r} for each token, and queries have none"))


def _no_placeholders(backbone: PreTrainedModel, what_it_does: str) -> str:
    return (
        f"Images must enter a backbone at their placeholders, so that queries can follow. "
        f"{backbone.config.model_type!r} {what_it_does}. Use a backbone such as Qwen2.5-VL, or prompts without images."
    )


def token_cache(decoder: PreTrainedModel) -> DynamicCache | None:
    """
    An empty cache in which queries may follow a prompt. None where the text stack keeps states and not tokens: there
    the library reads several tokens after others as if they were the first, or cannot differentiate them.
    """
    has_images_before_prompts = accepts(decoder, "pixel_values") and image_token_id(decoder.config) is None
    if not accepts(decoder, "past_key_values") or has_images_before_prompts:
        return None  # GIT takes what is in a cache for an image
    cache = DynamicCache(config=decoder.config)
    if not all(type(layer) in _TOKEN_LAYERS for layer in cache.layers):
        return None
    if getattr(decoder.config.get_text_config(decoder=True), "layer_types", None) is None and all(cache.is_sliding):
        # The library infers a window for every layer here. Not every text stack has one (Moshi), and the mask of one
        # that has still hides what is before it.
        return DynamicCache()
    return cache


def holds(cache: Cache, num_tokens: int) -> bool:
    """Whether a cache has taken in this many tokens; a backbone with a cache of its own kind leaves it empty."""
    is_token_cache = all(type(layer) in _TOKEN_LAYERS for layer in cache.layers)
    return is_token_cache and cache.get_seq_length() == num_tokens


def needs_token_ids(decoder: PreTrainedModel) -> bool:
    """Whether a text stack makes more of token ids than their embeddings, in every layer anew (Gemma 3n, Gemma 4)."""
    return accepts(decoder, "per_layer_inputs") and bool(getattr(decoder.config, "hidden_size_per_layer_input", 0))


@contextmanager
def _without_chance(module: nn.Module) -> Generator[None]:
    """Within the block, nothing is dropped at random; each part is in its own mode again afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@torch.no_grad()
def _short_pass(decoder: PreTrainedModel, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states `[B, L, hidden_size]` of embeddings, in fp32."""
    weight = _input_weight(decoder)
    positions = (mask.cumsum(-1) - 1).clamp(min=0).to(weight.device)
    inputs: dict[str, torch.Tensor | bool] = {
        "attention_mask": mask.to(weight.device),
        **_positions_for(decoder, positions),
    }
    if accepts(decoder, "use_cache"):
        inputs["use_cache"] = False
    with _without_chance(decoder):
        return decoder(inputs_embeds=embeddings.to(weight.device, weight.dtype), **inputs).last_hidden_state.float()


def check_causal(backbone: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: when the first of a few tokens change with the last; a short pass tells. Some text stacks attend
            both ways by settings of their own (XLM, XLNet).
    """
    decoder = text_stack(backbone)
    tokens, last = _random_tokens(decoder, 2)
    last[:, :-1] = tokens[:, :-1]
    first, second = _short_pass(decoder, torch.cat([tokens[:1], last[:1]]), torch.ones(2, 3, dtype=torch.long))
    if _differ(first[:-1], second[:-1], 1e-3):
        raise ValueError(_attends_both_ways(backbone))


def reads_padding(decoder: PreTrainedModel) -> bool:
    """
    Whether padding changes what a text stack says of real tokens, in spite of its mask; three short passes tell. Some
    recurrent ones read what is at these places, and some count these places as tokens (TrOCR, RoFormer).
    """
    tokens, *paddings = _random_tokens(decoder, 3)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    first, second = (_short_pass(decoder, torch.cat([padding, tokens], dim=1), mask)[0, 3:] for padding in paddings)
    alone = _short_pass(decoder, tokens, torch.ones(2, 3, dtype=torch.long))[0]
    rounding = 4 * torch.finfo(_input_weight(decoder).dtype).eps
    return _differ(first, second, 1e-3) or _differ(first, alone, max(rounding, 1e-5))


def _input_weight(decoder: PreTrainedModel) -> torch.Tensor:
    """The table of embeddings; its precision and device are those of what a text stack reads."""
    weight = decoder.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)  # `nn.Module` types it as a tensor or a module
    return weight


def _random_tokens(decoder: PreTrainedModel, number: int) -> list[torch.Tensor]:
    """As many pairs `[2, 3, hidden_size]` of three embeddings, always the same."""
    width = decoder.config.get_text_config().hidden_size
    return list(torch.randn(number, 2, 3, width, generator=torch.Generator().manual_seed(0)))


def _differ(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    return bool((first - second).abs().max() > tolerance * first.abs().max())


def rows_to_read(
    backbone: PreTrainedModel,
    attention_mask: torch.Tensor,
    is_padding_read: bool,
    image_inputs: Mapping[str, torch.Tensor],
) -> list[tuple[slice, int]]:
    """
    Which prompts of a batch, padded on the left, are read together, and from which token on.

    Raises:
        ValueError: when padding would be read, and images keep prompts from being read one by one.
    """
    starts = attention_mask.long().argmax(-1).tolist()
    if not is_padding_read or len(set(starts)) == 1:
        return [(slice(None), min(starts))]
    if image_inputs.get("pixel_values") is not None:
        raise ValueError(
            f"Prompts with images are read as one batch. The backbone ({backbone.config.model_type}) would read their "
            f"padding, too. Pass prompts of equal length, or one at a time."
        )
    return [(slice(row, row + 1), start) for row, start in enumerate(starts)]


__all__ = [
    "TOKEN_TYPES",
    "accepts",
    "check_backbone",
    "check_backbone_config",
    "check_causal",
    "embed_new_tokens",
    "holds",
    "image_token_id",
    "left_aligned",
    "needs_token_ids",
    "read",
    "read_after",
    "reading_model",
    "reads_padding",
    "rows_to_read",
    "text_stack",
    "token_cache",
    "token_types",
    "vision_or_text_model",
]
