"""Both formulas of WISE are what they say, and a score of one is never one of the other."""

import json

import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.wise import (
    CATEGORIES,
    LEGACY_WEIGHTS,
    VERIFIED_WEIGHTS,
    WiseLegacyBenchmark,
    WiseVerifiedBenchmark,
    category_of,
    overall,
    verified_score,
    wiscore,
)

WORDS = ("Cultural knowledge", "Time", "Space", "Biology", "Physics", "Chemistry")


@pytest.fixture
def prompts(tmp_path):
    """Two files of examples, out of order, twelve prompts."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"prompt_id": index + 1, "Prompt": f"Example {index + 1}", "Explanation": "?", "Subcategory": WORDS[index % 6]}
        for index in range(12)
    ]
    (folder / "b.json").write_text(json.dumps(rows[:5]))
    (folder / "a.json").write_text(json.dumps(rows[5:]))
    return folder


# Formulas


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ((2, 2, 2), 1),
        ((0, 0, 0), 0),
        ((2, 0, 0), 0.7),
        ((0, 2, 0), 0.2),
        ((0, 0, 2), 0.1),
        ((1, 1, 1), 0.5),
        ([1, 2, 0], 0.55),
    ],
)
def test_wiscore_weighs_three_aspects(points, expected):
    assert wiscore(points) == pytest.approx(expected)


@pytest.mark.parametrize("points", [(3, 0, 0), (-1, 0, 0), (1, 1), 1, (1, 1, "2"), (0.5, 1, 1), ([], 1, 1)])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match="gives 0, 1 or 2 points for consistency, realism, aesthetic quality"):
        wiscore(points)


def test_verified_is_right_or_wrong():
    assert (verified_score(1), verified_score(0), verified_score(True)) == (1, 0, 1)
    with pytest.raises(ValueError, match=r"says 0 or 1. Got 0.5"):
        verified_score(0.5)
    with pytest.raises(ValueError, match="says 0 or 1"):
        verified_score((2, 2, 2))


@pytest.mark.parametrize("weights", [LEGACY_WEIGHTS, VERIFIED_WEIGHTS])
def test_weights_are_shares_of_the_thousand_prompts(weights):
    assert sum(weights.values()) == pytest.approx(1)
    values = {name: index / 7 for index, name in enumerate(CATEGORIES)}
    plain = sum(values[name] * round(1000 * weight) for name, weight in weights.items()) / 1000
    assert overall(values, weights) == pytest.approx(plain)


def test_the_variants_weigh_differently():
    only_time = {name: float(name == "time") for name in CATEGORIES}
    assert overall(only_time, LEGACY_WEIGHTS) == pytest.approx(0.167)
    assert overall(only_time, VERIFIED_WEIGHTS) == pytest.approx(0.12)
    assert overall(dict.fromkeys(CATEGORIES, 1.0), VERIFIED_WEIGHTS) == pytest.approx(1)


def test_a_missing_category_is_no_zero():
    with pytest.raises(ValueError, match=r"six categories. space are missing"):
        overall({name: 1.0 for name in CATEGORIES if name != "space"}, LEGACY_WEIGHTS)


# Scores of pictures


def scores_of(benchmark, pictures, verdicts, **judges):
    scores = benchmark.score(pictures, verdicts=verdicts, judge="a person", **judges)
    return {score.name: (pytest.approx(score.figure.value), score.total) for score in scores}


def test_scores_name_variant_and_judge(prompts, draw):
    legacy, verified = WiseLegacyBenchmark(prompts), WiseVerifiedBenchmark(prompts)
    points = {item.id: (2, 1, 0) if int(item.id) > 6 else (0, 0, 0) for item in legacy.items}
    scores = scores_of(legacy, draw(legacy), points)
    assert scores["WISE (legacy), judge a person: culture"] == (0.4, 2)
    assert scores["WISE (legacy), judge a person: overall"] == (0.4, 12)
    right = {item.id: int(int(item.id) % 6 == 1) for item in verified.items}
    scores = scores_of(verified, draw(verified), right)
    assert scores["WISE (verified), judge a person: culture"] == (1, 2)
    assert scores["WISE (verified), judge a person: overall"] == (0.4, 12)


def test_verdicts_of_the_other_variant_are_refused(prompts, draw):
    benchmark = WiseVerifiedBenchmark(prompts)
    points = {item.id: (2, 2, 2) for item in benchmark.items}
    with pytest.raises(ValueError, match="judge of WISE Verified says 0 or 1"):
        benchmark.score(draw(benchmark), verdicts=points, judge="a person")


def test_no_mean_over_fewer_verdicts_or_pictures(prompts, draw):
    benchmark = WiseVerifiedBenchmark(prompts)
    pictures, verdicts = draw(benchmark), {item.id: 1 for item in benchmark.items}
    assert benchmark.score(pictures) == []
    with pytest.raises(ValueError, match=r"names its judge. Got None"):
        benchmark.score(pictures, verdicts=verdicts)
    with pytest.raises(ValueError, match="1 are missing, the first is that of 12"):
        benchmark.score(pictures, verdicts={k: v for k, v in verdicts.items() if k != "12"}, judge="x")
    pictures.path(benchmark.items[3]).unlink()
    with pytest.raises(ValueError, match="All 12 pictures must be there"):
        benchmark.score(pictures, verdicts=verdicts, judge="x")


def test_part_of_the_prompts_has_no_overall_score(prompts, draw):
    benchmark = WiseVerifiedBenchmark(prompts, limit=5)
    scores = scores_of(benchmark, draw(benchmark), {item.id: 1 for item in benchmark.items})
    assert len(scores) == 5 and not [name for name in scores if name.endswith("overall")]


def test_categories_can_be_given(tmp_path, draw):
    path = tmp_path / "plain.json"
    path.write_text(json.dumps([{"prompt_id": 1, "Prompt": "x", "Category": "Spatio-temporal reasoning"}]))
    benchmark = WiseVerifiedBenchmark(path)
    with pytest.raises(ValueError, match=r"row of 1 names none. Give `categories`"):
        category_of(benchmark.items[0])
    scores = scores_of(benchmark, draw(benchmark), {"1": 1}, categories={"1": "space"})
    assert scores == {"WISE (verified), judge a person: space": (1, 1)}
    with pytest.raises(ValueError, match=r"Unknown category of WISE 'spce'. Did you mean 'space'"):
        scores_of(benchmark, draw(benchmark), {"1": 1}, categories={"1": "spce"})


# Files


def test_layout_is_a_picture_for_each_id(prompts, laid_out, files):
    folder = laid_out(WiseLegacyBenchmark(prompts))
    assert files(folder) == sorted(f"{index}.png" for index in range(1, 13))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "7.png").unlink(), "7.png is missing."),
        (lambda folder: (folder / "7.png").write_bytes(b"PNG"), "7.png is damaged"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "7.png"), "7.png has 9 x 9 pixels"),
        (lambda folder: Image.new("RGB", (16, 16)).save(folder / "7.jpg"), "7.jpg is a duplicate of 7.png."),
        (lambda folder: Image.new("RGB", (16, 16)).save(folder / "13.png"), "13.png does not belong there."),
    ],
)
def test_damage_is_named(prompts, laid_out, damage, sentence):
    benchmark = WiseVerifiedBenchmark(prompts)
    folder = laid_out(benchmark)
    damage(folder)
    (problem,) = benchmark.problems(folder)
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"prompt_id": 1, "Prompt": "x"}, {"prompt_id": 1, "Prompt": "y"}], "has '1' twice"),
        ([{"Prompt": "x"}], "must have `prompt_id`, a int. It has None"),
        ([{"prompt_id": 1, "prompt": "x"}], "must have `Prompt`"),
        ({"1": "x"}, "must be a JSON list of mappings"),
        ([], "must have a prompt"),
    ],
)
def test_prompts_that_are_none_are_refused(tmp_path, rows, text):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=text):
        WiseLegacyBenchmark(path)
