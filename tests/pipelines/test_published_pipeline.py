"""A published repository becomes a pipeline as it is: model, tokenizer and decoder, with the reference's settings."""

import json
import re
import shutil
from copy import deepcopy

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from tests.published_layout import CHANNELS, HIDDEN, NUM_QUERIES, TOKEN_IDS, VOCAB_SIZE, write_published_checkpoint

from blip3o_hf import Blip3oDecoderPipeline, Blip3oFlowScheduler, Blip3oForConditionalGeneration, Blip3oPipeline

STEPS = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}
SIZE = 64  # pixels: the decoder's 8 latents, 8 pixels each


def write(folder, **settings):
    return write_published_checkpoint(folder, **{"diffusion_decoder": True, **settings})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write(folder, shards=2, tied=False, target_encoder=True)
    return folder


@pytest.fixture
def copy(published, tmp_path):
    """A copy of the repository to damage."""
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The library's warnings so far, as one text."""
    monkeypatch.setattr(diffusers_logging.get_logger("diffusers"), "propagate", True)
    monkeypatch.setattr(diffusers_logging.get_logger("blip3o_hf"), "propagate", True)
    return lambda: caplog.text


def load(folder, **settings):
    pipeline = Blip3oPipeline.from_pretrained(folder, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipeline, prompt="the cat", seed=0, **settings):
    return pipeline(prompt, generator=seeded(seed), output_type="pt", **STEPS, **settings).images


def condition():
    return torch.randn(1, NUM_QUERIES, HIDDEN, generator=seeded(3))


def test_a_published_repository_draws(published):
    pipeline = load(published)
    assert pipeline("the cat", **STEPS).images[0].size == (SIZE, SIZE)
    assert draw(pipeline, ["the cat", "a"], num_images_per_prompt=2).shape == (4, 3, SIZE, SIZE)


def test_its_settings_are_the_reference_s(published):
    pipeline = load(published)
    assert pipeline.scheduler.config.integer_timesteps and pipeline.scheduler.config.solver == "euler"
    assert pipeline.config.null_prompt == " " and pipeline.config.null_seed is None
    assert pipeline.processor.training_turn_end == "<|im_end|>\n"
    assert (pipeline.config.default_num_inference_steps, pipeline.config.default_guidance_scale) == (30, 3.0)
    decoder = (pipeline.config.default_decoder_num_inference_steps, pipeline.config.default_decoder_guidance_scale)
    assert decoder == (50, 3.0)
    assert pipeline.config._name_or_path == str(published)


def test_the_parts_are_those_of_the_repository(published):
    pipeline = load(published)
    model = Blip3oForConditionalGeneration.from_pretrained(published)
    decoder = Blip3oDecoderPipeline.from_pretrained(published, subfolder="diffusion-decoder")
    for part, expected in ((pipeline.model, model), (pipeline.unet, decoder.unet), (pipeline.vae, decoder.vae)):
        actual, expected = part.state_dict(), expected.state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert dict(pipeline.decoder_scheduler.config) == dict(decoder.scheduler.config)


def test_the_global_generator_draws_in_the_reference_s_order(published):
    """Noise of the features, of the null features on the first call only, then of the decoder."""
    pipeline = load(published)
    torch.manual_seed(5)
    first = pipeline("the cat", output_type="pt", **STEPS).images
    second = pipeline("the cat", output_type="pt", **STEPS).images

    torch.manual_seed(5)
    noise = [torch.randn(1, CHANNELS, 8, 8), torch.randn(1, CHANNELS, 8, 8), torch.randn(1, 4, 8, 8)]
    later_noise = [torch.randn(1, CHANNELS, 8, 8), torch.randn(1, 4, 8, 8)]
    parts = load(published)
    null = parts.generate_features(parts.encode_prompt([" "], raw=True), 30, 3.0, latents=noise[1])
    decoder = parts.decoder_pipeline
    for images, (latents, decoder_latents) in ((first, noise[::2]), (second, later_noise)):
        features = parts("the cat", latents=latents, num_inference_steps=2, output_type="features").image_features
        expected = decoder(features, null, latents=decoder_latents, num_inference_steps=2, output_type="pt").images
        torch.testing.assert_close(images, expected)


def test_a_seed_for_the_null_features_frees_images_from_earlier_calls(published):
    pipelines = [load(published, null_seed=0) for _ in range(2)]
    draw(pipelines[0], "a", seed=1)
    torch.testing.assert_close(draw(pipelines[0]), draw(pipelines[1]))
    assert not torch.allclose(draw(load(published)), draw(pipelines[1]))


