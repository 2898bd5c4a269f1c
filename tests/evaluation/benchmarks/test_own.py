"""Scorers of one's own: numbers, truth values, and pictures that could not be judged."""

import pytest

from blip3o_hf.evaluation.benchmarks.own import OwnBenchmark
from blip3o_hf.evaluation.statistics import Rate

ROWS = [{"id": name, "prompt": f"letter {name}", "right": name != "c"} for name in "abcd"]


@pytest.fixture
def benchmark(write_lines):
    return OwnBenchmark(write_lines(ROWS))


def reads_rows(pictures, rows):
    assert all(picture.mode == "RGB" for picture in pictures)
    return [row["right"] for row in rows]


def test_truth_values_have_an_interval(benchmark, draw):
    (score,) = benchmark.score(draw(benchmark), scorer=reads_rows)
    assert score.name == "scorer reads_rows: mean"
    assert score.figure.value == 0.75 and score.figure.interval == Rate(3, 4).interval and score.total == 4


def test_a_scorer_is_found_by_its_name(benchmark, draw, tmp_path, monkeypatch):
    (tmp_path / "my_scorer.py").write_text("def brightness(pictures, rows):\n    return [0.5 for _ in rows]\n")
    monkeypatch.syspath_prepend(tmp_path)
    (score,) = benchmark.score(draw(benchmark), scorer="my_scorer:brightness")
    assert score.name == "scorer my_scorer:brightness: mean"
    assert score.figure.value == 0.5 and score.figure.interval is None


def test_several_pictures_are_the_mean_of_their_prompt(benchmark, draw):
    def first_of_two(pictures, rows):
        assert [row["id"] for row in rows] == list("aabbccdd")
        return [index % 2 == 0 for index in range(len(pictures))]

    (score,) = benchmark.score(draw(benchmark, number=2), scorer=first_of_two)
    assert score.figure.value == 0.5 and score.total == 4
    assert score.figure.interval is None  # two pictures of one prompt are not independent


def test_pictures_that_were_not_judged_are_counted_and_give_no_mean(benchmark, draw):
    (score,) = benchmark.score(draw(benchmark), scorer=lambda pictures, rows: [1.0, None, 1.0, 1.0])
    assert score.name.endswith("not judged") and score.figure.value == 0.25 and score.total == 4


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ([1, 2], ValueError, "for each of 4 pictures. .* returned 2 values"),
        (0.5, ValueError, "returned float"),
        ([1, 2, 3, "4"], TypeError, "returned '4'"),
        ([1, 2, 3, float("nan")], TypeError, "returned nan"),
    ],
)
def test_what_is_no_score_is_refused(benchmark, draw, values, error, text):
    with pytest.raises(error, match=text):
        benchmark.score(draw(benchmark), scorer=lambda pictures, rows: values)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("brightness", "without a colon"),
        ("no_such_module:f", "Python finds no module 'no_such_module'"),
        ("math:no_such", "has no function 'no_such'"),
        ("math:pi", "which cannot be called"),
    ],
)
def test_names_that_find_no_function_are_refused(benchmark, draw, name, text):
    with pytest.raises(ValueError, match=text):
        benchmark.score(draw(benchmark), scorer=name)


def test_a_scorer_gets_a_few_prompts_at_a_time(write_lines, draw):
    benchmark, calls = OwnBenchmark(write_lines([{"id": str(index), "prompt": "x"} for index in range(70)])), []

    def counts(pictures, rows):
        calls.append(len(pictures))
        return [int(row["id"]) for row in rows]

    (score,) = benchmark.score(draw(benchmark, size=(1, 1)), scorer=counts)
    assert calls == [32, 32, 6]
    assert score.figure.value == 34.5 and score.total == 70


def test_no_scorer_no_score(benchmark, draw):
    pictures = draw(benchmark)
    assert benchmark.score(pictures) == []
    pictures.path(benchmark.items[2]).unlink()
    with pytest.raises(ValueError, match=r"All 4 pictures must be there. 1 are missing, the first is .*c/0.png"):
        benchmark.score(pictures, scorer=reads_rows)
