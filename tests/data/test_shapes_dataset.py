"""Example `i` of a seed is always the same one, and what a record says is what the tiny world says."""

import re
from collections import Counter
from itertools import islice
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.data.records import Record
from blip3o_hf.data.shapes import (
    HELD_OUT_COMBINATIONS,
    TRAINING_FAMILIES,
    cell_words,
    detect,
    in_reading_order,
    is_held_out_scene,
    is_held_out_text,
    is_training_scene,
    question_kinds,
    render,
    shows_scene,
    zone,
)
from blip3o_hf.data.shapes_dataset import (
    RECONSTRUCT,
    ShapesConversations,
    ShapesDataset,
    ShapesPictures,
    ShapesPlans,
)
from blip3o_hf.models.processing_blip3o import message_images


def test_an_example_is_decided_by_seed_and_index():
    first, second = (ShapesDataset(10, seed=3, num_questions=2) for _ in range(2))
    second[9]
    for index in (7, 0, 7):
        ours, theirs = first[index], second[index]
        assert np.array_equal(ours.image, theirs.image)
        assert (ours.scene, ours.caption, ours.description) == (theirs.scene, theirs.caption, theirs.description)
        assert ours.questions == theirs.questions


def test_indices_and_seeds_give_different_examples():
    scenes = [ShapesDataset(5, seed=seed)[index].scene for seed in range(4) for index in range(5)]
    assert len(set(scenes)) > 15


def test_length_does_not_change_examples():
    assert ShapesDataset(3)[2].caption == ShapesDataset(1000)[2].caption


def test_a_record_shows_and_tells_its_scene():
    record = ShapesDataset(1, num_questions=3)[0]
    assert record.image.shape == (64, 64, 3)
    assert record.image.dtype == np.uint8
    assert np.array_equal(record.image, render(record.scene))
    for thing in record.scene.objects:
        assert thing.color in record.long_caption
        assert thing.shape in record.long_caption
    assert len(record.questions) == 3
    assert all(question.text and question.answer for question in record.questions)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_rate_of_long_captions_is_kept(rate):
    dataset = ShapesDataset(30, long_caption_rate=rate)
    shares = [record.caption == record.long_caption for record in islice(dataset, 30)]
    assert np.mean(shares) == rate


def test_long_captions_do_not_change_scenes():
    short, long = (ShapesDataset(20, long_caption_rate=rate) for rate in (0.0, 1.0))
    assert [short[i].scene for i in range(20)] == [long[i].scene for i in range(20)]


def test_training_examples_hold_nothing_held_out():
    for record in islice(ShapesDataset(100, long_caption_rate=0.5), 100):
        assert not is_held_out_scene(record.scene)
        assert not is_held_out_text(record.caption)
        assert not is_held_out_text(record.description)


def test_test_examples_are_held_out():
    records = list(islice(ShapesDataset(40, split="test"), 40))
    assert all(is_held_out_scene(r.scene) or is_held_out_text(r.caption) for r in records)


def test_iteration_ends_after_the_last_example():
    dataset = ShapesDataset(4)
    assert len(dataset) == 4
    assert len(list(dataset)) == 4


@pytest.mark.parametrize("index", [4, -1])
def test_an_index_out_of_range_is_refused(index):
    message = f"Examples are numbered from 0 to 3. Got {index}."
    with pytest.raises(IndexError, match=re.escape(message)):
        ShapesDataset(4)[index]


def test_family_weights_decide_what_is_drawn():
    weights = dict.fromkeys(TRAINING_FAMILIES, 0.0) | {"counting": 3.0, "colors": 1.0}
    data = ShapesDataset(400, long_caption_rate=0.0, family_weights=weights)
    counts = Counter(len(data[index].scene.objects) for index in range(len(data)))
    assert set(counts) == {1, 2, 3, 4}
    assert 60 <= counts[1] <= 140


@pytest.mark.parametrize("weights", [{"countin": 1.0}, {"counting": -1.0}, {"unseen_relation": 1.0}])
def test_family_weights_of_no_training_family_are_refused(weights):
    (name,) = weights
    with pytest.raises(ValueError, match=f"Got '{name}': .*Names: single_object"):
        ShapesDataset(3, family_weights=weights)


