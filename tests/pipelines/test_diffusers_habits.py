"""What users of diffusers do with any pipeline, done with the packaged one."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DiffusionPipeline,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.attention_dispatch import attention_backend

from blip3o_hf import Blip3oPipeline, packaged_model_path

TINY = packaged_model_path()
PROMPTS = ["two red circles", "a blue square above a green triangle"]


@pytest.fixture
def pipe():
    pipe = Blip3oPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    arguments = {
        "prompt": PROMPTS,
        "generator": generators,
        "num_inference_steps": 6,
        "plan": False,
        "guidance_scale": 2.0,
        "num_attempts": 1,
        "output_type": "pt",
        **arguments,
    }
    return pipe(**arguments)


@pytest.fixture(scope="module")
def expected():
    pipe = Blip3oPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    return draw(pipe)


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_every_class_loads_the_same_pipeline(pipeline_class, expected):
    pipe = pipeline_class.from_pretrained(TINY)
    assert type(pipe) is Blip3oPipeline
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipe).images, expected.images)


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, AutoPipelineForText2Image])
def test_a_pipeline_from_another_shares_its_parts(pipe, pipeline_class, expected):
    other = pipeline_class.from_pipe(pipe)
    assert other.model is pipe.model and other.decoder is pipe.decoder
    assert other.config.default_guidance_scale == pipe.config.default_guidance_scale
    other.set_progress_bar_config(disable=True)
    assert torch.equal(draw(other).images, expected.images)


def test_the_prior_alone_then_the_decoder_alone(pipe, expected):
    prior = Blip3oPipeline.from_pretrained(TINY, decoder=None)
    assert prior.decoder is None
    prior.set_progress_bar_config(disable=True)
    features = draw(prior, output_type="features").image_features
    assert torch.equal(features, expected.image_features)
    images = pipe(image_features=features, output_type="pt").images
    assert torch.equal(images, expected.images)


def test_a_cache_of_block_outputs_draws_the_same_where_it_skips_nothing(pipe, expected):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(draw(pipe).images, expected.images)
    half = draw(pipe, guidance_interval=(0.0, 0.5))
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe, guidance_interval=(0.0, 0.5)).images, half.images)


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=0.5),
        TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r"layers\.\d+\.(attn1|feed_forward)"]
        ),
    ],
)
def test_a_cache_forgets_one_run_before_the_next(pipe, expected, config):
    pipe.transformer.enable_cache(config)
    first = draw(pipe).images
    assert not torch.equal(first, expected.images)
    draw(pipe, prompt=PROMPTS[:1], generator=None)  # of another size, from another prompt
    assert torch.equal(draw(pipe).images, first)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe).images, expected.images)


def test_repeated_blocks_compile(pipe, expected, assert_close):
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_close(draw(pipe).image_features, expected.image_features)


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends(pipe, expected, assert_close, backend):
    with attention_backend("native"):  # the model's own choice is one for all models, too, until here
        pipe.transformer.set_attention_backend(backend)
        assert_close(draw(pipe).image_features, expected.image_features, 1e-4)
        pipe.transformer.reset_attention_backend()
    with attention_backend(backend):
        assert_close(draw(pipe).image_features, expected.image_features, 1e-4)


def test_components_make_a_pipeline(pipe, expected):
    other = Blip3oPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(draw(other).images, expected.images)


# Caches that look for blocks by their names


def hooked(transformer, hook):
    """Names of the modules that a cache of diffusers watches."""
    registries = {name: getattr(module, "_diffusers_hook", None) for name, module in transformer.named_modules()}
    return {name for name, registry in registries.items() if registry is not None and registry.get_hook(hook)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"attn1", "attn2", "feed_forward"}),
        ({"use_lite_mode": True}, {"", "norm_out"}),
        ({"cache_identifiers": [r"layers\.\d+\.attn1"]}, {"attn1"}),
        ({"skip_predict_identifiers": [r"layers\.1"], "cache_identifiers": [r"layers\.0"]}, {""}),
    ],
)
def test_taylorseer_knows_the_blocks(pipe, expected_names_of, settings, expected):
    config = TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, **settings)
    pipe.transformer.enable_cache(config)
    assert expected_names_of(hooked(pipe.transformer, "taylorseer_cache")) == expected


@pytest.fixture
def expected_names_of():
    """Names of modules without the blocks that they are in."""
    return lambda names: {
        name.split(".", 2)[-1] if name.count(".") > 1 else name.removeprefix("layers.").strip("0123456789")
        for name in names
    }


@pytest.mark.parametrize("settings", [{}, {"use_lite_mode": True}])
def test_taylorseer_draws_nearly_the_same(pipe, expected, settings):
    config = TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=3, taylor_factors_dtype=torch.float32, **settings
    )
    pipe.transformer.enable_cache(config)
    first = draw(pipe)
    assert not torch.equal(first.image_features, expected.image_features)
    assert torch.nn.functional.cosine_similarity(first.image_features, expected.image_features, dim=1).mean() > 0.5
    assert torch.equal(draw(pipe).images, first.images)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe).images, expected.images)


@pytest.mark.parametrize(("kind", "names"), [("spatial", {"attn1"}), ("cross", {"attn2"})])
def test_pyramid_attention_broadcast_knows_the_attentions(pipe, expected, expected_names_of, kind, names):
    ranges = {f"{kind}_attention_block_skip_range": 2, f"{kind}_attention_timestep_skip_range": (0, 900)}
    config = PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: pipe.current_timestep, **ranges)
    pipe.transformer.enable_cache(config)
    assert expected_names_of(hooked(pipe.transformer, "pyramid_attention_broadcast")) == names
    first = draw(pipe)
    assert not torch.equal(first.image_features, expected.image_features)
    assert torch.nn.functional.cosine_similarity(first.image_features, expected.image_features, dim=1).mean() > 0.5
    assert torch.equal(draw(pipe).images, first.images)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe).images, expected.images)


# Words and numbers


def test_numbers_of_numpy_are_numbers(pipe, expected):
    numbers = {
        "num_inference_steps": np.int64(6),
        "guidance_scale": np.float32(pipe.config.default_guidance_scale),
        "guidance_interval": (np.float32(0), np.float64(1)),
        "num_images_per_prompt": np.int32(1),
        "num_attempts": np.int64(1),
    }
    assert torch.equal(draw(pipe, **numbers).images, draw(pipe, num_attempts=1).images)
    features = expected.image_features
    varied = draw(pipe, image_features=features, strength=np.float32(0.5))
    assert torch.equal(varied.images, draw(pipe, image_features=features, strength=0.5).images)
    assert pipe.encode_prompt(PROMPTS, num_images_per_prompt=np.int64(2)).shape[0] == 4


@pytest.mark.parametrize("number", [np.bool_(True), np.float64(2.0), np.int64(0)])
def test_numbers_of_numpy_keep_to_the_contract(pipe, number):
    for name in ("num_inference_steps", "num_images_per_prompt"):
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer of at least 1"):
            draw(pipe, **{name: number})


def test_a_prompt_is_encoded_by_its_name_too(pipe):
    condition = pipe.encode_prompt(PROMPTS)
    assert torch.equal(pipe.encode_prompt(prompt=PROMPTS), condition)
    assert torch.equal(pipe.encode_prompt(prompts=PROMPTS), condition)
    assert torch.equal(pipe.encode_prompt(PROMPTS[0]), pipe.encode_prompt(PROMPTS[:1]))
    for arguments in ({}, {"prompt": PROMPTS, "prompts": PROMPTS}):
        with pytest.raises(TypeError, match=r"`prompt` must be given once, and `prompts` is another name of it"):
            pipe.encode_prompt(**arguments)


def test_latents_are_features(pipe):
    features = draw(pipe, output_type="features")
    output = draw(pipe, output_type="latent")
    assert features.images is None and torch.equal(output.image_features, features.image_features)
    assert torch.equal(output.images, features.image_features)
    prior = Blip3oPipeline.from_pretrained(TINY, decoder=None)
    prior.set_progress_bar_config(disable=True)
    images, again = draw(prior, output_type="latent", return_dict=False)
    assert torch.equal(images, features.image_features) and torch.equal(again, images)
