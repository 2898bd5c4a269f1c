"""Reads the tiny world back from pixels and from words in any wording, so that no test trusts who drew or said it."""

import re
from dataclasses import replace

import numpy as np

from blip3o_hf.shapes import (
    CELL,
    COLORS,
    HELD_OUT_COMBINATIONS,
    NUMBER_WORDS,
    SHAPES,
    ObjectGroup,
    Scene,
    SceneObject,
    detect,
    render,
)

SIZE_OF = {
    **dict.fromkeys(("small", "little", "tiny", "smaller"), "small"),
    **dict.fromkeys(("large", "big", "huge", "larger", "bigger"), "large"),
}
COUNT_OF = {"a": 1, "an": 1, "one": 1, "1": 1, "a pair of": 2, "a couple of": 2, "two": 2, "2": 2}
COUNT_OF |= {
    f"{start}{word}": count
    for count, words in ((3, ("three", "3")), (4, ("four", "4")))
    for word in words
    for start in ("", "exactly ")
}
SHAPE_OF = {noun: shape for shape in SHAPES for noun in (shape, f"{shape}s", f"{shape}es")}
RELATION_OF = {
    "left of": r"left (?:side )?of|its left",
    "right of": r"right (?:side )?of|its right",
    "above": "above|over|on top of|higher than",
    "below": "below|under|underneath|beneath|lower than",
}
SIDE = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def any_of(words):
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + r")\b"


COLOR, SIZE, NOUN = any_of(COLORS), any_of(SIZE_OF), any_of(SHAPE_OF)
PLACE = (
    r"the (?P<place>(?:top|bottom|upper|lower|left|right|center|centre|middle)\b"
    r"(?: (?:left|right|edge|part|side|corner)\b)*)"
)
OBJECT = re.compile(
    rf"(?:\b(?P<number>{any_of(COUNT_OF)}) (?:\w+ )??)?(?:\b(?P<size>{SIZE}) )?(?:\b(?P<color>{COLOR}) (?:colored )?)?"
    rf"\b(?P<noun>{NOUN})(?: (?:in|that (?:is|are)) (?P<later_color>{COLOR}))?"
    rf"(?: (?:at|in|on) {PLACE}(?! of| side of))?"
)
NAME = re.compile(rf"(?:\b(?P<color>{COLOR}) )?\b(?P<noun>{NOUN})")


def seen_scene(image):
    """The scene that a picture is exactly the picture of, its objects in any order; `None` where it is of none."""
    seen = detect(np.asarray(image))
    objects = [
        SceneObject(o.shape, o.color, o.size, *(round((o.center[axis] - half) / CELL) for axis in (1, 0)))
        for o in seen.objects
        for half in (8 if o.size == "small" else 12,)
    ]
    scene = Scene(tuple(objects), seen.background)
    return scene if np.array_equal(render(scene), np.asarray(image)) else None


def read_zone(words):
    """The place, of `ZONES`, that is meant."""
    for said, meant in {"upper": "top", "lower": "bottom", "middle": "center", "centre": "center"}.items():
        words = words.replace(said, meant)
    return re.sub(" (?:edge|part|side|corner)", "", words)


def read_relation(text):
    found = [relation for relation, words in RELATION_OF.items() if re.search(rf"\b(?:{words})\b", text)]
    assert len(found) <= 1, text
    return found[0] if found else None


def without(text, matches):
    """What is left of a text."""
    for match in sorted(matches, key=lambda match: -match.start()):
        text = text[: match.start()] + "|" + text[match.end() :]
    return text


def read_prompt(text):
    """
    What a prompt asks for: its groups, the first thing of a relation before the second, others in the order of the
    text; the relation; the background.
    """
    backgrounds = re.findall(r"\b(?:white|black)\b", text)
    assert len(backgrounds) <= 1 and text.count("background") <= 1, text
    text = re.sub(r"\b(?:white|black|background)\b", "", text)
    found = list(OBJECT.finditer(text))
    rest = without(text, found)
    others = set(re.findall(r"\w+", rest)) & {*COLORS, *SIZE_OF, *SHAPE_OF, *NUMBER_WORDS, *"1234", "background"}
    assert found and not others, text
    groups = []
    for match in found:
        count = COUNT_OF[match["number"] or "a"]
        assert (count == 1) == (match["noun"] in SHAPES) and not (match["color"] and match["later_color"]), text
        place = match["place"] and read_zone(match["place"])
        size = match["size"] and SIZE_OF[match["size"]]
        color = match["color"] or match["later_color"]
        groups.append(ObjectGroup(SHAPE_OF[match["noun"]], color, count, size, place))
    relation, background = read_relation(rest), backgrounds[0] if backgrounds else None
    if len(found) == 2:
        first, second = groups
        is_beside = relation is None and first.place is None and second.place in ("left", "right")
        if is_beside:  # a circle with a cross on the left
            return (replace(second, place=None), first), f"{second.place} of", background
        if relation is not None and read_relation(text[found[0].end() : found[1].start()]) is None:
            groups.reverse()
    return tuple(groups), relation, background


def _named(scene, match):
    return [o for o in scene.objects if o.shape == SHAPE_OF[match["noun"]] and match["color"] in (None, o.color)]


