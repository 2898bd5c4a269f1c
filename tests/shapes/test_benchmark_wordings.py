"""Natural wordings stand beside plain ones of the same meaning, held out; conversations are scored by their turns."""

from collections import Counter

import pytest
from PIL import Image

from blip3o_hf.pipelines.chat import NO_ANSWER, Blip3oReply
from blip3o_hf.shapes import (
    COMPARISON,
    QUESTION_KINDS,
    TEST_FAMILIES,
    Scene,
    benchmark_wordings,
    is_held_out_scene,
    is_held_out_text,
    render,
    sample_scene,
    verify,
    write_plan,
)
from blip3o_hf.shapes.benchmark import draw
from blip3o_hf.shapes.benchmark_wordings import (
    chat_scripts,
    score_chat,
    score_worded_questions,
    worded_prompts,
    worded_questions,
)
from blip3o_hf.shapes.checking import ReadingChecker


def test_prompts_are_held_out_and_both_wordings_mean_the_same(rng):
    plain, natural = worded_prompts().values()
    assert Counter(prompt.family for prompt in plain) == dict.fromkeys(TEST_FAMILIES, 40)
    for one, other in zip(plain, natural, strict=True):
        assert (one.objects, one.relation, one.background) == (other.objects, other.relation, other.background)
        assert one.is_held_out or is_held_out_text(one.text)
        assert one.text != other.text or one.family in ("single_object", "colors")
    for prompt in plain[::20]:
        assert verify(render(sample_scene(prompt, rng, split="test")), prompt).passed


def test_questions_are_about_held_out_scenes():
    questions = worded_questions()
    assert Counter(asked.kind for asked in questions) == dict.fromkeys((*QUESTION_KINDS, COMPARISON), 50)
    for asked in questions:
        assert len(asked.scenes) == 1 + (asked.kind == COMPARISON)
        assert all(is_held_out_scene(scene) and Scene.from_key(scene.key).key == scene.key for scene in asked.scenes)
        assert asked.answer and set(asked.texts) == {"plain", "natural"}


def test_each_wording_is_scored_by_itself(monkeypatch):
    questions = worded_questions()[:4]
    plain = {asked.texts["plain"] for asked in questions}

    def answer(model, processor, images, texts, max_new_tokens):
        return [asked.answer if text in plain else "nothing" for asked, text in zip(questions, texts, strict=True)]

    monkeypatch.setattr(benchmark_wordings, "answer", answer)
    rates = score_worded_questions(None, None, questions)
    assert (rates["plain"].value, rates["natural"].value, rates["plain"].total) == (1.0, 0.0, 4)


def test_conversations_are_sixty_turns_of_both_modes():
    scripts = chat_scripts()
    modes = Counter(turn["mode"] for script in scripts for turn in script)
    assert sum(modes.values()) == 60 and min(modes["draw"], modes["words"]) >= 20


def test_a_turn_counts_when_it_is_in_the_right_mode_and_not_blank(pipeline, monkeypatch):
    picture = Image.new("RGB", (8, 8))
    replies = iter([Blip3oReply(image=picture), Blip3oReply("two"), Blip3oReply(NO_ANSWER), Blip3oReply("a plan")])
    monkeypatch.setattr(benchmark_wordings.Blip3oChat, "send", lambda self, text, generator: next(replies))
    script = [
        {"text": text, "mode": mode} for text, mode in zip("abcd", ("draw", "words", "words", "draw"), strict=True)
    ]
    rate, blank = score_chat(pipeline, [script])
    assert (rate.passed, rate.total, blank) == (2, 4, 1)


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


def test_a_picture_is_accepted_when_it_is_read_as_its_plan(monkeypatch, pipeline):
    plans = [
        "a small red circle at row 1 column 2 on a white background",
        "a large blue cross at row 4 column 4 on a black background",
    ]
    scene = Scene.from_key("white:circle,red,small,0,1")
    said = [write_plan(scene), "a large blue cross at row 4 column 5 on a black background", "nothing"]
    monkeypatch.setattr("blip3o_hf.shapes.checking.answer", lambda *args, **kwargs: said)
    look = ReadingChecker(pipeline.model, pipeline.processor)
    pictures = [Image.new("RGB", (64, 64))] * 3
    scores = look(pictures, [*plans, "two red circles"])
    assert scores[:2] == [1.0, 0.0] and 0 <= scores[2] <= 1


@pytest.mark.slow
def test_the_packaged_model_understands_what_people_write(tiny):
    questions = score_worded_questions(tiny.model, tiny.processor, worded_questions())
    assert questions["natural"].value >= 0.95 and questions["plain"].value - questions["natural"].value <= 0.03
    prompts = {
        wording: sum(verify(image, prompt).passed for image, prompt in zip(images, texts, strict=True)) / len(texts)
        for wording, texts in worded_prompts().items()
        for images in [draw(tiny, [prompt.text for prompt in texts], seed=0).images]
    }
    assert prompts["natural"] >= 0.95 and prompts["plain"] - prompts["natural"] <= 0.03
    rate, blank = score_chat(tiny, chat_scripts())
    assert rate.value >= 0.95 and blank == 0
