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
    BACKGROUNDS,
    EDIT_KINDS,
    GENERAL_QUESTION_KINDS,
    QUESTION_KINDS,
    TRAINING_FAMILIES,
    Edit,
    Example,
    Question,
    Scene,
    cell_words,
    describe,
    edit_scene,
    in_reading_order,
    is_training_scene,
    long_caption,
    object_words,
    pick,
    question_kinds,
    render,
    sample_comparison,
    sample_edit,
    sample_example,
    sample_question,
    sample_question_of_two,
)

RECONSTRUCT = "Please reconstruct the given image."
"""What the published reconstruction data asks for."""
REQUESTS = ("{caption}", "draw {caption}", "please draw {caption}", "now draw {caption}")
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
        example, rng = self._draw_example(index)
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

    def example(self, index: int) -> Example:
        """The scene of a record with its prompt, and nothing more."""
        return self._draw_example(index)[0]

    def _draw_example(self, index: int) -> tuple[Example, np.random.Generator]:
        """The scene, and the state that draws what is said about it."""
        rng = np.random.default_rng((self.seed, index))
        family = None if self.family_weights is None else _draw(rng, self.family_weights, TRAINING_FAMILIES)
        return sample_example(rng, split=self.split, family=family), rng

    def key(self, index: int) -> str:
        """The name of a scene among all that there are."""
        return f"shapes/{self.split}/{self.seed}/{index}"

    def _question(self, scene: Scene, rng: np.random.Generator) -> Question:
        weights = self.question_weights
        return sample_question(scene, rng, None if weights is None else _draw(rng, weights, question_kinds(scene)))


class ShapesPictures(Dataset):
    """
    What to learn to generate: captions with images; scenes to be drawn again; edits of them; and each of these after
    something was said before.

    Args:
        scenes: what is drawn and said.
        complete: what is given of the dataset's `identity` and a record. By default the record.
        instruction: what a user says in earlier turns to have a picture drawn; `{caption}` stands for the prompt.
        edit_rate, reconstruction_rate: shares in [0, 1] of records that edit an image, or draw it again.
        history_rate: share of records with earlier turns: a question about a picture, or the wish to have it drawn.
            Three in four edits with earlier turns are of the picture in the last one.

    Raises:
        ValueError: when the shares are negative or more than one together.
    """

    def __init__(
        self,
        scenes: ShapesDataset,
        complete: Callable[[str, Record], Any] | None = None,
        instruction: str = "{caption}",
        edit_rate: float = 0.0,
        reconstruction_rate: float = 0.0,
        history_rate: float = 0.0,
    ):
        self.scenes = scenes
        self.complete = complete
        self.instruction = instruction
        self.rates = {"edit_rate": edit_rate, "reconstruction_rate": reconstruction_rate, "history_rate": history_rate}
        if not (edit_rate >= 0 and reconstruction_rate >= 0 and edit_rate + reconstruction_rate <= 1):
            raise ValueError(
                f"`edit_rate` and `reconstruction_rate` are shares of the records. Got {edit_rate} and "
                f"{reconstruction_rate}. Choose numbers of at least 0 that make at most 1 together."
            )
        if not 0 <= history_rate <= 1:
            raise ValueError(f"`history_rate` is a share in [0, 1] of the records. Got {history_rate}.")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        (record,) = self.variants(index)
        return record if self.complete is None else self.complete(self.identity, record)

    def variants(self, index: int) -> list[Record]:
        """The record of a scene, as [`~data.sources.Source`] has it."""
        return [self.task(index).record]

    def task(self, index: int) -> "Task":
        """What is to be drawn, with all that is known of it."""
        rng = np.random.default_rng((self.scenes.seed, index, 2))
        key, history = self.scenes.key(index), ()
        if rng.random() < self.rates["history_rate"]:
            history = self._turn(sample_example(rng, split=self.scenes.split), rng)
        chance = rng.random()
        if chance < self.rates["edit_rate"]:
            edit, example = self._edit(index, rng)
            given, drawn = (Image.fromarray(render(scene)) for scene in (edit.source, edit.target))
            images = (given,)
            if history and rng.random() < 0.75:  # the image to edit is the one that was spoken of
                earlier = history if rng.random() < 0.3 else ()
                history, images = (*earlier, *self._turn(example, rng)), ()
            before = in_reading_order(edit.source.objects)
            objects = [edit.new if o is edit.old else o for o in before] + [edit.new] * (edit.old is None)
            record = Record(key, target=drawn, prompt=edit.text, images=images, history=history)
            scene = Scene(tuple(o for o in objects if o is not None), edit.target.background)
            return Task(record, scene, is_shown=True)
        example = self.scenes[index]
        picture = Image.fromarray(example.image)
        if chance < self.rates["edit_rate"] + self.rates["reconstruction_rate"]:
            record = Record(key, target=picture, prompt=RECONSTRUCT, images=(picture,), history=history)
            return Task(record, Scene(in_reading_order(example.scene.objects), example.scene.background), True)
        record = Record(key, target=picture, prompt=example.caption, history=history)
        return Task(record, example.scene, False, example.plan if example.caption == example.long_caption else None)

    def _edit(self, index: int, rng: np.random.Generator) -> tuple[Edit, Example]:
        """An edit of the scene, or, where few fit, of another, and what was edited."""
        if self.scenes.split == "train":
            example = self.scenes.example(index)
            edit = edit_scene(example.scene, rng, pick(rng, EDIT_KINDS))
            if edit is not None and is_training_scene(edit.target):
                return edit, example
        return sample_edit(rng, split=self.scenes.split)

    def _turn(self, example: Example, rng: np.random.Generator) -> tuple[dict[str, Any], ...]:
        """A picture drawn on request, or a question about it, with the answer."""
        picture = {"type": "image", "image": Image.fromarray(render(example.scene))}
        if rng.random() < 0.5:
            request = self.instruction.replace("{caption}", example.prompt.text)
            return ({"role": "user", "content": request}, {"role": "assistant", "content": [picture]})
        question = sample_question(example.scene, rng)
        asked = {"role": "user", "content": [picture, {"type": "text", "text": question.text}]}
        return (asked, {"role": "assistant", "content": question.answer})

    @property
    def identity(self) -> str:
        """What, beside a record's key, decides which image it has."""
        rates = {name: rate for name, rate in self.rates.items() if rate}
        return json.dumps([self.scenes.family_weights, rates] if rates else self.scenes.family_weights)


