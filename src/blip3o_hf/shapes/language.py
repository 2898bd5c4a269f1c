"""What can be said about a scene: prompts with their meaning, and captions that are true by construction."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..checks import check_name
from .scene import (
    BACKGROUNDS,
    CELL,
    COLORS,
    GRID,
    HELD_OUT_COMBINATIONS,
    HELD_OUT_RELATIONS,
    IMAGE_SIZE,
    RELATIONS,
    SEEN_COLORS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    SceneObject,
    is_held_out_text,
)

GENEVAL_FAMILIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
DETAIL_FAMILIES = ("sizes", "places")
TRAINING_FAMILIES = (*GENEVAL_FAMILIES, "mixed", *DETAIL_FAMILIES)
UNSEEN_FAMILIES = ("unseen_combination", "unseen_relation")
EVALUATION_FAMILIES = (*GENEVAL_FAMILIES, *UNSEEN_FAMILIES)
"""The families of the benchmark."""
TEST_FAMILIES = (*EVALUATION_FAMILIES, *DETAIL_FAMILIES)
FAMILIES = (*TRAINING_FAMILIES, *UNSEEN_FAMILIES)

NUMBER_WORDS = ("zero", "one", "two", "three", "four")
OPENERS = ("a picture of", "an image of", "a drawing of", "a photo of", "a painting of")
ZONES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""The places on a 3x3 grid, row by row."""
_MIXED_COUNTS = ((1, 1, 1), (2, 1), (1, 1, 1, 1), (2, 1, 1), (2, 2), (3, 1))
_SEEN_COMBINATIONS = tuple((color, shape) for shape in SHAPES for color in SEEN_COLORS[shape])
_MAX_DRAWS = 1000
"""Bound of every rejection loop; the acceptance rates here are one in ten or better."""


@dataclass(frozen=True)
class ObjectGroup:
    """`count` objects of one shape that a prompt asks for; what is `None` is left open. `place` is a `zone`."""

    shape: str
    color: str | None = None
    count: int = 1
    size: str | None = None
    place: str | None = None

    def holds(self, o) -> bool:
        """Whether an object of a scene, or one seen in a picture, is of this group."""
        return (
            o.shape == self.shape
            and self.color in (None, o.color)
            and self.size in (None, o.size)
            and self.place in (None, zone(o))
        )

    @property
    def name(self) -> str:
        """Its objects in words, such as "small red circle"."""
        return " ".join(word for word in (self.size, self.color, self.shape) if word)


