"""What a model is scored by while it trains: the base of all benchmarks that a recipe can name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import TargetEncoder
from ..pipelines.pipeline_blip3o import Blip3oPipeline

Item = TypeVar("Item")
Scores = dict[str, float | Image.Image]
"""Rates by their names, and under `samples` a sheet of pictures."""


def seeded_batches(
    items: Sequence[Item], seed: int, batch_size: int, desc: str
) -> Iterator[tuple[Sequence[Item], list[torch.Generator]]]:
    """Items in batches under a progress bar, each item `i` with a generator seeded `seed + i`."""
    for start in tqdm(range(0, len(items), batch_size), desc=desc, leave=False):
        batch = items[start : start + batch_size]
        yield batch, [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]


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
