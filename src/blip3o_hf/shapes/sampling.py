"""Scenes that satisfy a prompt, and whole examples, with the held-out rules kept in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checks import check_name
from .language import (
    DETAIL_FAMILIES,
    GENEVAL_FAMILIES,
    TRAINING_FAMILIES,
    ObjectGroup,
    Prompt,
    long_caption,
    pick,
    sample_prompt,
    zone,
)
from .scene import (
    BACKGROUNDS,
    CELL,
    GRID,
    MAX_OBJECTS,
    SEEN_COLORS,
    SIZES,
    SPLITS,
    Scene,
    SceneObject,
    has_held_out_relation,
    in_reading_order,
    is_held_out_scene,
    stated_relation,
)

_MAX_DRAWS = 10_000
"""Bound of the rejection loop; one scene in ten is accepted at worst, so it is never reached."""
_FEW_DRAWS = 300
"""The same for prompts of which another one may be drawn."""


@dataclass(frozen=True)
class Example:
    """One sample of the world: a scene, a short prompt it satisfies, and a full description of it."""

    scene: Scene
    prompt: Prompt
    long_caption: str

    @property
    def ordered_scene(self) -> Scene:
        """The scene with its objects in the order of the prompt, those of one group in reading order."""
        objects, first = [], 0
        for group in self.prompt.objects:
            objects += in_reading_order(self.scene.objects[first : first + group.count])
            first += group.count
        return Scene(tuple(objects), self.scene.background)


def _cells(row: int, col: int, num_rows: int, num_cols: int) -> int:
    """A rectangle of lattice cells as a 64-bit mask, clipped to the lattice."""
    return sum(
        1 << (GRID * r + c)
        for r in range(max(row, 0), min(row + num_rows, GRID))
        for c in range(max(col, 0), min(col + num_cols, GRID))
    )


_PLACES = {
    size: tuple(
        (row, col, _cells(row, col, n, n), _cells(row - 1, col - 1, n + 2, n + 2))
        for row in range(GRID - n + 1)
        for col in range(GRID - n + 1)
    )
    for size, n in ((size, pixels // CELL) for size, pixels in SIZES.items())
}
"""For each size, every place as (row, col, cells of the box, cells of the box and its gap)."""


@cache
def _places_in(size: str, zone_name: str) -> tuple[tuple[int, int, int, int], ...]:
    """Of the places for a size, those whose centre lies in a zone."""
    return tuple(place for place in _PLACES[size] if zone(SceneObject("", "", size, *place[:2])) == zone_name)


def _draw_places(rng: np.random.Generator, groups: Sequence[ObjectGroup]) -> list[tuple[str, int, int]] | None:
    """Size and place of a box for each of the groups, one after the other; `None` when the lattice filled up."""
    taken, places = 0, []
    for group in groups:
        size = group.size or ("small" if rng.random() < 0.5 else "large")
        options = _PLACES[size] if group.place is None else _places_in(size, group.place)
        for _ in range(12):
            row, col, box, surrounds = pick(rng, options)
            if not box & taken:
                break
        else:
            free = [place for place in options if not place[2] & taken]
            if not free:
                return None
            row, col, box, surrounds = pick(rng, free)
        taken |= surrounds
        places.append((size, row, col))
    return places


def free_places(objects: Sequence[SceneObject], size: str) -> list[tuple[int, int]]:
    """Row and column of every box of a size that keeps its distance from the objects."""
    taken = 0
    for o in objects:
        n = o.pixels // CELL
        taken |= _cells(o.row - 1, o.col - 1, n + 2, n + 2)
    return [(row, col) for row, col, box, _ in _PLACES[size] if not box & taken]


def _draw_colors(rng: np.random.Generator, group: ObjectGroup) -> list[str]:
    if group.color is not None:
        return [group.color] * group.count
    colors = SEEN_COLORS[group.shape]
    if group.count > 1 and rng.random() < 0.5:
        return [pick(rng, colors)] * group.count
    return [pick(rng, colors) for _ in range(group.count)]


def sample_scene(prompt: Prompt, rng: np.random.Generator, *, split: str) -> Scene:
    """Draw a scene that shows exactly what a prompt says; whatever the prompt leaves open is random.

    Args:
        prompt: The prompt.
        rng: Source of randomness; equal states give equal scenes.
        split: `"train"` gives a scene that breaks no held-out rule, `"test"` a held-out scene whose
            combinations and relations are the seen ones, except for what the prompt itself asks for.

    Raises:
        ValueError: If the split is unknown, the prompt asks for more than four objects, or its meaning is
            held out and the split is `"train"`.
    """
    check_name("split", split, SPLITS)
    if split == "train" and prompt.is_held_out:
        raise ValueError(f"The meaning of {prompt.text!r} is held out from training. Pass split='test'.")
    if not 1 <= prompt.num_objects <= MAX_OBJECTS:
        raise ValueError(
            f"A scene has 1 to {MAX_OBJECTS} objects, {prompt.text!r} asks for {prompt.num_objects}. "
            "Lower the counts of the prompt's objects."
        )
    scene = _find_scene(prompt, rng, split, _MAX_DRAWS)
    if scene is None:
        raise RuntimeError(
            f"No {split!r} scene shows {prompt.text!r} in {_MAX_DRAWS} draws. Check that its meaning is possible."
        )
    return scene


def _find_scene(prompt: Prompt, rng: np.random.Generator, split: str, max_draws: int) -> Scene | None:
    for _ in range(max_draws):
        places = _draw_places(rng, [group for group in prompt.objects for _ in range(group.count)])
        if places is None:
            continue
        kinds = [(group.shape, color) for group in prompt.objects for color in _draw_colors(rng, group)]
        objects = tuple(SceneObject(*kind, *place) for kind, place in zip(kinds, places, strict=True))
        if prompt.relation is not None and stated_relation(objects[0], objects[1]) != prompt.relation:
            continue
        scene = Scene(objects, prompt.background or pick(rng, tuple(BACKGROUNDS)))
        if is_held_out_scene(scene) != (split == "test"):
            continue
        if prompt.is_held_out or not has_held_out_relation(scene):
            return scene
    return None


def sample_example(rng: np.random.Generator, *, split: str = "train", family: str | None = None) -> Example:
    """Draw a prompt, a scene that satisfies it, and the scene's full description.

    Args:
        rng: Source of randomness; equal states give equal examples.
        split: `"train"` obeys every held-out rule; `"test"` gives held-out texts and held-out scenes.
        family: The prompt family; `None` draws one of the split's, without the two unseen ones.
    """
    check_name("split", split, SPLITS)
    if family is None:
        family = pick(rng, TRAINING_FAMILIES if split == "train" else GENEVAL_FAMILIES)
    if family not in DETAIL_FAMILIES:
        prompt = sample_prompt(rng, family, split=split)
        scene = sample_scene(prompt, rng, split=split)
    else:  # one that says so much may have no scene of the split
        scene = None
        while scene is None:
            prompt = sample_prompt(rng, family, split=split)
            scene = _find_scene(prompt, rng, split, _FEW_DRAWS)
    return Example(scene, prompt, long_caption(scene, rng, split))
