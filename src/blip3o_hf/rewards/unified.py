"""A reward of a model that writes scores: UnifiedReward."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..checks import check_name, check_sizes
from ..evaluation.benchmarks.judges import chat_inputs
from .questions import check_question
from .ready import ReadyReward, find_weights, licence_of, load_judge

UNIFIED_REWARD = "CodeGoat24/UnifiedReward-2.0-qwen-3b"
LICENCES = {UNIFIED_REWARD: "MIT; the model that it was trained from may have terms of its own"}
ASPECTS = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0
PROMPT = (
    'This picture was made from the caption "{prompt}". Rate it with numbers from 1, the worst, to 5, the best. Write '
    "three lines: Alignment Score, how well it shows the caption; Coherence Score, how free it is of mistakes; Style "
    'Score, how good it looks. Begin each line with the name of the score and a colon, such as "Alignment Score: 3".'
)
"""A plain wording of ours, and not the one that the model was trained with."""


class UnifiedReward(ReadyReward):
    """
    A model that writes lines such as `Alignment Score: 4`, from 1 to 5, scaled to [0, 1] as (score - 1) / 4.

    Known of UnifiedReward 2.0 is that it opens as an image-text-to-text model of transformers and writes an alignment,
    a coherence and a style score. Its authors' wording of the request is not part of this package: `prompt` is a plain
    one. Pass theirs, from the card of the model, for their numbers.

    Args:
        model: folder or Hub id; it is loaded at the first call.
        aspect: whose score is read: `alignment`, `coherence` or `style`.
        prompt: of the request; `{prompt}` in it becomes the prompt of the picture.
        name: in logs; by default `unified_` and the aspect.
        licence (*optional*): of the weights.
        device: where it computes; by default this process's accelerator, where there is one.
        dtype: of the weights; by default that in which they are stored.
        batch_size: pictures at once.
        max_new_tokens: of an answer.

    Raises:
        ValueError: when the aspect is unknown, or the prompt has no place for that of the picture.
    """

    def __init__(
        self,
        model: str = UNIFIED_REWARD,
        *,
        aspect: str = "alignment",
        prompt: str = PROMPT,
        name: str | None = None,
        licence: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 256,
    ):
        check_name("aspect", aspect, ASPECTS)
        check_question(prompt)
        check_sizes(batch_size=batch_size, max_new_tokens=max_new_tokens)
        super().__init__(name or f"unified_{aspect}", licence or licence_of(model, LICENCES))
        self.source, self.aspect, self.prompt = model, aspect, prompt
        self.device, self.dtype = device, dtype
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self._model: Any = None

    @property
    def model(self) -> Any:
        """
        Raises:
            OSError: when its weights are neither here nor on the Hub.
        """
        if self._model is None:
            source = find_weights(self.source)
            self._processor = AutoProcessor.from_pretrained(source)
            self._model = load_judge(AutoModelForImageTextToText, source, self.dtype, self.device)
        return self._model

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Image.Image], **columns: Any
    ) -> list[float | None]:
        """
        Args:
            prompts: texts.
            completions: a picture for each.
            columns: not read.

        Returns:
            Numbers in [0, 1]; `None` where the model wrote no such score.

        Raises:
            OSError: as `model`.
        """
        texts = []
        for start in range(0, len(prompts), self.batch_size):
            batch = slice(start, start + self.batch_size)
            texts += self._written(prompts[batch], completions[batch])
        scores = [read_score(text, self.aspect) for text in texts]
        return [None if score is None else (score - LOWEST) / (HIGHEST - LOWEST) for score in scores]

    @torch.no_grad()
    def _written(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[str]:
        model = self.model
        inputs = chat_inputs(self._processor, images, [self.prompt.replace("{prompt}", prompt) for prompt in prompts])
        output = model.generate(**inputs.to(model.device), max_new_tokens=self.max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return self._processor.tokenizer.batch_decode(new, skip_special_tokens=True)


def read_score(text: str, aspect: str) -> float | None:
    """
    The last score of an aspect that a text states, from 1 to 5; `None` where there is none.

    Example:
        >>> read_score("**Alignment Score (1-5):** 3.5", "alignment")
        3.5
    """
    found = re.findall(rf"{aspect} score[^:\n]{{0,30}}:[\s*]*(\d+(?:\.\d+)?)", text, re.IGNORECASE)
    score = float(found[-1]) if found else 0.0
    return score if LOWEST <= score <= HIGHEST else None


unified_reward = UnifiedReward()
"""For recipes: `blip3o_hf.rewards.unified:unified_reward`."""

__all__ = ["UnifiedReward", "read_score", "unified_reward"]
