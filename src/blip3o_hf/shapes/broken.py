"""Pictures as a generator gets them wrong, so that a reader of pictures learns to say no to them."""

import numpy as np

from .edits import shows_scene
from .language import pick
from .render import render
from .sampling import free_places
from .scene import BACKGROUNDS, CELL, COLORS, HELD_OUT_COMBINATIONS, SHAPES, Scene, SceneObject
from .verify import detect


def break_picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """
    The picture of a scene with an object that is none: a piece of it is gone, or is that of another shape or colour,
    or a piece of one more object stands where nothing should be. No whole object in it is of a held-out combination.

    Args:
        scene: The scene.
        rng: Source of randomness.

    Returns:
        A uint8 array `[64, 64, 3]`.
    """
    held_out = HELD_OUT_COMBINATIONS - {(o.color, o.shape) for o in scene.objects}
    while True:
        image = _with_fault(scene, rng)
        seen = {(o.color, o.shape) for o in detect(image).objects}
        if not shows_scene(image, scene) and seen.isdisjoint(held_out):
            return image


def _with_fault(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    image = render(scene)
    fault = rng.random()
    places = free_places(scene.objects, "small") if fault < 0.3 else []
    if places:
        row, col = pick(rng, places)
        stray = SceneObject(pick(rng, SHAPES), pick(rng, tuple(COLORS)), "small", row, col)
        _copy_cells(image, render(Scene((stray,), scene.background)), _cells(stray, rng, 1 + int(rng.random() * 2)))
        return image
    o = pick(rng, scene.objects)
    if fault < 0.6:
        other = np.full_like(image, BACKGROUNDS[scene.background][0])
    else:
        shape = pick(rng, [shape for shape in SHAPES if shape != o.shape])
        color = pick(rng, tuple(COLORS)) if rng.random() < 0.5 else o.color
        other = render(Scene((SceneObject(shape, color, o.size, o.row, o.col),), scene.background))
    num_cells = (o.pixels // CELL) ** 2
    _copy_cells(image, other, _cells(o, rng, 1 + int(rng.random() * num_cells / 2)))
    return image


def _cells(o: SceneObject, rng: np.random.Generator, number: int) -> list[tuple[int, int]]:
    """Some of the cells of an object's box, as row and column."""
    side = o.pixels // CELL
    chosen = rng.permutation(side * side)[:number].tolist()
    return [(o.row + index // side, o.col + index % side) for index in chosen]


def _copy_cells(image: np.ndarray, other: np.ndarray, cells: list[tuple[int, int]]) -> None:
    for row, col in cells:
        part = slice(row * CELL, (row + 1) * CELL), slice(col * CELL, (col + 1) * CELL)
        image[part] = other[part]
