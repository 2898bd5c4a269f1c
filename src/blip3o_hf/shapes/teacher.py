"""A teacher whose pictures are right by construction: it draws plain captions of the tiny world."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..collection.teachers import REFUSED, Answer, DrawingRequest
from .language import ObjectGroup, Prompt, parse_description
from .render import render
from .sampling import sample_scene
from .scene import MAX_OBJECTS


class ShapesTeacher:
    """
    Draws captions such as "two red circles and a blue cross on a black background"; places and sizes come from the
    seed. What the world has no words for, or holds out from training, it refuses.

    Args:
        options: it has none.

    Raises:
        ValueError: when there are options.
    """

    settings: Mapping[str, Any] = {"kind": "shapes"}
    group_size = 0

    def __init__(self, options: Mapping[str, Any]):
        if options:
            raise ValueError(f"The teacher 'shapes' has no settings. Got {', '.join(options)}. Leave them out.")

    def draw(self, requests: Sequence[DrawingRequest]) -> Iterator[tuple[str, Answer]]:
        for request in requests:
            yield request.id, self._answer(request)

    @staticmethod
    def _answer(request: DrawingRequest) -> Answer:
        said = parse_description(request.prompt.lower())
        if said is None:
            return Answer(problem=f"{REFUSED}: the tiny world has no words for it")
        counts, background = said
        groups = tuple(ObjectGroup(shape, color, count) for (color, shape), count in counts.items())
        prompt = Prompt(request.prompt, "mixed", groups, background=background)
        if prompt.num_objects > MAX_OBJECTS:
            return Answer(problem=f"{REFUSED}: a scene has {MAX_OBJECTS} objects at most")
        if prompt.is_held_out:
            return Answer(problem=f"{REFUSED}: it is held out from training")
        scene = sample_scene(prompt, np.random.default_rng(request.seed), split="train")
        return Answer.of_image(Image.fromarray(render(scene)))
