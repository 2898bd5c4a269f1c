"""What to learn to draw in the tiny world: captions, plans, edits and reconstructions, some after earlier turns."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..data.records import RECONSTRUCT, Record
from . import (
    Edit,
    Example,
    Scene,
    cell_code,
    edit_scene,
    in_reading_order,
    is_training_scene,
    object_words,
    render,
    sample_edit,
    sample_example,
    sample_question,
    write_plan,
)
from .dataset import ShapesDataset
from .photographs import photograph
from .wording import small_talk

WORLD = 3
"""Counted up whenever the same seed and index come to mean another picture."""


@dataclass(frozen=True)
class Task:
    """
    A picture to draw.

    Attributes:
        record: what the model is given, and the picture.
        scene: what the picture shows; its objects in the order of the prompt, or in reading order where they are seen.
        is_exact: whether the prompt, or an image of it, tells the place of every object.
    """

    record: Record
    scene: Scene
    is_exact: bool


class ShapesPictures(Dataset):
    """
    What to learn to generate: captions with images; scenes to be drawn again; edits of them; plans of any of these;
    and each after something was said before.

    Args:
        scenes: what is drawn and said.
        complete: what is given of the dataset's `identity` and a record. By default the record.
        instruction: what a user says in earlier turns to have a picture drawn; `{caption}` stands for the prompt.
        edit_rate, reconstruction_rate: shares in [0, 1] of records that edit an image, or draw it again.
        history_rate: share of records with earlier turns: a question about a picture, or the wish to have it drawn.
            Three in four edits with earlier turns are of the picture in the last one.
        plan_rate: share of records whose prompt is the plan of the picture, as a model writes it before it draws.
        wrong_rate: share of records, of those that neither edit nor reconstruct, whose prompt is that of another
            picture, as in data that nobody has looked at.
        photograph_rate: share of records whose picture to draw is seen through a camera.

    Raises:
        ValueError: when the shares are negative or more than one together.
    """

    is_checked = True
    """As in [`~data.given_rows.check_given`]: what is said here may ask for a picture, by the model's own token."""

    def __init__(
        self,
        scenes: ShapesDataset,
        complete: Callable[[str, Record], Any] | None = None,
        instruction: str = "{caption}",
        edit_rate: float = 0.0,
        reconstruction_rate: float = 0.0,
        history_rate: float = 0.0,
        plan_rate: float = 0.0,
        wrong_rate: float = 0.0,
        photograph_rate: float = 0.0,
    ):
        self.scenes = scenes
        self.complete = complete
        self.instruction = instruction
        self.rates = {
            "edit_rate": edit_rate,
            "reconstruction_rate": reconstruction_rate,
            "history_rate": history_rate,
            "plan_rate": plan_rate,
            "wrong_rate": wrong_rate,
            "photograph_rate": photograph_rate,
        }
        if not (edit_rate >= 0 and reconstruction_rate >= 0 and edit_rate + reconstruction_rate <= 1):
            raise ValueError(
                f"`edit_rate` and `reconstruction_rate` are shares of the records. Got {edit_rate} and "
                f"{reconstruction_rate}. Choose numbers of at least 0 that make at most 1 together."
            )
        for name in ("history_rate", "plan_rate", "wrong_rate", "photograph_rate"):
            if not 0 <= self.rates[name] <= 1:
                raise ValueError(f"`{name}` is a share in [0, 1] of the records. Got {self.rates[name]}.")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        (record,) = self.variants(index)
        return record if self.complete is None else self.complete(self.identity, record)

    def variants(self, index: int) -> list[Record]:
        """The record of a scene, as [`~data.sources.Source`] has it."""
        return [self.task(index).record]

    def task(self, index: int) -> Task:
        """What is to be drawn, with all that is known of it."""
        rng = np.random.default_rng((self.scenes.seed, index, 2))
        history = ()
        if rng.random() < self.rates["history_rate"]:
            example = sample_example(rng, split=self.scenes.split)
            history = earlier_turns(self.scenes, example, rng, self.instruction)
        chance, is_planned = rng.random(), rng.random() < self.rates["plan_rate"]
        images: tuple[Image.Image, ...] = ()
        if chance < self.rates["edit_rate"]:
            edit, prompt, images, history = sample_edit_task(self.scenes, index, rng, history, self.instruction)
            scene, picture = edit.ordered_target, Image.fromarray(render(edit.target))
        else:
            drawn = self.scenes[index]
            scene, prompt, picture = drawn.scene, drawn.caption, Image.fromarray(drawn.image)
            is_wrong = self.rates["wrong_rate"] > 0 and rng.random() < self.rates["wrong_rate"]
            if is_wrong:
                other = self.scenes[int(rng.integers(len(self.scenes)))]
                scene, prompt = other.scene, other.caption
            if chance < self.rates["edit_rate"] + self.rates["reconstruction_rate"]:
                scene = Scene(in_reading_order(drawn.scene.objects), drawn.scene.background)
                prompt, images = RECONSTRUCT, (picture,)
        if self.rates["photograph_rate"] > 0 and rng.random() < self.rates["photograph_rate"]:
            picture = photograph(picture, rng)
        is_exact = is_planned or chance < self.rates["edit_rate"] + self.rates["reconstruction_rate"]
        record = Record(
            self.scenes.key(index),
            target=picture,
            prompt=write_plan(scene) if is_planned else prompt,
            images=images,
            history=history,
        )
        return Task(record, scene, is_exact)

    @property
    def identity(self) -> str:
        """What, beside a record's key, decides which image it has."""
        settings = {**self.rates, "edit_weights": self.scenes.edit_weights}
        return json.dumps(
            [WORLD, self.scenes.family_weights, {name: value for name, value in settings.items() if value}]
        )


