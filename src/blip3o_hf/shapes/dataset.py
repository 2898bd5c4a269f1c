"""Endless training examples of the tiny world: example `i` of a seed is always the same one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from . import (
    EDIT_KINDS,
    GENERAL_QUESTION_KINDS,
    PLACE_KINDS,
    QUESTION_KINDS,
    TRAINING_FAMILIES,
    Example,
    Question,
    Scene,
    describe,
    in_reading_order,
    is_held_out_text,
    long_caption,
    natural_prompt,
    pick,
    question_kinds,
    render,
    sample_example,
    sample_question,
    write_plan,
)

ALL_QUESTION_KINDS = (*QUESTION_KINDS, *PLACE_KINDS)
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class ShapesRecord:
    """
    One scene with everything that is said about it.

    Attributes:
        scene: its objects stand in the order of the prompt, those of a group in reading order.
        image: uint8 array `[64, 64, 3]`.
        caption: what a user would ask for (short or long).
        long_caption: the full description, with sizes and places.
        description: the plain description, the answer to "describe the image".
        questions: questions about the scene with their answers.
        example: the scene as it was drawn, with its prompt.
    """

    scene: Scene
    image: np.ndarray
    caption: str
    long_caption: str
    description: str
    questions: tuple[Question, ...]
    example: Example

    @property
    def plan(self) -> str:
        """The scene in words that leave nothing open, in the order of the prompt."""
        return write_plan(self.scene)


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
        split: `"train"` or `"test"`, as in [`~shapes.sample_example`].
        num_questions: questions drawn for each scene.
        long_caption_rate: share in [0, 1] of examples whose caption is the full description.
        natural_rate: share in [0, 1] of the other captions, and of the questions, in words as people write them.
        family_weights: how often each family of prompts is drawn, relative to 1 for the families left out.
        question_weights: how often each kind of question is drawn where it can be asked, relative to 1 likewise.
        edit_weights: how often each kind of edit is drawn, relative to 1 likewise.

    Raises:
        ValueError: when weights name a family or a kind of question or edit that training does not have, are negative,
            or leave nothing to draw.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        num_questions: int = 0,
        long_caption_rate: float = 0.3,
        natural_rate: float = 0.0,
        family_weights: dict[str, float] | None = None,
        question_weights: dict[str, float] | None = None,
        edit_weights: dict[str, float] | None = None,
    ):
        self.length = length
        self.seed = seed
        self.split = split
        self.num_questions = num_questions
        self.long_caption_rate = long_caption_rate
        self.natural_rate = natural_rate
        self.family_weights = _weights("family_weights", family_weights, TRAINING_FAMILIES, TRAINING_FAMILIES)
        kinds, general = ALL_QUESTION_KINDS, GENERAL_QUESTION_KINDS
        self.question_weights = _weights("question_weights", question_weights, kinds, general)
        self.edit_weights = _weights("edit_weights", edit_weights, EDIT_KINDS, EDIT_KINDS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ShapesRecord:
        if not 0 <= index < self.length:
            raise IndexError(f"Examples are numbered from 0 to {self.length - 1}. Got {index}.")
        example, rng = self._draw_example(index)
        scene, caption = example.ordered_scene, example.prompt.text
        in_rows = Scene(in_reading_order(scene.objects), scene.background)
        full = long_caption(in_rows, rng, self.split, in_order=True)
        if rng.random() < self.long_caption_rate:
            scene = Scene(tuple(scene.objects[i] for i in rng.permutation(len(scene.objects))), scene.background)
            caption = full = long_caption(scene, rng, self.split, in_order=True)
        elif rng.random() < self.natural_rate:
            caption = self.natural_caption(example, rng)
        return ShapesRecord(
            scene=scene,
            image=render(scene),
            caption=caption,
            long_caption=full,
            description=describe(in_rows, rng, split=self.split, in_order=True),
            questions=tuple(self._question(scene, rng) for _ in range(self.num_questions)),
            example=example,
        )

    def natural_caption(self, example: Example, rng: np.random.Generator) -> str:
        """The example's prompt as people write it; in training never a text that is held out."""
        for _ in range(_MAX_DRAWS):
            text = natural_prompt(rng, example.prompt)
            if self.split == "test" or not is_held_out_text(text):
                return text
        raise RuntimeError(f"Every wording of {example.prompt.text!r} is held out.")

    def example(self, index: int) -> Example:
        """The scene of a record with its prompt, and nothing more."""
        return self._draw_example(index)[0]

    def _draw_example(self, index: int) -> tuple[Example, np.random.Generator]:
        """The scene, and the state that draws what is said about it."""
        rng = np.random.default_rng((self.seed, index))
        family = None if self.family_weights is None else _draw(rng, self.family_weights, TRAINING_FAMILIES)
        return sample_example(rng, split=self.split, family=family), rng

    def draw_edit_kind(self, rng: np.random.Generator) -> str:
        """One of `EDIT_KINDS`, by their weights."""
        return pick(rng, EDIT_KINDS) if self.edit_weights is None else _draw(rng, self.edit_weights, EDIT_KINDS)

    def key(self, index: int) -> str:
        """The name of a scene among all that there are."""
        return f"shapes/{self.split}/{self.seed}/{index}"

    def _question(self, scene: Scene, rng: np.random.Generator) -> Question:
        kind = None
        if self.question_weights is not None:
            kind = _draw(rng, self.question_weights, question_kinds(scene, ALL_QUESTION_KINDS))
        question = sample_question(scene, rng, kind)
        return replace(question, text=question.reworded(rng)) if rng.random() < self.natural_rate else question
