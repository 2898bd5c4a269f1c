"""Answers of a model to questions about images, many at once."""

from collections.abc import Sequence
from typing import Any

import torch

from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor


def answer(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    images: Sequence,
    questions: Sequence[str],
    max_new_tokens: int = 40,
) -> list[str]:
    """
    Greedy answers to one question about each image, or each list of images, as text: words alone, as
    [`~pipelines.chat.Blip3oChat.ask`] answers, and never empty.

    Raises:
        ValueError: when a question is longer than the backbone's context.
    """
    shown = [list(given) if isinstance(given, (list, tuple)) else [given] for given in images]
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": [*[{"type": "image"}] * len(pictures), {"type": "text", "text": question}]}]
        for pictures, question in zip(shown, questions, strict=True)
    ]
    texts = [processor.apply_chat_template(c, add_generation_prompt=True) for c in conversations]
    flat = [image for pictures in shown for image in pictures]
    inputs = processor(text=texts, images=flat, padding=True, padding_side="left", return_tensors="pt")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length >= limit:
        raise ValueError(
            f"A question with its images must fit the backbone's context, {limit} tokens. It has {length}. Ask less."
        )
    inputs = inputs.to(model.device)
    inputs.pop("token_type_ids", None)
    drawing = processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            suppress_tokens=[drawing],
            begin_suppress_tokens=processor.tokenizer.all_special_ids,
        )
    return [
        text.strip() for text in processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1] :])
    ]