def test_one_generator_of_a_list_draws_the_null_features(published):
    pipeline, generators = load(published), [seeded(1), seeded(2)]
    pipeline(["the cat", "a"], generator=generators, output_type="pt", **STEPS)
    other = seeded(1)
    torch.randn(1, CHANNELS, 8, 8, generator=other)
    torch.testing.assert_close(pipeline.null_features, load(published).prepare_null_features(other))


@pytest.mark.parametrize("name", ["8b", "4b"])
def test_a_saved_pipeline_draws_the_same(name, tmp_path):
    write(tmp_path / "published", tied=name == "4b")
    pipeline = load(tmp_path / "published")
    images = draw(pipeline)
    pipeline.save_pretrained(tmp_path / "ours")
    for pipeline_class in (Blip3oPipeline, DiffusionPipeline):
        saved = pipeline_class.from_pretrained(tmp_path / "ours")
        saved.set_progress_bar_config(disable=True)
        assert saved.config.null_seed is None
        assert torch.equal(draw(saved), images)


def test_a_repository_in_a_subfolder_and_in_the_hub_s_cache(published, tmp_path):
    images = draw(load(published))
    assert torch.equal(draw(load(published.parent, subfolder=published.name)), images)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    shutil.copytree(published, repository / "snapshots" / commit)
    pipeline = load("owner/name", cache_dir=tmp_path / "hub", local_files_only=True)
    assert torch.equal(draw(pipeline), images)


def test_parts_may_be_given(published):
    scheduler, decoder_scheduler = Blip3oFlowScheduler(solver="adams_bashforth2"), DDIMScheduler()
    model = Blip3oForConditionalGeneration.from_pretrained(published)
    pipeline = load(published, model=model, scheduler=scheduler, decoder_scheduler=decoder_scheduler)
    assert pipeline.model is model and pipeline.scheduler is scheduler
    assert pipeline.decoder_scheduler is decoder_scheduler
    assert load(published, decoder=None, unet=None, vae=None, decoder_scheduler=None).unet is None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ({"default": torch.bfloat16, "vae": torch.float32}, (torch.bfloat16, torch.bfloat16, torch.float32)),
        ({"model": torch.float16}, (torch.float16, torch.float32, torch.float32)),
        ("bfloat16", (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ({"model": "float16", "unet": "bfloat16"}, (torch.float16, torch.bfloat16, torch.float32)),
        ("auto", (torch.float32, torch.float32, torch.float32)),
    ],
)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_each_part_gets_its_precision(published, name, dtype, expected):
    pipeline = load(published, **{name: dtype})
    assert (pipeline.model.dtype, pipeline.unet.dtype, pipeline.vae.dtype) == expected


def test_a_saved_pipeline_takes_names_of_types_too(published, tmp_path):
    load(published).save_pretrained(tmp_path)
    pipeline = load(tmp_path, dtype="bfloat16")
    assert {pipeline.model.dtype, pipeline.unet.dtype, pipeline.vae.dtype} == {torch.bfloat16}
    for folder in (published, tmp_path):
        with pytest.raises(ValueError, match=r"`dtype` must be a floating-point type of PyTorch.* Got 'bf16'\."):
            load(folder, dtype="bf16")


def test_arguments_of_the_model_reach_it(published):
    assert load(published, attn_implementation="eager").model.config._attn_implementation == "eager"


def test_without_a_tokenizer_a_condition_draws(published, tmp_path, warnings):
    write(tmp_path / "bare", tokenizer=None)
    pipeline = load(tmp_path / "bare")
    assert f"{tmp_path}/bare holds no tokenizer, so prompts cannot be read." in warnings()
    assert pipeline.processor is None
    message = "Only a processor can read a prompt. Got 'the cat', and this pipeline has none. Load it with processor="
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(pipeline)
    message = "needs features of the null prompt, which only a processor can read. This pipeline has none."
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(pipeline, None, condition=condition())
    images = draw(pipeline, None, condition=condition(), decoder_guidance_scale=1.0)
    assert images.shape == (1, 3, SIZE, SIZE)
    pipeline.save_pretrained(tmp_path / "ours")
    assert torch.equal(draw(load(tmp_path / "ours"), None, condition=condition(), decoder_guidance_scale=1.0), images)
    given = load(tmp_path / "bare", processor=load(published).processor)
    assert draw(given).shape == (1, 3, SIZE, SIZE)


