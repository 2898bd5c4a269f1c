"""Questions whose answers follow from the scene, so that understanding can be trained and scored exactly."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...names import check_name
from .language import NUMBER_WORDS, pick, plural, with_article
from .scene import (
    COLORS,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    Scene,
    SceneObject,
    offset_along,
    stated_relation,
)

QUESTION_KINDS = ("existence", "color", "shape", "count", "position", "background")
COMPARISON = "comparison"
"""The kind of question that is asked about two scenes."""
GENERAL_QUESTION_KINDS = ("existence", "count", "background")
"""The kinds that can be asked about any scene."""


@dataclass(frozen=True)
class Question:
    """A question about a scene with its one-word answer; `kind` is one of `QUESTION_KINDS`, or `COMPARISON`."""

    text: str
    answer: str
    kind: str


def _unique(scene: Scene, attribute: str) -> list[SceneObject]:
    counts = Counter(getattr(o, attribute) for o in scene.objects)
    return [o for o in scene.objects if counts[getattr(o, attribute)] == 1]


def _related_pairs(scene: Scene) -> list[tuple[SceneObject, SceneObject]]:
    """Ordered pairs of objects, each alone in its colour and shape, with a relation that may be stated."""
    counts = Counter((o.color, o.shape) for o in scene.objects)
    named = [o for o in scene.objects if counts[o.color, o.shape] == 1]
    return [(a, b) for a in named for b in named if a is not b and stated_relation(a, b) is not None]


def question_kinds(scene: Scene) -> tuple[str, ...]:
    """The kinds of question that have one answer in this scene."""
    possible = {
        "color": lambda: _unique(scene, "shape"),
        "shape": lambda: _unique(scene, "color"),
        "position": lambda: _related_pairs(scene),
    }
    return tuple(kind for kind in QUESTION_KINDS if kind not in possible or possible[kind]())


def _ask_existence(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    shapes = {o.shape for o in scene.objects}
    kinds = {(o.color, o.shape) for o in scene.objects}
    has_color, is_present = rng.random() < 0.6, rng.random() < 0.5
    o = pick(rng, scene.objects)
    if not has_color and (is_present or len(shapes) < len(SHAPES)):
        shape = o.shape if is_present else pick(rng, [shape for shape in SHAPES if shape not in shapes])
        return f"is there {with_article(shape)}?", "yes" if is_present else "no"
    if is_present:
        return f"is there {with_article(f'{o.color} {o.shape}')}?", "yes"
    excluded = kinds | HELD_OUT_COMBINATIONS
    recolored = [(color, o.shape) for color in COLORS if (color, o.shape) not in excluded]
    reshaped = [(o.color, shape) for shape in SHAPES if (o.color, shape) not in excluded]
    color, shape = pick(rng, reshaped if reshaped and rng.random() < 0.5 else recolored)
    return f"is there {with_article(f'{color} {shape}')}?", "no"


def _ask_count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    which = rng.random()
    if which < 0.2:
        return "how many objects are there?", NUMBER_WORDS[len(scene.objects)]
    is_absent_allowed = rng.random() < 0.25
    if which < 0.6:
        present = [o.shape for o in scene.objects]
        shape = pick(rng, SHAPES if is_absent_allowed else present)
        return f"how many {plural(shape)} are there?", NUMBER_WORDS[present.count(shape)]
    present = [o.color for o in scene.objects]
    color = pick(rng, tuple(COLORS) if is_absent_allowed else present)
    return f"how many {color} objects are there?", NUMBER_WORDS[present.count(color)]


def _ask_position(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    a, b = pick(rng, _related_pairs(scene))
    shapes = [o.shape for o in scene.objects]
    are_shapes_enough = shapes.count(a.shape) == shapes.count(b.shape) == 1 and rng.random() < 0.5
    first, second = (o.shape if are_shapes_enough else f"{o.color} {o.shape}" for o in (a, b))
    relation, answer = stated_relation(a, b), "yes"
    false = [
        other
        for other in RELATIONS
        if offset_along(a.center, b.center, other) <= 0 and (a.shape, other, b.shape) not in HELD_OUT_RELATIONS
    ]
    if false and rng.random() < 0.5:
        relation, answer = pick(rng, false), "no"
    return f"is the {first} {relation} the {second}?", answer


def sample_question(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """Ask something about a scene that has exactly one right answer.

    Yes and no are equally likely where both can be asked; a "no" is a near miss of what is there. No "no" is
    about a held-out combination or relation, so training never teaches that these do not exist.

    Args:
        scene: The scene.
        rng: Source of randomness.
        kind: One of `QUESTION_KINDS`; `None` draws one of `question_kinds(scene)`.

    Raises:
        ValueError: If the kind is unknown, or has no single answer in this scene.
    """
    kinds = question_kinds(scene)
    if kind is None:
        kind = pick(rng, kinds)
    check_name("question kind", kind, QUESTION_KINDS)
    if kind not in kinds:
        raise ValueError(
            f"A {kind!r} question has no single answer in the scene {scene.key!r}. Available: {', '.join(kinds)}."
        )
    if kind == "existence":
        text, answer = _ask_existence(scene, rng)
    elif kind == "count":
        text, answer = _ask_count(scene, rng)
    elif kind == "position":
        text, answer = _ask_position(scene, rng)
    elif kind == "color":
        o = pick(rng, _unique(scene, "shape"))
        text, answer = f"what color is the {o.shape}?", o.color
    elif kind == "shape":
        o = pick(rng, _unique(scene, "color"))
        text, answer = f"what shape is the {o.color} object?", o.shape
    else:
        text, answer = "what color is the background?", scene.background
    return Question(text, answer, kind)


def sample_comparison(first: Scene, second: Scene, rng: np.random.Generator) -> Question:
    """Ask what differs between two pictures; exactly one answer is right, and near misses make it hard.

    Args:
        first: The scene of the first picture.
        second: That of the second.
        rng: Source of randomness.
    """
    counts = len(first.objects), len(second.objects)
    kinds = [{(o.color, o.shape) for o in scene.objects} for scene in (first, second)]
    alone = sorted(kinds[0] ^ kinds[1])
    which = rng.random()
    if which < 0.3 and counts[0] != counts[1]:
        word = pick(rng, ("more", "fewer"))
        is_first = (counts[0] > counts[1]) == (word == "more")
        return Question(f"which image has {word} objects?", "first" if is_first else "second", COMPARISON)
    if which < 0.8 and alone:
        color, shape = pick(rng, alone)
        is_first = (color, shape) in kinds[0]
        text = f"which image shows {with_article(f'{color} {shape}')}?"
        return Question(text, "first" if is_first else "second", COMPARISON)
    is_same = first.background == second.background
    return Question("do both images have the same background?", "yes" if is_same else "no", COMPARISON)


def sample_question_of_two(first: Scene, second: Scene, rng: np.random.Generator) -> Question:
    """Ask about one of two pictures; arguments are those of `sample_comparison`."""
    name, scene = pick(rng, (("first", first), ("second", second)))
    question = sample_question(scene, rng)
    return Question(f"{question.text.removesuffix('?')} in the {name} image?", question.answer, question.kind)
