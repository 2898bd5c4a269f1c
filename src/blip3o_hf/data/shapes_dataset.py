"""Endless training examples of the tiny world: example `i` of a seed is always the same one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .records import Record
from .shapes import (
    GENERAL_QUESTION_KINDS,
    QUESTION_KINDS,
    TRAINING_FAMILIES,
    Question,
    Scene,
    describe,
    long_caption,
    object_words,
    question_kinds,
    render,
    sample_example,
    sample_question,
)

DESCRIBE = "describe the image"
DESCRIBE_FULLY = "describe the image in detail"


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
        plan: a full description that takes the objects in the order of the prompt.
    """

    scene: Scene
    image: np.ndarray
    caption: str
    long_caption: str
    description: str
    questions: tuple[Question, ...]
    plan: str


def _weights(
    name: str, given: dict[str, float] | None, choices: Sequence[str], always: Sequence[str]
) -> dict[str, float] | None:
    """A weight for each choice, of which `always` can be drawn for any scene; `None` where none are given."""
    if given is None:
        return None
    for choice, weight in given.items():
        if choice not in choices or weight < 0:
            raise ValueError(
                f"`{name}` maps names to weights of at least 0. Got {choice!r}: {weight}. Names: {', '.join(choices)}."
            )
    weights = {choice: float(given.get(choice, 1.0)) for choice in choices}
    if not any(weights[choice] for choice in always):
        raise ValueError(
            f"`{name}` must leave something to draw for every scene. Got 0 for all of {', '.join(always)}. "
            f"Give one of them a weight above 0."
        )
    return weights


def _draw(rng: np.random.Generator, weights: dict[str, float], choices: tuple[str, ...]) -> str:
    odds = np.array([weights[choice] for choice in choices])
    return str(rng.choice(choices, p=odds / odds.sum()))


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
        question_weights: how often each kind of question is drawn where it can be asked, relative to 1 likewise.

    Raises:
        ValueError: when weights name a family or a kind of question that training does not have, are negative, or
            leave nothing to draw.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        num_questions: int = 0,
        long_caption_rate: float = 0.3,
        family_weights: dict[str, float] | None = None,
        question_weights: dict[str, float] | None = None,
    ):
        self.length = length
        self.seed = seed
        self.split = split
        self.num_questions = num_questions
        self.long_caption_rate = long_caption_rate
        self.family_weights = _weights("family_weights", family_weights, TRAINING_FAMILIES, TRAINING_FAMILIES)
        self.question_weights = _weights("question_weights", question_weights, QUESTION_KINDS, GENERAL_QUESTION_KINDS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ShapesRecord:
        if not 0 <= index < self.length:
            raise IndexError(f"Examples are numbered from 0 to {self.length - 1}. Got {index}.")
        rng = np.random.default_rng((self.seed, index))
        family = None if self.family_weights is None else _draw(rng, self.family_weights, TRAINING_FAMILIES)
        example = sample_example(rng, split=self.split, family=family)
        is_long = rng.random() < self.long_caption_rate
        return ShapesRecord(
            scene=example.scene,
            image=render(example.scene),
            caption=example.long_caption if is_long else example.prompt.text,
            long_caption=example.long_caption,
            description=describe(example.scene, rng, split=self.split),
            questions=tuple(self._question(example.scene, rng) for _ in range(self.num_questions)),
            plan=long_caption(example.scene, rng, self.split, in_order=True),
        )

    def key(self, index: int) -> str:
        """The name of a scene among all that there are."""
        return f"shapes/{self.split}/{self.seed}/{index}"

    def _question(self, scene: Scene, rng: np.random.Generator) -> Question:
        weights = self.question_weights
        return sample_question(scene, rng, None if weights is None else _draw(rng, weights, question_kinds(scene)))


class ShapesPictures(Dataset):
    """
    The scenes as captions and images to learn to generate.

    Args:
        scenes: what is drawn and said.
        complete: what is given of the dataset's `identity` and a record. By default the record.
    """

    def __init__(self, scenes: ShapesDataset, complete: Callable[[str, Record], Any] | None = None):
        self.scenes = scenes
        self.complete = complete

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        (record,) = self.variants(index)
        return record if self.complete is None else self.complete(self.identity, record)

    def variants(self, index: int) -> list[Record]:
        """The scene with its caption, as [`~data.sources.Source`] has it."""
        scene = self.scenes[index]
        return [Record(self.scenes.key(index), target=Image.fromarray(scene.image), prompt=scene.caption)]

    @property
    def identity(self) -> str:
        """What, beside a record's key, decides which image it has."""
        return json.dumps(self.scenes.family_weights)


@dataclass(frozen=True)
class Plan:
    """
    A prompt and the picture to plan for it, before it is drawn.

    Attributes:
        prompt: a caption, whose objects stand in the order of the phrases.
        phrases: single words about each thing to draw.
    """

    prompt: str
    phrases: tuple[tuple[str, ...], ...]


class ShapesPlans(Dataset):
    """
    The scenes as prompts and what is to be drawn for them.

    Args:
        scenes: what is drawn and said.
    """

    def __init__(self, scenes: ShapesDataset):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Plan:
        scene = self.scenes[index]
        prompt = scene.plan if scene.caption == scene.long_caption else scene.caption
        return Plan(prompt, tuple(map(tuple, object_words(scene.scene))))


class ShapesConversations(Dataset):
    """
    The scenes as conversations: about an image, or about a prompt and the picture it calls for.

    Of an image, the questions are asked, then both descriptions. A prompt in words is a generation request answered
    with a plan of the picture, then the questions are asked about that picture. A short prompt is answered with the
    full description, so that its words come to mean a whole arrangement: which colour goes with which shape, who
    stands where. A full description is answered with the plain one.

    Args:
        scenes: what is drawn and said, with at least one question each.
        instruction: a generation request; `{caption}` stands for the prompt.
        text_rate: share in [0, 1] of conversations that show no image.
    """

    def __init__(self, scenes: ShapesDataset, instruction: str, text_rate: float = 0.0):
        self.scenes = scenes
        self.instruction = instruction
        self.text_rate = text_rate

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        scene = self.scenes[index]
        key = self.scenes.key(index)
        turns = tuple((question.text, question.answer) for question in scene.questions)
        if np.random.default_rng((self.scenes.seed, index, 1)).random() < self.text_rate:
            plan = scene.description if scene.caption == scene.long_caption else scene.plan
            return Record(key, turns=((self.instruction.replace("{caption}", scene.caption), plan), *turns))
        turns += ((DESCRIBE, scene.description), (DESCRIBE_FULLY, scene.long_caption))
        return Record(key, images=(Image.fromarray(scene.image),), turns=turns)