@dataclass(frozen=True)
class Prompt:
    """A prompt text with its machine-readable meaning.

    Args:
        text: Lower-case words without a final period.
        family: One of `FAMILIES`, the GenEval tag for most.
        objects: Exactly what the picture must show, in the order of the text; groups never overlap.
        relation: How the first object stands to the second, or `None`.
        background: The background asked for, or `None` where any will do.
    """

    text: str
    family: str
    objects: tuple[ObjectGroup, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def num_objects(self) -> int:
        """How many objects the picture must show."""
        return sum(group.count for group in self.objects)

    @property
    def is_held_out(self) -> bool:
        """Whether the meaning itself, by combination or relation, is kept from training."""
        if self.relation is not None:
            triple = (self.objects[0].shape, self.relation, self.objects[1].shape)
            if triple in HELD_OUT_RELATIONS:
                return True
        return any((group.color, group.shape) in HELD_OUT_COMBINATIONS for group in self.objects)


def pick(rng: np.random.Generator, items):
    """A uniform choice from a sequence, several times faster than `rng.choice`."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: np.random.Generator, items) -> list:
    """The items in random order."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + "es" if shape == "cross" else shape + "s"


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def join_phrases(phrases: list[str]) -> str:
    """`"x, y and z"`."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _group_phrase(group: ObjectGroup) -> str:
    if group.count == 1:
        phrase = with_article(group.name)
    else:
        phrase = f"{NUMBER_WORDS[group.count]} {group.name.removesuffix(group.shape)}{plural(group.shape)}"
    return phrase if group.place is None else f"{phrase} at the {group.place}"


def _draw_meaning(rng: np.random.Generator, family: str) -> tuple[tuple[ObjectGroup, ...], str | None]:
    """The groups and the relation of a new prompt; all are seen ones unless the family says otherwise."""
    if family == "unseen_combination":
        color, shape = pick(rng, sorted(HELD_OUT_COMBINATIONS))
        return (ObjectGroup(shape, color),), None
    if family == "unseen_relation":
        a, relation, b = pick(rng, sorted(HELD_OUT_RELATIONS))
    else:
        a, b = shuffled(rng, SHAPES)[:2]
        relation = pick(rng, RELATIONS)
        while (a, relation, b) in HELD_OUT_RELATIONS:
            relation = pick(rng, RELATIONS)
    color_a, color_b = pick(rng, SEEN_COLORS[a]), pick(rng, SEEN_COLORS[b])
    has_colors = rng.random() < 0.5
    if family == "single_object":
        return (ObjectGroup(a),), None
    if family == "colors":
        return (ObjectGroup(a, color_a),), None
    if family == "two_object":
        return (ObjectGroup(a), ObjectGroup(b)), None
    if family == "counting":
        return (ObjectGroup(a, color_a if has_colors else None, pick(rng, (2, 3, 4))),), None
    if family == "color_attr":
        color_b = pick(rng, [color for color in SEEN_COLORS[b] if color != color_a])
        return (ObjectGroup(a, color_a), ObjectGroup(b, color_b)), None
    if family == "sizes":
        return _sized_groups(rng, (a, b), (color_a, color_b) if has_colors else (None, None)), None
    if family == "places":
        return _placed_groups(rng, has_colors), None
    if family == "mixed":
        counts = pick(rng, _MIXED_COUNTS)
        kinds = shuffled(rng, _SEEN_COMBINATIONS)[: len(counts)]
        kinds_and_counts = shuffled(rng, zip(kinds, counts, strict=True))
        return tuple(ObjectGroup(shape, color, count) for (color, shape), count in kinds_and_counts), None
    if not has_colors:
        color_a = color_b = None
    return (ObjectGroup(a, color_a), ObjectGroup(b, color_b)), relation


def _placed_groups(rng: np.random.Generator, has_colors: bool) -> tuple[ObjectGroup, ...]:
    """One to three objects with a place each; with a size, too, where there is room for two large ones."""
    count = 1 + int(rng.random() * 3)
    while True:
        shapes, places = shuffled(rng, SHAPES)[:count], shuffled(rng, ZONES)[:count]
        cells = [divmod(ZONES.index(place), 3) for place in places]
        offsets = {
            (shapes[i], shapes[j]): (cells[j][0] - cells[i][0], cells[j][1] - cells[i][1])
            for i in range(count)
            for j in range(count)
            if i != j
        }
        above = {(a, "above", b) for (a, b), (down, right) in offsets.items() if down > abs(right)}
        left = {(a, "left of", b) for (a, b), (down, right) in offsets.items() if right > abs(down)}
        if HELD_OUT_RELATIONS.isdisjoint(above | left):
            break
    is_roomy = all(2 in map(abs, offset) for offset in offsets.values())
    return tuple(
        ObjectGroup(
            shape,
            pick(rng, SEEN_COLORS[shape]) if has_colors else None,
            size=_size_or_none(rng) if is_roomy else None,
            place=place,
        )
        for shape, place in zip(shapes, places, strict=True)
    )


def _size_or_none(rng: np.random.Generator) -> str | None:
    return pick(rng, tuple(SIZES)) if rng.random() < 0.5 else None


def _sized_groups(
    rng: np.random.Generator, shapes: tuple[str, str], colors: tuple[str | None, str | None]
) -> tuple[ObjectGroup, ...]:
    """One group with a size, two of which one has it, or one shape in both sizes."""
    first, second = shuffled(rng, SIZES)
    form = rng.random()
    if form < 0.5:
        return (ObjectGroup(shapes[0], colors[0], 1 if rng.random() < 0.6 else pick(rng, (2, 3)), first),)
    if form < 0.8:
        return ObjectGroup(shapes[0], colors[0], 1, first), ObjectGroup(shapes[1], colors[1], 1, _size_or_none(rng))
    return ObjectGroup(shapes[0], colors[0], 1, first), ObjectGroup(shapes[0], colors[0], 1, second)


def sample_prompt(rng: np.random.Generator, family: str, *, split: str) -> Prompt:
    """Draw a prompt of a family.

    Args:
        rng: Source of randomness; equal states give equal prompts.
        family: One of `FAMILIES`; `"mixed"` is for training only, the unseen families for testing only.
        split: `"train"` never gives a held-out text, `"test"` only such texts. An unseen family's meaning is
            held out whatever its text, so its texts are not filtered.

    Raises:
        ValueError: If the family or the split is unknown, or the split does not have the family.
    """
    check_name("split", split, SPLITS)
    check_name("family", family, FAMILIES)
    families = TRAINING_FAMILIES if split == "train" else TEST_FAMILIES
    if family not in families:
        raise ValueError(f"Family {family!r} has no {split!r} split. Available in it: {', '.join(families)}.")
    for _ in range(_MAX_DRAWS):
        groups, relation = _draw_meaning(rng, family)
        phrases = [_group_phrase(group) for group in groups]
        if family == "single_object" and rng.random() < 0.25:
            phrases = [f"one {groups[0].shape}"]
        text = f" {relation} ".join(phrases) if relation else join_phrases(phrases)
        background = pick(rng, tuple(BACKGROUNDS)) if rng.random() < 1 / 3 else None
        if background is not None:
            text += f" on a {background} background"
        if rng.random() < 0.5:
            text = f"{pick(rng, OPENERS)} {text}"
        if family in UNSEEN_FAMILIES or is_held_out_text(text) == (split == "test"):
            return Prompt(text, family, groups, relation, background)
    raise RuntimeError(f"No {split!r} text of family {family!r} in {_MAX_DRAWS} draws. Check the state of `rng`.")


def describe(scene: Scene, rng: np.random.Generator, *, split: str = "train", in_order: bool = False) -> str:
    """The plain caption of a scene, its equal objects counted: the answer to "describe the image".

    Args:
        scene: The scene.
        rng: Decides the order of the objects.
        split: In `"train"`, a held-out text is reordered or given an opener until it is none.
        in_order: Whether to try the order of the scene's objects first.
    """
    check_name("split", split, SPLITS)
    counts = Counter((o.color, o.shape) for o in scene.objects)
    groups = [_group_phrase(ObjectGroup(shape, color, count)) for (color, shape), count in counts.items()]
    for draw in range(_MAX_DRAWS):
        phrases = groups if in_order and draw == 0 else shuffled(rng, groups)
        text = f"{join_phrases(phrases)} on a {scene.background} background"
        if draw >= 2 * len(groups) - 1:
            text = f"{pick(rng, OPENERS)} {text}"
        if split == "test" or not is_held_out_text(text):
            return text
    raise RuntimeError(f"Every wording of the scene {scene.key!r} is held out. Leave it out of training.")


def parse_description(text: str) -> tuple[Counter[tuple[str, str]], str] | None:
    """What a plain caption says: how many objects of each (colour, shape), and the background; `None` if it is none.

    >>> parse_description("two red circles and a blue cross on a black background")
    (Counter({('red', 'circle'): 2, ('blue', 'cross'): 1}), 'black')
    """
    for opener in OPENERS:
        text = text.removeprefix(f"{opener} ")
    match = re.fullmatch(r"(.+) on a (\w+) background", text.strip().removesuffix("."))
    if match is None or match[2] not in BACKGROUNDS:
        return None
    shapes = {name: shape for shape in SHAPES for name in (shape, plural(shape))}
    counts: Counter[tuple[str, str]] = Counter()
    for phrase in re.split(r", | and ", match[1]):
        words = phrase.split()
        if len(words) != 3 or words[1] not in COLORS or words[2] not in shapes:
            return None
        number = NUMBER_WORDS.index(words[0]) if words[0] in NUMBER_WORDS else 1 if words[0] in ("a", "an") else 0
        if number < 1 or (number == 1) != (words[2] in SHAPES):
            return None
        counts[words[1], shapes[words[2]]] += number
    return counts, match[2]


def zone(o) -> str:
    """The place of the centre of an object, of a scene or seen in a picture, on a 3x3 grid: one of `ZONES`."""
    x, y = (int(3 * value // IMAGE_SIZE) for value in o.center)
    vertical, horizontal = ("top", "", "bottom")[y], ("left", "", "right")[x]
    return f"{vertical} {horizontal}".strip() or "center"


def object_words(scene: Scene) -> list[list[str]]:
    """What there is to know of each object, and the background, in single words; objects of a kind from top to bottom.

    Args:
        scene: The scene; kinds stay in the order of its objects.
    """
    kinds = list(dict.fromkeys((o.color, o.shape) for o in scene.objects))
    ordered = sorted(scene.objects, key=lambda o: (kinds.index((o.color, o.shape)), o.center[1], o.center[0]))
    return [[o.size, o.color, o.shape, *zone(o).split(), scene.background] for o in ordered]


def cell_words(o: SceneObject) -> str:
    """The exact place of an object: row and column of the top left cell of its box, counted from 1.

    >>> cell_words(SceneObject("circle", "red", "small", 0, 4))
    'row 1 column 5'
    """
    return f"row {o.row + 1} column {o.col + 1}"


def cell_code(o: SceneObject) -> str:
    """The exact place of an object in two words: its row as a digit, its column as a letter.

    >>> cell_code(SceneObject("circle", "red", "small", 0, 4))
    '1 e'
    """
    return f"{o.row + 1} {'abcdefgh'[o.col]}"


def patch_words(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """
    For each cell of the lattice, row by row, one word about the object there, or the background.

    Args:
        scene: The scene.
        rng: Decides which word: size, colour, shape, row or column of the object.
    """
    words = [scene.background] * GRID**2
    for o in scene.objects:
        row, column = cell_code(o).split()
        choices = (o.size, o.color, o.shape, row, column)
        for r in range(o.row, o.row + o.pixels // CELL):
            for c in range(o.col, o.col + o.pixels // CELL):
                words[GRID * r + c] = pick(rng, choices)
    return tuple(words)


def write_plan(scene: Scene) -> str:
    """A scene in words that leave nothing open: size, colour, shape and cell of every object, and the background.

    Args:
        scene: The scene; its objects are named in their order.
    """
    phrases = [f"{with_article(f'{o.size} {o.color} {o.shape}')} at {cell_words(o)}" for o in scene.objects]
    return f"{join_phrases(phrases)} on a {scene.background} background"


def parse_plan(text: str) -> Scene | None:
    """The scene that `write_plan` put into words; `None` if it is none.

    >>> parse_plan("a small red circle at row 1 column 5 on a black background").key
    'black:circle,red,small,0,4'
    """
    match = re.fullmatch(r"(.+) on an? (\w+) background", text.strip().lower().removesuffix("."))
    if match is None or match[2] not in BACKGROUNDS:
        return None
    objects = []
    for phrase in re.split(r", | and ", match[1]):
        found = re.fullmatch(r"an? (\w+) (\w+) (\w+) at row (\d) column (\d)", phrase)
        if found is None or found[1] not in SIZES or found[2] not in COLORS or found[3] not in SHAPES:
            return None
        size, color, shape, row, col = found.groups()
        objects.append(SceneObject(shape, color, size, int(row) - 1, int(col) - 1))
        if not all(1 <= int(coordinate) <= GRID + 1 - SIZES[size] // CELL for coordinate in (row, col)):
            return None
    return Scene(tuple(objects), match[2])


def long_caption(scene: Scene, rng: np.random.Generator, split: str = "train", in_order: bool = False) -> str:
    """A full description: size, colour, shape and place of every object, and the background.

    Args:
        scene: The scene.
        rng: Decides the order of the objects and the wording.
        split: In `"train"`, the text is never a held-out one.
        in_order: Whether to keep the order of the scene's objects, which is that of the prompt it was drawn for.
    """
    check_name("split", split, SPLITS)
    phrases = [f"{with_article(f'{o.size} {o.color} {o.shape}')} at the {zone(o)}" for o in scene.objects]
    for _ in range(_MAX_DRAWS):
        text = join_phrases(phrases if in_order else shuffled(rng, phrases))
        opener = f"{pick(rng, OPENERS)} " if rng.random() < 0.25 else ""
        wording = rng.random()
        if wording < 0.7:
            text = f"{opener}{text} on a {scene.background} background"
        elif wording < 0.85:
            text = f"{opener}{text}. the background is {scene.background}"
        else:
            text = f"{opener}a {scene.background} background with {text}"
        if split == "test" or not is_held_out_text(text):
            return text
    raise RuntimeError(f"Every wording of the scene {scene.key!r} is held out. Leave it out of training.")
