"""Conversations say what is true of their pictures, and tell when to draw, to answer, to plan and to judge."""

import re
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from tests.shapes.reading import (
    answer,
    answer_of_two,
    follow,
    names_a_held_out_combination,
    seen_scene,
)

from blip3o_hf.data.records import RECONSTRUCT
from blip3o_hf.models.processing_blip3o import message_images
from blip3o_hf.shapes import (
    NO_PICTURE,
    NOT_KNOWN,
    SMALL_TALK,
    cell_code,
    in_reading_order,
    is_training_scene,
    parse_description,
    parse_plan,
    render,
    verify,
)
from blip3o_hf.shapes.conversations import RESTATE, ShapesConversations
from blip3o_hf.shapes.dataset import ShapesDataset
from blip3o_hf.shapes.wording import further_wordings
from blip3o_hf.shapes.wording_lists import AGAIN

PROCESSOR = SimpleNamespace(
    instruction="Draw: {caption}",
    plan_instruction="Plan: {caption}",
    check_instruction="Check: {caption}",
    image_start_token="<draw>",
)
RATES = ("text_rate", "image_plan_rate", "comparison_rate", "request_rate", "check_rate")


def conversations(length=120, num_questions=3, natural_rate=0.0, split="train", seed=4, **settings):
    data = ShapesDataset(length, seed=seed, split=split, num_questions=num_questions, natural_rate=natural_rate)
    about = ShapesConversations(data, PROCESSOR, **settings)
    assert len(about) == length
    return data, [about[index] for index in range(length)]


def plain(record):
    """A record as plain values."""
    images = [*record.images, *message_images(record.history)]
    texts = [message["content"] for message in record.history if isinstance(message["content"], str)]
    return record.key, record.turns, [image.tobytes() for image in images], texts, record.image_words


def asked_about(record, scene):
    """The answers to questions and descriptions, checked; how many there were of each."""
    counts = Counter()
    for text, said in record.turns:
        description = parse_description(said)
        told = re.findall(r"(small|large) (\w+) (\w+) at the", said)
        if description is not None:
            assert description == (Counter((o.color, o.shape) for o in scene.objects), scene.background)
            counts["described"] += 1
        elif told:
            assert Counter(told) == Counter((o.size, o.color, o.shape) for o in scene.objects)
            counts["described fully"] += 1
        else:
            assert said == answer(scene, text)
            counts["asked"] += 1
    return counts


def test_a_conversation_is_decided_by_seed_index_and_rates():
    rates = {**dict.fromkeys(RATES, 0.15), "history_rate": 0.5, "labels_images": True}
    (_, first), (_, again), (_, other) = (conversations(30, seed=seed, **rates) for seed in (4, 4, 5))
    assert list(map(plain, first)) == list(map(plain, again))
    assert not any(plain(a)[1:] == plain(b)[1:] for a, b in zip(first, other, strict=True))
    assert [record.key for record in first] == [f"shapes/train/4/{index}" for index in range(30)]


# About an image


def test_without_rates_every_conversation_is_about_its_image():
    data, records = conversations(20)
    for scene, record in zip(islice(data, 20), records, strict=True):
        assert [image.tobytes() for image in record.images] == [scene.image.tobytes()]
        asked = [(question.text, question.answer) for question in scene.questions]
        asked += [("describe the image", scene.description), ("describe the image in detail", scene.long_caption)]
        assert Counter(record.turns) == Counter(asked)
        assert record.history == record.image_words == ()


@pytest.mark.parametrize("natural_rate", [0.0, 1.0])
def test_what_is_said_is_true_of_the_image_and_not_of_one_before(natural_rate):
    _, records = conversations(60, natural_rate=natural_rate, history_rate=0.5)
    requests = set()
    for record in records:
        scene = seen_scene(record.images[0])
        assert asked_about(record, scene) == {"asked": 3, "described": 1, "described fully": 1}
        requests |= {text.rstrip(".!?") for text, said in record.turns if f"on a {scene.background}" in said}
    assert np.mean([bool(record.history) for record in records]) == pytest.approx(0.5, abs=0.2)
    if natural_rate:
        assert len(requests) > 6 and "what do you see" in requests
    else:
        assert requests == {"describe the image", "describe the image in detail"}


def test_a_description_may_be_asked_for_at_any_turn():
    _, records = conversations(60)
    first = Counter(record.turns[0][0].startswith("describe") for record in records)
    assert first[True] == pytest.approx(24, abs=12)


