"""What the model needs from any backbone: reading prompts with images, and a cache for the queries after them."""

from collections.abc import Mapping
from inspect import signature

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.configuration_utils import PreTrainedConfig

# Layers of a cache that hold one entry for each token. All others hold a state that stands for many tokens at once.
_TOKEN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)
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


def check_backbone(backbone: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: when the backbone is not autoregressive: nothing could be read in the middle of its sequence.
    """
    config = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"A backbone must be one autoregressive model that reads the prompt and the queries after it. Got "
            f"{config.model_type!r}, which is an encoder with a decoder. Choose a model without an encoder of text."
        )
    text_config = config.get_text_config(decoder=True)
    is_bidirectional = getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    if is_bidirectional or (getattr(text_config, "is_decoder", True) is False and not _is_causal(backbone)):
        raise ValueError(
            f"A backbone must be autoregressive: no token may see those after it. Got {config.model_type!r}, which "
            f"attends in both directions. Choose a causal model, or set `is_decoder=True` where its config has it."
        )


def _is_causal(backbone: PreTrainedModel) -> bool:
    """Whether the attention of a text stack says that it is causal, whatever its config says (GPT-NeoX)."""
    return any(getattr(module, "is_causal", False) is True for module in text_stack(backbone).modules())


def image_token_id(config: PreTrainedConfig) -> int | None:
    """The id of the placeholder of images, which backbones name in several ways; None where there is none."""
    names = ("image_token_id", "image_token_index")
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def text_stack(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone's text stack without its output layer."""
    decoder = backbone.get_decoder()
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
    assert image is not None  # a backbone that reads images has a placeholder
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
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        use_cache=True,
        **_positions_for(decoder, position_ids),
    ).last_hidden_state


def _positions_for(decoder: nn.Module, position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Positions for a text stack that takes any; others count the attention mask, or need none."""
    return {"position_ids": position_ids} if accepts(decoder, "position_ids") else {}


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
    if not accepts(decoder, "past_key_values"):
        return None
    cache = DynamicCache(config=decoder.config)
    return cache if all(type(layer) in _TOKEN_LAYERS for layer in cache.layers) else None


def holds(cache: Cache, num_tokens: int) -> bool:
    """Whether a cache has taken in this many tokens; a backbone with a cache of its own kind leaves it empty."""
    is_token_cache = all(type(layer) in _TOKEN_LAYERS for layer in cache.layers)
    return is_token_cache and cache.get_seq_length() == num_tokens


def needs_token_ids(decoder: nn.Module) -> bool:
    """Whether a text stack makes more of token ids than their embeddings, in every layer anew (Gemma 3n, Gemma 4)."""
    return accepts(decoder, "per_layer_inputs")


@torch.no_grad()
def reads_padding(decoder: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> bool:
    """
    Whether a text stack reads padding in spite of its mask, as some recurrent ones do; two short passes tell. The
    real tokens of both are the same, so that only what leaks out of the padding differs.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    width = decoder.config.get_text_config().hidden_size
    tokens, *paddings = torch.randn(3, 2, mask.shape[1], width, generator=generator)
    passes = []
    for padding in paddings:
        embeddings = torch.where(mask[..., None].bool(), tokens, padding).to(device, dtype)
        positions = (mask.cumsum(-1) - 1).clamp(min=0).to(device)
        inputs = {"attention_mask": mask.to(device), **_positions_for(decoder, positions)}
        passes.append(decoder(inputs_embeds=embeddings, **inputs).last_hidden_state[0, 3:].float())
    return bool((passes[0] - passes[1]).abs().max() > 1e-3 * passes[0].abs().max())


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
