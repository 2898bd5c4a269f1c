"""The transformer against tensors recorded from the reference, at 1e-5 of their largest value."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip3o_hf.models.transformer_next_dit import (
    Blip3oTransformer2DModel,
    apply_rotary,
    rotary_table,
    timestep_sinusoid,
)
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

FIXTURE = Path(__file__).parent / "fixtures" / "next_dit.safetensors"
WEIGHTS_PREFIX = "model.dit.model."
GUIDANCE = 3.0
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def model(recorded):
    model = Blip3oTransformer2DModel(
        in_channels=32, dim=64, num_layers=2, num_attention_heads=4, num_key_value_heads=4, condition_dim=24
    )
    weights = {
        key.removeprefix(WEIGHTS_PREFIX): tensor for key, tensor in recorded.items() if key.startswith(WEIGHTS_PREFIX)
    }
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reached(model, recorded):
    """Every recorded intermediate of one forward, by the recorded name."""
    reached = {}

    def keep(name, module, select=lambda output: output):
        def hook(module, args, output):
            reached[name] = select(output)

        handles.append(module.register_forward_hook(hook))

    handles = []
    layer = model.layers[0]
    keep("patch_embed", model.patch_embedder)
    keep("caption_projection", model.caption_projection)
    keep("time_embed", model.time_caption_embed.timestep_embedder)
    keep("caption_embed", model.time_caption_embed.caption_embedder)
    keep("layer0", layer)
    keep("layer0.norm1_mod", layer.norm1.linear)
    keep("layer0.norm1_scaled", layer.norm1, lambda output: output[0])
    keep("layer0.attn1", layer.attn1)
    keep("layer0.attn1_q_normed", layer.attn1.norm_q)
    keep("layer0.attn2", layer.attn2)
    keep("layer0.attn2_k_normed", layer.attn2.norm_k)
    keep("layer0.attn_out_proj", layer.attn2.to_out[0])
    keep("layer0.ffn", layer.feed_forward)
    keep("layer_last", model.layers[-1])
    keep("norm_out", model.norm_out)
    handles.append(model.norm_out.register_forward_pre_hook(lambda module, args: reached.update(temb=args[1])))
    reached["velocity"] = model(
        recorded["c_dit.x"], recorded["c_dit.timestep"], encoder_hidden_states=recorded["c_dit.z_latents"]
    ).sample
    for handle in handles:
        handle.remove()
    reached["time_proj"] = timestep_sinusoid(recorded["c_dit.timestep"])
    reached["freqs_cis_8x8"] = rotary_table(8, 8, model.head_dim).unflatten(0, (8, 8))
    return reached


def assert_parity(actual, expected):
    assert actual.shape == expected.shape
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"off by {error:.2e} of the largest value"


@pytest.mark.parametrize(
    "name",
    [
        "patch_embed",
        "caption_projection",
        "time_proj",
        "time_embed",
        "caption_embed",
        "temb",
        "freqs_cis_8x8",
        "layer0.norm1_mod",
        "layer0.norm1_scaled",
        "layer0.attn1_q_normed",
        "layer0.attn1",
        "layer0.attn2_k_normed",
        "layer0.attn2",
        "layer0.attn_out_proj",
        "layer0.ffn",
        "layer0",
        "layer_last",
        "norm_out",
        "velocity",
    ],
)
def test_intermediate(name, reached, recorded):
    assert_parity(reached[name], recorded[f"c_dit.{name}"])


def test_every_recorded_intermediate_is_compared(reached, recorded):
    names = {key.removeprefix("c_dit.") for key in recorded if key.startswith("c_dit.")}
    assert names - {"x", "timestep", "z_latents"} == set(reached)


@pytest.mark.parametrize(
    "name",
    [
        "layer0.norm1.norm",
        "layer0.norm2",
        "layer0.ffn_norm1",
        "layer0.ffn_norm2",
        "layer0.norm1_context",
        "layer0.attn1.norm_q",
        "layer0.attn1.norm_k",
        "layer0.attn2.norm_q",
        "layer0.attn2.norm_k",
        "time_caption_embed.caption_embedder.0",
        "norm_out.norm",
    ],
)
def test_norm_epsilon(name, model, recorded):
    norm = model.get_submodule(name.replace("layer0", "layers.0"))
    for magnitude in ("3e-3", "1e-3"):
        inputs = recorded[f"eps_probe.dit.{name}.in_{magnitude}"]
        assert_parity(norm(inputs), recorded[f"eps_probe.dit.{name}.out_{magnitude}"])


def sample(model, noise, condition, num_steps, images_per_prompt=1):
    """Classifier-free guidance with our scheduler as it is by default: Euler steps, timesteps cut to integers."""
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(num_steps)
    conditions = torch.cat([torch.zeros_like(condition), condition])
    cache = model.precompute_condition(conditions).repeat_interleave(images_per_prompt)
    latents, before_each_step = noise, []
    for timestep in scheduler.timesteps:
        before_each_step.append(latents)
        velocity_null, velocity = model(torch.cat([latents, latents]), timestep, condition_cache=cache).sample.chunk(2)
        guided = velocity_null + GUIDANCE * (velocity - velocity_null)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents, before_each_step


@pytest.mark.parametrize("name, num_steps", [("d_sample0", 30), ("d_sample1", 5)])
def test_schedule(name, num_steps, recorded):
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(num_steps)
    assert_parity(scheduler.sigmas, recorded[f"{name}.sigmas"])
    assert torch.equal(scheduler.timesteps, recorded[f"{name}.timesteps_given_to_dit"].float())


@pytest.mark.parametrize("name, num_steps", [("d_sample0", 30), ("d_sample1", 5)])
def test_sampling(name, num_steps, model, recorded):
    latents, before_each_step = sample(model, recorded[f"{name}.latents0"], recorded[f"{name}.z_latents"], num_steps)
    assert_parity(latents, recorded[f"{name}.latents"])
    assert_parity(latents.flatten(2).transpose(1, 2), recorded[f"{name}.features_tokens"])
    if f"{name}.latents_before_each_step" in recorded:
        assert_parity(torch.stack(before_each_step), recorded[f"{name}.latents_before_each_step"])


def test_sampling_two_images_per_prompt(model, recorded):
    name = "d_sample_2per_prompt"
    latents, _ = sample(
        model, recorded[f"{name}.latents0"], recorded[f"{name}.z_latents"], num_steps=3, images_per_prompt=2
    )
    assert_parity(latents, recorded[f"{name}.latents"])


def test_rotation_is_the_complex_product(recorded):
    queries = torch.randn(2, 64, 4, 16, generator=torch.Generator().manual_seed(0))
    rotations = torch.view_as_complex(recorded["c_dit.freqs_cis_8x8"]).flatten(0, 1)[:, None]
    pairs = torch.view_as_complex(queries.unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * rotations).flatten(3)
    assert_parity(apply_rotary(queries, rotary_table(8, 8, 16)), expected)
