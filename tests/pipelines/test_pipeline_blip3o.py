"""Sampling identities, exact saves, and one clear error for every bad argument."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline, Blip3oPipelineOutput
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

PROMPTS = ["two red circles", "one small blue square above three green triangles", "a circle"]


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def draw_features(pipeline, prompts=PROMPTS, seeds=(1, 2, 3), **options):
    return pipeline(prompts, generator=seeded(*seeds), output_type="features", **options).image_features


@torch.no_grad()
def plain_denoise(pipeline, latents, condition, steps, guidance):
    """The sampler as in the paper: Euler steps, both branches in full at every step. `guidance` may map sigma."""
    transformer = pipeline.model.transformer
    sigmas = [*torch.linspace(1, 1 / steps, steps).tolist(), 0.0]
    for sigma, sigma_next in pairwise(sigmas):
        timestep = torch.full((len(latents),), float(int(1000 * np.float32(sigma))))
        velocity = transformer(latents, timestep, encoder_hidden_states=condition).sample
        null_velocity = transformer(latents, timestep, encoder_hidden_states=torch.zeros_like(condition)).sample
        scale = guidance(sigma) if callable(guidance) else guidance
        latents = latents + (sigma_next - sigma) * (null_velocity + scale * (velocity - null_velocity))
    return latents


@pytest.fixture
def start(pipeline):
    """Noise and condition of the three prompts."""
    with torch.no_grad():
        return torch.randn(3, 16, 4, 4), pipeline.encode_prompt(PROMPTS)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()


# Sampling


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_cached_sampling_equals_the_plain_loop(pipeline, start, assert_close, guidance_scale):
    with torch.no_grad():
        cached = pipeline.denoise(*start, num_inference_steps=3, guidance_scale=guidance_scale)
    assert_close(cached, plain_denoise(pipeline, *start, steps=3, guidance=guidance_scale))


def test_guidance_changes_the_result(pipeline, start):
    with torch.no_grad():
        features = [pipeline.denoise(*start, 3, scale) for scale in (0.0, 1.0, 3.0)]
    assert (features[0] - features[1]).abs().max() > 1e-2
    assert (features[2] - features[1]).abs().max() > 1e-2


def test_guidance_one_runs_the_conditional_branch_alone(pipeline, start, assert_close):
    batches = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    with torch.no_grad():
        pipeline.denoise(*start, num_inference_steps=2, guidance_scale=1.0)
        pipeline.denoise(*start, num_inference_steps=2, guidance_scale=2.0)
    assert batches == [3, 3, 6, 6]


def test_guidance_zero_reads_no_prompt(pipeline, assert_close):
    features = draw_features(pipeline, seeds=(4, 4, 4), guidance_scale=0.0)
    assert_close(features[1:], features[:1].expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 0.0), ()),
        ((0.9, 1.0), (1.0,)),
        ((0.5, 0.75), (0.75, 0.5)),
        ((0.0, 1.0), (1.0, 0.75, 0.5, 0.25)),
    ],
)
def test_guidance_acts_within_its_interval_alone(pipeline, start, assert_close, interval, guided):
    with torch.no_grad():
        features = pipeline.denoise(*start, 4, 3.0, guidance_interval=interval)
    expected = plain_denoise(pipeline, *start, 4, lambda sigma: 3.0 if round(sigma, 6) in guided else 1.0)
    assert_close(features, expected)


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_a_batch_equals_its_prompts_alone(make_pipeline, assert_close, backbone):
    pipeline = make_pipeline(backbone=backbone)
    batch = draw_features(pipeline)
    assert batch.shape == (3, 16, 4, 4)
    singles = [draw_features(pipeline, prompt, (seed,)) for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert_close(batch, torch.cat(singles))


def test_padding_changes_no_condition(pipeline, assert_close):
    with torch.no_grad():
        batch = pipeline.encode_prompt(PROMPTS)
        singles = torch.cat([pipeline.encode_prompt([prompt]) for prompt in PROMPTS])
    assert_close(batch, singles)


def test_images_of_one_prompt_come_one_after_the_other(pipeline, assert_close):
    batch = draw_features(pipeline, PROMPTS[:2], (1, 2, 3, 4), num_images_per_prompt=2)
    pairs = zip((PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]), (1, 2, 3, 4), strict=True)
    assert_close(batch, torch.cat([draw_features(pipeline, prompt, (seed,)) for prompt, seed in pairs]))
    images = pipeline(PROMPTS[0], num_images_per_prompt=3, generator=seeded(0)).images
    assert len(images) == 3


def test_a_seed_decides_the_images(pipeline):
    first, again, other = (draw_features(pipeline, PROMPTS, (seed,)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_own_latents_replace_the_drawn_ones(pipeline):
    drawn = draw_features(pipeline, PROMPTS, (5,))
    latents = torch.randn(3, 16, 4, 4, generator=seeded(5))
    given = pipeline(PROMPTS, latents=latents, output_type="features").image_features
    assert torch.equal(given, drawn)


def test_a_tuple_of_generators_is_a_list_of_them(pipeline):
    as_tuple = pipeline(PROMPTS, generator=tuple(seeded(1, 2, 3)), output_type="features").image_features
    assert torch.equal(as_tuple, draw_features(pipeline))


def test_defaults_of_the_configuration_are_used(pipeline):
    explicit = draw_features(pipeline, num_inference_steps=4, guidance_scale=3.0)
    assert torch.equal(draw_features(pipeline), explicit)
    assert not torch.allclose(draw_features(pipeline, num_inference_steps=5), explicit)


def test_features_come_back_in_the_encoder_s_scale(make_pipeline, assert_close):
    statistics = {"feature_mean": [1.5] * 16, "feature_std": [3.0] * 16}
    plain, scaled = draw_features(make_pipeline()), draw_features(make_pipeline(**statistics))
    assert_close(scaled, plain * 3.0 + 1.5)


# The callback


def test_the_callback_sees_every_step(pipeline):
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, float(timestep), tensors["latents"]))

    features = draw_features(pipeline, num_inference_steps=3, callback_on_step_end=callback)
    assert [entry[:2] for entry in seen] == [(0, 1000.0), (1, 666.0), (2, 333.0)]
    assert torch.equal(seen[-1][2], features)


def test_the_callback_replaces_latents(pipeline, assert_close):
    """Latents put in after the first step are sampled on from the second one."""
    replacement = torch.randn(3, 16, 4, 4)

    def callback(pipe, step, timestep, tensors):
        return {"latents": replacement} if step == 1 else {}

    features = draw_features(pipeline, num_inference_steps=2, callback_on_step_end=callback)
    assert torch.equal(features, replacement)
    with torch.no_grad():
        condition = pipeline.encode_prompt(PROMPTS)
        velocity, null_velocity = (
            pipeline.transformer(replacement, 500, encoder_hidden_states=context).sample
            for context in (condition, torch.zeros_like(condition))
        )
    features = draw_features(
        pipeline,
        num_inference_steps=2,
        callback_on_step_end=lambda pipe, step, timestep, tensors: {"latents": replacement} if step == 0 else None,
    )
    assert_close(features, replacement - 0.5 * (null_velocity + 3.0 * (velocity - null_velocity)))


def test_the_callback_gets_only_the_tensors_it_asks_for(pipeline):
    def callback(pipe, step, timestep, tensors):
        assert tensors == {}
        return {}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ()}
    assert torch.equal(draw_features(pipeline, **options), draw_features(pipeline))


# Schedulers


@pytest.mark.parametrize("solver", ["euler", "adams_bashforth2", "dpmsolver++2m"])
def test_a_scheduler_remembers_nothing_of_the_last_run(make_pipeline, solver):
    pipeline = make_pipeline(scheduler=Blip3oFlowScheduler(solver=solver))
    assert torch.equal(draw_features(pipeline), draw_features(pipeline))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ],
    ids=["euler", "unipc"],
)
def test_diffusers_schedulers_take_the_place_of_ours(make_pipeline, tmp_path, scheduler):
    pipeline = make_pipeline(scheduler=scheduler)
    features = draw_features(pipeline)
    assert features.shape == (3, 16, 4, 4)
    assert torch.isfinite(features).all()
    assert torch.equal(draw_features(pipeline), features)
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is type(scheduler)
    assert torch.equal(draw_features(loaded), features)


def test_diffusers_euler_on_our_noise_levels_gives_our_features(make_pipeline, monkeypatch, assert_close):
    ours = make_pipeline(scheduler=Blip3oFlowScheduler(integer_timesteps=False))
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_timesteps = scheduler.set_timesteps

    def on_our_levels(num_inference_steps, device=None):
        set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps), device=device)

    monkeypatch.setattr(scheduler, "set_timesteps", on_our_levels)
    theirs = make_pipeline(scheduler=scheduler)
    assert_close(draw_features(theirs), draw_features(ours))


# Pixels


def test_output_types_hold_the_same_images(pipeline):
    def run(output_type):
        return pipeline(PROMPTS, generator=seeded(1, 2, 3), output_type=output_type)

    as_pt, as_np, as_pil = (run(output_type).images for output_type in ("pt", "np", "pil"))
    assert as_pt.shape == (3, 3, 16, 16)
    assert as_pt.min() >= 0 and as_pt.max() <= 1
    assert as_np.shape == (3, 16, 16, 3)
    assert np.array_equal(as_np, as_pt.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in as_pil)
    assert np.array_equal(np.stack(as_pil), (as_np * 255).round().astype("uint8"))
    features = run("features")
    assert features.images is None
    assert torch.equal(features.image_features, run("pt").image_features)


def test_black_is_minus_one_and_white_is_one(make_pipeline):
    class Identity(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, features):
            return Blip3oPipelineOutputLike(features)

    class Blip3oPipelineOutputLike:
        def __init__(self, sample):
            self.sample = sample

    pipeline = make_pipeline()
    pipeline.decoder = Identity()
    shades = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(5, 1, 1, 1).expand(5, 3, 2, 2)
    images = pipeline(image_features=shades, output_type="pt").images
    assert images[:, 0, 0, 0].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_return_dict_false_gives_a_tuple(pipeline):
    output = pipeline(PROMPTS[0], generator=seeded(1), output_type="pt")
    assert type(output) is Blip3oPipelineOutput
    images, features = pipeline(PROMPTS[0], generator=seeded(1), output_type="pt", return_dict=False)
    assert torch.equal(images, output.images)
    assert torch.equal(features, output.image_features)


def test_given_features_are_decoded_without_a_prompt(pipeline):
    output = pipeline(PROMPTS, generator=seeded(1, 2, 3), output_type="pt")
    decoded = pipeline(image_features=output.image_features, output_type="pt")
    assert torch.equal(decoded.images, output.images)
    assert decoded.image_features is output.image_features
    passed = pipeline(image_features=output.image_features, output_type="features")
    assert passed.images is None
    assert passed.image_features is output.image_features


def test_half_precision_draws(make_pipeline):
    pipeline = make_pipeline().to(torch.bfloat16)
    output = pipeline(PROMPTS, generator=seeded(1, 2, 3))
    assert output.image_features.dtype == torch.bfloat16
    assert [image.size for image in output.images] == [(16, 16)] * 3


def test_latent_flow_decodes_unscaled_latents_with_a_vae(make_pipeline, vae, assert_close, tmp_path):
    pipeline = make_pipeline(objective="latent_flow", decoder=vae)
    output = pipeline(PROMPTS[:2], generator=seeded(1, 2), output_type="pt")
    with torch.no_grad():
        expected = vae.decode(output.image_features / 0.5 + 0.25).sample
    assert output.images.shape == (2, 3, 8, 8)
    assert_close(output.images, (expected / 2 + 0.5).clamp(0, 1))
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded(PROMPTS[:2], generator=seeded(1, 2), output_type="pt").images, output.images)


def test_feature_regression_needs_no_noise(make_pipeline, processor, assert_close):
    pipeline = make_pipeline(
        objective="feature_regression", num_queries=16, feature_mean=[1.5] * 16, feature_std=[3.0] * 16
    )
    assert not hasattr(pipeline.model, "transformer")
    first = pipeline(PROMPTS, output_type="features").image_features
    assert torch.equal(pipeline(PROMPTS, output_type="features").image_features, first)
    model = pipeline.model
    with torch.no_grad():
        predicted = model(**processor.encode_prompts(PROMPTS), target_features=torch.zeros(3, 16, 4, 4)).prediction
    assert_close(first, predicted * 3.0 + 1.5)
    assert pipeline(PROMPTS[0]).images[0].size == (16, 16)


def test_feature_regression_with_a_wrong_number_of_queries_says_so(make_pipeline):
    pipeline = make_pipeline(objective="feature_regression")
    message = "`feature_regression` needs one query per feature: 16. This model has 5 queries. Set `num_queries=16`."
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline(PROMPTS[0])


# Saves


def randomise(pipeline):
    """Weights that no initialisation would give, so that a reload cannot pass by initialising alike."""
    with torch.no_grad():
        for module in (pipeline.model, pipeline.decoder):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return pipeline


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def draw_pictures(pipeline):
    return [np.array(image) for image in pipeline(PROMPTS, generator=seeded(1, 2, 3)).images]


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, DiffusionPipeline])
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_a_saved_pipeline_draws_the_same_pictures(make_pipeline, tmp_path, pipeline_class, max_shard_size):
    pipeline = randomise(make_pipeline(scheduler=Blip3oFlowScheduler(solver="adams_bashforth2")))
    before = draw_pictures(pipeline)
    pipeline.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    loaded = pipeline_class.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is Blip3oPipeline
    assert type(loaded.decoder) is Blip3oPatchDecoder
    assert loaded.scheduler.config.solver == "adams_bashforth2"
    assert loaded.config.default_num_inference_steps == 4
    assert_same_weights(loaded.model, pipeline.model)
    assert_same_weights(loaded.decoder, pipeline.decoder)
    for image, expected in zip(draw_pictures(loaded), before, strict=True):
        assert np.array_equal(image, expected)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_the_root_of_a_saved_pipeline_is_a_transformers_checkpoint(pipeline, tmp_path, max_shard_size):
    randomise(pipeline).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Blip3oConfig
    for auto_class in (Blip3oForConditionalGeneration, AutoModelForImageTextToText):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is Blip3oForConditionalGeneration
        assert_same_weights(loaded, pipeline.model)
    expected = pipeline.processor.encode_prompts(PROMPTS)["input_ids"]
    for auto_class in (Blip3oProcessor, AutoProcessor):
        processor = auto_class.from_pretrained(tmp_path)
        assert type(processor) is Blip3oProcessor
        assert torch.equal(processor.encode_prompts(PROMPTS)["input_ids"], expected)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_pipeline_stores_weights_once(make_pipeline, tmp_path, max_shard_size, tied):
    pipeline = make_pipeline(tied=tied)
    pipeline.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    stored = 0
    for file in tmp_path.rglob("*.safetensors"):
        content = file.read_bytes()
        stored += len(content) - 8 - int.from_bytes(content[:8], "little")
    parameters = [*pipeline.model.parameters(), *pipeline.decoder.parameters()]
    assert stored == sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert all((tmp_path / file).is_file() for file in index["weight_map"].values())
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_model_index_names_the_package(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {name: value for name, value in index.items() if isinstance(value, list)} == {
        "model": ["blip3o_hf", "Blip3oForConditionalGeneration"],
        "processor": ["blip3o_hf", "Blip3oProcessor"],
        "scheduler": ["blip3o_hf", "Blip3oFlowScheduler"],
        "decoder": ["blip3o_hf", "Blip3oPatchDecoder"],
    }
    assert index["_class_name"] == "Blip3oPipeline"


def test_a_pipeline_without_a_decoder_is_saved_and_loaded(make_pipeline, tmp_path):
    pipeline = make_pipeline(decoder=None)
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    assert loaded.decoder is None
    assert torch.equal(draw_features(loaded), draw_features(pipeline))


def test_loading_in_another_dtype_casts_every_part(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for module in (loaded.model, loaded.decoder):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


# Bad input


FEATURES = torch.zeros(1, 16, 4, 4)
NO_PROMPT = "`prompt` must be a string or a list of strings. Got {}. Example: pipe('two red circles')."


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {},
            ValueError,
            "Exactly one of `prompt`, `condition` and `image_features` must be given. Got none. Pass a prompt or its "
            "condition to generate, or features to decode.",
        ),
        (
            {"prompt": "a circle", "image_features": FEATURES},
            ValueError,
            "Exactly one of `prompt`, `condition` and `image_features` must be given. Got prompt and image_features. "
            "Pass a prompt or its condition to generate, or features to decode.",
        ),
        (
            {"prompt": "a circle", "output_type": "jpg"},
            ValueError,
            "`output_type` must be one of pil, np, pt, features, latent. Got 'jpg'. Use 'pil' for PIL images.",
        ),
        ({"prompt": 7}, TypeError, NO_PROMPT.format("int 7")),
        ({"prompt": []}, TypeError, NO_PROMPT.format("list []")),
        (
            {"prompt": ["a circle", None]},
            TypeError,
            "A prompt must be a string. Got NoneType. Pass one string, or a list of strings.",
        ),
        ({"prompt": ""}, ValueError, "A prompt must say something. Got ''. Describe the image to draw."),
        *(
            (
                {"prompt": "a circle", "num_inference_steps": steps},
                ValueError,
                f"`num_inference_steps` must be an integer of at least 1. Got {steps!r}. This model's default is 4.",
            )
            for steps in (0, -3, 2.0, True, "4")
        ),
        *(
            (
                {"prompt": "a circle", "guidance_scale": scale},
                ValueError,
                f"`guidance_scale` must be a finite number of at least 0. Got {scale!r}. This model's default is "
                "3.0; 1 switches guidance off.",
            )
            for scale in (-1, float("nan"), float("inf"), "3")
        ),
        *(
            (
                {"prompt": "a circle", "guidance_interval": interval},
                ValueError,
                f"`guidance_interval` must be two noise levels with 0 <= low <= high <= 1. Got {interval}. (0.0, 1.0) "
                "guides every step.",
            )
            for interval in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1000), (0.0, "1"))
        ),
        *(
            (
                {"prompt": "a circle", "num_images_per_prompt": number},
                ValueError,
                f"`num_images_per_prompt` must be an integer of at least 1. Got {number!r}. Use 1 for one image per "
                "prompt.",
            )
            for number in (0, 1.5)
        ),
        (
            {"prompt": ["a", "b"], "num_images_per_prompt": 2, "generator": [torch.Generator()] * 2},
            ValueError,
            "A list of generators must hold one per image. Got 2 for 4 images (2 prompts x 2). Pass one generator, "
            "or 4.",
        ),
        *(
            (
                {"prompt": "a circle", "generator": generator},
                TypeError,
                f"`generator` must be a torch.Generator, or a list of one per image. Got {wrong!r}. Use "
                "torch.Generator().manual_seed(0).",
            )
            for generator, wrong in ((3, 3), ([None], None))
        ),
        (
            {"prompt": ["a", "b"], "latents": FEATURES},
            ValueError,
            "`latents` must be a tensor of shape [2, 16, 4, 4]. Got [1, 16, 4, 4]. Leave it out to draw noise.",
        ),
        (
            {"prompt": "a circle", "callback_on_step_end_tensor_inputs": ["latents", "condition"]},
            ValueError,
            "`callback_on_step_end_tensor_inputs` must be among ['latents', 'prompt_embeds']. Got ['condition']. The "
            "callback can read and replace the latents.",
        ),
        (
            {"image_features": torch.zeros(1, 16, 5, 5)},
            ValueError,
            "The decoder reads features of shape [batch, 16, 4, 4]. Got [1, 16, 5, 5]. Use the decoder that was "
            "trained for this model's features.",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(make_pipeline, arguments, error, message):
    pipeline = make_pipeline()

    def fail(*args, **kwargs):
        raise AssertionError("the backbone ran")

    pipeline.model.get_decoder().register_forward_pre_hook(fail)
    with pytest.raises(error, match=re.escape(message)):
        pipeline(**arguments)


@pytest.mark.parametrize("arguments", [{"prompt": "a circle"}, {"image_features": FEATURES}])
def test_without_a_decoder_pixels_are_refused(make_pipeline, arguments):
    message = (
        "This pipeline has no decoder, so it makes image features and no pixels. Got output_type='pil'. Pass "
        "output_type='features', or load a repository with a decoder."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_pipeline(decoder=None)(**arguments)


def test_a_path_may_begin_with_the_home_folder_and_a_missing_one_is_told(make_pipeline, tmp_path, monkeypatch):
    make_pipeline().save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Blip3oPipeline.from_pretrained("~/mine").processor is not None
    with pytest.raises(ValueError, match=r"neither a valid local path nor a valid repo id"):
        Blip3oPipeline.from_pretrained(tmp_path / "none" / "here")
