"""A judge reads probabilities of answers; on the packaged model, which knows its world."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from blip3o_hf import Blip3oForConditionalGeneration, packaged_model_path
from blip3o_hf.evaluation.benchmarks.judges import Question, VlmJudge, shows, spellings, unanswered, yes_or_no
from blip3o_hf.shapes.benchmark import held_out_questions


@pytest.fixture(scope="module")
def judge():
    judge = VlmJudge.from_pretrained(packaged_model_path())
    assert isinstance(judge.model, Blip3oForConditionalGeneration) and judge.name == "blip3o-tiny"
    judge.batch_size = 5
    return judge


@pytest.fixture(scope="module")
def existence():
    items = held_out_questions("existence", 12)
    return [Image.fromarray(images[0]) for images, _ in items], [
        Question(question.text, question.answer) for _, question in items
    ]


def test_spellings_of_words_and_numbers():
    assert set(spellings("yes")) == {"yes", "Yes", " yes", " Yes"}
    assert set(spellings("three")) == {"three", "Three", " three", " Three", "3", " 3"}
    assert spellings("3") == spellings("three")
    assert "42" in spellings("42")


def test_the_packaged_model_judges_its_world(judge, existence):
    replies = judge.ask(*existence)
    assert {question.answer for question in existence[1]} == {"yes", "no"}
    assert all(0 <= reply.probability <= reply.mass <= 1 + 1e-6 for reply in replies)
    assert sum(reply.is_first for reply in replies) >= 11
    assert unanswered(replies) == 0


def test_yes_and_no_share_the_mass(judge, existence):
    images, asked = existence
    right = judge.ask(images[:3], asked[:3])
    wrong = judge.ask(images[:3], [Question(q.text, "no" if q.answer == "yes" else "yes") for q in asked[:3]])
    for one, other in zip(right, wrong, strict=True):
        assert one.probability + other.probability == pytest.approx(one.mass, abs=1e-6)
        assert one.mass == pytest.approx(other.mass, abs=1e-6)


def test_a_batch_equals_its_singles(judge, existence):
    images, asked = existence
    longer = Question("please look and tell me, is there a circle?", "yes")
    questions = [*asked[:3], longer]
    together = judge.ask(images[:4], questions)
    for reply, image, question in zip(together, images[:4], questions, strict=True):
        (alone,) = judge.ask([image], [question])
        assert alone.probability == pytest.approx(reply.probability, abs=1e-4)


def test_what_is_neither_yes_nor_no_is_counted(judge, existence):
    images, _ = existence
    (reply,) = judge.ask(images[:1], [yes_or_no("how many objects are there?")])
    assert not reply.is_answer and not reply.is_first
    assert unanswered([reply]) == 1


def test_vqascore_asks_for_the_whole_prompt():
    assert shows("a cat") == Question('Does this figure show "a cat"? Please answer yes or no.', "yes")


def test_an_answer_of_several_tokens_is_refused(judge, existence):
    with pytest.raises(ValueError, match=r"must be single tokens. 'zebra crossing' is none to blip3o-tiny"):
        judge.ask(existence[0][:1], [Question("what is this?", "zebra crossing")])


def test_other_answers_may_be_of_several_tokens(judge, existence):
    asked = Question("how many objects are there?", "three", ("three", "zebra crossing"))
    (reply,) = judge.ask(existence[0][:1], [asked])
    assert reply.mass == reply.probability


def test_as_many_images_as_questions(judge, existence):
    with pytest.raises(ValueError, match="shorter"):
        judge.ask(existence[0], existence[1][:2])


def test_mass_is_that_of_the_logits(judge, monkeypatch):
    tokens = {name: judge._tokens(name) for name in ("yes", "no")}
    logits = torch.full((1, judge.model.config.get_text_config().vocab_size), -30.0)
    logits[0, tokens["yes"][0]], logits[0, tokens["no"][0]] = 2.0, 1.0
    monkeypatch.setattr(judge, "_logits", lambda images, texts: logits)
    (reply,) = judge.ask([None], [yes_or_no("?")])
    assert reply.mass == pytest.approx(1, abs=1e-4)
    assert reply.probability == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=1e-4)
    assert reply.is_first and reply.is_answer


def test_a_model_of_transformers_judges_with_its_own_processor(
    make_backbone_config, make_llava_processor, tokenizer, make_image
):
    model = AutoModelForImageTextToText.from_config(make_backbone_config("llava")).eval()
    judge = VlmJudge(model, make_llava_processor(tokenizer), "tiny llava")
    letters = Question("How many?", "a", ("a", "b"))
    replies = judge.ask(
        [make_image(0), make_image(1)], [letters, Question("a longer question: how many?", "b", ("a", "b"))]
    )
    assert all(0 < reply.probability < reply.mass < 1 for reply in replies)
    (alone,) = judge.ask([make_image(0)], [letters])
    assert alone.probability == pytest.approx(replies[0].probability, rel=1e-3)
