"""What the analysis says about raters whose preferences are known."""

import json
import random

import pytest
from tests.evaluation.human_study.conftest import SYSTEMS, write_pictures

from blip3o_hf.evaluation.human_study.analysis import analyse
from blip3o_hf.evaluation.human_study.making import make_study
from blip3o_hf.evaluation.human_study.report import as_json, write_report
from blip3o_hf.evaluation.human_study.report_text import markdown
from blip3o_hf.evaluation.human_study.statistics import binomial_p
from blip3o_hf.evaluation.human_study.study import IDENTICAL

FIRST, SECOND = SYSTEMS


@pytest.fixture
def large(tmp_path):
    """A study of 40 prompts, and its key."""
    return make_study(tmp_path / "large", *write_pictures(tmp_path / "many", ids=range(40), size=2), control=8)[:2]


def preferring(key, system, rate=1.0, seed=0):
    """A rater who chooses one system's picture with a probability; the left one where both are of one system."""
    chance = random.Random(seed)

    def choose(question, left, right):
        if key.pictures[left] == key.pictures[right]:
            return "left"
        wanted = key.pictures[left] == system
        return "left" if wanted == (chance.random() < rate) else "right"

    return choose


def test_a_rater_with_one_preference(large, answer_all):
    study, key = large
    result = analyse(study, key, answer_all(study, "ann", preferring(key, SECOND)))
    assert [row.criterion for row in result.comparisons] == ["visual_quality", "prompt_alignment"]
    for row in result.comparisons:
        assert row.systems == SYSTEMS and row.wins == (0, 80, 0) and row.prompts == 40
        assert row.share == 0 and row.interval == pytest.approx((0, 0.08762), abs=1e-5)  # Wilson's of 0 in 40
        assert row.p == pytest.approx(2 / 2**40) and row.p_holm == pytest.approx(4 / 2**40)
        assert row.binomial_p == pytest.approx(2 / 2**80) == binomial_p(0, 80)
    (screen,) = result.raters
    assert (screen.repeated.passed, screen.repeated.total) == (16, 16)
    assert (screen.rounds.passed, screen.rounds.total) == (80, 80)
    assert (screen.identical_left.passed, screen.identical_left.total) == (16, 16)
    assert screen.median_ms == 2500 and screen.answers == screen.asked == 192


def test_raters_without_a_preference_prove_nothing(large, answer_all):
    study, key = large
    answers = [a for n in range(3) for a in answer_all(study, f"r{n}", preferring(key, FIRST, 0.5, seed=n))]
    result = analyse(study, key, answers)
    for row in result.comparisons:
        assert row.judgments == 240 and row.interval[0] < 0.5 < row.interval[1]
        assert row.p > 0.05 and abs(row.alpha) < 0.2
    assert all(0.4 < rate.value < 0.6 for rate in result.left.values())


def test_raters_who_agree_have_an_alpha_of_one(large, answer_all):
    study, key = large

    def choose(question, left, right):
        pair = study.by_id[question.pair]
        wanted = SYSTEMS[int(pair.prompt_id) % 2]
        return "left" if key.pictures[left] == wanted else "right"

    answers = [answer for name in ("ann", "bob") for answer in answer_all(study, name, choose)]
    result = analyse(study, key, answers)
    assert [row.alpha for row in result.comparisons] == [1.0, 1.0]
    assert [row.share for row in result.comparisons] == [0.5, 0.5] and result.comparisons[0].p == 1.0


def test_a_rater_who_looks_at_nothing_is_told(large, answer_all):
    study, key = large
    hasty = answer_all(study, "hasty", lambda question, left, right: "left", ms=300)
    careful = answer_all(study, "careful", preferring(key, FIRST))
    result = analyse(study, key, [*hasty, *careful])
    notes = {screen.rater: screen.notes for screen in result.raters}
    assert notes["careful"] == []
    assert notes["hasty"][:2] == [
        "half of the answers took less than 1 second",
        "one side is chosen more often than chance allows",
    ]
    without = analyse(study, key, [*hasty, *careful], exclude=["hasty"])
    assert without.comparisons[0].share == 1 and result.comparisons[0].share < 1
    assert without.excluded == ("hasty",) and len(without.raters) == 2
    with pytest.raises(ValueError, match=r"Unknown rater 'hsty'\. Did you mean 'hasty'"):
        analyse(study, key, hasty, exclude=["hsty"])
    with pytest.raises(ValueError, match="An analysis needs judgments that are no controls"):
        analyse(study, key, hasty, exclude=["hasty"])