@pytest.mark.parametrize("rates", [{}, {"comparison_rate": 1.0}])
def test_the_words_of_an_image_tell_what_is_where(rates):
    _, records = conversations(40, labels_images=True, **rates)
    for record in records:
        assert len(record.image_words) == len(record.images) == (2 if rates else 1)
        for words, image in zip(record.image_words, record.images, strict=True):
            scene, pixels = seen_scene(image), np.asarray(image)
            assert len(words) == 64
            for place, word in enumerate(words):
                row, col = divmod(place, 8)
                here = [
                    {o.size, o.color, o.shape, *cell_code(o).split()}
                    for o in scene.objects
                    if o.box[0] <= 8 * col < o.box[2] and o.box[1] <= 8 * row < o.box[3]
                ]
                assert word in (*here, {scene.background})[0]
                if word == scene.background:
                    assert (pixels[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] == pixels[0, 0]).all()


def test_image_words_do_not_change_what_is_said():
    (_, with_words), (_, without) = (
        conversations(20, labels_images=labels, history_rate=0.5) for labels in (True, False)
    )
    assert [record.turns for record in with_words] == [record.turns for record in without]
    assert all(record.image_words == () for record in without)


# Plans


@pytest.mark.parametrize("natural_rate", [0.0, 0.5])
def test_conversations_in_words_ask_for_a_plan_or_for_plain_words(natural_rate):
    data, records = conversations(60, natural_rate=natural_rate, text_rate=1.0)
    restated = Counter()
    for scene, record in zip(islice(data, 60), records, strict=True):
        assert record.images == record.history == ()
        plain = scene.example.prompt.text
        if record.turns == ((RESTATE.replace("{caption}", scene.caption), plain),):
            restated[scene.caption == plain] += 1
            continue
        assert record.turns[0] == (f"Plan: {scene.caption}", scene.plan)
        assert parse_plan(scene.plan) == scene.scene
        assert record.turns[1:] == tuple((question.text, question.answer) for question in scene.questions)
        assert all(said == answer(scene.scene, text) for text, said in record.turns[1:])
    assert restated[True] == 0 and (restated[False] > 3) == (natural_rate > 0)


@pytest.mark.parametrize("natural_rate", [0.0, 1.0])
def test_plans_of_images_are_of_the_edit_or_of_what_is_seen(natural_rate):
    _, records = conversations(120, natural_rate=natural_rate, image_plan_rate=1.0, history_rate=0.4)
    kinds = Counter()
    for record in records:
        ((asked, said),) = record.turns
        assert asked.startswith("Plan: ")
        text, plan = asked.removeprefix("Plan: "), parse_plan(said)
        if text.rstrip(".!?") in AGAIN:  # another picture of the same prompt
            kinds["another"] += 1
            (shown,) = message_images(record.history)
            assert len(plan.objects) == len(seen_scene(shown).objects)
            continue
        given = seen_scene((*message_images(record.history), *record.images)[-1])
        if text == RECONSTRUCT:
            kinds["again"] += 1
            assert plan.objects == in_reading_order(given.objects) and plan.background == given.background
            assert len(record.images) == 1
            continue
        kinds["with it" if record.images else "last turn"] += 1
        rest, wanted, _, background = follow(given, text)
        assert tuple(o for o in plan.objects if o in rest) == in_reading_order(rest)
        new = [o for o in plan.objects if o not in rest]
        assert [{"size": o.size, "color": o.color, "shape": o.shape} for o in new] == ([wanted] if wanted else [])
        assert plan.background == background
    assert kinds["again"] == pytest.approx(0.25 * 120, abs=14)
    assert kinds["another"] == pytest.approx(0.05 * 120, abs=5)
    assert kinds["last turn"] == pytest.approx(0.7 * 0.4 * 0.75 * 120, abs=14)


# Two images


@pytest.mark.parametrize("natural_rate", [0.0, 1.0])
def test_comparisons_are_of_two_images_and_their_answers_are_true(natural_rate):
    _, records = conversations(80, natural_rate=natural_rate, comparison_rate=1.0)
    answers, of_one = Counter(), Counter()
    for record in records:
        assert len(record.images) == 2 and len(record.turns) == 3
        scenes = [seen_scene(image) for image in record.images]
        for text, said in record.turns:
            assert said == answer_of_two(*scenes, text)
            named = re.search(r" in the (first|second) image\?$", text)
            if named is None:
                answers[said] += 1
            else:
                of_one[named[1]] += 1
    assert set(answers) == {"first", "second", "yes", "no"}
    assert min(of_one["first"], of_one["second"], answers.total()) > 30


