"""The verifier accepts every true picture, rejects every near miss, and says why."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blip3o_hf.shapes import (
    COLORS,
    SHAPES,
    SIZES,
    TEST_FAMILIES,
    TRAINING_FAMILIES,
    ZONES,
    ObjectGroup,
    Prompt,
    Scene,
    SceneObject,
    detect,
    mismatch,
    render,
    sample_example,
    verify,
    zone,
)
from blip3o_hf.shapes.sampling import free_places
from blip3o_hf.shapes.verify import label_components


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    pairs = [("train", family) for family in TRAINING_FAMILIES] + [("test", family) for family in TEST_FAMILIES]
    return [sample_example(rng, split=split, family=family) for split, family in pairs for _ in range(32)]


def _pass_rate(examples, change=lambda image: image):
    return np.mean([verify(change(render(e.scene)), e.prompt).passed for e in examples])


def _with(scene, index, **changes):
    objects = list(scene.objects)
    objects[index] = replace(objects[index], **changes)
    return Scene(tuple(objects), scene.background)


def _next(values, value):
    values = list(values)
    return values[(values.index(value) + 1) % len(values)]


def test_accepts_true_pictures(examples):
    assert len(examples) >= 600
    assert _pass_rate(examples) >= 0.99


def test_detects_every_attribute(examples):
    for example in examples:
        found = detect(render(example.scene))
        assert found.background == example.scene.background and found.junk == ()
        assert sorted((o.shape, o.color, o.size) for o in found.objects) == sorted(
            (o.shape, o.color, o.size) for o in example.scene.objects
        )
        for o in found.objects:
            truth = np.array([s.center for s in example.scene.objects])
            assert np.hypot(*(truth - o.center).T).min() <= 1


def test_tolerates_what_a_decoder_does(examples):
    rng = np.random.default_rng(1)

    def noisy(image):
        return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)

    def soft(image):
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.8)))

    assert _pass_rate(examples, noisy) >= 0.98
    assert _pass_rate(examples, soft) >= 0.98
    assert _pass_rate(examples, lambda image: noisy(soft(image))) >= 0.98


def test_rejects_noise_and_plain_pictures(examples):
    rng = np.random.default_rng(2)
    assert _pass_rate(examples, lambda image: rng.integers(0, 256, image.shape, dtype=np.uint8)) <= 0.01
    assert _pass_rate(examples, lambda image: rng.choice(np.uint8([0, 255]), image.shape)) <= 0.01
    for value in (0, 128, 255):
        assert _pass_rate(examples, lambda image, value=value: np.full_like(image, value)) == 0


def test_rejects_a_swapped_shape(examples):
    for example in examples:
        wrong = _with(example.scene, 0, shape=_next(SHAPES, example.scene.objects[0].shape))
        swapped_back = sorted(o.shape for o in wrong.objects) == sorted(o.shape for o in example.scene.objects)
        assert swapped_back or not verify(render(wrong), example.prompt).passed


def test_rejects_a_swapped_color(examples):
    for example in examples:
        if example.prompt.objects[0].color is not None:
            wrong = _with(example.scene, 0, color=_next(COLORS, example.scene.objects[0].color))
            verdict = verify(render(wrong), example.prompt)
            assert not verdict.passed and "instead of" in verdict.reason


def test_rejects_a_missing_or_extra_object(examples):
    for example in examples:
        objects = example.scene.objects
        fewer = Scene(objects[1:], example.scene.background)
        assert verify(render(fewer), example.prompt).reason == f"{len(objects) - 1} objects instead of {len(objects)}"
        taken = render(example.scene) != render(Scene((), example.scene.background))
        for row, col in ((0, 0), (0, 6), (6, 0), (6, 6)):
            if not taken[max(8 * row - 8, 0) : 8 * row + 24, max(8 * col - 8, 0) : 8 * col + 24].any():
                extra = Scene(
                    (*objects, replace(objects[0], size="small", row=row, col=col)), example.scene.background
                )
                assert not verify(render(extra), example.prompt).passed


def test_rejects_a_mirrored_relation(examples):
    related = [example for example in examples if example.prompt.relation is not None]
    assert len(related) >= 90
    for example in related:
        axis = 1 if example.prompt.relation in ("left of", "right of") else 0
        verdict = verify(np.flip(render(example.scene), axis), example.prompt)
        assert not verdict.passed
        assert verdict.reason.startswith(
            f"the {example.prompt.objects[0].shape} is not {example.prompt.relation}"
        ) or (axis == 0 and any(group.shape == "triangle" for group in example.prompt.objects))


def test_rejects_the_other_background(examples):
    for example in examples:
        if example.prompt.background is not None:
            wrong = Scene(example.scene.objects, "white" if example.scene.background == "black" else "black")
            assert "the background is" in verify(render(wrong), example.prompt).reason


def test_rejects_another_size(examples):
    checked = 0
    for example in examples:
        objects = example.scene.objects
        for index, o in enumerate(objects):
            size, rest = _next(SIZES, o.size), objects[:index] + objects[index + 1 :]
            if (o.row, o.col) in free_places(rest, size):
                verdict = verify(render(_with(example.scene, index, size=size)), example.prompt)
                is_size_asked_for = any(group.size == o.size and group.holds(o) for group in example.prompt.objects)
                is_told = any(f" of {size} " in verdict.reason for size in SIZES)
                assert not is_size_asked_for or (not verdict.passed and is_told)
                checked += is_size_asked_for
    assert checked > 60


def test_rejects_an_object_in_another_place(examples):
    checked = 0
    for example in examples:
        for index, group in enumerate(example.prompt.objects):
            if group.place is None:
                continue
            objects = example.scene.objects
            rest = objects[:index] + objects[index + 1 :]
            for row, col in free_places(rest, objects[index].size)[::3]:
                moved = _with(example.scene, index, row=row, col=col)
                verdict = verify(render(moved), example.prompt)
                assert verdict.passed == (zone(moved.objects[index]) == group.place)
                assert verdict.passed or verdict.reason == f"0 of {group.name} at the {group.place} instead of 1"
                checked += 1
    assert checked > 500


def test_a_place_is_told_wherever_an_object_stands():
    for size in SIZES:
        for row, col in free_places((), size):
            o = SceneObject("triangle", "green", size, row, col)
            image = render(Scene((o,), "black"))
            for name in ZONES:
                prompt = Prompt(f"a triangle at the {name}", "places", (ObjectGroup("triangle", place=name),))
                assert verify(image, prompt).passed == (name == zone(o))


def test_a_scene_and_its_picture_are_judged_alike(examples):
    for example, other in pairwise(examples):
        assert mismatch(example.scene.objects, example.scene.background, example.prompt) is None
        reason = mismatch(other.scene.objects, other.scene.background, example.prompt)
        assert verify(render(other.scene), example.prompt).reason == (reason or "ok")


def test_junk_fails_and_specks_do_not():
    prompt = Prompt("a red circle", "colors", (ObjectGroup("circle", "red"),))
    image = render(Scene((SceneObject("circle", "red", "large", 0, 0),), "white"))
    speck, blob, striped = image.copy(), image.copy(), image.copy()
    speck[50:52, 50:53] = 0
    blob[40:56, 40:56] = (40, 200, 200)
    striped[12:, :32][(image[12:, :32] != 255).any(axis=2)] = COLORS["blue"]
    assert verify(speck, prompt).reason == "ok"
    assert verify(blob, prompt).reason == "junk: component at (40, 40, 56, 56) has no named colour"
    assert verify(striped, prompt).reason.startswith("junk: component at ")


def test_image_forms_agree(examples):
    image, prompt = render(examples[0].scene), examples[0].prompt
    forms = [image, Image.fromarray(image), image / 255.0, (image / 255.0).astype(np.float32)]
    assert {verify(form, prompt).passed for form in forms} == {True}
    assert len({detect(form) for form in forms}) == 1


def test_components_are_joined_across_rows_and_corners():
    mask = np.array([[1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], bool)
    components = label_components(mask)
    assert sorted(int((runs[:, 2] - runs[:, 1]).sum()) for runs in components) == [1, 1, 6]
    assert label_components(np.zeros((4, 4), bool)) == []


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            np.zeros((3, 64, 64), np.uint8),
            ValueError,
            r"shape \(64, 64, 3\), got \(3, 64, 64\). Put the channels",
        ),
        (np.zeros((64, 64, 3), np.int64), TypeError, "uint8 or float, got int64"),
        (np.full((64, 64, 3), 2.0), ValueError, r"lies in \[0, 1\], got \[2, 2\]. Rescale"),
        (np.full((64, 64, 3), np.nan), ValueError, r"lies in \[0, 1\], got \[nan, nan\]"),
        ([[0]], TypeError, "PIL image or a numpy array, got list. Convert it"),
    ],
)
def test_other_images_are_refused(image, error, message):
    prompt = Prompt("a circle", "single_object", (ObjectGroup("circle"),))
    with pytest.raises(error, match=message):
        verify(image, prompt)
