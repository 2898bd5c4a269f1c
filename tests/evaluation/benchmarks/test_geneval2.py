"""GenEval 2's formulas, its hand-off file, and judges that do not answer."""

import json
import math

import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.geneval2 import (
    GenEval2Benchmark,
    questions,
    soft_tifa_am,
    soft_tifa_gm,
    summary,
    tifa,
)
from blip3o_hf.evaluation.benchmarks.judges import Question, Reply

ROWS = [
    {
        "prompt": "three cats",
        "atom_count": 2,
        "vqa_list": [["Are there cats?", "yes"], ["How many cats are there?", "three"]],
        "skills": ["object", "count"],
    },
    {"prompt": "a dog", "atom_count": 10, "vqa_list": [["Is there a dog?", "yes"]], "skills": ["object"]},
]


@pytest.fixture
def benchmark(write_lines):
    return GenEval2Benchmark(write_lines(ROWS))


# Formulas


@pytest.mark.parametrize(
    ("values", "am", "gm"),
    [
        ([1.0], 1, 1),
        ([0.0], 0, 0),
        ([1.0, 0.0], 0.5, 0),
        ([0.25, 1.0], 0.625, 0.5),
        ([0.5, 0.5, 0.5], 0.5, 0.5),
        ([1e-200, 1e-200], 1e-200, 1e-200),  # their product is 0 in floating point
    ],
)
def test_means_of_probabilities(values, am, gm):
    assert soft_tifa_am(values) == pytest.approx(am)
    assert soft_tifa_gm(values) == pytest.approx(gm)


def test_the_geometric_mean_is_never_larger():
    values = [0.1, 0.9, 0.4, 0.7]
    assert soft_tifa_gm(values) < soft_tifa_am(values)
    assert soft_tifa_gm(values) == pytest.approx(math.prod(values) ** 0.25)


def test_tifa_counts_right_answers():
    assert tifa([True, True, False, False]) == 0.5
    assert (tifa([True]), tifa([False])) == (1, 0)


@pytest.mark.parametrize("formula", [soft_tifa_am, soft_tifa_gm, tifa])
@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [math.nan]])
def test_what_is_no_probability_is_refused(formula, values):
    with pytest.raises(ValueError, match="one question or more, with probabilities from 0 to 1"):
        formula(values)


# Scores


class Says:
    """A judge with one probability for each text."""

    name = "told"

    def __init__(self, probabilities, mass=1.0):
        self.probabilities, self.mass, self.asked = probabilities, mass, []

    def ask(self, images, questions):
        self.asked += questions
        values = [self.probabilities[question.text.split("?")[0]] for question in questions]
        return [Reply(value, max(value, self.mass), value > 0.5) for value in values]


SAID = {
    "Are there cats": 1.0,
    "How many cats are there": 0.25,
    "Is there a dog": 0.81,
    'Does this figure show "three cats"': 0.3,
    'Does this figure show "a dog"': 0.7,
}


def test_scores_by_prompt_skill_and_atoms(benchmark, draw):
    judge = Says(SAID)
    scores = {score.name.split(": ")[1]: score for score in benchmark.score(draw(benchmark), judge=judge)}
    values = {name: pytest.approx(score.figure.value) for name, score in scores.items()}
    assert values == {
        "Soft-TIFA AM": (0.625 + 0.81) / 2,
        "Soft-TIFA GM": (0.5 + 0.81) / 2,
        "TIFA": 0.75,
        "VQAScore": 0.5,
        "Soft-TIFA AM, object": (1 + 0.81) / 2,
        "Soft-TIFA AM, count": 0.25,
        "Soft-TIFA GM, 2 atoms": 0.5,
        "Soft-TIFA GM, 10 atoms": 0.81,
        "not answered by any allowed word": 0,
    }
    assert list(values)[-3:-1] == ["Soft-TIFA GM, 2 atoms", "Soft-TIFA GM, 10 atoms"]
    assert all(name.startswith("GenEval 2 questions, judge told") for name in (s.name for s in scores.values()))
    assert scores["Soft-TIFA AM, object"].total == 2


