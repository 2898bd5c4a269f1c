"""Whatever the wording, a prompt, a question or an edit means what it meant, and a tokenizer knows its words."""

import re
import string
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from tests.shapes.reading import NAME, SHAPE_OF, answer, answer_of_two, follow, read_prompt, read_relation

from blip3o_hf.shapes import (
    COLORS,
    EDIT_KINDS,
    FAMILIES,
    HELD_OUT_RELATIONS,
    NO_PICTURE,
    NOT_KNOWN,
    PLACE_KINDS,
    QUESTION_KINDS,
    SHAPES,
    SIZES,
    SMALL_TALK,
    TRAINING_FAMILIES,
    Scene,
    SceneObject,
    known_texts,
    natural_prompt,
    off_topic,
    punctuated,
    question_kinds,
    sample_comparison,
    sample_edit,
    sample_example,
    sample_prompt,
    sample_question,
    sample_question_of_two,
    zone,
)
from blip3o_hf.shapes.wording import further_wordings, natural_name, natural_question, roughened
from blip3o_hf.shapes.wording_lists import QUESTION_WORDS, SIZE_WORDS

ALL_KINDS = (*QUESTION_KINDS, *PLACE_KINDS)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [sample_example(rng).scene for _ in range(250)]


def prompts(family, number):
    rng = np.random.default_rng(1)
    split = "train" if family in TRAINING_FAMILIES else "test"
    return [sample_prompt(rng, family, split=split) for _ in range(number)]


# Prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_means_the_same_in_any_words(family):
    rng, texts = np.random.default_rng(2), set()
    for prompt in prompts(family, 150):
        meaning = prompt.objects, prompt.relation, prompt.background
        text = natural_prompt(rng, prompt)
        assert read_prompt(prompt.text) == read_prompt(text) == meaning
        texts.add(text)
    assert len(texts) > 130


def test_a_prompt_is_bare_or_a_request_with_a_mark_or_without():
    rng = np.random.default_rng(3)
    (prompt,) = prompts("colors", 1)
    texts = [natural_prompt(rng, prompt) for _ in range(400)]
    requests = (
        "draw|paint|make|show|give|create|generate|sketch|can you|could you|would you|will you|i want|i would|i'd"
    )
    is_request = [re.search(rf"\b(?:{requests}|i need|let me|let's|what about|how about|now)\b", t) for t in texts]
    assert 0.4 < np.mean([match is not None for match in is_request]) < 0.65
    assert 0.35 < np.mean([text[-1] in ".!?" for text in texts]) < 0.75
    assert len(set(texts)) > 270


def test_equal_states_give_equal_words(scenes):
    edit, example = sample_edit(np.random.default_rng(0), kind="add")
    question = sample_question(scenes[0], np.random.default_rng(0))
    for say in (edit.reworded, question.reworded, lambda rng: natural_prompt(rng, example.prompt), off_topic):
        first, again = ([say(np.random.default_rng(seed)) for seed in range(20)] for _ in range(2))
        assert first == again and len(set(first)) > 5


# Questions


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_question_has_the_same_answer_in_any_words(kind, scenes):
    rng, texts = np.random.default_rng(4), set()
    for scene in scenes:
        if kind in question_kinds(scene, (kind,)):
            question = sample_question(scene, rng, kind)
            texts.add(question.reworded(rng))
            wordings = [wording.format(**dict(question.words)) for wording in QUESTION_WORDS[question.form]]
            assert question.text == f"{wordings[0]}?"
            assert {answer(scene, text) for text in (*wordings, question.reworded(rng))} == {question.answer}
    assert len(texts) > 25


def test_a_comparison_has_the_same_answer_in_any_words(scenes):
    rng, forms = np.random.default_rng(5), Counter()
    for first, second in pairwise(scenes):
        question = sample_comparison(first, second, rng)
        wordings = [wording.format(**dict(question.words)) for wording in QUESTION_WORDS[question.form]]
        assert question.text == f"{wordings[0]}?"
        said = {answer_of_two(first, second, text) for text in (*wordings, question.reworded(rng))}
        assert said == {question.answer}
        forms[question.form] += 1
    assert set(forms) == {"more", "shows", "backgrounds"}


def test_a_question_about_one_of_two_has_the_same_answer_in_any_words(scenes):
    rng, plain = np.random.default_rng(6), Counter()
    for first, second in pairwise(scenes):
        for is_natural in (False, True):
            question = sample_question_of_two(first, second, rng, is_natural)
            assert question.answer == answer_of_two(first, second, question.text)
            starts = ("is there a", "what color is the", "what shape is the", "how many", "is the", "what size is the")
            plain[is_natural] += question.text.startswith(starts)
    assert plain[False] == len(scenes) - 1 and plain[True] < 0.8 * len(scenes)