def test_a_condition_draws_what_its_prompt_draws(published):
    pipeline = load(published)
    expected = draw(pipeline, ["the cat", "a"], num_images_per_prompt=2)
    conditions = pipeline.encode_prompt(["the cat", "a"])
    again = load(published)
    drawn = draw(again, None, condition=conditions, num_images_per_prompt=2)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (torch.zeros(NUM_QUERIES, HIDDEN), f"[{NUM_QUERIES}, {HIDDEN}]"),
        (torch.zeros(0, NUM_QUERIES, HIDDEN), f"[0, {NUM_QUERIES}, {HIDDEN}]"),
        ([1.0], "list"),
    ],
)
def test_a_condition_of_another_shape_is_refused(published, value, received):
    message = (
        f"`condition` must be a tensor of shape [batch, {NUM_QUERIES}, {HIDDEN}]. Got {received}. `encode_prompt` "
        f"makes it."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(load(published), None, condition=value)


def test_without_a_decoder_features_are_drawn(tmp_path, warnings):
    write(tmp_path, diffusion_decoder=False)
    pipeline = load(tmp_path)
    assert f"{tmp_path} holds no diffusion-decoder/, so only output_type='features' works." in warnings()
    features = pipeline("the cat", num_inference_steps=2, output_type="features").image_features
    assert features.shape == (1, CHANNELS, 8, 8)
    with pytest.raises(ValueError, match="This pipeline has no decoder"):
        pipeline("the cat")


# Damage


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_truncated_decoder_is_refused_by_file_and_tensor(copy, part):
    file = copy / "diffusion-decoder" / part / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is cut short: it has \d+ bytes, and \S+ ends at"):
        load(copy)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_decoder_of_no_numbers_is_refused_by_file_and_tensor(copy, part):
    file = copy / "diffusion-decoder" / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    message = f"Weights must be finite numbers. {name} (in {file.name}) of {file.parent} holds NaN or infinity."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(copy)


def test_a_decoder_shard_outside_its_folder_is_refused(copy):
    folder = copy / "diffusion-decoder" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").rename(
        folder / "diffusion_pytorch_model-00001-of-00001.safetensors"
    )
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../../elsewhere.safetensors"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    message = "places conv_in.weight in '../../../elsewhere.safetensors', outside of it."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(copy)


def test_a_part_of_the_decoder_that_is_missing_is_named(copy):
    shutil.rmtree(copy / "diffusion-decoder" / "vae")
    with pytest.raises(ValueError, match=r"lacks vae/config\.json"):
        load(copy)


def test_an_incomplete_decoder_in_our_layout_is_refused(published, tmp_path):
    load(published).save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    message = f"{tmp_path}/unet lacks 1, conv_in.bias among them. Save or download it again."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path)


def test_a_saved_decoder_of_no_numbers_is_refused_by_name(published, tmp_path):
    load(published).save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    message = f"Weights must be finite numbers. conv_in.bias of {tmp_path}/unet holds NaN or infinity."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path)


def test_a_saved_decoder_in_a_pickle_is_not_read(published, tmp_path):
    load(published).save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    for settings in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
            load(tmp_path, **settings)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_of_the_decoder_is_refused_by_its_place(copy, content):
    file = copy / "diffusion-decoder" / "unet" / "config.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} does not. Save or download it again.")):
        load(copy)


def test_a_tokenizer_that_is_larger_than_the_vocabulary_is_refused(published):
    pipeline = load(published)
    processor = deepcopy(pipeline.processor)
    processor.tokenizer.add_tokens(["<more>"])
    message = (
        f"The tokenizer's largest id is {VOCAB_SIZE}, and the model has {VOCAB_SIZE} embeddings. Use the tokenizer "
        f"that was saved with the model."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load(published, model=pipeline.model, processor=processor)


def test_features_of_another_size_are_refused(published):
    message = "`image_features` must hold the model's 64 tokens, as its null features do. Got [1, 12, 7, 7]."
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(load(published), None, image_features=torch.zeros(1, CHANNELS, 7, 7))


def test_token_ids_come_from_the_tokenizer(published):
    inputs = load(published).processor.encode_prompts(["the cat"])
    assert inputs["input_ids"][0, -1] == TOKEN_IDS["[IMG]"]


def test_a_device_map_of_names_is_for_the_model(published):
    message = "The `device_map` of a pipeline must be a string, such as 'balanced' or 'cuda'. Got a dictionary."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(published, device_map={"": "cpu"})
    model = Blip3oForConditionalGeneration.from_pretrained(published, device_map={"": "cpu"})
    assert torch.equal(draw(load(published, model=model)), draw(load(published)))