def test_ties_are_half_a_judgment_and_no_part_of_the_tests(make, answer_all):
    study, key = make(ties=True)

    def choose(question, left, right):
        is_first = study.by_id[question.pair].prompt_id < "003"
        if key.controls.get(question.pair) == IDENTICAL or not is_first:
            return "tie"
        return "left" if key.pictures[left] == FIRST else "right"

    result = analyse(study, key, answer_all(study, "ann", choose))
    row = result.comparisons[0]
    assert row.wins == (6, 0, 6) and row.share == 0.75
    assert row.p == pytest.approx(2 / 2**3) and row.decided.total == 6
    (screen,) = result.raters
    assert (screen.identical_ties.passed, screen.identical_ties.total, screen.identical_left.total) == (8, 8, 0)


def test_three_systems_get_strengths(tmp_path, answer_all):
    systems = ("a-system", "b-system", "c-system")
    study, key, _ = make_study(tmp_path / "s", *write_pictures(tmp_path / "three", systems, range(30), 2), control=0)
    chance = random.Random(0)

    def choose(question, left, right):
        return "left" if chance.random() < (0.8 if key.pictures[left] < key.pictures[right] else 0.2) else "right"

    result = analyse(study, key, answer_all(study, "ann", choose))
    assert len(result.comparisons) == 6 and [row.systems for row in result.comparisons][:2] == [
        ("a-system", "b-system"),
        ("a-system", "c-system"),
    ]
    strengths = result.strengths["visual_quality"]
    assert strengths["a-system"] > strengths["b-system"] > strengths["c-system"]
    assert "| Visual Quality | a-system |" in markdown(result, "x.png")
    always = analyse(
        study,
        key,
        answer_all(study, "bob", lambda q, le, r: "left" if key.pictures[le] < key.pictures[r] else "right"),
    )
    assert always.strengths["visual_quality"] is None and "not finite" in markdown(always, "x.png")


def test_any_order_gives_the_same_analysis(large, answer_all):
    study, key = large
    answers = [a for n in range(2) for a in answer_all(study, f"r{n}", preferring(key, FIRST, 0.7, seed=n))]
    expected = as_json(analyse(study, key, answers))
    random.Random(1).shuffle(answers)
    assert as_json(analyse(study, key, answers)) == expected


def test_the_report_is_read_by_people_and_programs(large, answer_all, tmp_path):
    study, key = large
    answers = answer_all(study, "ann", preferring(key, SECOND, 0.7))[:100]
    result = analyse(study, key, answers, notes=["a note"])
    paths = write_report(result, tmp_path / "report")
    assert [path.name for path in paths] == ["report.json", "report.md", "shares.png"]
    content = json.loads(paths[0].read_text())
    assert content["comparisons"][0]["judgments"] == result.comparisons[0].judgments
    assert content["comparisons"][0]["krippendorff_alpha"] is None
    text = paths[1].read_text()
    assert "consistent\nwith 54.2 % and 54.0 % of 3,000 judgments under a plain binomial test" in text
    assert "It names no test" in text and "alpha of about 0.1 is normal" in text and "- a note" in text
    assert "| ann | 100 of 192 | 2.5 s |" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_what_nobody_judged_is_told(large, answer_all):
    study, key = large
    answers = [a for a in answer_all(study, "ann", preferring(key, FIRST)) if a.criterion == "visual_quality"]
    result = analyse(study, key, answers)
    assert len(result.comparisons) == 1
    assert result.notes == (f"prompt_alignment: nobody has judged {FIRST} against {SECOND}",)
