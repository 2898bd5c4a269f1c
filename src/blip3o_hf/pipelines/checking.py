"""Look, then draw again: whether a picture shows what was asked for, and the best of several attempts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from .planning import chat_messages
from .sampling_arguments import as_number

Checker = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""
Given pictures and what each should show, returns for each a number in [0, 1]; from `ACCEPTED` on it is shown.
"""
ACCEPTED = 0.5
MAX_ATTEMPTS = 1000
"""From far fewer on, a model that is never content draws for hours."""
_YES, _NO = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))


class BackboneChecker:
    """
    The backbone's own judgement: how likely it answers "yes", and not "no", when it is shown a picture and asked, by
    the processor's `check_instruction`, whether it shows a text.

    Args:
        model, processor: of one repository; the backbone must read images.
        device: where the model computes, where that is not where its weights are (offloading).

    Raises:
        ValueError: when the backbone reads text only, or "yes" and "no" begin with the same token.
    """

    def __init__(
        self,
        model: Blip3oForConditionalGeneration,
        processor: Blip3oProcessor,
        device: torch.device | None = None,
    ):
        model.check_vision()
        self.model = model
        self.device = device
        self.processor = processor
        yes, no = (self._first_tokens(words) for words in (_YES, _NO))
        self.answers = sorted(yes - no), sorted(no - yes)
        if not all(self.answers):
            raise ValueError(
                "A check compares how likely an answer begins with yes and with no. With this tokenizer both words "
                "begin with the same token. Pass a `checker` of your own, or num_attempts=1."
            )

    def _first_tokens(self, words: Sequence[str]) -> set[int]:
        """The first tokens of the words; the whole words, where they are tokens of their own."""
        encoded = [self.processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        whole = {ids[0] for ids in encoded if len(ids) == 1}
        return whole or {ids[0] for ids in encoded if ids}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """The probability in [0, 1] of each picture that it shows its text."""
        processor = self.processor
        asked = [processor.check_instruction.replace("{caption}", text) for text in texts]
        conversations = [chat_messages(text, [image]) for text, image in zip(asked, images, strict=True)]
        inputs = processor(
            text=[processor.apply_chat_template(messages, add_generation_prompt=True) for messages in conversations],
            images=list(images),
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.model.device if self.device is None else self.device)
        inputs.pop("token_type_ids", None)
        logits = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        yes, no = (logits[:, tokens].logsumexp(dim=-1) for tokens in self.answers)
        return torch.sigmoid(yes - no).tolist()


def check_num_attempts(number: int) -> None:
    """Raise `ValueError` unless `number` is an integer from 1 to [`MAX_ATTEMPTS`]."""
    if type(as_number(number)) is not int or not 1 <= number <= MAX_ATTEMPTS:
        raise ValueError(
            f"`num_attempts` must be an integer from 1 to {MAX_ATTEMPTS:,}. Got {number!r:.60}. With 1, pictures are "
            f"not looked at."
        )


@dataclass
class Attempts:
    """
    Pictures drawn until each was accepted, or as often as allowed; of several rejected ones, the best.

    Attributes:
        features (`[N, C, h, w]`): of the pictures kept.
        pixels (`[N, 3, H, W]`): the pictures kept, in [-1, 1].
        plans: what was written before each was drawn.
        numbers: how often each was drawn.
        scores: what the checker said of the one kept.
    """

    features: torch.Tensor
    pixels: torch.Tensor
    plans: list[str] | None
    numbers: list[int]
    scores: list[float]

    @property
    def accepted(self) -> list[bool]:
        """Whether each picture was accepted."""
        return [score >= ACCEPTED for score in self.scores]


def draw_until_shown(
    draw: Callable[[list[int], int], tuple[torch.Tensor, torch.Tensor, list[str] | None]],
    check: Callable[[torch.Tensor, list[int], list[str] | None], Sequence[float]],
    num_images: int,
    num_attempts: int,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Attempts:
    """
    Draw pictures, look at them, and draw those that were rejected again.

    Args:
        draw: given the numbers of the pictures to draw and how often these were drawn before, returns their features,
            pixels and plans.
        check: given pixels, numbers and plans, returns the checker's scores.
        num_images: how many pictures there are.
        num_attempts: how often one is drawn at most.
        is_interrupted: whether to draw none again.
    """
    kept: Attempts | None = None
    pending = list(range(num_images))
    for attempt in range(num_attempts):
        features, pixels, plans = draw(pending, attempt)
        scores = list(check(pixels, pending, plans))
        if kept is None:
            kept = Attempts(features, pixels, plans, [1] * num_images, scores)
        else:
            for position, index in enumerate(pending):
                kept.numbers[index] += 1
                if scores[position] > kept.scores[index]:
                    kept.features[index], kept.pixels[index] = features[position], pixels[position]
                    kept.scores[index] = scores[position]
                    if plans is not None and kept.plans is not None:
                        kept.plans[index] = plans[position]
        pending = [index for index in range(num_images) if kept.scores[index] < ACCEPTED]
        if not pending or is_interrupted():
            break
    assert kept is not None
    return kept
