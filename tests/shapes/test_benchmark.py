"""The benchmark measures what it says, and the packaged model passes it."""

import numpy as np

from blip3o_hf import packaged_model_path
from blip3o_hf.evaluation.statistics import Rate
from blip3o_hf.models.target_encoder import load_target_encoder
from blip3o_hf.shapes import (
    EVALUATION_FAMILIES,
    HELD_OUT_COMBINATIONS,
    is_held_out_text,
    render,
    sample_scene,
)
from blip3o_hf.shapes.benchmark import (
    ceiling_rates,
    chance_rates,
    draw,
    held_out_prompts,
    overall,
    score_generation,
    score_understanding,
)


class PerfectPipeline:
    """Draws every prompt as it should be."""

    def __init__(self, prompts):
        self.prompts = {prompt.text: prompt for prompt in prompts}

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, texts, generator):
        rng = np.random.default_rng(0)
        images = [render(sample_scene(self.prompts[text], rng, split="test")) for text in texts]
        return type("Output", (), {"images": images, "attempts": None, "accepted": None})


def test_prompts_are_held_out_and_the_same_for_a_seed():
    prompts = held_out_prompts(5, seed=3)
    assert prompts == held_out_prompts(5, seed=3) != held_out_prompts(5, seed=4)
    assert [prompt.family for prompt in prompts] == [family for family in EVALUATION_FAMILIES for _ in range(5)]
    for prompt in prompts:
        unseen = any((group.color, group.shape) in HELD_OUT_COMBINATIONS for group in prompt.objects)
        assert unseen == (prompt.family == "unseen_combination")
        assert prompt.is_held_out or is_held_out_text(prompt.text)


def test_a_perfect_generator_scores_one_and_a_deaf_one_scores_chance():
    prompts = held_out_prompts(25, seed=0)
    rates, drawing, passed = score_generation(PerfectPipeline(prompts), prompts)
    assert overall(rates).value == 1.0 and len(drawing.images) == len(prompts) and all(passed)
    assert drawing.looking(passed)["draws per image"] == 1.0
    assert drawing.looking(passed)["bad images accepted"] == Rate(0, 0)
    assert overall(chance_rates(prompts)).value < 0.3


def test_the_decoder_shows_what_the_encoder_saw(tiny):
    encoder, image_processor = load_target_encoder(packaged_model_path("blip3o-tiny") + "/target_encoder")
    prompts = [prompt for prompt in held_out_prompts(12) if prompt.family != "unseen_combination"]
    rates = ceiling_rates(encoder, image_processor, tiny.decode_features, prompts)
    assert overall(rates).value >= 0.95


def test_the_packaged_model_draws_what_it_is_asked(tiny):
    prompts = held_out_prompts(8, seed=0, families=("single_object", "colors", "counting", "two_object"))
    rates = score_generation(tiny, prompts)[0]
    assert overall(rates).value >= 0.9


def test_the_packaged_model_answers_what_it_is_asked(tiny):
    assert overall(score_understanding(tiny.model, tiny.processor, num_per_kind=12)).value >= 0.95


def test_an_image_depends_on_its_own_seed_and_not_on_its_batch(tiny):
    prompts = [prompt.text for prompt in held_out_prompts(1, seed=0)[:3]]
    together = draw(tiny, prompts, seed=5, batch_size=3, num_inference_steps=3).images
    for index, (prompt, image) in enumerate(zip(prompts, together, strict=True)):
        (alone,) = draw(tiny, [prompt], seed=5 + index, batch_size=1, num_inference_steps=3).images
        assert np.abs(alone.astype(int) - image.astype(int)).max() <= 1
