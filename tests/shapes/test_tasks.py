"""A picture to draw shows what its task says: captions, plans, edits and reconstructions, after earlier turns, too."""

import re
from collections import Counter
from itertools import islice
from zlib import crc32

import numpy as np
import pytest
from PIL import Image
from tests.shapes.reading import answer, follow, names_a_held_out_combination, read_prompt, seen_scene

from blip3o_hf.data.records import RECONSTRUCT
from blip3o_hf.models.processing_blip3o import message_images
from blip3o_hf.shapes import (
    cell_code,
    in_reading_order,
    is_held_out_scene,
    is_training_scene,
    parse_plan,
    shows_scene,
    zone,
)
from blip3o_hf.shapes.dataset import ShapesDataset
from blip3o_hf.shapes.tasks import ShapesPhrases, ShapesPictures
from blip3o_hf.shapes.wording_lists import SMALL_TALK

EVERYTHING = {"edit_rate": 0.4, "reconstruction_rate": 0.2, "history_rate": 0.5, "plan_rate": 0.3}
ASK_TO_DRAW = "Please draw: {caption}"


def pictures(split="train", length=60, instruction=ASK_TO_DRAW, seed=5, natural_rate=0.0, **rates):
    scenes = ShapesDataset(length, seed=seed, split=split, natural_rate=natural_rate)
    return ShapesPictures(scenes, instruction=instruction, **rates)


def given_image(record):
    """The picture that a record edits: with the prompt, or the last one before it."""
    return record.images[0] if record.images else message_images(record.history)[-1]


def plain(value):
    """With the bytes of pictures in their place."""
    if isinstance(value, Image.Image):
        return value.tobytes()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def said(record):
    """A record as plain values."""
    return plain([record.key, record.target, record.prompt, record.images, record.history])


@pytest.fixture(scope="module", params=["train", "test"])
def tasks(request):
    """Split, and the tasks of every kind."""
    data = pictures(request.param, **EVERYTHING)
    return request.param, [data.task(index) for index in range(len(data))]


def test_without_rates_the_pictures_are_the_captions():
    data = ShapesDataset(30, seed=1)
    captioned = ShapesPictures(data)
    for index, (record, scene) in enumerate(zip(islice(captioned, 30), islice(data, 30), strict=True)):
        assert said(record) == [data.key(index), scene.image.tobytes(), scene.caption, [], []]
        assert captioned.task(index).scene == scene.scene and not captioned.task(index).is_exact


@pytest.mark.parametrize(
    ("settings", "checksum", "identity"),
    [
        ({"seed": 1}, 139992777, "[3, null, {}]"),
        (
            {
                "seed": 50,
                "long_caption_rate": 0.25,
                "family_weights": {"single_object": 0.5, "position": 2.0},
                "num_questions": 4,
                "question_weights": {"position": 3.0},
            },
            3305576148,
            '[3, {"single_object": 0.5, "two_object": 1.0, "counting": 1.0, "colors": 1.0, "position": 2.0, '
            '"color_attr": 1.0, "mixed": 1.0, "sizes": 1.0, "places": 1.0}, {}]',
        ),
    ],
)
def test_seeds_keep_their_pictures_and_caches_their_names(settings, checksum, identity):
    """Recorded with the third world: features that were precomputed then stay valid."""
    data = ShapesDataset(20, **settings)
    captioned, found = ShapesPictures(data), 0
    for record, scene in zip(islice(captioned, 20), islice(data, 20), strict=True):
        asked = [question.text + question.answer for question in scene.questions]
        words = "".join((record.prompt, scene.description, scene.plan, *asked))
        found = crc32(np.asarray(record.target).tobytes() + words.encode(), found)
    assert (found, captioned.identity) == (checksum, identity)


def test_a_task_is_decided_by_seed_index_and_rates():
    first, second = (pictures(**EVERYTHING) for _ in range(2))
    second[9]
    for index in (7, 0, 7):
        assert said(first[index]) == said(second[index])
    other = pictures(seed=6, **EVERYTHING)
    assert sum(said(first[index])[1:] == said(other[index])[1:] for index in range(20)) == 0


