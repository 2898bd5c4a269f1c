"""Guidance away from a prompt, which goes beyond the paper's guidance away from zeros."""

import re

import numpy as np
import pytest
import torch
from transformers import pipeline as task_pipeline

from blip3o_hf import Blip3oPipeline, packaged_model_path
from blip3o_hf.pipelines.chat import Blip3oChat

PROMPTS = ["two red circles", "a small blue square"]
NEGATIVE = "a green triangle"


def draw(pipeline, prompt=PROMPTS, **settings):
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, output_type="features", **settings).image_features


def test_guidance_leads_away_from_the_prompt_s_condition(pipeline, assert_close):
    condition, null = pipeline.encode_prompt(PROMPTS), pipeline.encode_prompt(NEGATIVE)
    transformer, latents = pipeline.transformer, torch.randn(2, 16, 4, 4)
    expected = latents
    for sigma, sigma_next in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        with torch.no_grad():
            away, towards = (
                transformer(expected, torch.tensor(1000 * sigma), encoder_hidden_states=states).sample
                for states in (null.expand_as(condition), condition)
            )
        expected = expected + (sigma_next - sigma) * (away + 2.5 * (towards - away))
    expected = pipeline.model.denormalize_features(expected)
    assert_close(draw(pipeline, latents=latents, guidance_scale=2.5, negative_prompt=NEGATIVE), expected)


def test_an_empty_negative_prompt_is_none(pipeline):
    expected = draw(pipeline)
    for negative in ("", ["", ""], None):
        assert torch.equal(draw(pipeline, negative_prompt=negative), expected)
        assert torch.equal(
            draw(pipeline, negative_prompt=negative, guidance_scale=1.0), draw(pipeline, guidance_scale=1.0)
        )
    assert not torch.allclose(draw(pipeline, negative_prompt=NEGATIVE), expected)


def test_a_prompt_away_from_itself_is_drawn_without_guidance(pipeline, assert_close):
    plain = draw(pipeline, guidance_scale=1.0)
    assert_close(draw(pipeline, negative_prompt=PROMPTS, guidance_scale=4.0), plain)


def test_each_prompt_may_have_its_own(pipeline, assert_close):
    latents = torch.randn(4, 16, 4, 4)
    options = {"num_images_per_prompt": 2, "guidance_scale": 2.5}
    both = draw(pipeline, negative_prompt=[NEGATIVE, ""], latents=latents, **options)
    first = draw(pipeline, PROMPTS[0], negative_prompt=NEGATIVE, latents=latents[:2], **options)
    second = draw(pipeline, PROMPTS[1], latents=latents[2:], **options)
    assert_close(both, torch.cat([first, second]))


def test_a_negative_prompt_goes_with_conditions_plans_and_attempts(pipeline, assert_close):
    expected = draw(pipeline, negative_prompt=NEGATIVE)
    condition = pipeline.encode_prompt(PROMPTS)
    assert_close(draw(pipeline, None, condition=condition, negative_prompt=NEGATIVE), expected)
    drawn = []

    def checker(images, texts):
        drawn.append(len(images))
        return [0.0 if len(drawn) == 1 and text == PROMPTS[1] else 1.0 for text in texts]

    pipeline(PROMPTS, negative_prompt=[NEGATIVE, ""], num_attempts=2, checker=checker)
    assert drawn == [2, 1]
    plans = pipeline(PROMPTS, negative_prompt=[NEGATIVE, ""], plan=True, output_type="features")
    assert len(plans.plans) == 2


def test_chats_and_the_task_of_transformers_take_one():
    path = packaged_model_path()
    pipe = Blip3oPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "plan": False, "num_attempts": 1}

    def differs(act):
        plain, negative = (act(**extra) for extra in ({}, {"negative_prompt": "a blue square"}))
        return not torch.equal(plain, negative)

    def turn(**extra):
        generator = torch.Generator().manual_seed(0)
        return Blip3oChat(pipe).draw("a circle", generator=generator, **settings, **extra).image_features

    task = task_pipeline("text-to-image", model=path)
    assert differs(turn)
    assert differs(lambda **extra: task("a circle", seed=0, **settings, **extra)["image_features"])
    numbers = {"seed": np.int64(0), "num_inference_steps": np.int64(2), "num_images_per_prompt": np.int64(2)}
    results = task("a circle", **{**settings, **numbers}, output_type="latent")
    expected = task("a circle", seed=0, **settings, output_type="features", num_images_per_prompt=2)
    assert all(torch.equal(a["image_features"], b["image_features"]) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"negative_prompt": 3}, TypeError, "`negative_prompt` must be a string or a list of strings. Got int 3."),
        ({"negative_prompt": ["a", None]}, TypeError, "`negative_prompt` must be a string or a list of strings."),
        (
            {"negative_prompt": ["a"] * 3},
            ValueError,
            "`negative_prompt` must be one for all, or one for each prompt. Got 3 for 2. Give an empty one to those",
        ),
        (
            {"negative_prompt": "a", "guidance_scale": 1.0},
            ValueError,
            "`negative_prompt` is what guidance leads away from. Got 'a', but guidance_scale=1.0 switches guidance ",
        ),
        (
            {"negative_prompt": "a", "prompt": None, "image_features": torch.zeros(1, 16, 4, 4)},
            ValueError,
            "Got 'a', but only features are decoded. Leave it out.",
        ),
    ],
)
def test_bad_negative_prompts_are_refused_before_the_model_runs(pipeline, monkeypatch, arguments, error, message):
    def fail(*args, **kwargs):
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(pipeline.model, "encode_condition", fail)
    with pytest.raises(error, match=re.escape(message)):
        pipeline(**{"prompt": PROMPTS, **arguments})


def test_what_has_no_guidance_or_cannot_read_refuses(make_pipeline):
    regressing = make_pipeline(objective="feature_regression", num_queries=16)
    with pytest.raises(ValueError, match=r"but the objective 'feature_regression' has no guidance"):
        regressing(PROMPTS, negative_prompt=NEGATIVE)
    deaf = make_pipeline()
    condition = deaf.encode_prompt(PROMPTS)
    deaf.register_modules(processor=None)
    with pytest.raises(ValueError, match=r"but this pipeline has no processor to read it"):
        deaf(condition=condition, negative_prompt=NEGATIVE)
