"""The diffusion decoder against tensors recorded from the reference, at 1e-5 of their largest value."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from blip3o_hf.pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline, feature_tokens

FIXTURES = Path(__file__).parent / "fixtures"
STEPS = 10
GUIDANCE = 3.0
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded():
    tensors = load_file(FIXTURES / "diffusion_decoder.safetensors")
    return {name.removeprefix("g_decoder."): tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = Blip3oDecoderPipeline.from_pretrained(FIXTURES / "diffusion-decoder")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def run(pipeline, recorded):
    """One call on the recorded noise: what went into and came out of the UNet at every step, and the images."""
    calls = []

    def keep(module, args, kwargs, output):
        calls.append(
            {
                "sample": args[0],
                "timestep": args[1],
                "tokens": kwargs["encoder_hidden_states"],
                **kwargs["added_cond_kwargs"],
                "out": output.sample,
            }
        )

    def decode(output_type):
        return pipeline(
            recorded["features"],
            recorded["null_features"],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=recorded["noise"],
            output_type=output_type,
        ).images

    handle = pipeline.unet.register_forward_hook(keep, with_kwargs=True)
    latents = decode("latent")
    handle.remove()
    return {"calls": calls, "latents": latents, "np": decode("np"), "pil": decode("pil")}


def assert_parity(actual, expected):
    assert actual.shape == expected.shape
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"off by {error:.2e} of the largest value"


def test_schedule(pipeline, recorded):
    pipeline.scheduler.set_timesteps(STEPS)
    assert torch.equal(pipeline.scheduler.timesteps, recorded["timesteps"])
    assert_parity(pipeline.scheduler.sigmas, recorded["sigmas"])
    assert_parity(torch.as_tensor(pipeline.scheduler.init_noise_sigma), recorded["init_noise_sigma"])


def test_the_first_call_of_the_unet(run, recorded):
    call = run["calls"][0]
    assert torch.equal(call["timestep"], recorded["unet_call0.timestep"])
    assert torch.equal(call["time_ids"].flatten(), recorded["unet_call0.time_ids_flat"])
    assert_parity(call["tokens"], torch.cat([recorded["features"], recorded["null_features"]]))
    for name in ("sample", "text_embeds", "out"):
        assert_parity(call[name], recorded[f"unet_call0.{name}"])


def test_the_second_call_of_the_unet(run, recorded):
    assert_parity(run["calls"][1]["sample"], recorded["unet_call1.sample"])


def test_every_step_calls_the_unet_once(run, recorded):
    assert [call["timestep"].item() for call in run["calls"]] == recorded["timesteps"].tolist()


def test_latents(run, recorded):
    assert_parity(run["latents"], recorded["latents"])


def test_pixels(run, recorded):
    assert_parity(torch.from_numpy(run["np"]), recorded["image_0_1_nhwc"])
    assert np.array_equal(np.array(run["pil"][0]), recorded["image_uint8"].numpy())


def test_features_as_a_grid_are_the_recorded_tokens(pipeline, recorded, run):
    """Tokens are row-major over the 8 x 8 grid."""
    grids = [recorded[name].transpose(1, 2).unflatten(2, (8, 8)) for name in ("features", "null_features")]
    assert torch.equal(feature_tokens(grids[0])[0, 8 * 3 + 5], grids[0][0, :, 3, 5])
    latents = pipeline(
        *grids, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=recorded["noise"], output_type="latent"
    ).images
    assert torch.equal(latents, run["latents"])
