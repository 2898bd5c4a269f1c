"""What users of diffusers do with any pipeline, done with the packaged one."""

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, FirstBlockCacheConfig, TaylorSeerCacheConfig
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