def test_half_of_the_images_compared_are_near():
    _, records = conversations(120, comparison_rate=1.0)
    shared = []
    for record in records:
        first, second = (seen_scene(image) for image in record.images)
        shared.append(len(set(first.objects) & set(second.objects)) >= max(1, len(first.objects) - 1))
    assert 0.2 < np.mean(shared) < 0.65


# Requests


@pytest.mark.parametrize("natural_rate", [0.0, 0.5])
def test_requests_are_answered_with_a_picture_or_with_a_sentence(natural_rate):
    data, records = conversations(250, natural_rate=natural_rate, request_rate=1.0, history_rate=0.4)
    kinds, histories = Counter(), Counter()
    for scene, record in zip(islice(data, 250), records, strict=True):
        ((text, said),) = record.turns
        shown = [*message_images(record.history), *record.images]
        bare = re.sub("[.!?]$", "", text)
        talk = [answered for texts, answered in SMALL_TALK if bare in texts]
        if said == "<draw>" and text == scene.caption:
            kind = "picture"
            assert not record.images
        elif said == "<draw>" and text.rstrip(".!?") in AGAIN:
            kind = "again"
            assert record.history and not record.images
        elif said == "<draw>":
            kind = "edit"
            follow(seen_scene(shown[-1]), text)  # it can be followed
        elif said == NO_PICTURE:
            kind = "no picture"
            assert not shown and not talk
        elif said == NOT_KNOWN:
            kind = "not known"
            assert not record.images and not talk
        else:
            kind = "small talk"
            assert talk == [said] and not record.images
        kinds[kind] += 1
        histories[kind] += bool(record.history)
    shares = {"picture": 0.32, "edit": 0.35, "again": 0.03, "small talk": 0.1, "not known": 0.1, "no picture": 0.1}
    for kind, share in shares.items():
        assert kinds[kind] / 250 == pytest.approx(share, abs=0.08)
        assert (histories[kind] > 0) == (kind != "no picture")


def test_questions_and_edits_without_a_picture_are_told_so():
    data, records = conversations(400, request_rate=1.0)
    texts = [
        (record.turns[0][0], scene)
        for scene, record in zip(islice(data, 400), records, strict=True)
        if record.turns[0][1] == NO_PICTURE
    ]
    kinds = Counter()
    for text, scene in texts:
        is_question = text == scene.questions[0].text
        kinds["question" if is_question else "describe" if text == "describe the image" else "edit"] += 1
    assert set(kinds) == {"question", "describe", "edit"}


# Checks


def checks(natural_rate, split="train", length=250):
    """Each check with its record: the text to check, the image, and the answer."""
    data, records = conversations(length, natural_rate=natural_rate, split=split, check_rate=1.0)
    found = []
    for scene, record in zip(islice(data, length), records, strict=True):
        ((asked, said),), (image,) = record.turns, record.images
        assert asked.startswith("Check: ") and said in ("yes", "no") and record.history == ()
        found.append((scene, asked.removeprefix("Check: "), image, said))
    return found


@pytest.mark.parametrize(("natural_rate", "split"), [(0.0, "train"), (1.0, "train"), (0.0, "test")])
def test_a_check_says_yes_where_the_image_shows_what_is_said(natural_rate, split):
    """All of it: what a prompt leaves open may be as it likes."""
    counts, broken = Counter(), Counter()
    for record, text, image, said in checks(natural_rate, split):
        assert text in (record.plan, record.caption, record.long_caption)
        shown = seen_scene(image)
        if text in (record.plan, record.long_caption):
            kind = "plan" if text == record.plan else "long"
            assert (said == "yes") == (shown is not None and shown.key == record.scene.key)
        else:
            kind = "prompt"
            assert (said == "yes") == verify(image, record.example.prompt).passed
        broken[kind, said] += shown is None
        counts[kind, said] += 1
    assert 0.4 < (counts["plan", "yes"] + counts["long", "yes"] + counts["prompt", "yes"]) / 250 < 0.6
    assert min(counts[kind, said] for kind in ("plan", "long", "prompt") for said in ("yes", "no")) > 5
    assert broken["plan", "yes"] == broken["long", "yes"] == 0 < broken["plan", "no"]
    assert broken.total() == pytest.approx(0.2 * 250, abs=20)