def _zone(o):
    """The place of an object on a 3x3 grid."""
    x, y = (value / (64 / 3) for value in o.center)
    words = ["top"] * (y < 1) + ["bottom"] * (y >= 2) + ["left"] * (x < 1) + ["right"] * (x >= 2)
    return " ".join(words) or "center"


def names_a_held_out_combination(text):
    before = re.findall(rf"\b({COLOR}) (?:colored )?({NOUN})", text)
    after = re.findall(rf"\b({NOUN}) (?:in|that is|that are|is) ({COLOR})", text)
    named = [*before, *((color, noun) for noun, color in after)]
    return any((color, SHAPE_OF[noun]) in HELD_OUT_COMBINATIONS for color, noun in named)


def answer(scene, text):
    """The answer to a question about a scene."""
    names = list(NAME.finditer(text))
    asked = without(text, names)
    colors = re.findall(rf"\b{COLOR}", asked)
    if "background" in text:
        return scene.background
    if re.search("how many|number of|count", text):
        if names:
            return NUMBER_WORDS[len(_named(scene, names[0]))]
        return NUMBER_WORDS[sum(o.color in (colors or COLORS) for o in scene.objects)]
    if len(names) == 2:
        ((a,), (b,)), relation = (_named(scene, name) for name in names), read_relation(asked)
        if relation is not None:
            axis, _ = SIDE[relation]
            name, words = ("column", "row")[axis], (("right of", "left of"), ("below", "above"))[axis]
            numbers = [(o.col, o.row)[axis] + 1 for o in (a, b)]
            found = "the same" if numbers[0] == numbers[1] else f"{words[numbers[0] < numbers[1]]} it"
            return f"{name} {numbers[0]} and {name} {numbers[1]}, {found}"
        sign = {"large": 1, "small": -1}[SIZE_OF[re.search(rf"{SIZE}(?= than)", text)[0]]]
        return "yes" if sign * (a.pixels - b.pixels) > 0 else "no"
    if not names:
        (color,) = colors
        (o,) = [o for o in scene.objects if o.color == color]
        return o.shape
    (name,) = names
    named = _named(scene, name)
    is_about = {
        "cell": lambda o: f"row {o.row + 1} column {o.col + 1}",
        "row .* column": lambda o: f"row {o.row + 1} column {o.col + 1}",
        "row": lambda o: str(o.row + 1),
        "column": lambda o: str(o.col + 1),
        "where": lambda o: f"at the {_zone(o)}",
        rf"\bsize\b|\b{SIZE}": lambda o: o.size,
        "colou?r": lambda o: o.color,
    }
    for words, say in is_about.items():
        if re.search(words, asked):
            (o,) = named
            return say(o)
    return "yes" if named else "no"


def answer_of_two(first, second, text):
    """The answer to a question about two scenes, or one of them."""
    if match := re.search(r" in the (first|second) image\?$", text):
        return answer(first if match[1] == "first" else second, text[: match.start()])
    if "same" in text:
        return "yes" if first.background == second.background else "no"
    if match := re.search(r"\b(more|fewer) objects", text):
        difference = len(first.objects) - len(second.objects)
        assert difference != 0, text
        return "first" if (difference > 0) == (match[1] == "more") else "second"
    (name,) = NAME.finditer(text)
    is_shown = [bool(_named(scene, name)) for scene in (first, second)]
    assert sum(is_shown) == 1, text
    return "first" if is_shown[0] else "second"


def follow(scene, text):
    """What an instruction does: the objects left, what is wanted (or nothing), where it is to be, the background."""
    if "background" in text:
        (background,) = re.findall(r"\b(?:white|black)\b", text)
        assert background != scene.background, text
        return list(scene.objects), None, None, background
    old, place = re.search(rf"\bthe {NAME.pattern}", text), re.search(rf"\b(?:at|in|into|on|to) {PLACE}", text)
    start = rf"\ban? (?:(?P<size>{SIZE}) )?(?:(?P<color>{COLOR}) (?:colored )?)?"
    new = re.search(rf"{start}(?P<noun>{NOUN})(?: (?:in|that is) (?P<later_color>{COLOR}))?", text)
    rest = without(text, [match for match in (old, place, new) if match is not None])
    where = place and read_zone(place["place"])
    if new is not None and new["size"] is not None:
        assert old is None and place is not None, text
        color = new["color"] or new["later_color"]
        wanted = {"size": SIZE_OF[new["size"]], "color": color, "shape": SHAPE_OF[new["noun"]]}
        return list(scene.objects), wanted, where, scene.background
    assert old is not None or re.search(r"\bit\b", text), text
    (changed,) = scene.objects if old is None else _named(scene, old)
    kept = [o for o in scene.objects if o is not changed]
    sizes, colors = re.findall(rf"\b{SIZE}", rest), re.findall(rf"\b{COLOR}", rest)
    said = [*sizes, *colors, *([new] if new else []), *([place] if place else [])]
    assert len(said) <= 1, text
    if not said:
        return kept, None, None, scene.background
    wanted = {"size": changed.size, "color": changed.color, "shape": changed.shape}
    if sizes:
        wanted["size"] = SIZE_OF[sizes[0]]
    elif colors:
        wanted["color"] = colors[0]
    elif new is not None:
        assert new["color"] is None and new["later_color"] is None, text
        wanted["shape"] = SHAPE_OF[new["noun"]]
    return kept, wanted, where or (changed.row, changed.col), scene.background
