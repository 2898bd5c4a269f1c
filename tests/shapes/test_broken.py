"""A broken picture differs from its scene in a few cells of one object, gone, foreign or of one more."""

from collections import Counter

import numpy as np
import pytest

from blip3o_hf.shapes import CELL, Scene, SceneObject, break_picture, render, sample_example


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [sample_example(rng).scene for _ in range(300)]


def changed_cells(image, scene):
    """Rows and columns of the cells in which a picture is not that of the scene."""
    is_other = (image != render(scene)).any(axis=2).reshape(8, CELL, 8, CELL).any(axis=(1, 3))
    return [tuple(cell) for cell in np.argwhere(is_other).tolist()]


def cells_of(o, gap=0):
    side = o.pixels // CELL
    return {
        (row, col) for row in range(o.row - gap, o.row + side + gap) for col in range(o.col - gap, o.col + side + gap)
    }


def test_equal_states_break_a_picture_alike_and_leave_the_scene_alone(scenes):
    for seed, scene in enumerate(scenes[:20]):
        before = render(scene)
        first, again = (break_picture(scene, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again) and first.shape == (64, 64, 3) and first.dtype == np.uint8
        assert np.array_equal(render(scene), before)


def test_a_fault_is_in_a_few_cells_of_one_object_or_of_one_more(scenes):
    rng, faults = np.random.default_rng(1), Counter()
    for scene in scenes:
        image = break_picture(scene, rng)
        changed = set(changed_cells(image, scene))
        own = [o for o in scene.objects if changed & cells_of(o)]
        background = 255 if scene.background == "white" else 0
        if not own:
            rows, cols = ({cell[axis] for cell in changed} for axis in (0, 1))
            assert len(changed) <= 2 and all(max(side) - min(side) <= 1 for side in (rows, cols) if side)
            assert not any(changed & cells_of(o, gap=1) for o in scene.objects)
            faults["one more"] += bool(changed)
            continue
        (o,) = own
        assert changed < cells_of(o)  # something of it is left
        is_gone = all(
            (image[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL] == background).all()
            for row, col in changed
        )
        faults["gone" if is_gone else "foreign"] += 1
    assert len(faults) == 3 and min(faults.values()) > 0.2 * len(scenes)


def test_where_there_is_no_room_an_object_is_broken():
    full = tuple(SceneObject("square", "red", "large", row, col) for row in (0, 5) for col in (0, 5))
    scene, rng = Scene(full, "white"), np.random.default_rng(2)
    for _ in range(30):
        changed = set(changed_cells(break_picture(scene, rng), scene))
        assert any(changed <= cells_of(o) for o in full)
