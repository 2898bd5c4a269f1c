"""The benchmark of pictures measures what it says: the perfect score one, the deaf chance."""

import numpy as np
from PIL import Image

from blip3o_hf import Blip3oReconstructionPipeline
from blip3o_hf.shapes import EDIT_KINDS, describe, is_held_out_scene, render
from blip3o_hf.shapes.benchmark import overall
from blip3o_hf.shapes.benchmark_images import (
    draw_edits,
    edit_rates,
    held_out_edits,
    held_out_scenes,
    other_edits,
    score_captions,
    score_reconstruction,
)


def test_scenes_and_edits_are_held_out_and_the_same_for_a_seed():
    scenes, edits = held_out_scenes(20, seed=1), held_out_edits(4, seed=1)
    assert scenes == held_out_scenes(20, seed=1) != held_out_scenes(20, seed=2)
    assert edits == held_out_edits(4, seed=1) != held_out_edits(4, seed=2)
    assert [edit.kind for edit in edits] == [kind for kind in EDIT_KINDS for _ in range(4)]
    assert all(is_held_out_scene(scene) for scene in scenes)
    assert all(is_held_out_scene(edit.source) and is_held_out_scene(edit.target) for edit in edits)


def test_a_perfect_editor_scores_one_an_idle_one_nothing_and_a_deaf_one_chance():
    edits = held_out_edits(12)
    perfect = edit_rates([render(edit.target) for edit in edits], edits)
    assert all(overall(rates).value == 1.0 for rates in perfect.values())
    idle = edit_rates([render(edit.source) for edit in edits], edits)
    assert overall(idle["followed"]).value == 0.0
    deaf = edit_rates(other_edits(edits), edits)
    assert overall(deaf["both"]).value < 0.3


def test_captions_count_when_they_say_the_scene(monkeypatch):
    scenes = held_out_scenes(6)
    said = [describe(scene, np.random.default_rng(0), split="test") for scene in scenes]
    said[1], said[2] = "a circle", said[2].replace("background", "ground")
    monkeypatch.setattr("blip3o_hf.shapes.benchmark_images.answer", lambda *arguments: said)
    assert score_captions(None, None, scenes).passed == 4


def test_reconstruction_is_scored_by_place_and_kind(tiny):
    reconstruct = Blip3oReconstructionPipeline.from_pipe(tiny)
    rate, similar, cosine, psnr = score_reconstruction(reconstruct, held_out_scenes(24), "autoencoder")
    assert similar.value >= rate.value >= 0.9 and cosine > 0.99 and psnr > 30


def test_an_edit_depends_on_its_own_seed_and_not_on_its_batch(tiny):
    edits = held_out_edits(1)[:3]
    together = draw_edits(tiny, edits, seed=5, num_inference_steps=3).images
    (alone,) = draw_edits(tiny, edits[1:2], seed=6, num_inference_steps=3).images
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    assert Image.fromarray(alone).size == (64, 64)


def test_the_packaged_model_describes_edits_and_redraws(tiny):
    scenes, edits = held_out_scenes(32), held_out_edits(6)
    assert score_captions(tiny.model, tiny.processor, scenes).value >= 0.9
    rates = edit_rates(draw_edits(tiny, edits).images, edits)
    assert overall(rates["objects"]).value >= 0.8
    assert overall(rates["followed"]).value >= 0.8
    _, similar, *_ = score_reconstruction(Blip3oReconstructionPipeline.from_pipe(tiny), scenes, "unified")
    assert similar.value >= 0.9
