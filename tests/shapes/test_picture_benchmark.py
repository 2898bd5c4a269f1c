"""The tiny world among the benchmarks of drawing: its prompts without a file, its verifier as the score."""

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.evaluation.benchmarks import find_benchmark
from blip3o_hf.evaluation.benchmarks.base import Pictures
from blip3o_hf.shapes import EVALUATION_FAMILIES, render, sample_scene
from blip3o_hf.shapes.benchmark import held_out_prompts
from blip3o_hf.shapes.picture_benchmark import ShapesBenchmark


def drawn(folder, benchmark, wrong=()):
    """True pictures of all prompts, and black ones of those that are to be wrong."""
    pictures = Pictures(folder, benchmark.items)
    meanings = {prompt.text: prompt for prompt in held_out_prompts(3)}
    for index, item in enumerate(benchmark.items):
        scene = sample_scene(meanings[item.prompt], np.random.default_rng(index), split="test")
        pictures.path(item).parent.mkdir(parents=True)
        image = Image.new("RGB", (64, 64)) if item.id in wrong else Image.fromarray(render(scene))
        image.save(pictures.path(item))
    return pictures


def test_the_name_finds_it():
    assert find_benchmark("shapes") is ShapesBenchmark


def test_prompts_are_held_out_and_have_a_hash_instead_of_a_file():
    benchmark = ShapesBenchmark(per_family=3)
    assert sorted(item.prompt for item in benchmark.items) == sorted(prompt.text for prompt in held_out_prompts(3))
    assert benchmark.prompt_file.path is None
    assert benchmark.prompt_file == ShapesBenchmark(per_family=3, limit=2).prompt_file
    others = {
        ShapesBenchmark(per_family=3, seed=1).prompt_file.sha256,
        ShapesBenchmark(per_family=2).prompt_file.sha256,
    }
    assert len({benchmark.prompt_file.sha256, *others}) == 3


def test_a_limit_takes_all_families():
    items = ShapesBenchmark(per_family=3, limit=len(EVALUATION_FAMILIES)).items
    assert {item.row["family"] for item in items} == set(EVALUATION_FAMILIES)


def test_the_verifier_scores_by_family(tmp_path):
    benchmark = ShapesBenchmark(per_family=3)
    wrong = next(item.id for item in benchmark.items if item.row["family"] == "counting")
    scores = {score.name: score for score in benchmark.score(drawn(tmp_path, benchmark, {wrong}))}
    assert set(scores) == {*EVALUATION_FAMILIES, "overall"}
    assert scores["counting"].figure.value == pytest.approx(2 / 3)
    assert scores["overall"].figure.value == pytest.approx(1 - 1 / len(benchmark.items))
    assert scores["position"].figure.value == 1 and scores["position"].total == 3


def test_missing_pictures_give_no_rate(tmp_path):
    benchmark = ShapesBenchmark(per_family=3)
    pictures = drawn(tmp_path, benchmark)
    pictures.path(benchmark.items[5]).unlink()
    with pytest.raises(ValueError, match="1 are missing"):
        benchmark.score(pictures)


def test_it_takes_no_prompt_file(tmp_path):
    with pytest.raises(ValueError, match="makes its prompts itself"):
        ShapesBenchmark(tmp_path)
    with pytest.raises(ValueError, match="`per_family` must be a whole number of at least 1"):
        ShapesBenchmark(per_family=0)