def test_questions_ask_for_one_word(benchmark):
    are, many = questions(benchmark.items[0])
    assert are == Question("Are there cats? Answer in one word.", "yes", ("yes", "no"))
    assert many.text == "How many cats are there? Answer in one word." and many.answer == "three"
    assert "seven" in many.allowed and "yes" not in many.allowed


def test_a_judge_that_does_not_answer_scores_nothing(benchmark, draw):
    (score,) = benchmark.score(draw(benchmark), judge=Says(dict.fromkeys(SAID, 0.001), mass=0.04))
    assert score.name.endswith("not answered by any allowed word")
    assert score.figure.value == 1 and score.total == 5


@pytest.mark.parametrize(("unanswered", "is_scored"), [(1, True), (2, False)])
def test_one_question_in_twenty_may_stay_unanswered(benchmark, unanswered, is_scored):
    items = benchmark.items[1:] * 10
    good, bad = Reply(0.9, 1.0, True), Reply(0.0, 0.0499, False)
    replies = [[bad if index < unanswered else good] for index in range(10)]
    scores = {score.name.split(": ")[1]: score for score in summary(items, replies, [good] * 10, "told")}
    assert ("Soft-TIFA AM" in scores) == is_scored
    assert scores["not answered by any allowed word"].figure.value == unanswered / 20


def test_no_judge_or_pictures_no_score(benchmark, draw):
    pictures = draw(benchmark)
    assert benchmark.score(pictures) == []
    pictures.path(benchmark.items[0]).unlink()
    with pytest.raises(ValueError, match="All 2 pictures must be there"):
        benchmark.score(pictures, judge=Says(SAID))


# Files


def test_the_hand_off_names_a_picture_for_each_prompt(benchmark, laid_out, files):
    folder = laid_out(benchmark)
    assert files(folder) == ["images/0000.png", "images/0001.png", "pictures.json"]
    named = json.loads((folder / "pictures.json").read_text())
    assert named == {"three cats": "images/0000.png", "a dog": "images/0001.png"}


def edit(folder, content):
    (folder / "pictures.json").write_text(json.dumps(content))


NAMED = {"three cats": "images/0000.png", "a dog": "images/0001.png"}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "images" / "0001.png").unlink(), "images/0001.png is missing."),
        (lambda folder: (folder / "pictures.json").unlink(), "pictures.json is missing."),
        (lambda folder: (folder / "pictures.json").write_text('{"a'), "pictures.json must hold JSON"),
        (lambda folder: edit(folder, []), "pictures.json must be a mapping"),
        (lambda folder: edit(folder, {"a dog": "images/0001.png"}), "pictures.json has no picture of 'three cats'."),
        (lambda folder: edit(folder, {**NAMED, "x": "y"}), "pictures.json has a prompt that is none: 'x'."),
        (
            lambda folder: edit(folder, {**NAMED, "a dog": "images/0000.png"}),
            "pictures.json has 'images/0000.png' for 'a dog', not images/0001.png.",
        ),
        (lambda folder: Image.new("RGB", (16, 16)).save(folder / "x.png"), "x.png does not belong there."),
    ],
)
def test_damage_is_named(benchmark, laid_out, damage, sentence):
    folder = laid_out(benchmark)
    damage(folder)
    (problem,) = benchmark.problems(folder)
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({**ROWS[1], "skills": []}, "must have `skills`"),
        ({**ROWS[1], "skills": ["object", "count"]}, "has 1 pairs and 2 skills"),
        ({**ROWS[1], "vqa_list": [["Is there a dog?"]]}, "a question and an answer for each skill"),
        ({**ROWS[1], "atom_count": "3"}, "must have `atom_count`"),
        ({**ROWS[1], "prompt": "three cats"}, "has 'three cats' twice"),
    ],
)
def test_lines_that_are_none_are_refused(write_lines, row, text):
    with pytest.raises(ValueError, match=text):
        GenEval2Benchmark(write_lines([ROWS[0], row]))


def test_a_checkout_is_read_by_its_folder(write_lines, tmp_path):
    write_lines(ROWS, "checkout/geneval2_data.jsonl")
    (tmp_path / "checkout" / "other.jsonl").write_text("{}")
    assert len(GenEval2Benchmark(tmp_path / "checkout").items) == 2