def test_a_question_ends_with_its_mark_or_with_none():
    rng = np.random.default_rng(7)
    texts = [natural_question(rng, "background", {}) for _ in range(300)]
    assert {text.rstrip("?.").strip()[-1].isalpha() for text in texts} == {True}
    assert {re.search(r"[ ?.]*$", text)[0] for text in texts} == {"?", " ?", "", "."}


def test_no_reworded_question_denies_a_held_out_relation(scenes):
    rng, denied = np.random.default_rng(8), 0
    for scene in scenes:
        if "position" in question_kinds(scene):
            question = sample_question(scene, rng, "position")
            text = question.reworded(rng)
            a, b = (SHAPE_OF[match["noun"]] for match in NAME.finditer(text))
            assert (a, read_relation(text), b) not in HELD_OUT_RELATIONS
            denied += not question.answer.endswith(f"{dict(question.words)['relation']} it")
    assert denied > 20


# Further wordings

PLACES = {  # of each form, what its wordings leave open; of several sets, each wording has one
    "request": ["caption"],
    "caption": ["caption"],
    "background": ["background"],
    "name": ["color noun"],
    "related": ["first relation second", "beside first second", "first inverse second", "across first second"],
    "placed": ["place thing"],
    **{f"counted {count}": ["names"] for count in (2, 3, 4)},
    **{f"sized {size}": ["name"] for size in SIZES},
    "question existence": ["a", "name", "names"],
    "question color": ["name"],
    "question shape": ["color"],
    "question count": ["names"],
    "question position": ["first relation second"],
    "question size": ["name"],
    "question larger": ["first second"],
    "question smaller": ["first second"],
    **{f"question {kind}": ["name"] for kind in ("row", "column", "cell", "zone")},
    "question more": ["more"],
    "question shows": ["a"],
    "edit color": ["color old"],
    "edit shape": ["new old"],
    "edit add": ["new place"],
    "edit remove": ["old"],
    "edit move": ["old place", "old to_place"],
    "edit size": ["old size", "comparative old"],
    "edit background": ["background"],
}


def test_further_wordings_leave_open_what_their_form_does(all_wordings):
    for form, texts in further_wordings().items():
        assert len(set(texts)) == len(texts) > 5, form
        for text in texts:
            fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
            assert " ".join(sorted(fields)) in PLACES.get(form, [""]), (form, text)
            assert text == text.lower() and text.isascii() and "  " not in text, (form, text)


def test_further_wordings_name_nothing_of_the_world(all_wordings):
    of_the_world = re.compile(rf"\b(?:{'|'.join((*COLORS, *SHAPE_OF))})\b")
    for form, texts in further_wordings().items():
        if form.split()[0] not in ("number", "unrelated"):
            assert not [text for text in texts if of_the_world.search(text)], form


def test_whatever_the_words_objects_and_colors_are_named(all_wordings):
    rng = np.random.default_rng(20)
    for family in FAMILIES:
        for prompt in prompts(family, 60):
            text = natural_prompt(rng, prompt)
            for group in prompt.objects:
                assert re.search(rf"\b{group.shape}(?:s|es)?\b", text)
                assert group.color is None or re.search(rf"\b{group.color}\b", text)
            assert prompt.background is None or re.search(rf"\b{prompt.background}\b", text)


def test_whatever_the_words_a_size_is_told(all_wordings):
    rng = np.random.default_rng(22)
    for size in SIZES:
        told = [*further_wordings()[f"size {size}"], *SIZE_WORDS[size]]
        told += [text.replace("{name}", "").strip(" ,()") for text in further_wordings()[f"sized {size}"]]
        names = [natural_name(rng, "circle", "red", size) for _ in range(500)]
        assert all(any(words in name for words in told) for name in names)


def test_a_hurried_text_has_the_same_words_in_the_same_order(all_wordings):
    rng, kinds = np.random.default_rng(21), Counter()
    words = ["what", "is", "the", "color", "of", "a", "circle", "on", "the", "left"]
    articles = {"a", "an", "the"}
    for _ in range(600):
        said = roughened(rng, " ".join(words)).split()
        rest = iter(said)
        assert all(word in rest for word in words if word not in articles)
        kinds["terse" if len(said) < len(words) else "same" if said == words else "added"] += 1
    assert kinds["same"] > 420 and kinds["terse"] > 20 and kinds["added"] > 40


