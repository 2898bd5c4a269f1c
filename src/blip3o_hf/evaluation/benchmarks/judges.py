"""Judges of pictures: a model that sees, asked one question, and how likely each answer is to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from ...hub.provenance import public_name

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
YES_OR_NO = ("yes", "no")
MIN_MASS = 0.05
"""A judge that gives less than this to all allowed answers together has not answered."""


@dataclass(frozen=True)
class Question:
    """
    A question on a picture.

    Args:
        text: as the judge reads it.
        answer: the right one, one word or number.
        allowed: all answers that make sense, the right one among them.
    """

    text: str
    answer: str
    allowed: tuple[str, ...] = YES_OR_NO


@dataclass(frozen=True)
class Reply:
    """
    What a judge makes of a question.

    Args:
        probability: of the right answer, over all its spellings, in [0, 1]; the rest is that of all other words.
        mass: of all allowed answers together.
        is_first: whether the likeliest next token is a spelling of the right answer.
    """

    probability: float
    mass: float
    is_first: bool

    @property
    def is_answer(self) -> bool:
        """Whether the judge gave an allowed answer at all."""
        return self.mass >= MIN_MASS


def spellings(answer: str) -> tuple[str, ...]:
    """
    How one answer may begin a reply: as it is and with a capital, each with and without a space before; a number also
    in digits.

    Example:
        >>> spellings("two")
        ('two', ' two', 'Two', ' Two', '2', ' 2')
    """
    word = NUMBERS[int(answer)] if answer.isdecimal() and int(answer) < len(NUMBERS) else answer.lower()
    words = [word, word.capitalize()]
    if word in NUMBERS:
        words.append(str(NUMBERS.index(word)))
    return tuple(dict.fromkeys(text for word in words for text in (word, f" {word}")))


class VlmJudge:
    """
    A chat model that sees, as a judge: any image-text-to-text model of transformers with a chat template.

    It is asked one question, and the probabilities of its next token are read; it writes nothing.

    Args:
        model: in evaluation mode.
        processor: its processor.
        name: of the judge and its weights; it is in the name of every score.
        batch_size: questions at once.
    """

    def __init__(self, model: Any, processor: Any, name: str, batch_size: int = 16):
        self.model, self.processor, self.name, self.batch_size = model, processor, name, batch_size
        self._ids: dict[str, list[int]] = {}

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu", **settings: Any) -> "VlmJudge":
        """
        Args:
            name: Hub id or folder.
            device: where it runs.
            settings: of `from_pretrained`, such as `dtype` and `revision`.
        """
        model = AutoModelForImageTextToText.from_pretrained(name, **settings).to(device).eval()
        return cls(model, AutoProcessor.from_pretrained(name), public_name(name))

    def ask(self, images: Sequence[Image.Image], questions: Sequence[Question]) -> list[Reply]:
        """
        Args:
            images: one for each question.
            questions: as many.

        Raises:
            ValueError: when an answer has no spelling of one token, so that its probability cannot be read.
        """
        pairs = list(zip(images, questions, strict=True))
        replies = []
        for start in range(0, len(pairs), self.batch_size):
            batch = pairs[start : start + self.batch_size]
            logits = self._logits([image for image, _ in batch], [question.text for _, question in batch])
            replies += [self._reply(row, question) for row, (_, question) in zip(logits, batch, strict=True)]
        return replies

    def _reply(self, logits: torch.Tensor, question: Question) -> Reply:
        probabilities = logits.softmax(dim=-1)
        own = self._tokens(question.answer)
        if not own:
            raise ValueError(
                f"A judge's answers must be single tokens. {question.answer!r} is none to {self.name}. Use another "
                f"judge."
            )
        union = sorted({*own, *(token for answer in question.allowed for token in self._tokens(answer))})
        return Reply(
            float(probabilities[own].sum()), float(probabilities[union].sum()), int(probabilities.argmax()) in own
        )

    def _tokens(self, answer: str) -> list[int]:
        """Ids of those spellings of an answer that are one token: of longer ones the first tells too little."""
        if answer not in self._ids:
            tokenizer = self.processor.tokenizer
            encoded = [tokenizer.encode(text, add_special_tokens=False) for text in spellings(answer)]
            ids = {tokens[0] for tokens in encoded if len(tokens) == 1}
            self._ids[answer] = sorted(ids - {tokenizer.unk_token_id})
        return self._ids[answer]

    def _logits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """`[B, vocabulary]`, float32: those of the token after each question."""
        inputs = chat_inputs(self.processor, images, texts).to(self.model.device)
        with torch.no_grad():
            output = self.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return output.logits[0].float()


def chat_inputs(processor: Any, images: Sequence[Image.Image], texts: Sequence[str]) -> BatchFeature:
    """
    What a chat model reads before it answers, padded on the left.

    Args:
        processor: of an image-text-to-text model, with a chat template.
        images: one for each text.
        texts: what a user says of it.
    """
    conversations = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts
    ]
    prompts = [
        processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        for conversation in conversations
    ]
    inputs = processor(
        text=prompts, images=[[image] for image in images], padding=True, padding_side="left", return_tensors="pt"
    )
    inputs.pop("token_type_ids", None)
    return inputs


def yes_or_no(text: str) -> Question:
    """A question whose right answer is yes."""
    return Question(text, "yes")


def shows(text: str) -> Question:
    """VQAScore's question (Lin et al., 2024): its score is the probability of yes."""
    return yes_or_no(f'Does this figure show "{text}"? Please answer yes or no.')


def unanswered(replies: Sequence[Reply]) -> int:
    """How many questions a judge did not answer with any allowed word."""
    return sum(not reply.is_answer for reply in replies)


__all__ = [
    "NUMBERS",
    "Question",
    "Reply",
    "VlmJudge",
    "chat_inputs",
    "shows",
    "spellings",
    "unanswered",
    "yes_or_no",
]