def test_shares_of_tasks_are_those_asked_for():
    data = pictures(length=300, **EVERYTHING | {"plan_rate": 0.0})
    records = [data[index] for index in range(300)]
    is_again = [record.prompt == RECONSTRUCT for record in records]
    is_captioned = [record.prompt == data.scenes[i].caption for i, record in enumerate(records)]
    assert np.mean(is_again) == pytest.approx(0.2, abs=0.07)
    assert np.mean(is_captioned) == pytest.approx(0.4, abs=0.08)
    assert np.mean([bool(record.history) for record in records]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("rates", "kind"),
    [({"edit_rate": 1.0}, "editing"), ({"reconstruction_rate": 1.0}, "reconstruction"), ({}, "generation")],
)
def test_a_rate_of_one_is_all(rates, kind):
    assert {record.kind for record in islice(pictures(length=20, **rates), 20)} == {kind}


def test_a_picture_shows_what_its_task_says(tasks):
    split, drawn = tasks
    for task in drawn:
        assert shows_scene(task.record.target, task.scene)
        if split == "train":
            assert is_training_scene(task.scene)
        elif task.record.prompt != RECONSTRUCT:
            assert is_held_out_scene(task.scene)


def test_a_picture_to_be_drawn_again_is_shown_as_it_is():
    data = pictures(length=15, reconstruction_rate=1.0)
    for index in range(15):
        task = data.task(index)
        assert np.array_equal(task.record.images[0], task.record.target)
        assert task.record.prompt == RECONSTRUCT and task.is_exact
        assert task.scene.objects == in_reading_order(data.scenes[index].scene.objects)


def test_an_edit_has_its_picture_with_it_or_in_the_last_turn():
    data = pictures(length=120, edit_rate=1.0, history_rate=0.7)
    places = Counter()
    for index in range(120):
        record = data[index]
        given = given_image(record)
        places["with it" if record.images else "last turn", len(record.history)] += 1
        before, after = seen_scene(given), seen_scene(record.target)
        kept = set(before.objects) & set(after.objects)
        changed = max(len(before.objects), len(after.objects)) - len(kept) + (before.background != after.background)
        assert changed == 1
    # Three in four with a history are of the last picture; of these, three in ten have more before.
    assert places["with it", 0] == pytest.approx(36, abs=14)
    assert places["with it", 2] == pytest.approx(21, abs=12)
    assert places["last turn", 2] == pytest.approx(44, abs=14)
    assert places["last turn", 4] == pytest.approx(19, abs=12)


@pytest.mark.parametrize("natural_rate", [0.0, 1.0])
def test_an_edit_does_what_its_words_say(natural_rate):
    """In any words; what is kept stays in reading order, and what is added comes last."""
    data = pictures(length=80, edit_rate=1.0, history_rate=0.3, natural_rate=natural_rate)
    for index in range(80):
        task = data.task(index)
        before = seen_scene(given_image(task.record))
        rest, wanted, place, background = follow(before, task.record.prompt)
        assert task.scene.background == background and task.is_exact
        kept = [o for o in task.scene.objects if o in rest]
        assert tuple(kept) == in_reading_order(rest)
        new = [o for o in task.scene.objects if o not in rest]
        assert [{"size": o.size, "color": o.color, "shape": o.shape} for o in new] == ([wanted] if wanted else [])
        assert all(place in (zone(o), (o.row, o.col)) for o in new)
        if len(rest) == len(before.objects) and new:
            assert task.scene.objects[-1] == new[0]


def test_edits_are_said_in_natural_words_at_their_rate():
    usual, natural = (
        [data[index] for index in range(60)]
        for data in (pictures(length=60, edit_rate=1.0, natural_rate=rate) for rate in (0.0, 1.0))
    )
    pairs = list(zip(usual, natural, strict=True))
    assert np.mean([a.prompt == b.prompt for a, b in pairs]) < 0.2
    assert all(a.target.tobytes() == b.target.tobytes() for a, b in pairs)