def test_question_weights_decide_what_is_asked():
    weights = {"position": 100.0, "color": 0.0}
    data = ShapesDataset(60, num_questions=4, question_weights=weights)
    for record in islice(data, 60):
        kinds = [question.kind for question in record.questions]
        assert "color" not in kinds
        if "position" in question_kinds(record.scene):
            assert kinds.count("position") >= 2


@pytest.mark.parametrize("weights", [{"taste": 1.0}, {"count": -1.0}])
def test_question_weights_of_no_kind_are_refused(weights):
    ((kind, weight),) = weights.items()
    message = f"`question_weights` maps names to weights of at least 0. Got {kind!r}: {weight}. Names: exist"
    with pytest.raises(ValueError, match=re.escape(message)):
        ShapesDataset(3, question_weights=weights)


@pytest.mark.parametrize(
    "weights, always",
    [
        ({"family_weights": dict.fromkeys(TRAINING_FAMILIES, 0.0)}, "single_object, two_object"),
        ({"question_weights": {"existence": 0.0, "count": 0.0, "background": 0.0}}, "existence, count, background"),
    ],
)
def test_weights_that_leave_nothing_to_draw_are_refused(weights, always):
    with pytest.raises(ValueError, match=f"Got 0 for all of {always}.*Give one of them a weight above 0."):
        ShapesDataset(3, **weights)


def test_a_plan_describes_the_whole_scene_in_the_order_of_the_prompt():
    for record in islice(ShapesDataset(40, long_caption_rate=0.0), 40):
        phrases = [f"{o.size} {o.color} {o.shape} at the {zone(o)}" for o in record.scene.objects]
        places = [record.plan.index(phrase) for phrase in phrases]
        assert places == sorted(places)
        assert record.scene.background in record.plan
        assert not is_held_out_text(record.plan)


# What is to be drawn


EVERYTHING = {"edit_rate": 0.4, "reconstruction_rate": 0.2, "history_rate": 0.5}
ASK_TO_DRAW = "Please draw: {caption}"


def pictures(split="train", length=60, instruction=ASK_TO_DRAW, seed=5, **rates):
    return ShapesPictures(ShapesDataset(length, seed=seed, split=split), instruction=instruction, **rates)


def said(record):
    """A record as plain values: its pictures as bytes."""

    def plain(value):
        if isinstance(value, Image.Image):
            return value.tobytes()
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    return plain([record.key, record.target, record.prompt, record.images, record.history])


@pytest.fixture(scope="module", params=["train", "test"])
def tasks(request):
    """Split, and the tasks of every kind."""
    data = pictures(request.param, **EVERYTHING)
    return request.param, [data.task(index) for index in range(len(data))]


def test_without_rates_the_pictures_are_the_captions():
    data = ShapesDataset(30, seed=1)
    plain = ShapesPictures(data)
    for index, (record, scene) in enumerate(zip(islice(plain, 30), islice(data, 30), strict=True)):
        assert said(record) == [data.key(index), scene.image.tobytes(), scene.caption, [], []]
        assert plain.task(index).scene == scene.scene and not plain.task(index).is_shown


@pytest.mark.parametrize(
    ("settings", "checksum", "identity"),
    [
        ({"seed": 1}, 2566853612, "null"),
        (
            {
                "seed": 50,
                "long_caption_rate": 0.25,
                "family_weights": {"single_object": 0.5, "position": 2.0},
                "num_questions": 4,
                "question_weights": {"position": 3.0},
            },
            1866962635,
            '{"single_object": 0.5, "two_object": 1.0, "counting": 1.0, "colors": 1.0, "position": 2.0, '
            '"color_attr": 1.0, "mixed": 1.0}',
        ),
    ],
)
def test_seeds_keep_their_pictures_and_caches_their_names(settings, checksum, identity):
    """Recorded at 0.1.0: features that were precomputed then stay valid."""
    data = ShapesDataset(20, **settings)
    plain, found = ShapesPictures(data), 0
    for record, scene in zip(islice(plain, 20), islice(data, 20), strict=True):
        words = record.prompt + scene.description + scene.plan + str(scene.questions)
        found = crc32(np.asarray(record.target).tobytes() + words.encode(), found)
    assert (found, plain.identity) == (checksum, identity)


def test_a_task_is_decided_by_seed_index_and_rates():
    first, second = (pictures(**EVERYTHING) for _ in range(2))
    second[9]
    for index in (7, 0, 7):
        assert said(first[index]) == said(second[index])
    other = pictures(seed=6, **EVERYTHING)
    assert sum(said(first[index])[1:] == said(other[index])[1:] for index in range(20)) == 0


