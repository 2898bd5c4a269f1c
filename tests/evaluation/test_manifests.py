"""A manifest is read as it was written, refused when it was changed, and compared with the same result made again."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.evaluation.manifests import Manifest, Picture, compare, folder_hash, model_hash, pixel_hash
from blip3o_hf.hub.results import Evaluation, Figure, Score


@pytest.fixture
def manifest():
    scores = (
        Score("text-to-image", "counting", Figure(0.5, (0.3, 0.7)), 20, {"chance": Figure(0.1)}),
        Score("text-to-image", "all", Figure(0.25), 40),
    )
    evaluation = Evaluation(
        "Toy", "A toy.", "blip3o-hf evaluate toy", "2026-01-31T12:00:00Z", {"seed": 0}, {"torch": "2"}, scores
    )
    pictures = (Picture("a", 0, 7, "f" * 64), Picture("a", 1, 8, "e" * 64))
    words = ("evaluate", "toy", "--seed", "0")
    return Manifest(evaluation, words, {"model": "0" * 64}, {"device": "cpu"}, "2026-01-31T11:00:00Z", pictures)


def with_scores(manifest, *values):
    scores = manifest.evaluation.scores
    changed = tuple(
        dataclasses.replace(score, figure=Figure(value, score.figure.interval))
        for score, value in zip(scores, values, strict=True)
    )
    return dataclasses.replace(manifest, evaluation=dataclasses.replace(manifest.evaluation, scores=changed))


def test_it_is_read_as_it_was_written_and_a_card_takes_it_up(manifest, tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    assert Manifest.read(path) == manifest
    assert Evaluation.read(path) == manifest.evaluation
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("change", ["score", "seed", "pixels", "digest"])
def test_one_that_was_changed_by_hand_is_refused(manifest, tmp_path, change):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    content = json.loads(path.read_text())
    if change == "score":
        content["scores"][0]["figure"]["value"] = 0.9
    elif change == "seed":
        content["settings"]["seed"] = 1
    elif change == "pixels":
        content["pictures"][0]["sha256"] = "a" * 64
    else:
        content["digest"] = "a" * 64
    path.write_text(json.dumps(content))
    for read in (Manifest.read, Evaluation.read):
        with pytest.raises(
            ValueError, match=rf"must be as it was written\. {path} was changed afterwards: .* Measure"
        ):
            read(path)


def test_another_schema_and_no_manifest_are_refused(manifest, tmp_path):
    path = tmp_path / "results.json"
    manifest.evaluation.write(path)  # as a version before wrote it
    assert Evaluation.read(path) == manifest.evaluation
    with pytest.raises(ValueError, match=r"of schema 1\. .*results\.json is of None\. Measure it again\."):
        Manifest.read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"is not one \(it holds list\)\. Run that command\."):
        Manifest.read(path)


def test_the_same_result_is_equal(manifest):
    found = compare(manifest, manifest)
    assert (found.verdict, found.differences, found.tolerated, found.causes) == ("equal", [], [], [])


def test_what_differs_is_said_and_why_it_may(manifest):
    later = dataclasses.replace(
        with_scores(manifest, 0.5, 0.3),
        inputs={"model": "1" * 64},
        environment={"device": "cuda"},
        pictures=(manifest.pictures[0], Picture("a", 1, 8, "d" * 64)),
    )
    found = compare(manifest, later)
    assert found.verdict == "differs"
    assert found.differences == [
        "pictures: 1 of 2 have other pixels, a/1 among them",
        "text-to-image, all: 0.25 before, 0.3 now",
    ]
    assert found.causes == [
        f"inputs: model was {'0' * 64}, and is {'1' * 64}",
        "environment: device was cpu, and is cuda",
    ]


def test_a_tolerance_is_for_scores_and_the_pixels_behind_them(manifest):
    later = dataclasses.replace(
        with_scores(manifest, 0.5, 0.3), pictures=(manifest.pictures[0], Picture("a", 1, 8, "d" * 64))
    )
    assert compare(manifest, later, tolerance=0.04).verdict == "differs"
    found = compare(manifest, later, tolerance=0.06)
    assert found.verdict == "differs within tolerance" and len(found.tolerated) == 2 and not found.differences


def test_no_tolerance_is_for_other_pictures_or_for_pixels_without_a_score(manifest):
    found = compare(manifest, dataclasses.replace(manifest, pictures=(manifest.pictures[0],)), tolerance=1.0)
    assert found.differences == ["pictures: 1 missing, a/1 among them"]
    found = compare(manifest, dataclasses.replace(manifest, pictures=(Picture("b", 0, 7, "f" * 64),)), tolerance=1.0)
    assert found.differences == ["pictures: 2 missing, a/0 among them", "pictures: 1 new, b/0 among them"]
    unscored = dataclasses.replace(manifest, evaluation=dataclasses.replace(manifest.evaluation, scores=()))
    changed = dataclasses.replace(unscored, pictures=(manifest.pictures[0], Picture("a", 1, 8, "d" * 64)))
    assert compare(unscored, changed, tolerance=1.0).verdict == "differs"


def test_scores_over_other_numbers_of_prompts_are_never_equal(manifest):
    scores = manifest.evaluation.scores
    fewer = dataclasses.replace(scores[0], total=19)
    later = dataclasses.replace(manifest, evaluation=dataclasses.replace(manifest.evaluation, scores=(fewer,)))
    found = compare(manifest, later, tolerance=1.0)
    assert found.differences == ["text-to-image, counting: of 20 before, of 19 now", "text-to-image, all: missing"]


def test_hashes_are_of_pixels_and_of_files_without_the_card(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert pixel_hash(read) == pixel_hash(image) != pixel_hash(image.resize((2, 8)))
    before = folder_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / ".lock").touch()
    assert folder_hash(tmp_path) == before == model_hash(tmp_path)
    (tmp_path / "b.txt").write_text("b")
    assert folder_hash(tmp_path) != before


def test_a_model_of_the_hub_must_be_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"must be on this machine\. There are none of nobody/nothing\. "):
        model_hash("nobody/nothing")
