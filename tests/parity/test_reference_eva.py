"""The target encoder and its preprocessing against tensors recorded from the reference, at 1e-5 of their largest."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from blip3o_hf.models.image_processing_eva_clip import EvaClipImageProcessor
from blip3o_hf.models.modeling_eva_clip import EvaClipVisionModel
from blip3o_hf.models.target_encoder import extract_features

FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTS_PREFIX = "model.gen_vision_tower.vision_tower.model."
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURES / "eva_clip.safetensors")


@pytest.fixture(scope="module")
def model(recorded, tmp_path_factory):
    """The recorded tower, out of a checkpoint in the published layout."""
    folder = tmp_path_factory.mktemp("published")
    weights = {key: tensor for key, tensor in recorded.items() if key.startswith(WEIGHTS_PREFIX)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "blip3o_qwen"}))
    return EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2).requires_grad_(False)


@pytest.fixture(scope="module")
def pixel_values():
    images = [Image.open(FIXTURES / f"image{index}.png") for index in range(3)]
    return EvaClipImageProcessor()(images, return_tensors="pt")["pixel_values"]


def assert_parity(actual, expected):
    assert actual.shape == expected.shape
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"off by {error:.2e} of the largest value"


def test_preprocessing(pixel_values, recorded):
    assert pixel_values.shape == (3, 3, 448, 448)
    assert_parity(pixel_values[:, :, ::7, ::7], recorded["f_eva.pixel_values_every7th"])
    statistics = torch.stack([pixel_values.mean(dim=(1, 2, 3)), pixel_values.std(dim=(1, 2, 3))], dim=1)
    assert_parity(statistics, recorded["f_eva.pixel_values_mean_std"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_features(attention, model, pixel_values, recorded):
    model.set_attn_implementation(attention)
    output = model(pixel_values[:1], output_hidden_states=True)
    assert_parity(output.hidden_states[1][:, :16], recorded["f_eva.block0_first16_tokens"])
    assert_parity(output.last_hidden_state[:, 1:], recorded["f_eva.features"])


def test_pooled_features(model, pixel_values, recorded):
    assert_parity(extract_features(model, pixel_values), recorded["f_eva.pooled"])


@pytest.mark.parametrize("magnitude", ["3e-3", "1e-3"])
def test_norm_epsilon(magnitude, model, recorded):
    norm = model.blocks[0].norm1
    for name in ("weight", "bias"):
        assert torch.equal(getattr(norm, name), recorded[f"eps_probe.eva.block0.norm1.{name}"])
    inputs = recorded[f"eps_probe.eva.block0.norm1.in_{magnitude}"]
    assert_parity(norm(inputs), recorded[f"eps_probe.eva.block0.norm1.out_{magnitude}"])