def earlier_turns(
    scenes: ShapesDataset, example: Example, rng: np.random.Generator, instruction: str
) -> tuple[dict[str, Any], ...]:
    """
    What was said before: a picture drawn on request, from its prompt or its plan, or shown with a question; now and
    then with small talk before it, and with a further question about it or small talk after it.
    """
    before = _words(*small_talk(rng)) if rng.random() < scenes.natural_rate * 0.15 else ()
    if rng.random() < 0.5:
        turn = drawn_turn(scenes, example, rng, instruction)
    else:
        turn = _asked_turn(scenes, example, rng, is_shown=True)
    after, chance = (), rng.random()
    if chance < scenes.natural_rate * 0.2:
        after = _asked_turn(scenes, example, rng)
    elif chance < scenes.natural_rate * 0.3:
        after = _words(*small_talk(rng))
    return (*before, *turn, *after)


def drawn_turn(
    scenes: ShapesDataset, example: Example, rng: np.random.Generator, instruction: str
) -> tuple[dict[str, Any], ...]:
    """A picture drawn on request, from its prompt or its plan."""
    picture = {"type": "image", "image": Image.fromarray(render(example.scene))}
    if rng.random() < 0.5:
        caption = write_plan(example.ordered_scene)
    else:
        caption = scenes.natural_caption(example, rng) if rng.random() < scenes.natural_rate else example.prompt.text
    request = instruction.replace("{caption}", caption)
    return ({"role": "user", "content": request}, {"role": "assistant", "content": [picture]})


def _asked_turn(
    scenes: ShapesDataset, example: Example, rng: np.random.Generator, is_shown: bool = False
) -> tuple[dict[str, Any], ...]:
    """A question about a scene, with its picture or about the last one, and the answer."""
    question = sample_question(example.scene, rng)
    text = question.reworded(rng) if rng.random() < scenes.natural_rate else question.text
    if not is_shown:
        return _words(text, question.answer)
    picture = {"type": "image", "image": Image.fromarray(render(example.scene))}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": text}]}
    return (asked, {"role": "assistant", "content": question.answer})


def _words(text: str, answer: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text}, {"role": "assistant", "content": answer})


def sample_edit_task(
    scenes: ShapesDataset,
    index: int,
    rng: np.random.Generator,
    history: tuple[dict[str, Any], ...],
    instruction: str,
) -> tuple[Edit, str, tuple[Image.Image, ...], tuple[dict[str, Any], ...]]:
    """
    An edit of a scene, or, where few fit, of another: the edit, its words, the images with it, and the earlier turns.

    Three in four with earlier turns are of the last picture in them.
    """
    edit, edited = _edit(scenes, index, rng)
    text = edit.reworded(rng) if rng.random() < scenes.natural_rate else edit.text
    if history and rng.random() < 0.75:
        earlier = history if rng.random() < 0.3 else ()
        return edit, text, (), (*earlier, *earlier_turns(scenes, edited, rng, instruction))
    return edit, text, (Image.fromarray(render(edit.source)),), history


def _edit(scenes: ShapesDataset, index: int, rng: np.random.Generator) -> tuple[Edit, Example]:
    kind = scenes.draw_edit_kind(rng)
    if scenes.split == "train":
        example = scenes.example(index)
        edit = edit_scene(example.scene, rng, kind)
        if edit is not None and is_training_scene(edit.target):
            return edit, example
    return sample_edit(rng, split=scenes.split, kind=kind)


@dataclass(frozen=True)
class Phrases:
    """
    A prompt, and what the queries learn to say of it before anything is drawn.

    Attributes:
        prompt: a caption, a plan or an instruction, whose objects stand in the order of the phrases.
        phrases: single words about each thing to draw.
        images: input images.
        history: chat messages before the prompt.
    """

    prompt: str
    phrases: tuple[tuple[str, ...], ...]
    images: tuple[Image.Image, ...] = ()
    history: tuple[dict[str, Any], ...] = ()


class ShapesPhrases(Dataset):
    """
    The pictures to draw as prompts and words about each object. Where prompt or image tell it, the words tell the
    exact place of the object, too.

    Args:
        pictures: what is to be drawn.
    """

    def __init__(self, pictures: ShapesPictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Phrases:
        task = self.pictures.task(index)
        record, scene = task.record, task.scene
        assert record.prompt is not None
        words = [object_words(Scene((o,), scene.background))[0] for o in scene.objects]
        if task.is_exact:
            words = [[*words_of_object, cell_code(o)] for words_of_object, o in zip(words, scene.objects, strict=True)]
        return Phrases(record.prompt, tuple(map(tuple, words)), record.images, record.history)
