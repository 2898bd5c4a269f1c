"""Edits of a scene in words: what they change, what must stay, and whether a picture shows both."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..checks import check_name
from .language import pick, with_article, zone
from .sampling import Example, free_places, sample_example
from .scene import (
    BACKGROUNDS,
    CELL,
    HELD_OUT_COMBINATIONS,
    MAX_OBJECTS,
    SEEN_COLORS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    SceneObject,
    has_held_out_relation,
    in_reading_order,
    is_held_out_scene,
)
from .verify import DetectedObject, detect
from .wording import any_wording, natural_edit, natural_name, natural_place
from .wording_lists import COMPARATIVES, SIZE_WORDS

EDIT_KINDS = ("color", "shape", "add", "remove", "move", "size", "background")
MAX_SHIFT = CELL
"""Pixels by which the centre of an object may be off along an axis to count as in its place."""

_MAX_DRAWS = 1000
_WORDINGS = {
    "color": ("make the {old} {color}", "change the {old} to {color}", "paint the {old} {color}"),
    "shape": ("turn the {old} into {new}", "replace the {old} with {new}"),
    "add": ("add {new} at the {zone}", "put {new} at the {zone}"),
    "remove": ("remove the {old}", "take the {old} away", "delete the {old}"),
    "move": ("move the {old} to the {zone}", "put the {old} at the {zone}"),
    "size": ("make the {old} {comparative}", "make the {old} {size}"),
    "background": ("make the background {background}", "change the background to {background}"),
}
_COMPARATIVES = {"small": "smaller", "large": "larger"}


@dataclass(frozen=True)
class Edit:
    """
    An instruction, and what it does to a scene.

    Args:
        text: The instruction.
        kind: One of `EDIT_KINDS`.
        source: The scene before.
        target: The scene after, one of those that follow the instruction.
        old: The object that is changed, removed or moved; `None` where one is added, or the background changes.
        new: What it becomes, or what is added; `None` where one is removed, or the background changes.
        name: What the instruction calls `old`.
    """

    text: str
    kind: str
    source: Scene
    target: Scene
    old: SceneObject | None
    new: SceneObject | None
    name: str = ""

    @property
    def kept(self) -> tuple[SceneObject, ...]:
        """The objects that must stay as they are."""
        return tuple(o for o in self.source.objects if o is not self.old)

    @property
    def ordered_target(self) -> Scene:
        """The scene after, its objects in reading order of the scene before; what is added comes last."""
        before = in_reading_order(self.source.objects)
        objects = [self.new if o is self.old else o for o in before]
        if self.kind == "add":
            objects.append(self.new)
        return Scene(tuple(o for o in objects if o is not None), self.target.background)

    def reworded(self, rng: np.random.Generator) -> str:
        """The instruction in any of its wordings."""
        words = _words(self.kind, self.name, self.target, self.new)
        if self.new is not None:
            if self.kind == "add":
                words["new"] = with_article(natural_name(rng, self.new.shape, self.new.color, self.new.size))
            words["place"] = natural_place(rng, zone(self.new))
            words["to_place"] = words["place"].replace("at ", "to ", 1).replace("on ", "to ", 1)
            words["to_place"] = words["to_place"].replace("in the", pick(rng, ("to the", "into the")), 1)
        if self.kind == "size" and self.new is not None:
            words["comparative"] = pick(rng, COMPARATIVES[self.new.size])
            words["size"] = any_wording(rng, f"size {self.new.size}", SIZE_WORDS[self.new.size])
        if len(self.source.objects) == 1 and rng.random() < 0.4:
            words["old"] = "it"
        return natural_edit(rng, self.kind, words).replace("the it ", "it ").replace("the it", "it")


@dataclass(frozen=True)
class EditVerdict:
    """Whether a picture shows what was asked for (`followed`), and everything else as it was (`preserved`)."""

    followed: bool
    preserved: bool

    @property
    def passed(self) -> bool:
        """Whether both hold."""
        return self.followed and self.preserved


def _names(scene: Scene, rng: np.random.Generator) -> list[tuple[SceneObject, str]]:
    """Every object that words can tell from the others, with such words."""
    kinds = Counter((o.color, o.shape) for o in scene.objects)
    shapes = Counter(o.shape for o in scene.objects)
    named = []
    for o in scene.objects:
        if kinds[o.color, o.shape] == 1:
            is_shape_enough = shapes[o.shape] == 1 and rng.random() < 0.5
            named.append((o, o.shape if is_shape_enough else f"{o.color} {o.shape}"))
    return named


def _change(
    kind: str, scene: Scene, old: SceneObject | None, rng: np.random.Generator
) -> tuple[Scene, SceneObject | None] | None:
    """The scene after, and what `old` becomes; `None` where nothing fits."""
    others = [o for o in scene.objects if o is not old]
    if kind == "background":
        return Scene(scene.objects, next(name for name in BACKGROUNDS if name != scene.background)), None
    if kind == "remove":
        return Scene(tuple(others), scene.background), None
    if kind == "add":
        return _added(scene, rng)
    assert old is not None
    if kind == "color":
        new = replace(old, color=pick(rng, [color for color in SEEN_COLORS[old.shape] if color != old.color]))
    elif kind == "shape":
        shapes = [s for s in SHAPES if s != old.shape and (old.color, s) not in HELD_OUT_COMBINATIONS]
        new = replace(old, shape=pick(rng, shapes))
    elif kind == "size":
        new = replace(old, size=next(size for size in SIZES if size != old.size))
        if (new.row, new.col) not in free_places(others, new.size):
            return None
    else:
        places = free_places(others, old.size)
        if not places:
            return None
        row, col = pick(rng, places)
        new = replace(old, row=row, col=col)
        if zone(new) == zone(old):
            return None
    return Scene(tuple(new if o is old else o for o in scene.objects), scene.background), new


def _added(scene: Scene, rng: np.random.Generator) -> tuple[Scene, SceneObject] | None:
    """The scene with one more object, and that object; `None` where none fits."""
    size = pick(rng, tuple(SIZES))
    places = free_places(list(scene.objects), size)
    if not places:
        return None
    row, col = pick(rng, places)
    shape = pick(rng, SHAPES)
    new = SceneObject(shape, pick(rng, SEEN_COLORS[shape]), size, row, col)
    return Scene((*scene.objects, new), scene.background), new


def _words(kind: str, name: str, target: Scene, new: SceneObject | None) -> dict[str, str]:
    """What the wordings of an edit have places for."""
    words = {"old": name, "background": target.background}
    if new is not None:
        described = f"{new.size} {new.color} {new.shape}" if kind == "add" else new.shape
        words |= {"new": with_article(described), "color": new.color, "zone": zone(new)}
        words |= {"size": new.size, "comparative": _COMPARATIVES[new.size]}
    return words


def edit_scene(scene: Scene, rng: np.random.Generator, kind: str) -> Edit | None:
    """
    An edit of a scene, of colours and shapes that meet in training; `None` where none of the kind was found.

    Args:
        scene: The scene before.
        rng: Source of randomness; equal states give equal edits.
        kind: One of `EDIT_KINDS`.

    Raises:
        ValueError: If the kind is unknown.
    """
    check_name("kind of edit", kind, EDIT_KINDS)
    named = _names(scene, rng)
    is_too_full = kind == "add" and len(scene.objects) == MAX_OBJECTS
    is_too_empty = kind == "remove" and len(scene.objects) == 1
    is_about_one = kind not in ("add", "background")
    if is_too_full or is_too_empty or (is_about_one and not named):
        return None
    old, name = pick(rng, named) if is_about_one else (None, "")
    change = _change(kind, scene, old, rng)
    if change is None:
        return None
    target, new = change
    text = pick(rng, _WORDINGS[kind]).format(**_words(kind, name, target, new))
    return Edit(text, kind, scene, target, old, new, name)


def sample_edit(rng: np.random.Generator, *, split: str = "train", kind: str | None = None) -> tuple[Edit, Example]:
    """
    Draw a scene with its prompt, and an edit of it.

    Args:
        rng: Source of randomness; equal states give equal edits.
        split: `"train"` obeys every rule on scenes before and after; `"test"` gives scenes that are held out both
            before and after, with the combinations and relations of training.
        kind: One of `EDIT_KINDS`; `None` draws one.
    """
    check_name("split", split, SPLITS)
    for _ in range(_MAX_DRAWS):
        example = sample_example(rng, split=split)
        edit = edit_scene(example.scene, rng, pick(rng, EDIT_KINDS) if kind is None else kind)
        if edit is None or has_held_out_relation(edit.target):
            continue
        if is_held_out_scene(edit.target) == is_held_out_scene(edit.source) == (split == "test"):
            return edit, example
    raise RuntimeError(f"No {split!r} edit of kind {kind!r} in {_MAX_DRAWS} draws. Check the state of `rng`.")


def _is_at(seen: DetectedObject, o: SceneObject) -> bool:
    return all(abs(a - b) <= MAX_SHIFT for a, b in zip(seen.center, o.center, strict=True))


def _take(seen: list[DetectedObject], o: SceneObject) -> bool:
    """Take an object that is exactly `o` out of those seen; whether there was one."""
    for found in seen:
        if (found.shape, found.color, found.size) == (o.shape, o.color, o.size) and _is_at(found, o):
            seen.remove(found)
            return True
    return False


def _is_asked_for(seen: DetectedObject, new: SceneObject, kind: str) -> bool:
    if (seen.shape, seen.color, seen.size) != (new.shape, new.color, new.size):
        return False
    return zone(seen) == zone(new) if kind in ("add", "move") else _is_at(seen, new)


def verify_edit(image: Image.Image | np.ndarray, edit: Edit) -> EditVerdict:
    """
    Whether a picture shows the edit and nothing else changed: every other object with its shape, colour and size in
    its place, the same background, and nothing more than the one object that the instruction is about.

    Args:
        image: PIL image, uint8 array or float array in [0, 1], of shape `[64, 64, 3]`.
        edit: What was asked for. An object is added or moved anywhere in the third of the picture that is named.

    Raises:
        TypeError, ValueError: If the image is none, see `as_pixels`.
    """
    picture = detect(image)
    seen = list(picture.objects)
    are_kept = all([_take(seen, o) for o in edit.kept])
    if edit.kind == "background":
        followed = picture.background == edit.target.background
    elif edit.new is None:
        assert edit.old is not None
        followed = not any((o.shape, o.color) == (edit.old.shape, edit.old.color) for o in picture.objects)
    else:
        found = next((found for found in seen if _is_asked_for(found, edit.new, edit.kind)), None)
        followed = found is not None
        if followed:
            seen.remove(found)
    is_about_one = edit.kind != "background"
    is_rest_one = len(seen) <= (is_about_one and not followed)  # the one it is about, as it was or wrongly changed
    is_same_background = not is_about_one or picture.background == edit.source.background
    is_clean = not picture.junk and is_rest_one and is_same_background
    return EditVerdict(followed, are_kept and is_clean)


def shows_objects(image: Image.Image | np.ndarray, scene: Scene) -> bool:
    """
    Whether a picture shows the objects of a scene by number, colour and shape, wherever they stand, its background,
    and nothing more; arguments are those of `shows_scene`.
    """
    picture = detect(image)
    kinds, wanted = ([(o.color, o.shape) for o in objects] for objects in (picture.objects, scene.objects))
    return sorted(kinds) == sorted(wanted) and not picture.junk and picture.background == scene.background


def shows_scene(image: Image.Image | np.ndarray, scene: Scene) -> bool:
    """
    Whether a picture shows a scene: every object with its shape, colour and size in its place, the background, and
    nothing more.

    Args:
        image: PIL image, uint8 array or float array in [0, 1], of shape `[64, 64, 3]`.
        scene: The scene.
    """
    picture = detect(image)
    seen = list(picture.objects)
    are_there = all([_take(seen, o) for o in scene.objects])
    return are_there and not seen and not picture.junk and picture.background == scene.background
