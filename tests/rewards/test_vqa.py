"""A judge that sees: true pictures score higher than wrong ones, and no answer is no score."""

from pathlib import Path

import pytest
import torch

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oProcessor, packaged_model_path
from blip3o_hf.evaluation.benchmarks.judges import Reply, VlmJudge
from blip3o_hf.pipelines.checking import BackboneChecker
from blip3o_hf.rewards.manager import RewardManager
from blip3o_hf.rewards.vqa import VqaScore, tiny_vqa_score


@pytest.fixture(scope="module")
def tiny():
    folder = packaged_model_path()
    return Blip3oForConditionalGeneration.from_pretrained(folder), Blip3oProcessor.from_pretrained(folder)


class Fake(VlmJudge):
    """Answers by the question: its text is `yes`'s probability and the mass."""

    def __init__(self):
        super().__init__(torch.nn.Linear(1, 1), None, "fake")
        self.asked = []

    def ask(self, images, questions):
        self.asked += [question.text for question in questions]
        assert len(images) == len(questions)
        return [Reply(*map(float, question.text.split()), False) for question in questions]


def test_true_pictures_score_higher_than_wrong_ones_by_name(shown):
    texts, pictures = shown
    manager = RewardManager(["blip3o_hf.rewards.vqa:tiny_vqa_score"])
    true, wrong = manager(texts, pictures).values, manager(texts, pictures[::-1]).values
    assert manager.names == ("tiny_vqa_score",) and tiny_vqa_score.licence == "Apache-2.0"
    assert (true > wrong).all() and true.mean() > 2 * wrong.mean()
    assert (true <= 1).all() and (wrong >= 0).all()


def test_the_own_backbone_judges_as_the_pipeline_checks_also_while_it_trains(shown, tiny):
    texts, pictures = shown[0][:2], shown[1][:2]
    model, processor = tiny
    reward = VqaScore.of_backbone(model, processor)
    model.train()
    assert RewardManager([reward]).names == ("backbone_score",)
    scores = reward(texts, pictures, id=[1, 2])
    assert model.training
    model.eval()
    assert scores == pytest.approx(BackboneChecker(model, processor)(pictures, texts), abs=1e-4)


def test_a_backbone_that_reads_text_only_cannot_judge(make_model, make_processor):
    with pytest.raises(ValueError, match="vision"):
        VqaScore.of_backbone(make_model(backbone="llama"), make_processor())


def test_several_questions_give_their_mean_and_one_without_answer_none(make_image):
    judge = Fake()
    reward = VqaScore(judge, question="0.2 0.8{prompt}")
    questions = [["0.4 0.8", "0.9 0.9"], ["0.9 0.9", "0.001 0.01"], None, []]
    scores = reward(["", "", "", ""], [make_image()] * 4, questions=questions)
    assert scores == pytest.approx([0.75, None, 0.25, 0.25])
    assert judge.asked == ["0.4 0.8", "0.9 0.9", "0.9 0.9", "0.001 0.01", "0.2 0.8", "0.2 0.8"]


@pytest.mark.parametrize("given", ["is it red?", [1], {"a": 1}])
def test_questions_are_lists_of_texts(make_image, given):
    with pytest.raises(ValueError, match=r"`questions` holds a list of yes/no questions for each picture\. Got"):
        VqaScore(Fake())(["a"], [make_image()], questions=[given])


def test_a_judge_of_a_folder_that_answers_with_other_words_gives_none(llava_folder, make_image):
    reward = VqaScore(llava_folder, device="cpu", name="llava_score")
    assert repr(reward) == "VqaScore(name='llava_score')" and "not known here" in reward.licence
    assert reward(["a", "two dogs"], [make_image(0), make_image(1)]) == [None, None]
    assert reward.judge is reward.judge and reward.judge.name == Path(llava_folder).name


def test_names_that_are_none_and_questions_without_a_place_are_refused(make_image):
    with pytest.raises(OSError, match="'owner/judge' is no folder here and was never loaded"):
        VqaScore("owner/judge")(["a"], [make_image()])
    with pytest.raises(ValueError, match=r"must hold {prompt}, where the prompt stands\. Got 'is it right\?'\."):
        VqaScore("owner/judge", question="is it right?")
