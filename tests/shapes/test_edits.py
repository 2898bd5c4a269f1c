"""An edit does what its words say and nothing else, obeys the rules on scenes, and is told from near misses."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tests.shapes.reading import follow

from blip3o_hf.shapes import (
    CELL,
    COLORS,
    EDIT_KINDS,
    Scene,
    SceneObject,
    edit_scene,
    has_held_out_combination,
    has_held_out_relation,
    in_reading_order,
    is_held_out_scene,
    is_training_scene,
    render,
    sample_edit,
    sample_example,
    shows_objects,
    shows_scene,
    verify_edit,
    zone,
)
from blip3o_hf.shapes.sampling import free_places

SPLITS = ("train", "test")
BLUE = SceneObject("square", "blue", "small", 0, 0)
RED = SceneObject("circle", "red", "large", 4, 4)
TWO = Scene((BLUE, RED), "white")


@pytest.fixture(scope="module", params=SPLITS)
def edits(request):
    """Split, and twenty-four edits of each kind."""
    rng = np.random.default_rng(0)
    return request.param, [
        sample_edit(rng, split=request.param, kind=kind)[0] for kind in EDIT_KINDS for _ in range(24)
    ]


def test_equal_seeds_give_equal_edits():
    first, again = ([sample_edit(np.random.default_rng(seed)) for seed in range(20)] for _ in range(2))
    assert first == again
    assert len({edit.text for edit, _ in first}) > 15
    assert {edit.kind for edit, _ in first} == set(EDIT_KINDS)


def test_the_words_of_an_edit_tell_its_target(edits):
    _, drawn = edits
    for edit in drawn:
        rest, wanted, place, background = follow(edit.source, edit.text)
        assert set(rest) == set(edit.kept)
        new = [o for o in edit.target.objects if o not in rest]
        assert edit.target.background == background
        assert (edit.source.background == background) == (edit.kind != "background")
        assert edit.target.key != edit.source.key
        if wanted is None:
            assert new == [] and edit.new is None
        else:
            assert new == [edit.new]
            assert {"size": new[0].size, "color": new[0].color, "shape": new[0].shape} == wanted
            assert (zone(new[0]) if isinstance(place, str) else (new[0].row, new[0].col)) == place


def test_every_wording_occurs(edits):
    _, drawn = edits
    openings = Counter((edit.kind, edit.text.split()[0]) for edit in drawn)
    assert set(openings) == {
        *(("color", verb) for verb in ("make", "change", "paint")),
        *(("shape", verb) for verb in ("turn", "replace")),
        *(("add", verb) for verb in ("add", "put")),
        *(("remove", verb) for verb in ("remove", "take", "delete")),
        *(("move", verb) for verb in ("move", "put")),
        ("size", "make"),
        *(("background", verb) for verb in ("make", "change")),
    }
    sizes = {edit.text.split()[-1] for edit in drawn if edit.kind == "size"}
    assert sizes == {"small", "smaller", "large", "larger"}


def test_the_scene_after_keeps_the_reading_order_of_the_scene_before(edits):
    """What is changed stays in its place, what is added comes last."""
    _, drawn = edits
    for edit in drawn:
        before, after = in_reading_order(edit.source.objects), edit.ordered_target
        assert after.key == edit.target.key
        assert [o for o in after.objects if o in edit.kept] == [o for o in before if o in edit.kept]
        if edit.kind == "add":
            assert after.objects[-1] == edit.new
        elif edit.new is not None:
            assert after.objects.index(edit.new) == before.index(edit.old)


def test_a_name_is_that_of_the_object_that_changes(edits):
    _, drawn = edits
    for edit in drawn:
        if edit.old is None:
            assert edit.name == "" and edit.kind in ("add", "background")
        else:
            words = set(edit.name.split())
            assert edit.name in edit.text
            assert [o for o in edit.source.objects if words <= {o.color, o.shape}] == [edit.old]


def test_scenes_before_and_after_obey_the_rules_of_their_split(edits):
    split, drawn = edits
    for edit in drawn:
        for scene in (edit.source, edit.target):
            assert 1 <= len(scene.objects) <= 4
            assert not has_held_out_combination(scene) and not has_held_out_relation(scene)
            assert is_held_out_scene(scene) == (split == "test")
            assert is_training_scene(scene) == (split == "train")


def test_objects_after_an_edit_keep_their_distance(edits):
    _, drawn = edits
    for edit in drawn:
        boxes = [o.box for o in edit.target.objects]
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert min(left, top) >= 0 and max(right, bottom) <= 64
            for other in boxes[:i]:
                assert max(other[0] - right, left - other[2], other[1] - bottom, top - other[3]) >= CELL


def test_the_prompt_of_an_edited_scene_comes_with_it():
    rng = np.random.default_rng(1)
    for _ in range(10):
        edit, example = sample_edit(rng, split="test")
        assert example.scene == edit.source


def test_what_does_not_fit_gives_no_edit():
    rng = np.random.default_rng(0)
    full = Scene(tuple(replace(BLUE, row=row, col=col) for row in (0, 4) for col in (0, 4)), "white")
    one, twins = Scene((BLUE,), "white"), Scene((BLUE, replace(BLUE, row=4)), "white")
    for _ in range(20):
        assert edit_scene(full, rng, "add") is None
        assert edit_scene(one, rng, "remove") is None
        assert all(edit_scene(twins, rng, kind) is None for kind in set(EDIT_KINDS) - {"add", "background"})
        assert edit_scene(one, rng, "color").old is BLUE


def test_an_object_grows_only_where_there_is_room():
    rng = np.random.default_rng(0)
    near = Scene((BLUE, replace(RED, size="small", row=0, col=3)), "white")
    grown = [edit for edit in (edit_scene(near, rng, "size") for _ in range(40)) if edit is not None]
    assert 0 < len(grown) < 40 and all(edit.old == near.objects[1] for edit in grown)
    assert all(edit.new == replace(edit.old, size="large") for edit in grown)
    corner = Scene((replace(BLUE, row=6, col=6),), "white")
    assert all(edit_scene(corner, rng, "size") is None for _ in range(10))
    assert edit_scene(Scene((RED,), "white"), rng, "size").new == replace(RED, size="small")


def test_a_name_fits_one_object_alone():
    """Two squares of two colours are told apart by colour; a single shape needs none."""
    scene = Scene((BLUE, replace(BLUE, color="red", row=4)), "white")
    rng = np.random.default_rng(0)
    texts = {edit_scene(scene, rng, "remove").text for _ in range(60)}
    assert all(("red square" in text) != ("blue square" in text) for text in texts)
    texts = {edit_scene(TWO, rng, "remove").text for _ in range(60)}
    assert {"remove the circle", "remove the red circle"} <= texts


def test_unknown_names_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"Unknown kind of edit 'colour'\. Did you mean 'color'\? Available: color,"):
        edit_scene(TWO, rng, "colour")
    with pytest.raises(
        ValueError,
        match=r"Unknown kind of edit 'paint'\. Available: color, shape, add, remove, move, size, background",
    ):
        sample_edit(rng, kind="paint")
    with pytest.raises(ValueError, match=r"Unknown split 'tran'\. Did you mean 'train'\?"):
        sample_edit(rng, split="tran")


def test_reading_order_goes_down_and_then_right():
    objects = [SceneObject("circle", "red", "small", row, col) for row, col in ((4, 0), (0, 5), (0, 0), (4, 3))]
    assert [(o.row, o.col) for o in in_reading_order(objects)] == [(0, 0), (0, 5), (4, 0), (4, 3)]


def test_free_places_are_those_that_keep_their_distance():
    assert len(free_places([], "small")) == 49 and len(free_places([], "large")) == 36
    rng = np.random.default_rng(2)
    for _ in range(10):
        objects = sample_example(rng).scene.objects
        for size, pixels in (("small", 16), ("large", 24)):
            expected = []
            for row in range(8 - pixels // CELL + 1):
                for col in range(8 - pixels // CELL + 1):
                    left, top, right, bottom = SceneObject("circle", "red", size, row, col).box
                    gaps = [max(o.box[0] - right, left - o.box[2], o.box[1] - bottom, top - o.box[3]) for o in objects]
                    if min(gaps) >= CELL:
                        expected.append((row, col))
            assert sorted(free_places(objects, size)) == expected


# Whether a picture shows an edit


def verdict(image, edit):
    found = verify_edit(image, edit)
    assert found.passed == (found.followed and found.preserved)
    return found.followed, found.preserved


def with_extra(scene):
    places = free_places(scene.objects, "small")
    return (
        None
        if not places
        else replace(scene, objects=(*scene.objects, SceneObject("cross", "red", "small", *places[0])))
    )


def test_a_true_picture_passes(edits):
    _, drawn = edits
    for edit in drawn:
        image = Image.fromarray(render(edit.target))
        soft = image.filter(ImageFilter.GaussianBlur(0.8))
        assert verdict(image, edit) == verdict(render(edit.target) / 255.0, edit) == (True, True)
        assert verdict(soft, edit) == (True, True)
        assert shows_scene(image, edit.target)
        assert edit.kind == "move" or not shows_scene(image, edit.source)


def test_a_picture_left_as_it_was_does_not_follow(edits):
    _, drawn = edits
    for edit in drawn:
        assert verdict(render(edit.source), edit) == (False, True)


def test_a_picture_that_changes_something_else_does_not_preserve(edits):
    _, drawn = edits
    other = {"white": "black", "black": "white"}
    for edit in drawn:
        target = edit.target
        if edit.kind != "background":
            assert verdict(render(replace(target, background=other[target.background])), edit) == (True, False)
        for index, kept in enumerate(edit.kept):
            rest = tuple(o for o in target.objects if o is not kept)
            if rest:
                assert not verify_edit(render(replace(target, objects=rest)), edit).preserved
            color = next(
                c
                for c in COLORS
                if c != kept.color and (c, kept.shape) not in {(o.color, o.shape) for o in target.objects}
            )
            painted = replace(target, objects=(*rest, replace(kept, color=color)))
            assert not verify_edit(render(painted), edit).preserved, index
        extra = with_extra(target)
        is_what_was_removed = edit.kind == "remove" and (edit.old.color, edit.old.shape) == ("red", "cross")
        if extra is not None and edit.kind != "add" and not is_what_was_removed:
            assert not verify_edit(render(extra), edit).preserved


def test_noise_passes_for_nothing(edits):
    _, drawn = edits
    rng = np.random.default_rng(3)
    for edit in drawn[::10]:
        image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert not verify_edit(image, edit).passed and not shows_scene(image, edit.target)


@pytest.mark.parametrize("kind", ["add", "move"])
def test_an_object_may_stand_anywhere_in_the_third_that_is_named(kind):
    rng = np.random.default_rng(4)
    checked = 0
    for _ in range(20):
        edit, _ = sample_edit(rng, kind=kind)
        for row, col in free_places(edit.kept, edit.new.size):
            new = replace(edit.new, row=row, col=col)
            scene = Scene((*edit.kept, new), edit.source.background)
            assert verify_edit(render(scene), edit).followed == (zone(new) == zone(edit.new))
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("shift", [0, CELL, CELL + 1])
def test_an_object_may_be_one_cell_off(shift):
    middle = Scene((replace(BLUE, row=1, col=1), replace(RED, row=4, col=3)), "white")
    image = np.roll(render(middle), (shift, shift), (0, 1))
    assert shows_scene(image, middle) == (shift <= CELL)


@pytest.mark.parametrize(
    "change",
    [
        lambda scene: replace(scene, background="black"),
        lambda scene: replace(scene, objects=scene.objects[:1]),
        lambda scene: replace(scene, objects=(*scene.objects, SceneObject("cross", "red", "small", 0, 5))),
        lambda scene: replace(scene, objects=(replace(BLUE, size="large"), RED)),
        lambda scene: replace(scene, objects=(replace(BLUE, color="green"), RED)),
        lambda scene: replace(scene, objects=(replace(BLUE, shape="circle"), RED)),
        lambda scene: replace(scene, objects=(replace(BLUE, row=2), RED)),
    ],
)
def test_a_scene_is_shown_with_all_that_it_has(change):
    assert shows_scene(render(TWO), TWO)
    assert shows_scene(render(replace(TWO, objects=(RED, BLUE))), TWO)
    assert not shows_scene(render(change(TWO)), TWO)


def test_other_images_are_refused():
    edit, _ = sample_edit(np.random.default_rng(0))
    for look in (lambda image: verify_edit(image, edit), lambda image: shows_scene(image, TWO)):
        with pytest.raises(ValueError, match=r"shape \(64, 64, 3\), got \(3, 64, 64\)"):
            look(np.zeros((3, 64, 64), np.uint8))


def test_the_right_objects_count_wherever_they_stand():
    here, there = SceneObject("circle", "red", "large", 1, 1), SceneObject("circle", "red", "small", 5, 4)
    cross = SceneObject("cross", "blue", "small", 0, 5)
    scene = Scene((here, cross), "white")
    assert shows_objects(render(Scene((there, cross), "white")), scene)
    assert not shows_scene(render(Scene((there, cross), "white")), scene)
    for other in (Scene((here,), "white"), Scene((here, there, cross), "white"), Scene((here, cross), "black")):
        assert not shows_objects(render(other), scene)
