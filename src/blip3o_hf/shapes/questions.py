"""Questions whose answers follow from the scene, so that understanding can be trained and scored exactly."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..checks import check_name
from .language import NUMBER_WORDS, cell_words, pick, plural, with_article, zone
from .scene import (
    COLORS,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    offset_along,
    stated_relation,
)
from .wording import natural_question, natural_relation
from .wording_lists import QUESTION_WORDS

QUESTION_KINDS = ("existence", "color", "shape", "count", "position", "background", "size")
PLACE_KINDS = ("row", "column", "cell", "zone")
"""The kinds of question about the place of one object."""
COMPARISON = "comparison"
"""The kind of question that is asked about two scenes."""
GENERAL_QUESTION_KINDS = ("existence", "count", "background")
"""The kinds that can be asked about any scene."""


@dataclass(frozen=True)
class Question:
    """
    A question about a scene with its answer.

    Args:
        text: In plain words.
        answer: One word, but for the kinds `cell` and `zone`, and `position`, which says both places and the relation
            that is there: `column 2 and column 6, left of it`.
        kind: One of `QUESTION_KINDS` or `PLACE_KINDS`, or `COMPARISON`.
        form: A key of `QUESTION_WORDS`; empty where there is one wording only.
        words: What its wordings have places for.
    """

    text: str
    answer: str
    kind: str
    form: str = field(default="", compare=False)
    words: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def reworded(self, rng: np.random.Generator) -> str:
        """The question in any of its wordings."""
        words = dict(self.words)
        if not self.form:
            return self.text
        if "relation" in words:
            words["relation"] = natural_relation(rng, words["relation"])
        return natural_question(rng, self.form, words)


def _question(kind: str, form: str, answer: str, **words: str) -> Question:
    return Question(f"{QUESTION_WORDS[form][0].format(**words)}?", answer, kind, form, tuple(words.items()))


def _unique(scene: Scene, attribute: str) -> list[SceneObject]:
    counts = Counter(getattr(o, attribute) for o in scene.objects)
    return [o for o in scene.objects if counts[getattr(o, attribute)] == 1]


def _named(scene: Scene) -> list[SceneObject]:
    """The objects that are alone in their colour and shape."""
    counts = Counter((o.color, o.shape) for o in scene.objects)
    return [o for o in scene.objects if counts[o.color, o.shape] == 1]


def _name(scene: Scene, o: SceneObject, rng: np.random.Generator) -> str:
    """The shape of a named object where that is enough, half of the time; else with its colour."""
    is_shape_enough = sum(other.shape == o.shape for other in scene.objects) == 1 and rng.random() < 0.5
    return o.shape if is_shape_enough else f"{o.color} {o.shape}"


def _related_pairs(scene: Scene) -> list[tuple[SceneObject, SceneObject]]:
    """Ordered pairs of named objects with a relation that may be stated."""
    named = _named(scene)
    return [(a, b) for a in named for b in named if a is not b and stated_relation(a, b) is not None]


def question_kinds(scene: Scene, kinds: tuple[str, ...] = QUESTION_KINDS) -> tuple[str, ...]:
    """Those of the kinds of question that have one answer in this scene."""
    possible: dict[str, Callable] = {
        "color": lambda: _unique(scene, "shape"),
        "shape": lambda: _unique(scene, "color"),
        "position": lambda: _related_pairs(scene),
        **dict.fromkeys(("size", *PLACE_KINDS), lambda: _named(scene)),
    }
    return tuple(kind for kind in kinds if kind not in possible or possible[kind]())


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question:
    shapes = {o.shape for o in scene.objects}
    kinds = {(o.color, o.shape) for o in scene.objects}
    has_color, is_present = rng.random() < 0.6, rng.random() < 0.5
    o = pick(rng, scene.objects)
    if not has_color and (is_present or len(shapes) < len(SHAPES)):
        color, shape = "", o.shape if is_present else pick(rng, [shape for shape in SHAPES if shape not in shapes])
    elif is_present:
        color, shape = f"{o.color} ", o.shape
    else:
        excluded = kinds | HELD_OUT_COMBINATIONS
        recolored = [(color, o.shape) for color in COLORS if (color, o.shape) not in excluded]
        reshaped = [(o.color, shape) for shape in SHAPES if (o.color, shape) not in excluded]
        color, shape = pick(rng, reshaped if reshaped and rng.random() < 0.5 else recolored)
        color += " "
    name, answer = color + shape, "yes" if is_present else "no"
    words = {"a": with_article(name), "name": name, "names": color + plural(shape)}
    return _question("existence", "existence", answer, **words)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    which = rng.random()
    if which < 0.2:
        return _question("count", "count", NUMBER_WORDS[len(scene.objects)], names="objects")
    is_absent_allowed = rng.random() < 0.25
    if which < 0.6:
        present = [o.shape for o in scene.objects]
        shape = pick(rng, SHAPES if is_absent_allowed else present)
        return _question("count", "count", NUMBER_WORDS[present.count(shape)], names=plural(shape))
    present = [o.color for o in scene.objects]
    color = pick(rng, tuple(COLORS) if is_absent_allowed else present)
    return _question("count", "count", NUMBER_WORDS[present.count(color)], names=f"{color} objects")


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question:
    a, b = pick(rng, _related_pairs(scene))
    shapes = [o.shape for o in scene.objects]
    are_shapes_enough = shapes.count(a.shape) == shapes.count(b.shape) == 1 and rng.random() < 0.5
    first, second = (o.shape if are_shapes_enough else f"{o.color} {o.shape}" for o in (a, b))
    relation = stated_relation(a, b)
    assert relation is not None  # of a related pair
    false = [
        other
        for other in RELATIONS
        if offset_along(a.center, b.center, other) <= 0 and (a.shape, other, b.shape) not in HELD_OUT_RELATIONS
    ]
    if false and rng.random() < 0.5:
        relation = pick(rng, false)
    axis = "column" if relation in ("left of", "right of") else "row"
    first_number, second_number = ((o.col if axis == "column" else o.row) + 1 for o in (a, b))
    before, after = ("left of", "right of") if axis == "column" else ("above", "below")
    found = "the same"
    if first_number != second_number:
        found = f"{before if first_number < second_number else after} it"
    answer = f"{axis} {first_number} and {axis} {second_number}, {found}"
    return _question("position", "position", answer, first=first, relation=relation, second=second)


def _ask_size(scene: Scene, rng: np.random.Generator) -> Question:
    named = _named(scene)
    o = pick(rng, named)
    if len(named) == 1 or rng.random() < 0.6:
        return _question("size", "size", o.size, name=_name(scene, o, rng))
    others = [candidate for candidate in named if candidate is not o]
    unequal = [candidate for candidate in others if candidate.size != o.size]
    other = pick(rng, unequal if unequal and rng.random() < 0.9 else others)
    form = pick(rng, ("larger", "smaller"))
    a, b = (o, other) if form == "larger" else (other, o)
    answer = "yes" if SIZES[a.size] > SIZES[b.size] else "no"
    return _question("size", form, answer, first=_name(scene, o, rng), second=_name(scene, other, rng))


def _ask_place(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    o = pick(rng, _named(scene))
    answers = {"row": str(o.row + 1), "column": str(o.col + 1), "cell": cell_words(o), "zone": f"at the {zone(o)}"}
    return _question(kind, kind, answers[kind], name=_name(scene, o, rng))


def sample_question(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """Ask something about a scene that has exactly one right answer.

    Yes and no are equally likely where both can be asked; a "no" is a near miss of what is there. No "no" is
    about a held-out combination or relation, so training never teaches that these do not exist.

    Args:
        scene: The scene.
        rng: Source of randomness.
        kind: One of `QUESTION_KINDS` or `PLACE_KINDS`; `None` draws one of `question_kinds(scene)`.

    Raises:
        ValueError: If the kind is unknown, or has no single answer in this scene.
    """
    if kind is None:
        kind = pick(rng, question_kinds(scene))
    check_name("question kind", kind, (*QUESTION_KINDS, *PLACE_KINDS))
    kinds = question_kinds(scene, (*QUESTION_KINDS, *PLACE_KINDS))
    if kind not in kinds:
        raise ValueError(
            f"A {kind!r} question has no single answer in the scene {scene.key!r}. Available: {', '.join(kinds)}."
        )
    if kind == "existence":
        return _ask_existence(scene, rng)
    if kind == "count":
        return _ask_count(scene, rng)
    if kind == "position":
        return _ask_position(scene, rng)
    if kind == "size":
        return _ask_size(scene, rng)
    if kind in PLACE_KINDS:
        return _ask_place(kind, scene, rng)
    if kind == "color":
        o = pick(rng, _unique(scene, "shape"))
        return _question(kind, "color", o.color, name=o.shape)
    if kind == "shape":
        o = pick(rng, _unique(scene, "color"))
        return _question(kind, "shape", o.shape, color=o.color)
    return _question(kind, "background", scene.background)


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
        return _question(COMPARISON, "more", "first" if is_first else "second", more=word)
    if which < 0.8 and alone:
        color, shape = pick(rng, alone)
        is_first = (color, shape) in kinds[0]
        named = with_article(f"{color} {shape}")
        return _question(COMPARISON, "shows", "first" if is_first else "second", a=named)
    is_same = first.background == second.background
    return _question(COMPARISON, "backgrounds", "yes" if is_same else "no")


def sample_question_of_two(
    first: Scene, second: Scene, rng: np.random.Generator, is_natural: bool = False
) -> Question:
    """Ask about one of two pictures; arguments are those of `sample_comparison`. `is_natural`: in any wording."""
    name, scene = pick(rng, (("first", first), ("second", second)))
    question = sample_question(scene, rng)
    text = question.reworded(rng) if is_natural else question.text
    if "image" in text or "picture" in text:
        text = question.text
    return Question(f"{text.rstrip('?. ')} in the {name} image?", question.answer, question.kind)
