"""Pictures of a run, and prompt files written by hand: examples in the benchmarks' formats, not their content."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks.base import Pictures


@pytest.fixture
def draw(tmp_path) -> Callable[..., Pictures]:
    """`draw(benchmark, size=(16, 16), number=None)`: a picture of random pixels for each item and number."""

    def make(benchmark, size=(16, 16), number=None) -> Pictures:
        pictures = Pictures(tmp_path / "run", benchmark.items, number or benchmark.pictures_per_prompt)
        rng = np.random.default_rng(0)
        for item in benchmark.items:
            for index in range(pictures.number):
                path = pictures.path(item, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        return pictures

    return make


@pytest.fixture
def write_lines(tmp_path) -> Callable:
    """`write_lines(rows, name="prompts.jsonl")`: a file of one JSON a line."""

    def write(rows, name="prompts.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def laid_out(tmp_path, draw) -> Callable:
    """`laid_out(benchmark, **settings of draw)`: the folder for the official scorer, which has no problem."""

    def make(benchmark, **settings):
        folder = tmp_path / "layout"
        benchmark.lay_out(draw(benchmark, **settings), folder)
        assert benchmark.problems(folder) == []
        return folder

    return make


@pytest.fixture
def files() -> Callable:
    """`files(folder)`: names of all files below it."""

    def names(folder) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    return names
