"""A checker for the tiny world: the model reads its own picture object by object, to compare it with the plan."""

from collections.abc import Sequence

from PIL import Image

from ..data.records import RECONSTRUCT
from ..evaluation.answers import answer
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..pipelines.checking import BackboneChecker
from ..pipelines.planning import PLAN_TOKENS
from . import parse_plan


class ReadingChecker:
    """
    Accepts a picture when the plan that the model writes of it names the same objects in the same cells.

    What is no plan, since the picture was drawn without one, is left to the backbone's yes or no.

    Args:
        model, processor: that drew, or any others that read plans.
    """

    def __init__(self, model: Blip3oForConditionalGeneration, processor: Blip3oProcessor):
        self.model = model
        self.processor = processor

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """1 for each picture that is read as its text says, else 0."""
        asked = self.processor.plan_instruction.replace("{caption}", RECONSTRUCT)
        read = answer(self.model, self.processor, images, [asked] * len(images), max_new_tokens=PLAN_TOKENS)
        scores = []
        for image, text, said in zip(images, texts, read, strict=True):
            wanted, seen = parse_plan(text), parse_plan(said)
            if wanted is None:
                scores += BackboneChecker(self.model, self.processor)([image], [text])
            else:
                scores.append(float(seen is not None and seen.key == wanted.key))
        return scores
