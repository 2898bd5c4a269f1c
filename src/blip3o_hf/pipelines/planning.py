"""Reason, then draw: the backbone writes what a picture will show before it is drawn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor

# So many tokens of a plan the backbone writes at most.
PLAN_TOKENS = 128
# The last turn of a conversation in ChatML: what comes before its words, the words, and what comes after them.
_LAST_TURN = re.compile(
    r"(?P<before>.*<\|im_start\|>user\n(?:<\|vision_start\|>.*<\|vision_end\|>)?)(?P<said>[^<]+)"
    r"(?P<after><\|im_end\|>\n<\|im_start\|>assistant\n)(?:\[IMG\])?",
    re.DOTALL,
)


class SeededSampling(LogitsProcessor):
    """
    Makes greedy search a sampler whose choices in a row depend on that row's generator alone: by Gumbel noise, whose
    largest sum with the scores is a sample of their softmax.

    Args:
        generators: one on the CPU for each row.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self.generators])
        uniform = uniform.clamp(min=torch.finfo(uniform.dtype).tiny)
        sums = scores + -(-uniform.log()).log().to(scores)
        return cast("torch.FloatTensor", sums)


def spawn(generator: torch.Generator | Sequence[torch.Generator] | None, number: int) -> list[torch.Generator]:
    """Generators on the CPU, seeded by a draw each from those given, or from PyTorch's global one."""
    parents = list(generator) if isinstance(generator, Sequence) else [generator] * number
    seeds = [
        torch.randint(2**62, (1,), generator=parent, device=None if parent is None else parent.device)
        for parent in parents
    ]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def sampled(generators: Sequence[torch.Generator], top_p: float | None = None) -> LogitsProcessorList:
    """What makes greedy search sample from the likeliest words, up to a share `top_p` in (0, 1]."""
    warpers = [] if top_p is None else [TopPLogitsWarper(top_p)]
    return LogitsProcessorList([*warpers, SeededSampling(generators)])


def chat_messages(text: str, images: Sequence[Image.Image] = ()) -> list[dict]:
    """A user's turn; without images, its content is a string, which templates of text-only backbones read, too."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": content if images else text}]


@torch.no_grad()
def write_plans(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    prompts: Sequence[str],
    images: Sequence[Sequence[Image.Image]] | None,
    device: torch.device,
    generators: Sequence[torch.Generator] | None = None,
    top_p: float | None = None,
    max_new_tokens: int = PLAN_TOKENS,
) -> list[str]:
    """
    What the backbone writes when asked, by the processor's `plan_instruction`, what to draw for each prompt; the
    prompt itself where it writes nothing.

    Args:
        images: those of each prompt.
        generators: one for each prompt, to sample; greedy without.
        top_p: share in (0, 1] of the likeliest words that are sampled from.
    """
    shown = images if images is not None else [[] for _ in prompts]
    asked = [processor.plan_instruction.replace("{caption}", prompt) for prompt in prompts]
    conversations = [chat_messages(text, pictures) for text, pictures in zip(asked, shown, strict=True)]
    texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages in conversations]
    flat = [image for pictures in shown for image in pictures]
    inputs = processor(
        text=texts,
        **({"images": flat} if flat else {}),
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(device)
    inputs.pop("token_type_ids", None)
    if not flat:
        inputs.pop("mm_token_type_ids", None)
    return _write(model, processor, inputs, prompts, generators, top_p, max_new_tokens)


def _write(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    inputs: Mapping[str, Any],
    prompts: Sequence[str],
    generators: Sequence[torch.Generator] | None,
    top_p: float | None,
    max_new_tokens: int,
) -> list[str]:
    """What the backbone answers to requests for plans, or the prompt where it answers nothing."""
    sampling: dict[str, Any] = {} if generators is None else {"logits_processor": sampled(generators, top_p)}
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **sampling)
    plans = processor.post_process_image_text_to_text(tokens[:, inputs["input_ids"].shape[1] :])
    return [plan.strip() or prompt for plan, prompt in zip(plans, prompts, strict=True)]


@torch.no_grad()
def plan_conversations(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    image_inputs: Mapping[str, torch.Tensor],
    generators: Sequence[torch.Generator] | None = None,
    top_p: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Conversations whose last turn asks for a picture, with the plan of that picture in the place of what it asks for.

    Args:
        input_ids, attention_mask (`[B, L]`): conversations in ChatML, up to the assistant's turn or to the token that
            starts an image.
        image_inputs: what the processor returned for their images.
        generators, top_p: as of `write_plans`.

    Returns:
        Token ids and mask `[B, L']`, padded on the left, up to the token that starts an image. Conversations of
        another form come back as they are.
    """
    rows = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
    matches = [_LAST_TURN.fullmatch(text) for text in processor.tokenizer.batch_decode(rows)]
    turns = [match for match in matches if match is not None]
    if len(turns) < len(matches):
        return input_ids, attention_mask
    captions = [_caption(turn["said"], processor.instruction) for turn in turns]

    def encode(instruction: str, captions: Sequence[str], ending: str) -> dict[str, torch.Tensor]:
        texts = [
            f"{turn['before']}{instruction.replace('{caption}', caption)}{turn['after']}{ending}"
            for turn, caption in zip(turns, captions, strict=True)
        ]
        return processor.tokenizer(
            texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(input_ids.device)

    asked = encode(processor.plan_instruction, captions, "")
    plans = _write(
        model,
        processor,
        {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"], **image_inputs},
        captions,
        generators,
        top_p,
        PLAN_TOKENS,
    )
    planned = encode(processor.instruction, plans, processor.image_start_token)
    return planned["input_ids"], planned["attention_mask"]


def _caption(said: str, instruction: str) -> str:
    """What is to be drawn: the caption in the instruction, or all that was said."""
    before, _, after = instruction.partition("{caption}")
    match = re.fullmatch(f"{re.escape(before)}(.*){re.escape(after)}", said, re.DOTALL | re.IGNORECASE)
    return match[1] if match else said
