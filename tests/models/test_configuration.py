"""What a configuration fills in, refuses and remembers; and that the full-size ones have the reference's size."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration

COUNTS = json.loads((Path(__file__).parent / "fixtures" / "reference_param_counts.json").read_text())
VISION = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
TEXT = {
    "4b": {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
    },
    "8b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
    },
}


@pytest.mark.parametrize(("size", "vocab_size"), [("4b", 151936), ("4b", 151668), ("8b", 152064), ("8b", 151668)])
def test_full_size_models_have_exactly_the_reference_parameter_counts(size, vocab_size):
    text = {
        **TEXT[size],
        "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
    }
    backbone = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=text,
        vision_config={**VISION, "out_hidden_size": TEXT[size]["hidden_size"]},
        tie_word_embeddings=size == "4b",
    )
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(Blip3oConfig(backbone_config=backbone))

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    expected, by_vocabulary = COUNTS[size], COUNTS[size][str(vocab_size)]
    embed = count(model.get_input_embeddings())
    assert embed == by_vocabulary["embed"]
    assert count(model.get_decoder()) - embed == expected["text_layers_and_norm"]
    assert count(model.backbone.model.visual) == expected["visual"]
    assert count(model.queries) == expected["queries"]
    assert count(model.transformer) == expected["transformer"]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (0 if tied else count(model.get_output_embeddings())) == by_vocabulary["lm_head"]
    assert count(model) == by_vocabulary["total"]


def test_the_default_is_the_paper_s_model():
    config = Blip3oConfig()
    assert config.backbone_config.model_type == "qwen2_5_vl"
    assert (config.num_queries, config.feature_dim, config.feature_size) == (64, 1792, 8)
    assert config.objective == "feature_flow"
    assert config.condition_dropout == 0.1


def test_transformer_sizes_follow_features_and_backbone(make_config):
    config = make_config(transformer_config={"dim": 32, "in_channels": 1, "sample_size": 2, "condition_dim": 3})
    assert config.transformer_config == {"dim": 32, "in_channels": 16, "sample_size": 4, "condition_dim": 32}


def test_feature_regression_has_no_transformer_config(make_config):
    config = make_config(objective="feature_regression", transformer_config=None, num_queries=16)
    assert not config.uses_transformer
    assert config.transformer_config is None


@pytest.mark.parametrize(("backbone", "has_vision"), [("qwen", True), ("llama", False)])
def test_hidden_size_vision_and_text_config_are_the_backbone_s(make_config, backbone, has_vision):
    config = make_config(backbone=backbone)
    assert config.hidden_size == 32
    assert config.has_vision is has_vision
    assert config.get_text_config() is config.backbone_config.get_text_config()


@pytest.mark.parametrize("tied", [True, False])
def test_tie_word_embeddings_is_the_backbone_s(make_config, tied):
    assert make_config(tied=tied, tie_word_embeddings=not tied).tie_word_embeddings is tied


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_a_saved_configuration_is_the_same_again(make_config, tmp_path, backbone):
    config = make_config(
        backbone=backbone,
        feature_mean=[0.5] * 16,
        feature_std=[2.0] * 16,
        noise_distribution="uniform",
        noise_shift=4.0,
        condition_dropout=0.2,
        image_positions="sequential",
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is Blip3oConfig
    assert type(loaded.backbone_config) is type(config.backbone_config)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.feature_std == [2.0] * 16
    assert loaded.image_positions == "sequential"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "feature_flw"},
            "Unknown objective 'feature_flw'. Did you mean 'feature_flow'? Available: feature_flow, "
            "feature_regression, latent_flow (key `objective` of Blip3oConfig).",
        ),
        (
            {"image_positions": "sequental"},
            "Unknown image_positions 'sequental'. Did you mean 'sequential'? Available: backbone, sequential",
        ),
        (
            {"condition_dropout": 1.0},
            "`condition_dropout` must be in [0, 1). Got 1.0. The paper's recipe uses 0.1.",
        ),
        (
            {"condition_dropout": -0.1},
            "`condition_dropout` must be in [0, 1). Got -0.1. The paper's recipe uses 0.1.",
        ),
        (
            {"feature_mean": [0.0] * 16},
            "`feature_mean` and `feature_std` go together. Got `feature_mean` alone.",
        ),
        (
            {"feature_mean": [0.0, 1.0], "feature_std": [1.0, 1.0]},
            "`feature_mean` must hold one number per feature channel. Got 2 numbers for feature_dim=16. "
            "Leave it out to use the encoder's features as they are.",
        ),
        (
            {"feature_mean": [0.0] * 16, "feature_std": [1.0] * 17},
            "`feature_std` must hold one number per feature channel. Got 17 numbers for feature_dim=16. "
            "Leave it out to use the encoder's features as they are.",
        ),
    ],
)
def test_bad_settings_are_refused(make_config, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config(**settings)
