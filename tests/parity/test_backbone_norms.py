"""The backbone's norms against tensors recorded from the reference: a wrong epsilon misses by half and more."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration

FIXTURE = Path(__file__).parent / "fixtures" / "backbone_norms.safetensors"
NORMS = {
    "text.layer0.input_layernorm": "backbone.model.language_model.layers.0.input_layernorm",
    "text.norm": "backbone.model.language_model.norm",
    "visual.block0.norm1": "backbone.model.visual.blocks.0.norm1",
    "visual.merger.ln_q": "backbone.model.visual.merger.ln_q",
}


@pytest.fixture(scope="module")
def model():
    backbone = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            "hidden_size": 24,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_heads": 2,
            "out_hidden_size": 24,
            "fullatt_block_indexes": [1],
        },
    )
    transformer = {"dim": 16, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 8}
    return Blip3oForConditionalGeneration(
        Blip3oConfig(backbone_config=backbone, transformer_config=transformer, feature_dim=8)
    )


@pytest.mark.parametrize("magnitude", ["3e-3", "1e-3"])
@pytest.mark.parametrize("name", NORMS)
def test_norm(name, magnitude, model):
    recorded = load_file(FIXTURE)
    norm = model.get_submodule(NORMS[name])
    norm.load_state_dict({"weight": recorded[f"eps_probe.{name}.weight"]})
    with torch.no_grad():
        out = norm(recorded[f"eps_probe.{name}.in_{magnitude}"])
    expected = recorded[f"eps_probe.{name}.out_{magnitude}"]
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
