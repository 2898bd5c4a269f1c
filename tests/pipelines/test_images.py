"""Prompts with images, and features to start from: what they equal, and one clear error for each misuse."""

import re

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from PIL import Image

from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

PROMPTS = ["two red circles", "one small blue square above three green triangles", "a circle"]
SCHEDULERS = {
    "ours": Blip3oFlowScheduler,
    "adams_bashforth": lambda: Blip3oFlowScheduler(solver="adams_bashforth2"),
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
}


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def draw(pipe, prompt, seeds, **options):
    return pipe(prompt, generator=seeded(*seeds), output_type="features", **options).image_features


@pytest.fixture(scope="module")
def make_seer(make_pipeline):
    """`make_seer(**settings of make_pipeline)`: random weights large enough that prompts and images matter."""

    def make(**settings):
        pipe = make_pipeline(tied=False, **settings)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in pipe.model.parameters():
                if parameter.ndim == 2:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return pipe

    return make


@pytest.fixture(scope="module")
def pipe(make_seer):
    return make_seer()


@pytest.fixture(scope="module")
def images(make_image):
    return [make_image(seed) for seed in range(4)]


# Images


@pytest.mark.parametrize("image_positions", ["backbone", "sequential"])
def test_a_batch_with_images_equals_its_prompts_alone(make_seer, images, assert_close, image_positions):
    pipe = make_seer(image_positions=image_positions)
    given = [images[0], [images[1], images[2]], [images[3]]]
    batch = draw(pipe, PROMPTS, (1, 2, 3), image=given)
    for index, prompt in enumerate(PROMPTS):
        assert_close(batch[index : index + 1], draw(pipe, prompt, (index + 1,), image=given[index]), 1e-4)


def test_an_image_and_its_place_among_others_matter(pipe, images):
    features = [
        draw(pipe, PROMPTS[0], (1,), image=image) for image in (images[0], images[1], images[:2], images[1::-1])
    ]
    features.append(draw(pipe, PROMPTS[0], (1,)))
    for index, ours in enumerate(features):
        for theirs in features[:index]:
            assert (ours - theirs).abs().max() > 1e-2


