"""DPG-Bench's grids are cut apart as they were put together, and what its scorer passes over is found."""

import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.dpg import DpgBenchmark, grid


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("example1", "example2", "example3"):
        (folder / f"{name}.txt").write_text(f"A long prompt, {name}.\n")
    return DpgBenchmark(folder)


def test_the_grid_has_its_pictures_in_reading_order(benchmark, laid_out, draw, files):
    folder = laid_out(benchmark, size=(12, 12))
    assert files(folder) == ["example1.png", "example2.png", "example3.png"]
    pictures = draw(benchmark, size=(12, 12))
    sheet = Image.open(folder / "example2.png")
    assert sheet.size == (24, 24)
    for number, box in enumerate([(0, 0, 12, 12), (12, 0, 24, 12), (0, 12, 12, 24), (12, 12, 24, 24)]):
        assert sheet.crop(box).tobytes() == pictures.open(benchmark.items[1], number).tobytes()


@pytest.mark.parametrize("sizes", [[(8, 8)] * 3, [(8, 8)] * 3 + [(4, 4)], [(8, 6)] * 4])
def test_only_four_squares_of_one_size_are_put_together(sizes):
    with pytest.raises(ValueError, match=r"four square pictures of one size for each prompt. an example has \d, of"):
        grid([Image.new("RGB", size) for size in sizes], "an example")


def save(name, size=(32, 32)):
    return lambda folder: Image.new("RGB", size).save(folder / name)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "example2.png").unlink(), "example2.png is missing."),
        (lambda folder: (folder / "example2.png").write_bytes(b""), "example2.png is damaged"),
        (
            save("example2.png", (28, 28)),
            "example2.png has 28 x 28 pixels, most have 32 x 32: its pictures are too small.",
        ),
        (
            save("example2.png", (32, 16)),
            "example2.png has 32 x 16 pixels, most have 32 x 32: its pictures are too small.",
        ),
        (save("example2.png", (64, 64)), "example2.png has 64 x 64 pixels, most have 32 x 32: wrong size."),
        (lambda folder: (folder / "dpg_bench_results.txt").write_text("x"), "dpg_bench_results.txt is no picture"),
        (save("example2.v2.png"), "example2.v2.png has several dots: it is read as a picture of example2."),
        (save("example2.jpg"), "example2.jpg is a duplicate of example2.png."),
        (save("example9.png"), "example9.png is the picture of no prompt."),
    ],
)
def test_damage_is_named(benchmark, laid_out, damage, sentence):
    folder = laid_out(benchmark)
    damage(folder)
    (problem,) = benchmark.problems(folder)
    assert problem.startswith(sentence)


def test_single_pictures_instead_of_grids_are_all_named(benchmark, laid_out):
    folder = laid_out(benchmark)
    for path in folder.iterdir():
        Image.new("RGB", (31, 31)).save(path)
    assert len(benchmark.problems(folder)) == 3
    assert "is no square of four pictures: 31 x 31 pixels" in benchmark.problems(folder)[0]


@pytest.mark.parametrize(("name", "content"), [("a.b.txt", "text"), ("a.txt", " \n")])
def test_prompts_that_are_none_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="a text in a file with one dot in its name"):
        DpgBenchmark(tmp_path)


def test_prompts_are_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"prompts are a folder of .txt files. Got the file"):
        DpgBenchmark(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="needs its prompt file, or a folder of"):
        DpgBenchmark(tmp_path / "empty")
