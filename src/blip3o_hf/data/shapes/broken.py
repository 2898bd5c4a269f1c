"""Pictures as a generator gets them wrong, so that a reader of pictures learns to say no to them."""

import numpy as np

from .language import pick
from .render import render
from .sampling import free_places
from .scene import BACKGROUNDS, CELL, COLORS, SHAPES, Scene, SceneObject


def break_picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """
    The picture of a scene with an object that is none: a piece of it is gone, or is that of another shape or colour,
    or a piece of one more object stands where nothing should be.

    Args:
        scene: The scene.
        rng: Source of randomness.

    Returns:
        A uint8 array `[64, 64, 3]`.
    """
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