def test_one_image_may_be_given_in_many_ways(pipe, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    expected = draw(pipe, PROMPTS[0], (1,), image=images[0])
    for given in (
        [images[0]],
        [[images[0]]],
        (images[0],),
        np.asarray(images[0]),
        [np.asarray(images[0])],
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
    ):
        for prompt in (PROMPTS[0], PROMPTS[:1]):
            assert torch.equal(draw(pipe, prompt, (1,), image=given), expected)


def test_images_of_one_prompt_are_drawn_several_times(pipe, images, assert_close):
    pairs = draw(pipe, PROMPTS[:2], (1, 2, 3, 4), image=images[:2], num_images_per_prompt=2)
    for index in range(4):
        alone = draw(pipe, PROMPTS[index // 2], (index + 1,), image=images[index // 2])
        assert_close(pairs[index : index + 1], alone, 1e-4)


def test_an_image_is_what_its_condition_says(pipe, images):
    with torch.no_grad():
        condition = pipe.encode_prompt(PROMPTS[:1], images=[[images[0]]])
    expected = draw(pipe, None, (1,), condition=condition)
    assert torch.equal(draw(pipe, PROMPTS[0], (1,), image=images[0]), expected)


def test_an_image_stays_as_it_was_given(pipe, images):
    before = images[0].copy()
    draw(pipe, PROMPTS[0], (1,), image=images[0])
    assert np.array_equal(before, images[0])


SHOWN = Image.new("RGB", (64, 64))
COUNT = (
    "`image` must hold one entry for each prompt, an image or a list of images. Got {} for 2 prompts. Repeat an image "
    "that belongs to several."
)
NO_IMAGE = "An image must be a PIL image, a uint8 array [H, W, 3], or the path of a file. Got {}."
EMPTY = "Each prompt's list of images must hold one. Got an empty list. Leave `image` out."
NO_PROMPT = "`image` needs a prompt. Got an image and no prompt. Say what to do with the image."


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": PROMPTS[:2], "image": SHOWN}, ValueError, COUNT.format(1)),
        ({"prompt": PROMPTS[:2], "image": [SHOWN]}, ValueError, COUNT.format(1)),
        ({"prompt": PROMPTS[:2], "image": [SHOWN] * 3}, ValueError, COUNT.format(3)),
        ({"prompt": PROMPTS[0], "image": []}, ValueError, EMPTY),
        ({"prompt": PROMPTS[:2], "image": [SHOWN, []]}, ValueError, EMPTY),
        ({"prompt": PROMPTS[0], "image": 3}, TypeError, NO_IMAGE.format("int")),
        ({"prompt": PROMPTS[0], "image": [SHOWN, None]}, TypeError, NO_IMAGE.format("NoneType")),
        (
            {"prompt": PROMPTS[0], "image": np.zeros((4, 4, 3))},
            TypeError,
            NO_IMAGE.format("an array of float64 (4, 4, 3)"),
        ),
        (
            {"prompt": PROMPTS[0], "image": Image.new("RGB", (0, 4))},
            ValueError,
            "An image must be readable, with 1 to 64,000,000 pixels. Got the image: image of 0 x 4 pixels",
        ),
        ({"prompt": PROMPTS[0], "image": "none.png"}, ValueError, "Got none.png: no image file at none.png."),
        ({"condition": torch.zeros(1, 5, 32), "image": SHOWN}, ValueError, NO_PROMPT),
        ({"image_features": torch.zeros(1, 16, 4, 4), "image": SHOWN}, ValueError, NO_PROMPT),
    ],
)
def test_bad_images_are_refused_before_the_model_runs(pipe, monkeypatch, arguments, error, message):
    def fail(*args, **kwargs):
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(pipe.model.get_decoder(), "forward", fail)
    with pytest.raises(error, match=re.escape(message)):
        pipe(**arguments)


def test_a_text_only_backbone_refuses_images(make_pipeline):
    message = (
        "This model's backbone (llama) reads text only. Got an image. Use a model with a vision-language backbone "
        "such as Qwen2.5-VL."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_pipeline(backbone="llama")(PROMPTS[0], image=SHOWN)


# Features to start from


@pytest.mark.parametrize("name", SCHEDULERS)
def test_strength_one_is_noise_alone(make_seer, name):
    pipe = make_seer(scheduler=SCHEDULERS[name]())
    features = draw(pipe, PROMPTS, (1, 2, 3), num_inference_steps=4)
    for start in (torch.randn(3, 16, 4, 4), torch.full((3, 16, 4, 4), 5.0)):
        started = draw(pipe, PROMPTS, (1, 2, 3), num_inference_steps=4, image_features=start, strength=1)
        torch.testing.assert_close(started, features, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_less_strength_stays_nearer(make_seer, name):
    pipe = make_seer(scheduler=SCHEDULERS[name]())
    start = torch.randn(1, 16, 4, 4)
    distances = []
    for strength in (0.05, 0.3, 0.6, 1.0):
        drawn = draw(
            pipe, PROMPTS[0], (1,), image_features=start, strength=strength, num_inference_steps=20, guidance_scale=1.0
        )
        distances.append((drawn - start).square().mean().sqrt().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.25 * distances[-1]
    assert distances[0] > 0


@pytest.mark.parametrize("strength", [0.05, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_exact_velocity_leads_back_to_the_start(make_seer, monkeypatch, name, strength):
    """Whatever the level and the order of the solver: no step is taken twice or left out."""
    pipe = make_seer(scheduler=SCHEDULERS[name]())
    start, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    exact = Transformer2DModelOutput(sample=noise - start)
    monkeypatch.setattr(pipe.transformer, "forward", lambda *_, **__: exact)
    arguments = {"latents": noise, "guidance_scale": 1.0, "num_inference_steps": 6}
    drawn = draw(pipe, PROMPTS[0], (1,), image_features=start, strength=strength, **arguments)
    torch.testing.assert_close(drawn, start, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(1.0, [1000, 750, 500, 250]), (0.75, [750, 500, 250]), (0.6, [500, 250]), (0.25, [250]), (0.01, [250])],
)
def test_steps_at_higher_levels_are_left_out(pipe, strength, expected):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep)))

    start = torch.randn(1, 16, 4, 4)
    draw(
        pipe,
        PROMPTS[0],
        (1,),
        image_features=start,
        strength=strength,
        num_inference_steps=4,
        callback_on_step_end=callback,
    )
    assert seen == list(enumerate(expected))


def test_the_start_is_the_path_of_training(pipe, assert_close):
    """Half way, noise and features are mixed half and half, on the scale of the flow."""
    start, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    condition = pipe.encode_prompt(PROMPTS[:1])
    latents = []
    hook = pipe.transformer.register_forward_pre_hook(lambda module, args: latents.append(args[0]))
    pipe(
        condition=condition, image_features=start, strength=0.5, latents=noise, num_inference_steps=4, guidance_scale=1
    )
    hook.remove()
    assert_close(latents[0], 0.5 * start + 0.5 * noise)
    assert len(latents) == 2


def test_features_to_start_from_are_on_the_encoder_s_scale(make_seer, assert_close):
    statistics = {"feature_mean": [1.5] * 16, "feature_std": [3.0] * 16}
    start = torch.randn(1, 16, 4, 4)
    plain, scaled = (
        draw(pipe, PROMPTS[0], (1,), image_features=given, strength=0.5)
        for pipe, given in ((make_seer(), start), (make_seer(**statistics), start * 3.0 + 1.5))
    )
    assert_close(scaled, plain * 3.0 + 1.5)


def test_a_batch_with_strength_equals_its_prompts_alone(pipe, assert_close):
    start = torch.randn(3, 16, 4, 4)
    batch = draw(pipe, PROMPTS, (1, 2, 3), image_features=start, strength=0.6)
    for index, prompt in enumerate(PROMPTS):
        own = start[index : index + 1]
        alone = draw(pipe, prompt, (index + 1,), image_features=own, strength=0.6)
        assert_close(batch[index : index + 1], alone, 1e-4)


FEATURES = torch.zeros(1, 16, 4, 4)
STRENGTH = "`strength` must be a noise level in (0, 1]. Got {!r}. Try 0.6."
NO_START = (
    "`strength` asks for `image_features` of shape [batch, 16, 4, 4] to start from. Got {}. "
    "`Blip3oReconstructionPipeline.encode_images` makes them."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"prompt": "a circle", "image_features": FEATURES, "strength": strength}, STRENGTH.format(strength))
            for strength in (0, -0.5, 1.5, float("nan"), "0.5")
        ),
        ({"prompt": "a circle", "strength": 0.5}, NO_START.format("NoneType")),
        (
            {"prompt": "a circle", "image_features": torch.zeros(1, 16, 5, 5), "strength": 0.5},
            NO_START.format([1, 16, 5, 5]),
        ),
        ({"prompt": "a circle", "image_features": [FEATURES], "strength": 0.5}, NO_START.format("list")),
        (
            {"prompt": ["a", "b"], "image_features": FEATURES, "strength": 0.5},
            "`image_features` to start from must be one for each image to make. Got 1 for 2. Repeat them with "
            "`repeat_interleave`.",
        ),
        (
            {"prompt": "a", "num_images_per_prompt": 3, "image_features": FEATURES, "strength": 0.5},
            "Got 1 for 3. Repeat them",
        ),
        (
            {"image_features": FEATURES, "strength": 0.5},
            "Exactly one of `prompt`, `condition` and `image_features` must be given. Got none.",
        ),
        (
            {"prompt": "a circle", "image_features": FEATURES},
            "Exactly one of `prompt`, `condition` and `image_features` must be given. Got prompt and image_features.",
        ),
    ],
)
def test_bad_starts_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(**arguments)


def test_regression_has_no_noise_to_start_from(make_pipeline):
    pipe = make_pipeline(objective="feature_regression", transformer_config=None, num_queries=16)
    message = (
        "Only a flow starts from features. Got `strength` 0.5, and this model's objective is 'feature_regression'. "
        "Leave it out."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe("a circle", image_features=FEATURES, strength=0.5)
