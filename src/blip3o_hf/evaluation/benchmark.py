"""What a model is scored by while it trains: the base of all benchmarks that a recipe can name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from torch import nn

from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import TargetEncoder
from ..pipelines.pipeline_blip3o import Blip3oPipeline

Scores = dict[str, float | Image.Image]
"""Rates by their names, and under `samples` a sheet of pictures."""


class Benchmark:
    """
    Base of benchmarks. In a recipe, name your own as `evaluation.benchmark: module:Class`.

    A class has the methods that its data can be used for; what it has no method for is not scored.

    Args:
        settings: the section `evaluation` of the recipe, as far as `keys` names it.
    """

    keys: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Settings by the method that reads them: `drawing`, `answers`, `decoding`."""
    types: ClassVar[Mapping[str, Any]] = {}
    """Types of the settings by their keys; a value of a key without one is taken as it is."""

    def __init__(self, settings: Mapping[str, Any]):
        self.settings = dict(settings)

    def drawing(self, pipe: Blip3oPipeline) -> Scores:
        """Scores of a pipeline that draws."""
        return {}

    def answers(self, model: nn.Module, processor: Blip3oProcessor) -> Scores:
        """Scores of a model that answers."""
        return {}

    def decoding(self, encoder: TargetEncoder, decoder: nn.Module) -> Scores:
        """Scores of a decoder on the features of its encoder."""
        return {}
