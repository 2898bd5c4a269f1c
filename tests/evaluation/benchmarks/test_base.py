"""What all benchmarks have: ids of their own, layouts that are whole, and names that find a class."""

import pytest

from blip3o_hf.evaluation.benchmarks import BENCHMARKS, find_benchmark
from blip3o_hf.evaluation.benchmarks.base import PictureBenchmark
from blip3o_hf.evaluation.benchmarks.own import OwnBenchmark

ROWS = [{"id": "a", "prompt": "an apple"}, {"id": "b", "prompt": "a bear"}]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_name_finds_a_class_of_that_name(name):
    found = find_benchmark(name)
    assert issubclass(found, PictureBenchmark)
    assert found.name == name and found.title and found.about


def test_a_name_that_is_none_has_a_near_one():
    with pytest.raises(ValueError, match="Did you mean 'geneval'"):
        find_benchmark("geneva")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([*ROWS, ROWS[0]], "has 'a' twice"),
        ([{"id": "../a", "prompt": "x"}], "has '../a'"),
        ([{"id": "..", "prompt": "x"}], "has '..'"),
        ([{"prompt": "x"}], "must have `id`, a str. It has None"),
        ([{"id": "a", "prompt": ""}], "must have `prompt`, a str. It has ''"),
        ([{"id": 3, "prompt": "x"}], "must have `id`, a str. It has 3"),
        ([], "must have a prompt"),
    ],
)
def test_rows_that_are_none_are_refused(write_lines, rows, text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        OwnBenchmark(write_lines(rows))


@pytest.mark.parametrize("content", ['{"id": "a", "prompt": "x"}\n{"id": "b", "pro', "[]\n", "[" * 5000])
def test_torn_lines_are_named(tmp_path, content):
    path = tmp_path / "torn.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"torn.jsonl must hold one JSON.* Line \d"):
        OwnBenchmark(path)


def test_texts_may_hold_any_letters(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"id": "a", "prompt": "ein Bär\u2028und ein Fuß"}\r\n\n'.encode())
    assert OwnBenchmark(path).items[0].prompt == "ein Bär\u2028und ein Fuß"
    path.write_bytes('{"id": "a", "prompt": "Bär"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"A prompt file must be UTF-8. .*prompts.jsonl is not"):
        OwnBenchmark(path)


def test_prompts_must_be_given_and_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"reads its prompts from a file. No file was given"):
        OwnBenchmark()
    with pytest.raises(FileNotFoundError, match=r"None is at .*missing.jsonl"):
        OwnBenchmark(tmp_path / "missing.jsonl")


def test_limit_takes_the_first(write_lines):
    path = write_lines(ROWS)
    assert [item.id for item in OwnBenchmark(path, limit=1).items] == ["a"]
    assert OwnBenchmark(path, limit=1).prompt_file == OwnBenchmark(path).prompt_file
    with pytest.raises(ValueError, match=r"`limit` must be a whole number of at least 1. Got 0"):
        OwnBenchmark(path, limit=0)


def test_a_benchmark_without_a_scorer_writes_no_layout(write_lines, draw, tmp_path):
    benchmark = OwnBenchmark(write_lines(ROWS))
    benchmark.lay_out(draw(benchmark), tmp_path / "layout")
    assert not (tmp_path / "layout").exists() and benchmark.problems(tmp_path) == []


class Fails(OwnBenchmark):
    def write_layout(self, pictures, folder):
        (folder / "a.txt").write_text("half")
        if pictures.items:
            pictures.open(pictures.items[0])


def test_a_layout_is_whole_or_not_there(write_lines, draw, tmp_path):
    benchmark = Fails(write_lines(ROWS))
    pictures = draw(benchmark)
    pictures.path(benchmark.items[0]).write_bytes(b"no picture")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="An image must be readable"):
        benchmark.lay_out(pictures, tmp_path / "layout")
    assert sorted(tmp_path.iterdir()) == before
    pictures.path(benchmark.items[1]).unlink()
    with pytest.raises(ValueError, match=r"All 2 pictures must be there. 1 are missing"):
        benchmark.lay_out(pictures, tmp_path / "layout")
    with pytest.raises(ValueError, match=r"wants 1 pictures of each prompt. There are 2"):
        benchmark.lay_out(draw(benchmark, number=2), tmp_path / "layout")
    assert sorted(tmp_path.iterdir()) == before


def test_a_layout_replaces_nothing(write_lines, draw, tmp_path):
    benchmark = Fails(write_lines(ROWS))
    (tmp_path / "layout").mkdir()
    benchmark.lay_out(draw(benchmark), tmp_path / "layout")
    with pytest.raises(FileExistsError, match="written into an empty folder"):
        benchmark.lay_out(draw(benchmark), tmp_path / "layout")
