"""The diffusion decoder: sampling identities, every layout it loads, and its place in the whole pipeline."""

import json
import re
import threading
from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image
from safetensors.torch import load_file, save_file

from blip3o_hf import Blip3oDecoderPipeline, Blip3oFlowScheduler, Blip3oPipeline
from blip3o_hf.checkpoints import decoder_files

PROMPTS = ["two red circles", "one small blue square above three green triangles", "a circle"]
CHANNELS, GRID = 16, 4  # of the features, as in conftest.py
SIZE = 16  # of the images: 8 latents of 2 pixels
DEFAULT_VARIANT = "diffusion_pytorch_model.safetensors"


def seeded(*seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators if len(seeds) > 1 else generators[0]


def make_unet(**settings):
    torch.manual_seed(0)
    defaults = {
        "sample_size": SIZE // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": CHANNELS,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": settings.get("cross_attention_dim", CHANNELS) + 6 * 4,
    }
    return UNet2DConditionModel(**{**defaults, **settings}).eval()


def make_vae(**settings):
    torch.manual_seed(0)
    defaults = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    }
    return AutoencoderKL(**{**defaults, **settings}).eval()


def make_scheduler(scheduler_class=EulerDiscreteScheduler):
    return scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )


def make_decoder_pipeline(scheduler=None, vae=None, unet=None):
    pipeline = Blip3oDecoderPipeline(
        unet=make_unet() if unet is None else unet,
        vae=make_vae() if vae is None else vae,
        scheduler=make_scheduler() if scheduler is None else scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def decoder():
    return make_decoder_pipeline()


@pytest.fixture
def features():
    return torch.randn(3, CHANNELS, GRID, GRID, generator=seeded(10))


@pytest.fixture
def null():
    return torch.randn(1, CHANNELS, GRID, GRID, generator=seeded(11))


@pytest.fixture
def make_whole(make_model, make_processor):
    """`make_whole(**settings of Blip3oPipeline)`: a tiny pipeline with a diffusion decoder, 3 steps each."""

    def make(model=None, **settings):
        parts = {"unet": make_unet(), "vae": make_vae(), "decoder_scheduler": make_scheduler()}
        pipeline = Blip3oPipeline(
            model=make_model() if model is None else model,
            processor=make_processor(),
            scheduler=Blip3oFlowScheduler(),
            default_num_inference_steps=3,
            default_decoder_num_inference_steps=3,
            **{**parts, **settings},
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def whole(make_whole):
    return make_whole()


def draw(pipeline, *features, output_type="pt", steps=3, **options):
    return pipeline(*features, num_inference_steps=steps, output_type=output_type, **options).images


def batches_of(unet):
    """A list that grows by the batch of every call of the UNet."""
    batches = []
    unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    return batches


@torch.no_grad()
def plain_denoise(pipeline, noise, features, null, steps, guidance):
    """Euler steps on the noise levels of the published schedule, one branch at a time. `guidance` maps a timestep."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    timesteps = [1000 // steps * index + 1 for index in reversed(range(steps))]
    sigmas = [float(((1 - alphas[timestep]) / alphas[timestep]) ** 0.5) for timestep in timesteps] + [0.0]
    latents = noise * (sigmas[0] ** 2 + 1) ** 0.5
    height, width = (2 * side for side in noise.shape[-2:])

    def predict(tokens, timestep, sigma):
        tokens = tokens.flatten(2).transpose(1, 2).expand(len(noise), -1, -1)
        conditions = {
            "text_embeds": tokens.mean(1),
            "time_ids": torch.tensor([[1024, 1024, 0, 0, height, width]] * len(noise)),
        }
        inputs = latents / (sigma**2 + 1) ** 0.5
        return pipeline.unet(inputs, timestep, encoder_hidden_states=tokens, added_cond_kwargs=conditions).sample

    for timestep, (sigma, sigma_next) in zip(timesteps, pairwise(sigmas), strict=True):
        predicted, null_predicted = (predict(tokens, timestep, sigma) for tokens in (features, null))
        scale = guidance(timestep) if callable(guidance) else guidance
        latents = latents + (sigma_next - sigma) * (null_predicted + scale * (predicted - null_predicted))
    return latents


# Sampling


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_sampling_equals_the_plain_loop(decoder, features, null, assert_close, guidance_scale):
    noise = torch.randn(3, 4, 8, 8)
    latents = draw(decoder, features, null, latents=noise, guidance_scale=guidance_scale, output_type="latent")
    assert_close(latents, plain_denoise(decoder, noise, features, null, 3, guidance_scale))


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 0.0), ()),
        ((0.6, 1.0), (751,)),
        ((0.2, 0.6), (501, 251)),
        ((0.251, 0.501), (501, 251)),
        ((0.0, 1.0), (751, 501, 251, 1)),
    ],
)
def test_guidance_acts_within_its_interval_alone(decoder, features, null, assert_close, interval, guided):
    noise = torch.randn(3, 4, 8, 8)
    batches = batches_of(decoder.unet)
    latents = draw(decoder, features, null, steps=4, latents=noise, guidance_interval=interval, output_type="latent")
    assert batches == [6 if timestep in guided else 3 for timestep in (751, 501, 251, 1)]
    expected = plain_denoise(decoder, noise, features, null, 4, lambda timestep: 3.0 if timestep in guided else 1.0)
    assert_close(latents, expected)


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0])
def test_without_guidance_the_null_features_are_not_needed(decoder, features, null, guidance_scale):
    batches = batches_of(decoder.unet)
    alone = draw(decoder, features, guidance_scale=guidance_scale, generator=seeded(1))
    assert batches == [3, 3, 3]
    assert torch.equal(draw(decoder, features, null, guidance_scale=guidance_scale, generator=seeded(1)), alone)


@pytest.mark.parametrize(
    "scheduler_class", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_a_batch_equals_its_rows_alone(features, null, assert_close, scheduler_class):
    decoder = make_decoder_pipeline(scheduler=make_scheduler(scheduler_class))
    batch = draw(decoder, features, null, generator=seeded(1, 2, 3))
    assert batch.shape == (3, 3, SIZE, SIZE)
    singles = [draw(decoder, features[i : i + 1], null, generator=seeded(i + 1)) for i in range(3)]
    assert_close(batch, torch.cat(singles))


def test_images_of_one_row_come_one_after_the_other(decoder, features, assert_close):
    nulls = torch.randn(2, CHANNELS, GRID, GRID)
    batch = draw(decoder, features[:2], nulls, generator=seeded(1, 2, 3, 4, 5, 6), num_images_per_prompt=3)
    assert batch.shape == (6, 3, SIZE, SIZE)
    rows = zip((0, 0, 0, 1, 1, 1), (1, 2, 3, 4, 5, 6), strict=True)
    singles = [draw(decoder, features[i : i + 1], nulls[i : i + 1], generator=seeded(seed)) for i, seed in rows]
    assert_close(batch, torch.cat(singles))


def test_one_row_of_null_features_serves_all(decoder, features, null):
    repeated = draw(decoder, features, null.expand(3, -1, -1, -1), generator=seeded(1))
    assert torch.equal(draw(decoder, features, null, generator=seeded(1)), repeated)


def test_a_grid_of_features_equals_its_tokens(decoder, features, null):
    grid = draw(decoder, features, null, generator=seeded(1))
    tokens = [tensor.flatten(2).transpose(1, 2) for tensor in (features, null)]
    assert torch.equal(draw(decoder, *tokens, generator=seeded(1)), grid)
    assert torch.equal(draw(decoder, features, tokens[1], generator=seeded(1)), grid)


def test_a_seed_decides_the_images(decoder, features, null):
    first, again, other = (draw(decoder, features, null, generator=seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    as_tuple = draw(decoder, features, null, generator=tuple(seeded(1, 2, 3)))
    assert torch.equal(as_tuple, draw(decoder, features, null, generator=seeded(1, 2, 3)))


def test_own_latents_replace_the_drawn_ones(decoder, features, null):
    drawn = draw(decoder, features, null, generator=seeded(5))
    noise = torch.randn(3, 4, 8, 8, generator=seeded(5))
    assert torch.equal(draw(decoder, features, null, latents=noise), drawn)


def test_the_size_is_drawn_and_told_to_the_unet(decoder, features, null, assert_close):
    noise = torch.randn(1, 4, 12, 6)
    images = draw(decoder, features[:1], null, height=24, width=12, latents=noise)
    assert images.shape == (1, 3, 24, 12)
    with torch.no_grad():
        latents = plain_denoise(decoder, noise, features[:1], null, 3, 3.0)
        assert_close(images, (decoder.decode_latents(latents) / 2 + 0.5).clamp(0, 1))
    assert draw(decoder, features[:1], null, width=32).shape == (1, 3, SIZE, 32)


def test_the_unet_s_own_size_may_be_a_rectangle(features, null):
    assert draw(make_decoder_pipeline(unet=make_unet(sample_size=(4, 8))), features, null).shape == (3, 3, 8, 16)
    decoder = make_decoder_pipeline(unet=make_unet(sample_size=None))
    message = "`height` must be given when the UNet's config names no `sample_size`. Got None. Pass it in pixels"
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(decoder, features, null)
    assert draw(decoder, features, null, height=8, width=8).shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    "scheduler_class", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_a_scheduler_remembers_nothing_of_the_last_run(features, null, scheduler_class):
    decoder = make_decoder_pipeline(scheduler=make_scheduler(scheduler_class))
    first = draw(decoder, features, null, generator=seeded(1))
    assert torch.isfinite(first).all()
    assert torch.equal(draw(decoder, features, null, generator=seeded(1)), first)


# The callback


def test_the_callback_sees_every_step_and_replaces_latents(decoder, features, null):
    seen = []
    replacement = torch.randn(3, 4, 8, 8)

    def callback(pipe, step, timestep, tensors):
        assert pipe is decoder
        seen.append((step, float(timestep), tensors["latents"]))
        return {"latents": replacement} if step == 2 else None

    latents = draw(decoder, features, null, callback_on_step_end=callback, output_type="latent")
    assert [entry[:2] for entry in seen] == [(0, 667.0), (1, 334.0), (2, 1.0)]
    assert torch.equal(latents, replacement)
    assert not torch.equal(seen[-1][2], replacement)


def test_the_callback_gets_only_the_tensors_it_asks_for(decoder, features, null):
    def callback(pipe, step, timestep, tensors):
        assert tensors == {}
        return {}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ()}
    with_callback = draw(decoder, features, null, generator=seeded(1), **options)
    assert torch.equal(with_callback, draw(decoder, features, null, generator=seeded(1)))


def test_a_call_in_the_midst_of_another_changes_neither(decoder, features, null):
    expected = draw(decoder, features, null, generator=seeded(1))
    short = draw(decoder, features, null, steps=2, generator=seeded(2))
    inner = []

    def run():
        inner.append(draw(decoder, features, null, steps=2, generator=seeded(2)))

    def callback(pipe, step, timestep, tensors):
        if step == 1:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(60)

    assert torch.equal(draw(decoder, features, null, generator=seeded(1), callback_on_step_end=callback), expected)
    assert torch.equal(inner[0], short)


def test_a_callback_switches_guidance_off_and_ends_the_steps(decoder, features, null):
    options = {"generator": seeded(1), "output_type": "latent"}
    expected = draw(decoder, features, null, guidance_interval=(0.5, 1.0), **options)  # the first step alone
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    options["generator"] = seeded(1)
    assert torch.equal(draw(decoder, features, null, callback_on_step_end=callback, **options), expected)
    seen = []

    def interrupt(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1

    assert torch.equal(draw(decoder, features, null, callback_on_step_end=interrupt, output_type="latent"), seen[-1])
    assert len(seen) == 2 and decoder.interrupt and decoder.num_timesteps == 3


def test_guidance_switched_on_needs_null_features(decoder, features):
    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale = 3.0

    with pytest.raises(ValueError, match=r"Guidance needs `null_features`. A callback switched it on"):
        draw(decoder, features, guidance_scale=1.0, callback_on_step_end=callback)


def test_an_interrupt_of_the_whole_is_for_its_decoder_too(make_whole):
    whole, sizes = make_whole(), []
    expected = whole("two red circles", generator=seeded(1), output_type="pt").images

    def interrupt(module, arguments):
        sizes.append(len(arguments[0]))
        thread = threading.Thread(target=setattr, args=(whole, "_interrupt", True))
        thread.start()
        thread.join(60)

    handle = whole.unet.register_forward_pre_hook(interrupt)
    whole("two red circles", generator=seeded(1))
    assert sizes == [2] and whole.interrupt
    handle.remove()
    assert torch.equal(whole("two red circles", generator=seeded(1), output_type="pt").images, expected)


def test_interrupted_null_features_are_not_kept(make_whole):
    whole, calls = make_whole(), []

    def interrupt(module, arguments):
        calls.append(1)
        if len(calls) == 4:  # the first step of the null features, after three of the prompt's
            whole._interrupt = True

    handle = whole.transformer.register_forward_pre_hook(interrupt)
    images = whole("two red circles", generator=seeded(1), output_type="pt").images
    assert len(calls) == 4 and whole.null_features is None
    handle.remove()
    again = whole("two red circles", generator=seeded(1), output_type="pt").images
    assert whole.null_features is not None and not torch.equal(images, again)


def test_numbers_of_numpy_are_numbers(decoder, features, null):
    numbers = {"height": np.int64(32), "width": np.int32(16), "guidance_scale": np.float32(2)}
    numbers["num_images_per_prompt"] = np.int64(2)
    plain = {name: value.item() for name, value in numbers.items()}
    images = draw(decoder, features, null, steps=np.int64(2), generator=seeded(1), **numbers)
    assert torch.equal(images, draw(decoder, features, null, steps=2, generator=seeded(1), **plain))


# Pixels


def test_output_types_hold_the_same_images(decoder, features, null):
    as_pt, as_np, as_pil, latents = (
        draw(decoder, features, null, generator=seeded(1), output_type=output_type)
        for output_type in ("pt", "np", "pil", "latent")
    )
    assert as_pt.shape == (3, 3, SIZE, SIZE)
    assert as_pt.min() >= 0 and as_pt.max() <= 1
    assert np.array_equal(as_np, as_pt.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in as_pil)
    assert np.array_equal(np.stack(as_pil), (as_np * 255).round().astype("uint8"))
    assert latents.shape == (3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal((decoder.decode_latents(latents) / 2 + 0.5).clamp(0, 1), as_pt)


def test_return_dict_false_gives_a_tuple(decoder, features, null):
    images = draw(decoder, features, null, generator=seeded(1))
    output = decoder(features, null, num_inference_steps=3, generator=seeded(1), output_type="pt", return_dict=False)
    assert type(output) is tuple and len(output) == 1
    assert torch.equal(output[0], images)


@pytest.mark.parametrize("shift_factor", [None, 0.25])
def test_latents_are_unscaled_before_the_vae(assert_close, shift_factor):
    vae = make_vae(shift_factor=shift_factor)
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        images = make_decoder_pipeline(vae=vae).decode_latents(latents)
        assert_close(images, vae.decode(latents / 0.5 + (shift_factor or 0.0)).sample)


def test_half_precision_draws(features, null):
    decoder = make_decoder_pipeline().to(torch.bfloat16)
    latents = draw(decoder, features, null, output_type="latent")
    assert latents.dtype == torch.bfloat16
    assert [image.size for image in draw(decoder, features, null, output_type="pil")] == [(SIZE, SIZE)] * 3


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_that_overflows_in_fp16_decodes_in_fp32(force_upcast):
    vae = make_vae(force_upcast=force_upcast).to(torch.float16)
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    images = make_decoder_pipeline(vae=vae).decode_latents(torch.randn(1, 4, 8, 8))
    assert images.dtype == (torch.float32 if force_upcast else torch.float16)
    assert vae.dtype == torch.float16
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())


def test_two_threads_decode_with_a_vae_that_overflows(monkeypatch):
    decoder = make_decoder_pipeline(vae=make_vae(force_upcast=True).to(torch.float16))
    latents = torch.randn(1, 4, 8, 8)
    expected = decoder.decode_latents(latents)
    decode, first_is_done, second = decoder.vae.decode, threading.Event(), []
    thread = threading.Thread(target=lambda: second.append(decoder.decode_latents(latents)))

    def slow(given):
        if threading.current_thread() is thread:
            first_is_done.wait(60)
        else:
            thread.start()
            thread.join(0.2)
        return decode(given)

    monkeypatch.setattr(decoder.vae, "decode", slow)
    first = decoder.decode_latents(latents)
    first_is_done.set()
    thread.join(60)
    assert torch.equal(first, expected) and torch.equal(second[0], expected)


# Folders


def add_noise_to_weights(decoder):
    """Weights that no initialisation would give, so that a reload cannot pass by initialising alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in (decoder.unet, decoder.vae):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.fixture
def published(decoder, tmp_path):
    """A decoder and its folder as a published checkpoint has it: three folders of parts and nothing else."""
    add_noise_to_weights(decoder).save_pretrained(tmp_path / "decoder")
    (tmp_path / "decoder" / "model_index.json").unlink()
    return decoder, tmp_path / "decoder"


@pytest.mark.parametrize("pipeline_class", [Blip3oDecoderPipeline, DiffusionPipeline])
def test_a_saved_decoder_draws_the_same_images(features, null, tmp_path, pipeline_class):
    decoder = add_noise_to_weights(make_decoder_pipeline(scheduler=make_scheduler(DPMSolverMultistepScheduler)))
    before = draw(decoder, features, null, generator=seeded(1))
    decoder.save_pretrained(tmp_path)
    loaded = pipeline_class.from_pretrained(tmp_path)
    assert type(loaded) is Blip3oDecoderPipeline
    assert type(loaded.scheduler) is DPMSolverMultistepScheduler
    assert str(loaded.name_or_path) == str(tmp_path)
    assert_same_weights(loaded.unet, decoder.unet)
    assert_same_weights(loaded.vae, decoder.vae)
    assert torch.equal(draw(loaded, features, null, generator=seeded(1)), before)


@pytest.mark.parametrize("with_index", [False, True])
def test_the_published_layout_loads(published, features, null, with_index):
    decoder, folder = published
    if with_index:
        index = {
            "_class_name": "EmuVisualGenerationPipeline",
            "multimodal_encoder": ["transformers", "LlamaForCausalLM"],
            "tokenizer": ["transformers", "LlamaTokenizer"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "multimodal_encoder").mkdir()
        (folder / "multimodal_encoder" / "pytorch_model.bin").write_bytes(b"no pickle")
    loaded = Blip3oDecoderPipeline.from_pretrained(folder)
    assert set(loaded.components) == {"unet", "vae", "scheduler"}
    assert type(loaded.scheduler) is EulerDiscreteScheduler
    images = draw(loaded, features, null, generator=seeded(1))
    assert torch.equal(images, draw(decoder, features, null, generator=seeded(1)))
    beside = Blip3oDecoderPipeline.from_pretrained(folder.parent, subfolder="decoder")
    assert torch.equal(draw(beside, features, null, generator=seeded(1)), images)


def test_a_part_may_be_given(published, features, null):
    decoder, folder = published
    vae = make_vae(scaling_factor=2.0)
    scheduler = make_scheduler(DPMSolverMultistepScheduler)
    for part in ("vae", "scheduler"):
        for path in (folder / part).iterdir():
            path.unlink()
    loaded = Blip3oDecoderPipeline.from_pretrained(folder, vae=vae, scheduler=scheduler)
    assert loaded.vae is vae and loaded.scheduler is scheduler
    assert_same_weights(loaded.unet, decoder.unet)


def test_loading_in_another_dtype_casts_every_part(published):
    loaded = Blip3oDecoderPipeline.from_pretrained(published[1], dtype=torch.bfloat16, use_safetensors=True)
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({"unet": torch.bfloat16}, (torch.bfloat16, torch.float32)),
        ({"unet": "bfloat16", "default": torch.float16}, (torch.bfloat16, torch.float16)),
        ({"vae": torch.bfloat16}, (torch.float32, torch.bfloat16)),
    ],
)
def test_every_part_may_have_a_dtype_of_its_own(published, name, dtypes, expected):
    loaded = Blip3oDecoderPipeline.from_pretrained(published[1], **{name: dtypes})
    assert (loaded.unet.dtype, loaded.vae.dtype) == expected


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_variant_is_found_where_there_is_no_plain_file(published, max_shard_size):
    decoder, folder = published
    (folder / "unet" / DEFAULT_VARIANT).unlink()
    half = make_unet().to(torch.bfloat16)
    half.save_pretrained(folder / "unet", variant="bf16", max_shard_size=max_shard_size)
    assert (len(list((folder / "unet").glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = Blip3oDecoderPipeline.from_pretrained(folder)
    assert loaded.unet.dtype == torch.float32
    assert_same_weights(loaded.unet, half.to(torch.float32))
    assert_same_weights(loaded.vae, decoder.vae)


@pytest.mark.parametrize(
    ("present", "asked", "chosen"),
    [
        (("ema", "fp16", "bf16", None), None, None),
        (("ema", "fp16", "bf16"), None, "bf16"),
        (("ema", "fp16"), None, "fp16"),
        (("zero", "ema"), None, "ema"),
        (("ema", "bf16", None), "ema", "ema"),
    ],
)
def test_the_variant_that_is_loaded_is_certain(published, present, asked, chosen):
    folder = published[1]
    for name in ("unet", "vae"):
        plain = folder / name / DEFAULT_VARIANT
        weights = load_file(plain)
        plain.unlink()
        for value, variant in enumerate(present):
            file = f"diffusion_pytorch_model.{variant}.safetensors" if variant else DEFAULT_VARIANT
            save_file({key: torch.full_like(tensor, value) for key, tensor in weights.items()}, folder / name / file)
    loaded = Blip3oDecoderPipeline.from_pretrained(folder, variant=asked)
    for module in (loaded.unet, loaded.vae):
        assert next(module.parameters()).flatten()[0] == present.index(chosen)


def test_a_variant_that_is_not_there_is_refused(published):
    folder = published[1]
    message = (
        f"`variant` must name weight files that exist. Got 'fp8'; {folder / 'unet'} has files without a variant. "
        f"Leave it out to take what is there."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(folder, variant="fp8")


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_pickled_weights_are_refused(published, name):
    folder = published[1]
    (folder / name / DEFAULT_VARIANT).rename(folder / name / "diffusion_pytorch_model.bin")
    message = (
        f"Weights must be safetensors files (diffusion_pytorch_model.safetensors). {folder / name} has only "
        f"diffusion_pytorch_model.bin, and loading a pickle can run any code. Convert or download the safetensors "
        f"files."
    )
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=re.escape(message)):
            Blip3oDecoderPipeline.from_pretrained(folder, **options)


def test_a_folder_without_weights_is_refused(published):
    folder = published[1]
    (folder / "vae" / DEFAULT_VARIANT).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'vae'} has no weights.")):
        Blip3oDecoderPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "file"),
    [("unet", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")],
)
def test_a_missing_part_is_named(published, part, file):
    folder = published[1]
    (folder / part).rename(folder.parent / part)
    message = (
        f"A decoder must have unet/config.json, vae/config.json, scheduler/scheduler_config.json. {folder} lacks "
        f"{part}/{file}. Name the folder that holds these parts (in a published checkpoint it is "
        f"`diffusion-decoder`), or pass the part: from_pretrained(folder, {part}=...)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_an_incomplete_checkpoint_is_refused(published, name):
    folder = published[1]
    path = folder / name / DEFAULT_VARIANT
    weights = load_file(path)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, path)
    message = f"A checkpoint must hold every tensor of the model. {folder / name} lacks 1: {lost}. Save or download"
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(folder)


def test_a_scheduler_that_diffusers_does_not_have_is_refused(published):
    folder = published[1]
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    message = (
        f"The decoder's scheduler must be one of diffusers. {path} names 'UNet2DConditionModel'. Pass your own: "
        f"from_pretrained(folder, scheduler=...)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(folder)


@pytest.mark.parametrize("source", ["no/such/folder", "./decoder", "decoder"])
def test_a_path_that_is_no_folder_is_refused(source):
    message = (
        f"A decoder comes from a folder or from the Hub. Got '{source}', which is no folder here and no Hub id "
        f"(owner/name). Check the path."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(source)


@pytest.mark.parametrize("variant", [None, "bf16"])
def test_the_hub_is_asked_for_configs_and_safetensors_alone(published, monkeypatch, variant):
    decoder, folder = published
    if variant:
        decoder.save_pretrained(folder, variant=variant)
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        return str(folder.parent)

    monkeypatch.setattr(decoder_files, "snapshot_download", snapshot_download)
    loaded = Blip3oDecoderPipeline.from_pretrained(
        "owner/name", subfolder="decoder", variant=variant, revision="main", scheduler=make_scheduler()
    )
    assert_same_weights(loaded.unet, decoder.unet)
    weights = ("*.bf16.safetensors", "*.bf16-*.safetensors") if variant else ("*.safetensors",)
    patterns = [f"decoder/{part}/{name}" for part in ("unet", "vae") for name in ("*.json", *weights)]
    assert asked == [("owner/name", {"allow_patterns": patterns, "revision": "main"})]


# Bad input


FEATURES = torch.zeros(2, CHANNELS, GRID, GRID)
NULL = FEATURES[:1]
NO_TENSOR = (
    "must be a tensor [batch, channels, height, width] or [batch, tokens, channels]. Got list. "
    "`Blip3oPipeline(..., output_type='features')` makes features."
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"output_type": "features"},
            ValueError,
            "`output_type` must be one of pil, np, pt, latent. Got 'features'. Use 'pil' for PIL images.",
        ),
        *(
            (
                {name: value},
                ValueError,
                f"`{name}` must be a positive multiple of 2 pixels, the side of a latent. Got {value!r}. Leave it out "
                "for the decoder's own size.",
            )
            for name, value in (("height", 15), ("width", 0), ("width", 16.0))
        ),
        (
            {"num_inference_steps": 0},
            ValueError,
            "`num_inference_steps` must be an integer of at least 1. Got 0. This model's default is 50.",
        ),
        (
            {"guidance_scale": -1},
            ValueError,
            "`guidance_scale` must be a finite number of at least 0. Got -1. This model's default is 3.0; 1 switches "
            "guidance off.",
        ),
        (
            {"guidance_interval": (0.0, 1000)},
            ValueError,
            "`guidance_interval` must be two noise levels with 0 <= low <= high <= 1. Got (0.0, 1000). (0.0, 1.0) "
            "guides every step.",
        ),
        ({"image_features": [FEATURES]}, TypeError, f"`image_features` {NO_TENSOR}"),
        ({"null_features": [NULL]}, TypeError, f"`null_features` {NO_TENSOR}"),
        (
            {"image_features": FEATURES[0, 0]},
            ValueError,
            "`image_features` must have shape [batch, channels, height, width] or [batch, tokens, channels]. Got [4, "
            "4]. Add the batch dimension of a single image with `[None]`.",
        ),
        (
            {"image_features": FEATURES[:0]},
            ValueError,
            "`image_features` must have shape [batch, channels, height, width] or [batch, tokens, channels]. Got [0, "
            "16, 4, 4]. Add the batch dimension of a single image with `[None]`.",
        ),
        *(
            (
                {name: torch.zeros(2, 8, 4, 4)},
                ValueError,
                "The UNet's `cross_attention_dim` must equal the features' channels. It is 16, the features have 8. "
                "Use the decoder that was trained for this model's features.",
            )
            for name in ("image_features", "null_features")
        ),
        *(
            (
                {"null_features": torch.zeros(shape)},
                ValueError,
                "`null_features` must hold one row of 16 tokens, or one per row of `image_features` (2). Got "
                f"{shape[0]} of {shape[2] * shape[3]} tokens. Generate them with the same model.",
            )
            for shape in ((3, 16, 4, 4), (1, 16, 4, 2))
        ),
        (
            {"null_features": None},
            ValueError,
            "Guidance needs `null_features`, the features that the model generates for its null prompt. Got "
            "guidance_scale=3.0 and no null features. Pass those of `Blip3oPipeline.prepare_null_features()`, or "
            "guidance_scale=1.",
        ),
        (
            {"num_images_per_prompt": 0},
            ValueError,
            "`num_images_per_prompt` must be an integer of at least 1. Got 0. Use 1 for one image per prompt.",
        ),
        (
            {"generator": [torch.Generator()] * 3, "num_images_per_prompt": 2},
            ValueError,
            "A list of generators must hold one per image. Got 3 for 4 images (2 prompts x 2). Pass one generator, "
            "or 4.",
        ),
        (
            {"latents": torch.zeros(2, 4, 8, 8), "height": 32},
            ValueError,
            "`latents` must be a tensor of shape [2, 4, 16, 8]. Got [2, 4, 8, 8]. Leave it out to draw noise.",
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            ValueError,
            "`callback_on_step_end_tensor_inputs` must be among ['latents', 'prompt_embeds']. Got ['noise']. The "
            "callback can read and replace the latents.",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_unet_runs(decoder, arguments, error, message):
    batches = batches_of(decoder.unet)
    with pytest.raises(error, match=re.escape(message)):
        decoder(**{"image_features": FEATURES, "null_features": NULL, **arguments})
    assert batches == []


def test_a_unet_that_takes_no_mean_feature_is_refused():
    message = (
        "The decoder's UNet must take the mean feature and the image size: addition_embed_type='text_time'. Got "
        "addition_embed_type=None. Use the UNet of a BLIP3-o decoder."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_decoder_pipeline(unet=make_unet(addition_embed_type=None))


# The whole pipeline


def test_a_prompt_becomes_an_image_of_the_decoder_s_size(whole):
    output = whole(PROMPTS, generator=seeded(1, 2, 3))
    assert [image.size for image in output.images] == [(SIZE, SIZE)] * 3
    assert output.image_features.shape == (3, CHANNELS, GRID, GRID)
    image = whole(PROMPTS[0], height=8, width=24).images[0]
    assert image.size == (24, 8)


def test_the_whole_is_its_parts(whole, assert_close):
    """Features from the prompt, null features from the raw null prompt, then the decoder; generators run through."""
    generators = seeded(1, 2, 3)
    output = whole(PROMPTS, generator=seeded(1, 2, 3), output_type="pt")
    features = whole(PROMPTS, generator=generators, output_type="features").image_features
    assert torch.equal(output.image_features, features)
    with torch.no_grad():
        condition = whole.model.encode_condition(**whole.processor.encode_prompts([" "], raw=True))
        null = whole.denoise(torch.randn(1, CHANNELS, GRID, GRID, generator=seeded(0)), condition, 3, 3.0)
    decoder = Blip3oDecoderPipeline(unet=whole.unet, vae=whole.vae, scheduler=whole.decoder_scheduler)
    decoder.set_progress_bar_config(disable=True)
    images = draw(decoder, features, null, generator=generators)
    assert_close(output.images, images)


def test_a_batch_equals_its_prompts_alone(whole, assert_close):
    batch = whole(PROMPTS[:2], generator=seeded(1, 2, 3, 4), num_images_per_prompt=2, output_type="pt").images
    pairs = zip((0, 0, 1, 1), (1, 2, 3, 4), strict=True)
    singles = [whole(PROMPTS[i], generator=seeded(seed), output_type="pt").images for i, seed in pairs]
    assert_close(batch, torch.cat(singles))


def test_null_features_are_generated_once(make_whole):
    whole = make_whole(null_prompt="  ", null_seed=7)
    prompts = []
    encode_prompts = whole.processor.encode_prompts

    def listen(texts, **options):
        prompts.append((texts, options))
        return encode_prompts(texts, **options)

    whole.processor.encode_prompts = listen
    for _ in range(2):
        whole(PROMPTS[0], num_inference_steps=2)
    assert [text for text, options in prompts if options["raw"]] == [["  "]]
    first = whole.null_features
    assert whole.prepare_null_features() is first
    assert first.shape == (1, CHANNELS, GRID, GRID)
    whole.null_features = None
    assert torch.equal(whole.prepare_null_features(), first)


def test_null_features_depend_on_no_other_call(make_whole):
    fresh = make_whole().prepare_null_features()
    used = make_whole()
    torch.manual_seed(5)
    images = used(
        PROMPTS, num_inference_steps=2, guidance_scale=1.5, generator=seeded(1, 2, 3), output_type="pt"
    ).images
    assert torch.equal(used.null_features, fresh)
    again = used(PROMPTS, num_inference_steps=2, guidance_scale=1.5, generator=seeded(1, 2, 3), output_type="pt")
    assert torch.equal(again.images, images)
    assert not torch.allclose(make_whole(null_seed=1).prepare_null_features(), fresh)


def test_given_null_features_replace_the_generated_ones(whole, null):
    generated = whole(PROMPTS[0], generator=seeded(1), output_type="pt").images
    own = whole.null_features
    whole.null_features = None
    given = whole(PROMPTS[0], generator=seeded(1), output_type="pt", null_features=null).images
    assert whole.null_features is None
    assert not torch.allclose(given, generated)
    same = whole(PROMPTS[0], generator=seeded(1), output_type="pt", null_features=own).images
    assert torch.equal(same, generated)


def test_without_guidance_no_null_features_are_generated(whole):
    batches = batches_of(whole.unet)
    whole(PROMPTS, decoder_guidance_scale=1.0)
    assert whole.null_features is None
    whole(PROMPTS, decoder_num_inference_steps=2, decoder_guidance_interval=(0.3, 1.0))
    assert batches == [3, 3, 3, 6, 3]


def test_features_need_no_noise_of_the_decoder(whole):
    whole(PROMPTS, output_type="features", generator=seeded(1, 2, 3))
    assert whole.null_features is None


def test_given_features_are_decoded_without_a_prompt(whole, assert_close):
    features = whole(PROMPTS, generator=seeded(1, 2, 3), output_type="features").image_features
    images = whole(image_features=features, generator=seeded(4, 5, 6), output_type="pt").images
    decoder = whole.decoder_pipeline
    expected = draw(decoder, features, whole.null_features, generator=seeded(4, 5, 6))
    assert torch.equal(images, expected)


def test_feature_regression_draws_with_a_diffusion_decoder(make_model, make_whole):
    whole = make_whole(make_model(objective="feature_regression", num_queries=GRID**2))
    images = whole(PROMPTS, generator=seeded(1, 2, 3), output_type="pt").images
    assert images.shape == (3, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(whole.null_features, whole.model.regress_features(whole.encode_prompt([" "], raw=True)))


@pytest.mark.parametrize("pipeline_class", [Blip3oPipeline, DiffusionPipeline])
def test_a_saved_whole_draws_the_same_images(make_whole, tmp_path, pipeline_class):
    whole = add_noise_to_weights(make_whole(null_prompt="nothing", null_seed=3, default_decoder_guidance_scale=2.0))
    before = whole(PROMPTS, generator=seeded(1, 2, 3), output_type="pt").images
    whole.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {name: value for name, value in index.items() if isinstance(value, list)} == {
        "model": ["blip3o_hf", "Blip3oForConditionalGeneration"],
        "processor": ["blip3o_hf", "Blip3oProcessor"],
        "scheduler": ["blip3o_hf", "Blip3oFlowScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "decoder_scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    loaded = pipeline_class.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is Blip3oPipeline
    assert loaded.decoder is None
    assert torch.equal(loaded(PROMPTS, generator=seeded(1, 2, 3), output_type="pt").images, before)


def test_a_decoder_joins_a_saved_pipeline(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    parts = {"unet": make_unet(), "vae": make_vae(), "decoder_scheduler": make_scheduler()}
    joined = Blip3oPipeline.from_pretrained(tmp_path, decoder=None, **parts)
    joined.set_progress_bar_config(disable=True)
    assert joined.decoder is None and joined.unet is parts["unet"]
    images = joined(PROMPTS[0], decoder_num_inference_steps=2).images
    assert [image.size for image in images] == [(SIZE, SIZE)]


def test_offloading_names_real_parts_and_brings_each_to_its_device(whole, monkeypatch):
    for pipeline in (whole, whole.decoder_pipeline):
        sequence = pipeline.model_cpu_offload_seq.split("->")
        modules = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        assert modules <= set(sequence) <= set(pipeline.components)
    names = {id(part): name for name, part in whole.components.items()}
    brought = []
    pre_forward = CpuOffload.pre_forward

    def listen(hook, module, *args, **kwargs):
        brought.append(names[id(module)])
        return pre_forward(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", listen)
    whole.enable_model_cpu_offload(device="cpu")
    whole(PROMPTS)
    assert [name for name, _ in groupby(brought)] == ["model", "unet", "vae"]
    brought.clear()
    whole(image_features=torch.zeros(1, CHANNELS, GRID, GRID))
    assert [name for name, _ in groupby(brought)] == ["unet", "vae"]


# Bad input to the whole pipeline


@pytest.mark.parametrize(
    ("parts", "received"),
    [
        ({"vae": None}, "unet, decoder_scheduler"),
        ({"unet": None, "decoder_scheduler": None}, "vae"),
        ({"decoder": "patch"}, "unet, vae, decoder_scheduler, decoder"),
    ],
)
def test_half_a_decoder_and_two_decoders_are_refused(make_whole, make_decoder, parts, received):
    if "decoder" in parts:
        parts = {"decoder": make_decoder()}
    message = (
        "A pipeline decodes by diffusion with `unet`, `vae` and `decoder_scheduler`, or in one pass with `decoder`. "
        f"Got {received}. Pass all three, or `decoder` alone."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_whole(**parts)


def test_a_decoder_for_other_features_is_refused(make_whole):
    message = (
        "The UNet's `cross_attention_dim` must equal the features' channels. It is 8, the features have 16. Use the "
        "decoder that was trained for this model's features."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_whole(unet=make_unet(cross_attention_dim=8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 15}, "`height` must be a positive multiple of 2 pixels, the side of a latent. Got 15."),
        (
            {"decoder_num_inference_steps": 0},
            "`decoder_num_inference_steps` must be an integer of at least 1. Got 0. This model's default is 3.",
        ),
        (
            {"decoder_guidance_scale": -1.0},
            "`decoder_guidance_scale` must be a finite number of at least 0. Got -1.0.",
        ),
        (
            {"decoder_guidance_interval": (1.0, 0.0)},
            "`decoder_guidance_interval` must be two noise levels with 0 <= low <= high <= 1. Got (1.0, 0.0).",
        ),
        (
            {"null_features": torch.zeros(2, CHANNELS, GRID, GRID)},
            "`null_features` must hold one row of 16 tokens, or one per row of `image_features` (1). Got 2 of 16",
        ),
        (
            {"prompt": None, "image_features": FEATURES, "generator": [torch.Generator()]},
            "A list of generators must hold one per image. Got 1 for 2 images",
        ),
        (
            {"prompt": None, "image_features": torch.zeros(1, 8, 4, 4)},
            "The UNet's `cross_attention_dim` must equal the features' channels. It is 16, the features have 8.",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(whole, arguments, message):
    def fail(*args, **kwargs):
        raise AssertionError("a model ran")

    whole.model.get_decoder().register_forward_pre_hook(fail)
    whole.unet.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=re.escape(message)):
        whole(**{"prompt": "a circle", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"null_features": NULL},
        {"height": 64, "width": 64},
        {"decoder_num_inference_steps": 50},
        {"decoder_guidance_scale": 3.0},
        {"decoder_guidance_interval": (0.0, 1.0)},
    ],
)
def test_a_pipeline_that_decodes_in_one_pass_takes_no_arguments_of_diffusion(pipeline, arguments):
    assert pipeline.decoder_pipeline is None
    message = (
        "Only a diffusion decoder takes null_features, height, width, decoder_num_inference_steps, "
        f"decoder_guidance_scale, decoder_guidance_interval. Got {', '.join(arguments)}, and this pipeline has none. "
        "Leave them out, or load a pipeline with `unet`, `vae` and `decoder_scheduler`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline(PROMPTS, **arguments)