# Plans as prompts


@pytest.mark.parametrize(
    "rates", [{}, {"edit_rate": 1.0}, {"reconstruction_rate": 1.0}, {"edit_rate": 0.5, "history_rate": 1.0}]
)
def test_a_plan_tells_what_is_to_be_drawn_in_its_order(rates):
    planned, others = (pictures(length=40, plan_rate=rate, **rates) for rate in (1.0, 0.0))
    for index in range(40):
        task, unplanned = planned.task(index), others.task(index)
        assert parse_plan(task.record.prompt) == task.scene == unplanned.scene and task.is_exact
        assert seen_scene(task.record.target).key == task.scene.key
        assert said(task.record)[3:] == said(unplanned.record)[3:]  # images and earlier turns are the same


def test_the_rate_of_plans_is_kept():
    data = pictures(length=300, **EVERYTHING)
    plans = [parse_plan(record.prompt) is not None for record in islice(data, 300)]
    assert np.mean(plans) == pytest.approx(0.3, abs=0.08)


# Earlier turns


def test_a_history_is_turns_with_a_picture_each(tasks):
    _, drawn = tasks
    histories = [task.record.history for task in drawn if task.record.history]
    assert len(histories) > 15
    roles = Counter()
    for history in histories:
        assert [message["role"] for message in history] == ["user", "assistant"] * (len(history) // 2)
        for user, answered in zip(history[::2], history[1::2], strict=True):
            (picture,) = message_images([user, answered])
            scene = seen_scene(picture)
            if isinstance(user["content"], str):  # a picture was asked for, and drawn
                asked = user["content"].removeprefix("Please draw: ")
                assert f"Please draw: {asked}" == user["content"]
                plan = parse_plan(asked)
                if plan is None:
                    groups, _, background = read_prompt(asked)
                    assert background in (None, scene.background)
                    assert all(sum(map(group.holds, scene.objects)) == group.count for group in groups)
                else:
                    assert plan.key == scene.key
                roles["asked to draw" if plan is None else "planned"] += 1
            else:
                _, question = user["content"]
                assert answered["content"] == answer(scene, question["text"])
                roles["asked"] += 1
    assert set(roles) == {"asked to draw", "planned", "asked"}


def test_in_natural_words_more_is_said_before_and_after_the_picture_of_a_history():
    """Further questions are about the last picture, as they are in a chat."""
    data = pictures(length=200, natural_rate=1.0, history_rate=1.0)
    small_talk, extra = {answer for _, answer in SMALL_TALK}, Counter()
    for record in islice(data, 200):
        pairs = list(zip(record.history[::2], record.history[1::2], strict=True))
        (position,) = (index for index, pair in enumerate(pairs) if message_images(pair))
        for index, (user, answered) in enumerate(pairs):
            if index == position:
                continue
            if answered["content"] in small_talk:
                extra["small talk before" if index < position else "small talk after"] += 1
            else:
                scene = seen_scene(message_images(pairs[position])[0])
                assert index > position and answered["content"] == answer(scene, user["content"])
                extra["question after"] += 1
    assert extra["small talk before"] == pytest.approx(30, abs=16)
    assert extra["small talk after"] == pytest.approx(20, abs=14)
    assert extra["question after"] == pytest.approx(40, abs=18)


def test_training_tasks_show_and_name_nothing_held_out():
    data = pictures(length=150, natural_rate=0.5, **(EVERYTHING | {"history_rate": 1.0}))
    for record in islice(data, 150):
        for image in (*message_images(record.history), *record.images, record.target):
            assert is_training_scene(seen_scene(image))
        texts = [record.prompt]
        for message in record.history:
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        assert not any(names_a_held_out_combination(text) for text in texts)


def test_rates_are_part_of_a_dataset_s_identity():
    rates = [{}, {"edit_rate": 0.5}, *({name: 0.4} for name in EVERYTHING)]
    assert len({pictures(**own).identity for own in rates}) == len(rates)
    assert pictures(**dict.fromkeys(EVERYTHING, 0.0)).identity == pictures().identity


def test_complete_is_given_identity_and_record():
    data = ShapesPictures(ShapesDataset(3), lambda identity, record: (identity, record.prompt), edit_rate=1.0)
    assert data[1] == (data.identity, data.task(1).record.prompt)


@pytest.mark.parametrize("rates", [(-0.1, 0.0), (0.0, -0.1), (0.6, 0.5), (float("nan"), 0.0)])
def test_rates_of_tasks_that_are_no_shares_are_refused(rates):
    message = (
        f"`edit_rate` and `reconstruction_rate` are shares of the records. Got {rates[0]} and {rates[1]}. Choose "
        f"numbers of at least 0 that make at most 1 together."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures(edit_rate=rates[0], reconstruction_rate=rates[1])


@pytest.mark.parametrize("name", ["history_rate", "plan_rate"])
@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_of_histories_or_plans_that_is_no_share_is_refused(name, rate):
    message = f"`{name}` is a share in [0, 1] of the records. Got {rate}."
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures(**{name: rate})


# What the queries learn to say


def test_there_are_words_for_every_object_and_exact_places_for_those_told_or_seen(tasks):
    split, drawn = tasks
    about = ShapesPhrases(pictures(split, **EVERYTHING))
    assert len(about) == len(drawn)
    for index, task in enumerate(drawn):
        phrases = about[index]
        assert plain([phrases.prompt, phrases.images, phrases.history]) == said(task.record)[2:]
        assert len(phrases.phrases) == len(task.scene.objects)
        for words, o in zip(phrases.phrases, task.scene.objects, strict=True):
            known = (o.size, o.color, o.shape, *zone(o).split(), task.scene.background)
            assert words == ((*known, cell_code(o)) if task.is_exact else known)


def test_all_but_captions_are_exact(tasks):
    split, drawn = tasks
    scenes = pictures(split).scenes
    assert [task.is_exact for task in drawn] == [
        task.record.prompt != scenes[index].caption for index, task in enumerate(drawn)
    ]
    assert {task.is_exact for task in drawn} == {True, False}


def test_a_wrong_prompt_is_that_of_another_picture():
    right, wrong = pictures(length=300, plan_rate=1.0), pictures(length=300, plan_rate=1.0, wrong_rate=0.3)
    assert [plain(wrong[index].target) for index in range(40)] == [plain(right[index].target) for index in range(40)]
    changed = [index for index in range(300) if wrong[index].prompt != right[index].prompt]
    assert 60 < len(changed) < 120
    prompts = {right[index].prompt for index in range(300)}
    assert all(wrong[index].prompt in prompts for index in changed)


def test_a_photograph_shows_the_same_scene_less_clearly():
    clean = pictures(length=60, plan_rate=1.0)
    seen = pictures(length=60, plan_rate=1.0, photograph_rate=1.0)
    half = pictures(length=60, plan_rate=1.0, photograph_rate=0.5)
    likeness = []
    for index in range(60):
        assert seen[index].prompt == clean[index].prompt
        assert plain(seen[index].target) == plain(
            pictures(length=60, plan_rate=1.0, photograph_rate=1.0)[index].target
        )
        first, second = (np.asarray(data[index].target, dtype=np.float64) for data in (clean, seen))
        assert first.shape == second.shape and 2 < np.abs(first - second).mean() < 80
        likeness.append(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert min(likeness) > 0.4 and np.mean(likeness) > 0.85  # everything is where it was
    assert 15 < sum(plain(half[index].target) == plain(clean[index].target) for index in range(60)) < 45
    assert clean.identity != seen.identity


@pytest.mark.parametrize("name", ["wrong_rate", "photograph_rate"])
def test_a_rate_is_a_share(name):
    with pytest.raises(ValueError, match=rf"`{name}` is a share in \[0, 1\] of the records\. Got 1\.5"):
        pictures(**{name: 1.5})
