"""A reward for written words: whether the text that a picture must show can be read in it."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..evaluation.benchmarks.ocr import RapidOcrReader, Reader, text_score
from .ready import ReadyReward


class OcrReward(ReadyReward):
    """
    1 - edit distance / length of the wanted text, in [0, 1], as `text_score` of the OCR benchmark.

    Args:
        reader (*optional*): reads all words of a picture. By default RapidOCR, from the first call on; it needs
            `pip install 'blip3o-hf[ocr]'`, and its wheel holds the weights.
        name: in logs.
        licence (*optional*): of the reader's weights; RapidOCR's are Apache-2.0.
    """

    def __init__(self, reader: Reader | None = None, *, name: str = "ocr_reward", licence: str | None = None):
        unknown = "not known here: see that of the reader"
        super().__init__(name, licence or ("Apache-2.0" if reader is None else unknown))
        self._reader = reader

    @property
    def reader(self) -> Reader:
        """
        Raises:
            ImportError: when RapidOCR is asked for and not installed.
        """
        if self._reader is None:
            self._reader = RapidOcrReader()
        return self._reader

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Image.Image],
        text: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Args:
            prompts: what was asked for; not read.
            completions: pictures.
            text: what must be read in each picture, or `None` for a picture that need not show words.
            columns: others, which are not read.

        Raises:
            ValueError: when there is no column `text`, or a text has no letters.
            TypeError: when it holds something else than texts and `None`.
            ImportError: as `reader`.
        """
        if text is None:
            raise ValueError(
                f"The reward {self.name} reads the column `text`, the words that a picture must show. The dataset has "
                f"none. Add it, with None for prompts without words."
            )
        return [self._score(image, wanted) for image, wanted in zip(completions, text, strict=True)]

    def _score(self, image: Image.Image, wanted: str | None) -> float | None:
        if wanted is None:
            return None
        if not isinstance(wanted, str):
            raise TypeError(
                f"The column `text` holds texts, or None for prompts without words. Got {wanted!r:.40}. Correct it."
            )
        return text_score(self.reader(image), wanted)


ocr_reward = OcrReward()
"""With RapidOCR, for recipes: `blip3o_hf.rewards.words:ocr_reward`."""

__all__ = ["OcrReward", "ocr_reward"]
