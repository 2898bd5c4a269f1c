"""Conversations about the tiny world: what the backbone learns to answer, to plan, to judge, and when to draw."""

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..data.records import RECONSTRUCT, Record
from . import (
    EDIT_KINDS,
    NO_PICTURE,
    NOT_KNOWN,
    Example,
    Scene,
    break_picture,
    edit_scene,
    in_reading_order,
    is_training_scene,
    mismatch,
    off_topic,
    patch_words,
    pick,
    render,
    sample_comparison,
    sample_edit,
    sample_example,
    sample_question_of_two,
    sample_scene,
    verify,
    write_plan,
)
from .dataset import ShapesDataset, ShapesRecord
from .tasks import drawn_turn, earlier_turns, sample_edit_task
from .wording import any_wording, asked, punctuated, small_talk
from .wording_lists import AGAIN

DESCRIBE = "describe the image"
DESCRIBE_FULLY = "describe the image in detail"
_DESCRIBE_WORDS = (
    DESCRIBE,
    "describe the picture",
    "describe it",
    "what do you see",
    "what is in the image",
    "what is in the picture",
    "what's in the picture",
    "what does the image show",
    "what does the picture show",
    "tell me what you see",
    "tell me about the picture",
    "caption the image",
)
_DESCRIBE_FULLY_WORDS = (
    DESCRIBE_FULLY,
    "describe the picture in detail",
    "describe it in detail",
    "describe everything you see",
    "tell me everything about the picture",
    "give me a full description",
)
RESTATE = "Please say in plain words the following caption: {caption}"
_RESTATE_RATE = 0.4
_RATES = ("text_rate", "image_plan_rate", "comparison_rate", "request_rate", "check_rate")