def test_shares_of_tasks_are_those_asked_for():
    data = pictures(length=300, **EVERYTHING)
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
        assert task.record.prompt == RECONSTRUCT and task.is_shown and task.ordered_prompt is None
        assert task.scene.objects == in_reading_order(data.scenes[index].scene.objects)


def test_an_edit_has_its_picture_with_it_or_in_the_last_turn():
    data = pictures(length=120, edit_rate=1.0, history_rate=0.7)
    places = Counter()
    for index in range(120):
        record = data[index]
        shown = message_images(record.history[-2:])
        place = "with it" if record.images else "last turn"
        given = record.images[0] if record.images else shown[-1]
        places[place, len(record.history)] += 1
        before, after = detect(given), detect(record.target)
        assert before.background == after.background
        kept = Counter((o.shape, o.color, o.size, o.center) for o in before.objects) & Counter(
            (o.shape, o.color, o.size, o.center) for o in after.objects
        )
        assert kept.total() >= max(len(before.objects), len(after.objects)) - 1
        assert not np.array_equal(given, record.target)
    # Three in four with a history are of the last picture; of these, three in ten have more before.
    assert places["with it", 0] == pytest.approx(36, abs=14)
    assert places["with it", 2] == pytest.approx(21, abs=12)
    assert places["last turn", 2] == pytest.approx(44, abs=14)
    assert places["last turn", 4] == pytest.approx(19, abs=12)


def test_an_edited_scene_keeps_reading_order_with_the_change_in_its_place():
    """What is added comes last."""
    data = pictures(length=60, edit_rate=1.0)
    for index in range(60):
        task = data.task(index)
        rest = [o for o in task.scene.objects if shows_object(task.record.images[0], o)]
        assert list(in_reading_order(rest)) == rest


def shows_object(image, o):
    return any(
        (seen.shape, seen.color, seen.size, tuple(seen.center)) == (o.shape, o.color, o.size, o.center)
        for seen in detect(image).objects
    )