def test_true_pictures_are_checked_as_they_are():
    is_same = [np.array_equal(image, render(record.scene)) for record, _, image, _ in checks(0.0)]
    assert np.mean(is_same) == pytest.approx(0.4, abs=0.12)


# Rates and rules


@pytest.mark.parametrize("rates", [{}, *({name: 1.0} for name in RATES)])
def test_training_conversations_name_nothing_held_out(rates):
    _, records = conversations(100, natural_rate=0.5, history_rate=0.5, **rates)
    for record in records:
        texts = [text for turn in record.turns for text in turn]
        for message in record.history:
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        assert not any(names_a_held_out_combination(text) for text in texts)


@pytest.mark.parametrize("rates", [{}, *({name: 1.0} for name in RATES if name not in ("text_rate", "check_rate"))])
def test_training_conversations_show_nothing_held_out(rates):
    _, records = conversations(100, history_rate=0.5, **rates)
    shown = [image for record in records for image in (*message_images(record.history), *record.images)]
    assert len(shown) > 50 and all(is_training_scene(seen_scene(image)) for image in shown)


@pytest.mark.parametrize("name", ["text_rate", "comparison_rate"])
def test_histories_belong_to_images_edits_and_requests(name):
    _, records = conversations(20, history_rate=1.0, **{name: 1.0})
    assert not any(record.history for record in records)
    _, records = conversations(20, history_rate=1.0)
    assert all(len(record.history) == 2 and len(message_images(record.history)) == 1 for record in records)


def test_shares_of_conversations_are_those_asked_for():
    rates = dict(zip(RATES, (0.3, 0.1, 0.2, 0.1, 0.2), strict=True))
    data, records = conversations(400, **rates)
    counts = Counter()
    for scene, record in zip(islice(data, 400), records, strict=True):
        start = record.turns[0][0].split()[0]
        if start == "Plan:":
            counts["image_plan_rate" if record.images else "text_rate"] += 1
        elif start == "Check:":
            counts["check_rate"] += 1
        elif len(record.images) == 2:
            counts["comparison_rate"] += 1
        else:
            counts["request_rate" if len(record.turns) == 1 else "of the image"] += 1
            assert len(record.turns) in (1, len(scene.questions) + 2)
    for name, share in (rates | {"of the image": 0.1}).items():
        assert counts[name] / 400 == pytest.approx(share, abs=0.06)


def test_rates_of_one_together_leave_no_other_conversation():
    _, records = conversations(60, **dict.fromkeys(RATES, 0.2))
    assert not any(len(record.turns) == 5 and len(record.images) == 1 for record in records)


@pytest.mark.parametrize("rates", [(-0.1, 0.0, 0.0, 0.0, 0.0), (0.5, 0.4, 0.2, 0.0, 0.0), (0.3, 0.2, 0.2, 0.2, 0.2)])
def test_rates_of_conversations_that_are_no_shares_are_refused(rates):
    message = (
        f"`text_rate`, `image_plan_rate`, `comparison_rate`, `request_rate`, `check_rate` are shares of the "
        f"conversations. Got {', '.join(map(str, rates))}. Choose numbers of at least 0 that make at most 1 together."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        conversations(1, **dict(zip(RATES, rates, strict=True)))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_of_histories_that_is_no_share_is_refused(rate):
    message = f"`history_rate` is a share in [0, 1] of the conversations. Got {rate}."
    with pytest.raises(ValueError, match=re.escape(message)):
        conversations(1, history_rate=rate)


# Wordings


def test_every_further_wording_is_of_a_form_that_is_asked_for(all_wordings, monkeypatch):
    """A form that is misspelled, here or there, would never be drawn."""
    given, asked_for = set(further_wordings()), set()

    class Recording(dict):
        def get(self, form, default=None):
            asked_for.add(form)
            return super().get(form, default)

    wordings = Recording(further_wordings())
    monkeypatch.setattr("blip3o_hf.shapes.wording.further_wordings", lambda: wordings)
    scenes = ShapesDataset(2500, seed=1, natural_rate=1.0, num_questions=4, question_weights={})
    rates = {"image_plan_rate": 0.2, "comparison_rate": 0.2, "request_rate": 0.3}
    conversations = ShapesConversations(scenes, PROCESSOR, history_rate=0.2, **rates)
    index = 0
    while asked_for != given and index < len(scenes):
        conversations[index]
        index += 1
    assert asked_for == given