class ShapesConversations(Dataset):
    """
    The scenes as conversations. Of an image, questions are asked and both descriptions, in any order, unless a rate
    says otherwise.

    Args:
        scenes: what is drawn and said, with at least one question each; its `natural_rate` is that of everything
            said here.
        processor: whose instructions a request for a picture (`instruction`), for a plan (`plan_instruction`) and for
            a check (`check_instruction`) are, and whose `image_start_token` starts an image.
        text_rate: share in [0, 1] of conversations that show no image: a request for a plan of a picture, answered
            with it, and questions about that picture. So the words of a prompt come to mean a whole arrangement: which
            colour goes with which shape, who stands where. Some of those whose prompt is not in the world's plain
            words ask for these instead: a plan leaves much to chance, and this answer nothing.
        image_plan_rate: share of those that ask for the plan of an edit, or of the image itself to be drawn again.
        comparison_rate: share of those that compare two images, or ask about one of them.
        request_rate: share of those in which the answer may be to draw: requests for pictures and edits, answered with
            the token that starts an image, and what is easily taken for one.
        check_rate: share of those that ask whether an image shows exactly what a prompt says.
        history_rate: share of those about images, edits and requests with an earlier turn.
        labels_images: whether the tokens of images learn to say a word each about what they show, so that a small
            model soon knows what is where.

    Raises:
        ValueError: when the shares are negative or more than one together.
    """

    is_checked = True
    """As in [`~data.given_rows.check_given`]: what is said here may ask for a picture, by the model's own token."""

    def __init__(
        self,
        scenes: ShapesDataset,
        processor: Any,
        text_rate: float = 0.0,
        image_plan_rate: float = 0.0,
        comparison_rate: float = 0.0,
        request_rate: float = 0.0,
        check_rate: float = 0.0,
        history_rate: float = 0.0,
        labels_images: bool = False,
    ):
        rates = dict(zip(_RATES, (text_rate, image_plan_rate, comparison_rate, request_rate, check_rate), strict=True))
        if min(rates.values()) < 0 or round(sum(rates.values()), 9) > 1:
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in rates)} are shares of the conversations. Got "
                f"{', '.join(map(str, rates.values()))}. Choose numbers of at least 0 that make at most 1 together."
            )
        if not 0 <= history_rate <= 1:
            raise ValueError(f"`history_rate` is a share in [0, 1] of the conversations. Got {history_rate}.")
        self.scenes = scenes
        self.processor = processor
        self.rates = rates
        self.history_rate = history_rate
        self.labels_images = labels_images

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((self.scenes.seed, index, 1))
        chance = rng.random()
        kinds = (self._of_words, self._plan_of_image, self._of_two, self._request, self._check)
        for kind, rate in zip(kinds, self.rates.values(), strict=True):
            if chance < rate:
                return kind(index, rng)
            chance -= rate
        return self._of_image(index, rng)

    def _of_words(self, index: int, rng: np.random.Generator) -> Record:
        scene = self.scenes[index]
        plain = scene.example.prompt.text
        if scene.caption not in (plain, scene.long_caption) and rng.random() < _RESTATE_RATE:
            return Record(self.scenes.key(index), turns=((RESTATE.replace("{caption}", scene.caption), plain),))
        asked = self.processor.plan_instruction.replace("{caption}", scene.caption)
        return Record(self.scenes.key(index), turns=((asked, scene.plan), *self._questions(scene)))

    def _of_image(self, index: int, rng: np.random.Generator) -> Record:
        scene = self.scenes[index]
        turns = [
            *self._questions(scene),
            (self._describe(rng, "describe", _DESCRIBE_WORDS), scene.description),
            (self._describe(rng, "describe fully", _DESCRIBE_FULLY_WORDS), scene.long_caption),
        ]
        # A description may be asked for at once.
        turns = tuple(turns[position] for position in rng.permutation(len(turns)))
        return Record(
            self.scenes.key(index),
            images=(Image.fromarray(scene.image),),
            turns=turns,
            history=self._history(rng),
            image_words=self._image_words(rng, scene.scene),
        )

    def _plan_of_image(self, index: int, rng: np.random.Generator) -> Record:
        history, ask = self._history(rng), self.processor.plan_instruction
        images: tuple[Image.Image, ...] = ()
        kind = rng.random()
        if kind < 0.05:
            history, text, scene = self._again(rng)
            plan = write_plan(scene)
        elif kind < 0.75:
            edit, text, images, history = sample_edit_task(
                self.scenes, index, rng, history, self.processor.instruction
            )
            plan = write_plan(edit.ordered_target)
        else:
            scene = self.scenes[index]
            text, images = RECONSTRUCT, (Image.fromarray(scene.image),)
            plan = write_plan(Scene(in_reading_order(scene.scene.objects), scene.scene.background))
        turn = (ask.replace("{caption}", text), plan)
        return Record(self.scenes.key(index), images=images, turns=(turn,), history=history)

    def _again(self, rng: np.random.Generator) -> tuple[tuple[dict[str, Any], ...], str, Scene]:
        """The turn in which a picture was drawn, the wish for another one, and what that one may show."""
        example = sample_example(rng, split=self.scenes.split)
        history = drawn_turn(self.scenes, example, rng, self.processor.instruction)
        text = punctuated(rng, any_wording(rng, "again", AGAIN))
        scene = sample_scene(example.prompt, rng, split=self.scenes.split)
        return history, text, Example(scene, example.prompt, "").ordered_scene

    def _of_two(self, index: int, rng: np.random.Generator) -> Record:
        first, rate = self.scenes[index], self.scenes.natural_rate
        edit = edit_scene(first.scene, rng, pick(rng, EDIT_KINDS))
        is_near = edit is not None and rng.random() < 0.5 and self._may_show(edit.target)
        second = edit.target if is_near else sample_example(rng, split=self.scenes.split).scene
        turns = []
        for _ in first.questions:
            is_natural = rng.random() < rate
            if rng.random() < 0.5:
                question = sample_comparison(first.scene, second, rng)
                text = question.reworded(rng) if is_natural else question.text
            else:
                question = sample_question_of_two(first.scene, second, rng, is_natural)
                text = question.text
            turns.append((text, question.answer))
        images = (Image.fromarray(first.image), Image.fromarray(render(second)))
        words = self._image_words(rng, first.scene, second)
        return Record(self.scenes.key(index), images=images, turns=tuple(turns), image_words=words)

    def _request(self, index: int, rng: np.random.Generator) -> Record:
        """A turn that is to be answered with a picture, or that could be taken for one."""
        scene, start = self.scenes[index], self.processor.image_start_token
        history = self._history(rng)
        key, kind = self.scenes.key(index), rng.random()
        if kind < 0.03:
            history, text, _ = self._again(rng)
            return Record(key, turns=((text, start),), history=history)
        if kind < 0.35:
            return Record(key, turns=((scene.caption, start),), history=history)
        if kind < 0.7:
            _, text, images, history = sample_edit_task(self.scenes, index, rng, history, self.processor.instruction)
            return Record(key, turns=((text, start),), images=images, history=history)
        if kind < 0.8:
            return Record(key, turns=(small_talk(rng),), history=history)
        if kind < 0.9:
            return Record(key, turns=((off_topic(rng), NOT_KNOWN),), history=history)
        if kind < 0.96:
            text = pick(rng, (scene.questions[0].text, self._describe(rng, "describe", _DESCRIBE_WORDS)))
        else:
            text = sample_edit(rng, split=self.scenes.split)[0].reworded(rng)
        return Record(key, turns=((text, NO_PICTURE),))

    def _check(self, index: int, rng: np.random.Generator) -> Record:
        """Whether an image shows exactly what is said: a true one, a near miss, or one that is broken."""
        scene = self.scenes[index]
        wording = rng.random()
        if wording < 0.4:
            text, is_plan = scene.plan, True
        elif wording < 0.9 or scene.caption == scene.long_caption:
            text, is_plan = scene.caption, scene.caption == scene.long_caption
        else:
            text, is_plan = scene.long_caption, True
        shown, kind = scene.scene, rng.random()
        image = scene.image
        if kind < 0.2:
            image = break_picture(shown, rng)
        elif kind < 0.6:
            edit = edit_scene(shown, rng, pick(rng, EDIT_KINDS))
            shown = edit.target if edit is not None and self._may_show(edit.target) else shown
            image = render(shown)
        if is_plan:
            is_shown = kind >= 0.2 and shown.key == scene.scene.key
        elif kind < 0.2:
            is_shown = verify(image, scene.example.prompt).passed
        else:
            is_shown = mismatch(shown.objects, shown.background, scene.example.prompt) is None
        asked = self.processor.check_instruction.replace("{caption}", text)
        turn = (asked, "yes" if is_shown else "no")
        return Record(self.scenes.key(index), images=(Image.fromarray(image),), turns=(turn,))

    def _image_words(self, rng: np.random.Generator, *scenes: Scene) -> tuple[tuple[str, ...], ...]:
        return tuple(patch_words(scene, rng) for scene in scenes) if self.labels_images else ()

    def _may_show(self, scene: Scene) -> bool:
        return self.scenes.split == "test" or is_training_scene(scene)

    def _history(self, rng: np.random.Generator) -> tuple[dict[str, Any], ...]:
        if rng.random() >= self.history_rate:
            return ()
        example = sample_example(rng, split=self.scenes.split)
        return earlier_turns(self.scenes, example, rng, self.processor.instruction)

    def _describe(self, rng: np.random.Generator, form: str, wordings: tuple[str, ...]) -> str:
        if rng.random() >= self.scenes.natural_rate:
            return wordings[0]
        return asked(rng, any_wording(rng, form, wordings))

    @staticmethod
    def _questions(scene: ShapesRecord) -> tuple[tuple[str, str], ...]:
        return tuple((question.text, question.answer) for question in scene.questions)