def test_a_history_is_turns_with_a_picture_each(tasks):
    _, drawn = tasks
    histories = [task.record.history for task in drawn if task.record.history]
    assert len(histories) > 15
    roles = Counter()
    for history in histories:
        assert [message["role"] for message in history] == ["user", "assistant"] * (len(history) // 2)
        for user, answer in zip(history[::2], history[1::2], strict=True):
            assert len(message_images([user, answer])) == 1
            if isinstance(user["content"], str):  # a picture was asked for, and drawn
                assert user["content"].startswith("Please draw: ")
                roles["drawn"] += 1
            else:
                _, question = user["content"]
                assert question["text"].endswith("?") and answer["content"]
                roles["asked"] += 1
    assert set(roles) == {"drawn", "asked"}


def test_training_histories_show_nothing_held_out():
    data = pictures(length=80, **(EVERYTHING | {"history_rate": 1.0}))
    for record in islice(data, 80):
        for image in (*message_images(record.history), *record.images):
            seen = Counter((o.color, o.shape) for o in detect(image).objects)
            assert not set(seen) & HELD_OUT_COMBINATIONS


def test_rates_are_part_of_a_dataset_s_identity():
    rates = ({}, {"edit_rate": 0.4}, {"edit_rate": 0.5}, {"reconstruction_rate": 0.4}, {"history_rate": 0.4})
    assert len({pictures(**own).identity for own in rates}) == len(rates)
    assert pictures(edit_rate=0.0, history_rate=0.0).identity == pictures().identity == "null"


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


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_of_histories_that_is_no_share_is_refused(rate):
    message = f"`history_rate` is a share in [0, 1] of the records. Got {rate}."
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures(history_rate=rate)


# What the queries learn to say


def test_a_plan_has_words_for_every_object_and_exact_places_for_those_seen(tasks):
    split, drawn = tasks
    plans = ShapesPlans(pictures(split, **EVERYTHING))
    for index, task in enumerate(drawn):
        plan = plans[index]
        assert len(plan.phrases) == len(task.scene.objects)
        assert (
            said(Record("k", target=task.record.target, prompt=plan.prompt, images=plan.images, history=plan.history))[
                3:
            ]
            == said(task.record)[3:]
        )
        if task.is_shown:
            assert plan.prompt == task.record.prompt
            for words, o in zip(plan.phrases, task.scene.objects, strict=True):
                assert words == (o.size, o.color, o.shape, *zone(o).split(), task.scene.background, cell_words(o))
        else:
            assert plan.prompt in (task.record.prompt, task.ordered_prompt)
            assert not any(re.fullmatch(r"\d[A-H]", word) for words in plan.phrases for word in words)


# Conversations


def conversations(length=120, num_questions=3, **rates):
    data = ShapesDataset(length, seed=4, num_questions=num_questions)
    about = ShapesConversations(data, "Plan: {caption}", **rates)
    return data, [about[index] for index in range(length)]


def test_without_rates_every_conversation_is_about_its_image():
    data, records = conversations(20)
    for scene, record in zip(islice(data, 20), records, strict=True):
        assert [image.tobytes() for image in record.images] == [scene.image.tobytes()]
        asked = [(question.text, question.answer) for question in scene.questions]
        asked += [("describe the image", scene.description), ("describe the image in detail", scene.long_caption)]
        assert Counter(record.turns) == Counter(asked)


def test_conversations_in_words_ask_for_a_plan():
    data, records = conversations(20, text_rate=1.0)
    for scene, record in zip(islice(data, 20), records, strict=True):
        assert record.images == ()
        plan = scene.description if scene.caption == scene.long_caption else scene.plan
        assert record.turns[0] == (f"Plan: {scene.caption}", plan)
        assert record.turns[1:] == tuple((question.text, question.answer) for question in scene.questions)


def test_comparisons_are_of_two_images_and_their_answers_are_true():
    _, records = conversations(80, comparison_rate=1.0)
    answers = Counter()
    for record in records:
        assert len(record.images) == 2 and len(record.turns) == 3
        seen = [detect(image) for image in record.images]
        for text, answer in record.turns:
            if text.startswith("which image") or "both images" in text:
                assert answer == compare(text, seen)
                answers[answer] += 1
            else:
                assert re.search(r" in the (first|second) image\?$", text)
    assert set(answers) == {"first", "second", "yes", "no"}


def compare(text, seen):
    """The answer to a comparison, from the pixels."""
    if "background" in text:
        return "yes" if seen[0].background == seen[1].background else "no"
    counts = [len(picture.objects) for picture in seen]
    if match := re.fullmatch(r"which image has (more|fewer) objects\?", text):
        assert counts[0] != counts[1]
        return "first" if (counts[0] > counts[1]) == (match[1] == "more") else "second"
    color, shape = re.fullmatch(r"which image shows an? (\w+) (\w+)\?", text).groups()
    (which,) = (i for i in (0, 1) if any((o.color, o.shape) == (color, shape) for o in seen[i].objects))
    return ("first", "second")[which]


def test_requests_are_answered_with_the_token_that_starts_an_image():
    data, records = conversations(60, request_rate=1.0, image_start_token="<draw>")
    wanted = Counter()
    for scene, record in zip(islice(data, 60), records, strict=True):
        question, (text, answer) = record.turns
        assert question == (scene.questions[0].text, scene.questions[0].answer)
        assert answer == "<draw>"
        wanted["picture" if text.endswith(scene.caption) else "edit"] += 1
    assert wanted["picture"] == pytest.approx(30, abs=12) and wanted["edit"] > 0


def test_shares_of_conversations_are_those_asked_for():
    _, records = conversations(300, text_rate=0.3, comparison_rate=0.3, request_rate=0.2)
    counts = Counter(len(record.images) for record in records)
    asked = sum(record.turns[-1][1] == "[IMG]" for record in records)
    assert counts[0] / 300 == pytest.approx(0.3, abs=0.08)
    assert counts[2] / 300 == pytest.approx(0.3, abs=0.08)
    assert asked / 300 == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize("rates", [(-0.1, 0.0, 0.0), (0.5, 0.4, 0.2)])
def test_rates_of_conversations_that_are_no_shares_are_refused(rates):
    message = (
        f"`text_rate`, `comparison_rate`, `request_rate` are shares of the conversations. Got "
        f"{', '.join(map(str, rates))}. Choose numbers of at least 0 that make at most 1 together."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        conversations(1, text_rate=rates[0], comparison_rate=rates[1], request_rate=rates[2])