@dataclass(frozen=True)
class Task:
    """
    A picture to draw.

    Attributes:
        record: what the model is given, and the picture.
        scene: what the picture shows; its objects in the order of the prompt, or in reading order where they are seen.
        is_shown: whether the prompt has an image of them.
        ordered_prompt: for a full description, one that keeps the order of the scene's objects.
    """

    record: Record
    scene: Scene
    is_shown: bool
    ordered_prompt: str | None = None


@dataclass(frozen=True)
class Plan:
    """
    A prompt and the picture to plan for it, before it is drawn.

    Attributes:
        prompt: a caption or an instruction, whose objects stand in the order of the phrases.
        phrases: single words about each thing to draw.
        images: input images.
        history: chat messages before the prompt.
    """

    prompt: str
    phrases: tuple[tuple[str, ...], ...]
    images: tuple[Image.Image, ...] = ()
    history: tuple[dict[str, Any], ...] = ()


class ShapesPlans(Dataset):
    """
    The pictures to draw as prompts and words about each object. Where an image shows the objects, the words tell their
    exact places, too.

    Args:
        pictures: what is to be drawn.
    """

    def __init__(self, pictures: ShapesPictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Plan:
        task = self.pictures.task(index)
        record, scene = task.record, task.scene
        if task.is_shown:
            phrases = [(*object_words(Scene((o,), scene.background))[0], cell_words(o)) for o in scene.objects]
        else:
            phrases = object_words(scene)
        return Plan(task.ordered_prompt or record.prompt, tuple(map(tuple, phrases)), record.images, record.history)


class ShapesConversations(Dataset):
    """
    The scenes as conversations: about an image, about two, or about a prompt and the picture it calls for.

    Of an image, questions are asked and both descriptions, in any order. A prompt in words is a request for a plan of
    the picture, answered with it, then the questions are asked about that picture. A short prompt is answered with
    the full description, so that its words come to mean a whole arrangement: which colour goes with which shape, who
    stands where. A full description is answered with the plain one.

    Args:
        scenes: what is drawn and said, with at least one question each.
        plan_instruction: a request for a plan; `{caption}` stands for the prompt.
        text_rate: share in [0, 1] of conversations that show no image.
        comparison_rate: share of conversations that compare two images, or ask about one of them.
        request_rate: share of conversations that ask for a picture, or for an edit of one, and are answered with
            `image_start_token`.
        image_start_token: the token after which an image is generated.

    Raises:
        ValueError: when the shares are negative or more than one together.
    """

    def __init__(
        self,
        scenes: ShapesDataset,
        plan_instruction: str,
        text_rate: float = 0.0,
        comparison_rate: float = 0.0,
        request_rate: float = 0.0,
        image_start_token: str = "[IMG]",
    ):
        rates = {"text_rate": text_rate, "comparison_rate": comparison_rate, "request_rate": request_rate}
        if min(rates.values()) < 0 or round(sum(rates.values()), 9) > 1:
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in rates)} are shares of the conversations. Got "
                f"{', '.join(map(str, rates.values()))}. Choose numbers of at least 0 that make at most 1 together."
            )
        self.scenes = scenes
        self.plan_instruction = plan_instruction
        self.text_rate = text_rate
        self.comparison_rate = comparison_rate
        self.request_rate = request_rate
        self.image_start_token = image_start_token

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((self.scenes.seed, index, 1))
        chance = rng.random()
        if chance < self.text_rate:
            return self._of_words(index)
        if chance < self.text_rate + self.comparison_rate:
            return self._of_two(index, rng)
        if chance < self.text_rate + self.comparison_rate + self.request_rate:
            return self._request(index, rng)
        return self._of_image(index, rng)

    def _of_words(self, index: int) -> Record:
        scene = self.scenes[index]
        plan = scene.description if scene.caption == scene.long_caption else scene.plan
        asked = self.plan_instruction.replace("{caption}", scene.caption)
        return Record(self.scenes.key(index), turns=((asked, plan), *self._turns(scene)))

    def _of_image(self, index: int, rng: np.random.Generator) -> Record:
        scene = self.scenes[index]
        turns = [*self._turns(scene), (DESCRIBE, scene.description), (DESCRIBE_FULLY, scene.long_caption)]
        turns = tuple(turns[place] for place in rng.permutation(len(turns)))  # a description may be asked for at once
        return Record(self.scenes.key(index), images=(Image.fromarray(scene.image),), turns=turns)

    def _of_two(self, index: int, rng: np.random.Generator) -> Record:
        first = self.scenes[index]
        edit = edit_scene(first.scene, rng, pick(rng, EDIT_KINDS))
        near = None
        if edit is not None and rng.random() < 0.5:
            near = Scene(edit.target.objects, str(rng.choice(list(BACKGROUNDS))))
        is_near = near is not None and is_training_scene(near)
        second = near if is_near else sample_example(rng, split=self.scenes.split).scene
        questions = [
            sample_comparison(first.scene, second, rng)
            if rng.random() < 0.5
            else sample_question_of_two(first.scene, second, rng)
            for _ in first.questions
        ]
        return Record(
            self.scenes.key(index),
            images=(Image.fromarray(first.image), Image.fromarray(render(second))),
            turns=tuple((question.text, question.answer) for question in questions),
        )

    def _request(self, index: int, rng: np.random.Generator) -> Record:
        scene, answer = self.scenes[index], self.image_start_token
        wanted = pick(rng, REQUESTS).replace("{caption}", scene.caption)
        turns = (*self._turns(scene)[:1], (wanted, answer))
        if rng.random() < 0.5:
            turns = (*self._turns(scene)[:1], (sample_edit(rng, split=self.scenes.split)[0].text, answer))
        return Record(self.scenes.key(index), images=(Image.fromarray(scene.image),), turns=turns)

    @staticmethod
    def _turns(scene: ShapesRecord) -> tuple[tuple[str, str], ...]:
        return tuple((question.text, question.answer) for question in scene.questions)
