"""The tiny world as what a recipe learns from."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from PIL import Image

from ..checks import check_keys
from ..training.caching import decode
from ..training.recipe_values import hints_of
from ..training.training_data import TrainingData
from . import Prompt, known_texts
from .benchmark import held_out_prompts
from .conversations import ShapesConversations
from .dataset import ShapesDataset
from .rewards import meaning_of
from .tasks import ShapesPictures

SCENE_KEYS = ("length", "seed", "long_caption_rate", "natural_rate", "family_weights")
EDIT_KEYS = ("edit_weights",)
QUESTION_KEYS = ("question_weights", "num_questions")
PICTURE_KEYS = ("edit_rate", "reconstruction_rate", "history_rate", "plan_rate", "wrong_rate", "photograph_rate")
CONVERSATION_KEYS = (
    "text_rate",
    "image_plan_rate",
    "comparison_rate",
    "request_rate",
    "check_rate",
    "history_rate",
    "labels_images",
)
PROMPT_KEYS = ("length", "seed", "family_weights")
_KEYS = {
    "images": SCENE_KEYS,
    "prompts": PROMPT_KEYS,
    "pictures": (*SCENE_KEYS, *PICTURE_KEYS, *EDIT_KEYS),
    "conversations": (*SCENE_KEYS, *CONVERSATION_KEYS, *QUESTION_KEYS, *EDIT_KEYS),
    "pairs": tuple(dict.fromkeys((*SCENE_KEYS, *CONVERSATION_KEYS, *QUESTION_KEYS, *PICTURE_KEYS, *EDIT_KEYS))),
}
NUM_QUESTIONS = 4
HELD_OUT_PER_FAMILY = 8
HELD_OUT_SEED = 5
"""Other prompts than those of the benchmark, whose seed is 1."""
HELD_OUT = 64


class ShapesData(TrainingData):
    """Scenes drawn by a program, with captions, edits, plans and conversations about them."""

    benchmark: ClassVar[str | None] = "blip3o_hf.shapes.recipe_benchmark:ShapesBenchmark"
    language = ("en",)
    prompt = "two red circles"
    types: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys((*PICTURE_KEYS, *CONVERSATION_KEYS), float),
        "labels_images": bool,
        **hints_of(ShapesDataset.__init__, *SCENE_KEYS, *EDIT_KEYS, *QUESTION_KEYS),
    }

    @classmethod
    def check(cls, settings, use, where):
        check_keys(settings, _KEYS[use], f"section 'data' of {where}")

    def scenes(self, **more: Any) -> ShapesDataset:
        """The scenes of the recipe."""
        keys = (*SCENE_KEYS, *QUESTION_KEYS, *EDIT_KEYS)
        return ShapesDataset(**{**{key: self.settings[key] for key in keys if key in self.settings}, **more})

    def pictures(self, complete=decode, processor=None):
        return self._pictures(self._scenes(0), complete, processor)

    def conversations(self, processor):
        return self._conversations(self._scenes(NUM_QUESTIONS), processor)

    def held_out_pictures(self, complete=decode, processor=None):
        return self._pictures(held_out_scenes(), complete, processor)

    def held_out_conversations(self, processor):
        return self._conversations(held_out_scenes(NUM_QUESTIONS), processor, text_rate=0.0)

    def prompts(self):
        scenes = self.scenes()
        return _rows(scenes.example(index).prompt for index in range(len(scenes)))

    def held_out_prompts(self):
        return _rows(held_out_prompts(HELD_OUT_PER_FAMILY, seed=HELD_OUT_SEED))

    def images(self, number):
        scenes = ShapesDataset(length=number, seed=2)
        return (Image.fromarray(scenes[index].image) for index in range(len(scenes)))

    def texts(self):
        for text in known_texts():
            yield text
            yield from text.split()
            yield from (f" {word}" for word in text.split())
        records = ShapesPictures(ShapesDataset(length=2000, seed=1, long_caption_rate=0.3), plan_rate=0.5)
        yield from (records[index].prompt for index in range(len(records)))

    def describe(self):
        return (
            "Pictures, captions and questions of the tiny world of coloured shapes, drawn by a program "
            "(`blip3o_hf.shapes`): no photograph, no text from the web, no output of another model."
        )

    def _scenes(self, num_questions: int) -> ShapesDataset:
        return self.scenes(num_questions=self.settings.get("num_questions", num_questions))

    def _pictures(self, scenes: ShapesDataset, complete, processor) -> ShapesPictures:
        rates = {key: self.settings[key] for key in PICTURE_KEYS if key in self.settings}
        if processor is not None:  # targets are precomputed without one, and need no words
            rates["instruction"] = processor.instruction
        return ShapesPictures(scenes, complete, **rates)

    def _conversations(self, scenes: ShapesDataset, processor, **more: Any) -> ShapesConversations:
        rates: dict[str, Any] = {key: self.settings[key] for key in CONVERSATION_KEYS if key in self.settings}
        return ShapesConversations(scenes, processor, **{**rates, **more})


def _rows(prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Prompts with their meaning, as `shapes.rewards` reads it."""
    return [{"prompt": prompt.text, "meaning": meaning_of(prompt)} for prompt in prompts]


def held_out_scenes(num_questions: int = 0) -> ShapesDataset:
    """Scenes that no training sees."""
    return ShapesDataset(HELD_OUT, seed=3, split="test", num_questions=num_questions)
