"""Endless training examples of the tiny world: example `i` of a seed is always the same one."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from .shapes import TRAINING_FAMILIES, Question, Scene, describe, render, sample_example, sample_question


@dataclass(frozen=True)
class ShapesRecord:
    """
    One scene with everything that is said about it.

    Attributes:
        image: uint8 array `[64, 64, 3]`.
        caption: what a user would ask for (short or long).
        long_caption: the full description, with sizes and places.
        description: the plain description, the answer to "describe the image".
        questions: questions about the scene with their answers.
    """

    scene: Scene
    image: np.ndarray
    caption: str
    long_caption: str
    description: str
    questions: tuple[Question, ...]


class ShapesDataset(Dataset):
    """
    Map-style, so that a sampler can shuffle, shard and resume it exactly.

    Args:
        length: number of examples.
        seed: examples of different seeds are independent.
        split: `"train"` or `"test"`, as in [`~data.shapes.sample_example`].
        num_questions: questions drawn for each scene.
        long_caption_rate: share in [0, 1] of examples whose caption is the full description.
        family_weights: how often each family of prompts is drawn, relative to 1 for the families left out.

    Raises:
        ValueError: when `family_weights` names a family that training does not have, or holds a negative weight.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        num_questions: int = 0,
        long_caption_rate: float = 0.3,
        family_weights: dict[str, float] | None = None,
    ):
        self.length = length
        self.seed = seed
        self.split = split
        self.num_questions = num_questions
        self.long_caption_rate = long_caption_rate
        self.family_odds = None
        if family_weights is not None:
            for family, weight in family_weights.items():
                if family not in TRAINING_FAMILIES or weight < 0:
                    raise ValueError(
                        f"`family_weights` maps families to weights of at least 0. Got {family!r}: {weight}. "
                        f"Families: {', '.join(TRAINING_FAMILIES)}."
                    )
            weights = np.array([family_weights.get(family, 1.0) for family in TRAINING_FAMILIES])
            self.family_odds = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ShapesRecord:
        if not 0 <= index < self.length:
            raise IndexError(f"Examples are numbered from 0 to {self.length - 1}. Got {index}.")
        rng = np.random.default_rng((self.seed, index))
        family = None if self.family_odds is None else str(rng.choice(TRAINING_FAMILIES, p=self.family_odds))
        example = sample_example(rng, split=self.split, family=family)
        is_long = rng.random() < self.long_caption_rate
        return ShapesRecord(
            scene=example.scene,
            image=render(example.scene),
            caption=example.long_caption if is_long else example.prompt.text,
            long_caption=example.long_caption,
            description=describe(example.scene, rng, split=self.split),
            questions=tuple(sample_question(example.scene, rng) for _ in range(self.num_questions)),
        )