# Edits


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_means_the_same_in_any_words(kind):
    rng, texts = np.random.default_rng(9), set()
    for _ in range(60):
        edit, _ = sample_edit(rng, kind=kind)
        for text in (edit.reworded(rng), edit.reworded(rng)):
            rest, wanted, place, background = follow(edit.source, text)
            texts.add(text)
            assert set(rest) == set(edit.kept) and background == edit.target.background
            if edit.new is None:
                assert wanted is None
            else:
                new = edit.new
                assert wanted == {"size": new.size, "color": new.color, "shape": new.shape}
                assert place == (zone(new) if kind in ("add", "move") else (new.row, new.col))
    assert len(texts) > 30


def test_an_object_alone_may_be_called_it():
    rng = np.random.default_rng(10)
    called, scene = Counter(), None
    while len(called) < 2 or called.total() < 60:
        edit, _ = sample_edit(rng, kind="color")
        text, scene = edit.reworded(rng), edit.source
        is_called_it = re.search(r"\bit\b", text) is not None
        assert "the it" not in text and (not is_called_it or len(scene.objects) == 1)
        called[is_called_it] += 1


# What is not about shapes


def test_only_a_mark_is_added():
    rng = np.random.default_rng(11)
    assert {punctuated(rng, "hello") for _ in range(200)} == {"hello", "hello.", "hello!", "hello?"}


def test_what_is_off_topic_names_nothing_of_the_world(all_wordings):
    rng = np.random.default_rng(12)
    texts = [off_topic(rng) for _ in range(500)]
    assert not any(re.search(rf"\b(?:{'|'.join((*COLORS, *SHAPE_OF))})\b", text) for text in texts)
    assert all(re.search("[a-z]", text) for text in texts) and len(set(texts)) > 350
    assert {text.split()[0] for text in texts} >= {"what", "who", "draw", "show", "why"}


def test_what_is_said_in_small_talk_has_one_answer():
    said = [text for texts, _ in SMALL_TALK for text in texts]
    answers = [answer for _, answer in SMALL_TALK]
    assert len(set(said)) == len(said) and len(set(answers)) == len(answers)
    assert not {NO_PICTURE, NOT_KNOWN} & set(answers) and NO_PICTURE != NOT_KNOWN
    assert not any(re.search(rf"\b(?:{'|'.join((*COLORS, *SHAPES))})\b", text) for text in said)


# The words a tokenizer needs


def words_of(texts):
    return {word for text in texts for word in re.findall(r"'s|[a-z0-9']+|&", text.replace("'s", " 's"))}


def say_prompts(rng):
    for family in FAMILIES:
        for prompt in prompts(family, 60):
            yield from (prompt.text, *(natural_prompt(rng, prompt) for _ in range(4)))


def say_questions(rng):
    for _ in range(120):
        scene = sample_example(rng).scene
        for kind in question_kinds(scene, ALL_KINDS):
            question = sample_question(scene, rng, kind)
            yield from (question.text, question.answer, *(question.reworded(rng) for _ in range(3)))


def say_edits(rng):
    for kind in EDIT_KINDS:
        for _ in range(40):
            edit, _ = sample_edit(rng, kind=kind)
            yield from (edit.text, *(edit.reworded(rng) for _ in range(4)))


@pytest.mark.parametrize("say", [say_prompts, say_questions, say_edits])
def test_known_texts_have_every_word_that_is_said(say, all_wordings, monkeypatch):
    monkeypatch.setattr("blip3o_hf.shapes.wording.unknown_word", lambda rng: "nice")
    said = words_of(say(np.random.default_rng(13)))
    assert len(said) > 60
    assert said <= words_of(known_texts())


def test_known_texts_have_no_places_left_to_fill():
    assert not any(re.search(r"[{}]", text) for text in known_texts())
    assert words_of(answer for _, answer in SMALL_TALK) | words_of((NO_PICTURE, NOT_KNOWN)) <= words_of(known_texts())


def test_the_reader_of_these_tests_is_not_easily_pleased():
    scene = Scene((SceneObject("circle", "red", "small", 0, 0), SceneObject("cross", "blue", "large", 4, 4)), "white")
    assert answer(scene, "is the circle under the cross?") == "row 1 and row 5, above it"
    assert answer(scene, "would you say the circle is on top of the cross?") == "row 1 and row 5, above it"
    assert read_prompt("on the left of a cross is a circle") == read_prompt("a cross with a circle on the left")
    assert read_prompt("a circle left of a cross") != read_prompt("a cross left of a circle")
    for text in ("a circle and a red", "two circle", "a circle on black, white background", "one small"):
        with pytest.raises(AssertionError):
            read_prompt(text)
    with pytest.raises(AssertionError):
        follow(scene, "make the circle blue and large")
