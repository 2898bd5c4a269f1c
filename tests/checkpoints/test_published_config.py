"""The config of a published checkpoint is one of ours, with the sizes of its tensors."""

import re

import pytest
from tests.checkpoints.published_doors import DOORS, change_config, load
from tests.published_layout import (
    CHANNELS,
    DIM,
    DIT_HEADS,
    DIT_LAYERS,
    HIDDEN,
    NUM_QUERIES,
    TOKEN_IDS,
    VOCAB_SIZE,
    feed_forward_width,
    published_config,
    published_shapes,
)
from transformers import AutoConfig

from blip3o_hf import Blip3oConfig
from blip3o_hf.checkpoints.headers import StoredTensor
from blip3o_hf.checkpoints.published_checkpoint import PublishedCheckpoint
from blip3o_hf.models.feed_forward import feed_forward_arguments, feed_forward_dim
from blip3o_hf.models.fitted_config import config_of


@pytest.mark.parametrize("from_pretrained", [Blip3oConfig.from_pretrained, AutoConfig.from_pretrained])
@pytest.mark.parametrize("model_type", ["blip3o_qwen", "blip3o_qwen_inference"])
def test_the_config_is_one_of_ours(published, folder, from_pretrained, model_type):
    published(model_type=model_type, num_key_value_heads=2, ffn_dim_multiplier=4.0, tied=False)
    for source in (folder, str(folder), folder / "config.json"):
        config = from_pretrained(source)
        assert type(config) is Blip3oConfig and config.model_type == "blip3o"
        assert (config.num_queries, config.feature_dim, config.feature_size) == (NUM_QUERIES, CHANNELS, 8)
        sizes = config.transformer_config
        assert (sizes["dim"], sizes["num_layers"]) == (DIM, DIT_LAYERS)
        assert (sizes["num_attention_heads"], sizes["num_key_value_heads"]) == (DIT_HEADS, 2)
        assert (sizes["in_channels"], sizes["sample_size"], sizes["condition_dim"]) == (CHANNELS, 8, HIDDEN)
        width = feed_forward_dim(DIM, sizes["multiple_of"], sizes["ffn_dim_multiplier"])
        assert width == feed_forward_width(4.0)


def test_the_backbone_s_config_says_what_the_flat_one_said(published, folder):
    published(tied=True)
    flat = published_config()
    backbone = Blip3oConfig.from_pretrained(folder).backbone_config
    text, vision = backbone.text_config, backbone.vision_config
    assert backbone.model_type == "qwen2_5_vl" and backbone.tie_word_embeddings is True
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert getattr(text, name) == flat[name], name
    assert text.rope_parameters["rope_theta"] == 1000000.0
    assert text.rope_parameters["mrope_section"] == [1, 1, 1]
    assert text.use_cache is True
    for name in ("depth", "hidden_size", "out_hidden_size", "window_size", "fullatt_block_indexes"):
        assert getattr(vision, name) == flat["vision_config"][name], name
    assert backbone.image_token_id == TOKEN_IDS["<|image_pad|>"]
    assert not [name for name in vars(backbone) if name.startswith(("gen_", "mm_"))]


def test_settings_are_those_of_the_reference(published, folder):
    published()
    config = Blip3oConfig.from_pretrained(folder)
    assert config.objective == "feature_flow"
    assert (config.noise_distribution, config.noise_shift) == ("discrete_uniform", 1.0)
    assert config.condition_dropout == 0.1
    assert config.feature_mean is None and config.feature_std is None


def test_the_vocabulary_is_as_large_as_the_embedding(published, folder):
    """The published config may tell the size before the three tokens were added, and the table was cut."""
    published()
    change_config(folder, vocab_size=VOCAB_SIZE + 400)
    assert Blip3oConfig.from_pretrained(folder).get_text_config().vocab_size == VOCAB_SIZE
    assert load(folder).get_input_embeddings().num_embeddings == VOCAB_SIZE


def test_reading_a_config_reads_no_tensor(published, folder):
    """Sizes come from the headers: the file may hold anything behind them."""
    published()
    expected = Blip3oConfig.from_pretrained(folder).to_diff_dict()
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)
    file.write_bytes(data)
    assert Blip3oConfig.from_pretrained(folder).to_diff_dict() == expected


def test_an_auto_config_without_weights_has_the_sizes_of_the_reference_s_source(published, folder):
    published()
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_queries, config.feature_dim) == (64, 1792)
    assert "dim" not in config.transformer_config


def with_transformer_sizes(dim, width):
    """The headers of a checkpoint of this width and feed-forward width, as far as the config needs them."""
    shapes = published_shapes()
    shapes["model.dit.model.patch_embedder.proj.weight"] = (dim, CHANNELS)
    for index in range(DIT_LAYERS):
        prefix = f"model.dit.model.layers.{index}."
        shapes[f"{prefix}attn1.to_k.weight"] = (dim, dim)
        shapes[f"{prefix}feed_forward.linear_1.weight"] = (width, dim)
    tensors = {name: StoredTensor("model.safetensors", shape, "BF16") for name, shape in shapes.items()}
    return PublishedCheckpoint("checkpoint", published_config(), tensors)


@pytest.mark.parametrize(
    ("dim", "width", "expected"),
    [
        (1792, 4864, (256, None)),
        (1792, 6400, (256, 1.3)),
        (1792, 7424, (256, 1.55)),
        (64, 256, (256, None)),
        (64, 192, (64, None)),
        (64, 171, (1, 1.01)),
        (64, 119, (1, 0.701)),
        (64, 1000, (8, 5.88)),
        (48, 97, (1, 0.76)),
    ],
)
def test_a_feed_forward_width_is_met_exactly(dim, width, expected):
    sizes = config_of(with_transformer_sizes(dim, width), Blip3oConfig).transformer_config
    assert feed_forward_dim(dim, sizes["multiple_of"], sizes["ffn_dim_multiplier"]) == width
    assert (sizes["multiple_of"], sizes["ffn_dim_multiplier"]) == expected


@pytest.mark.parametrize("dim", [16, 40, 64, 100, 1792])
def test_every_feed_forward_width_can_be_met(dim):
    for width in [*range(1, 300), 1023, 1024, 6145, 7167, 7169, 14336]:
        assert feed_forward_dim(dim, **feed_forward_arguments(dim, width)) == width


def test_the_width_of_a_newer_diffusers_is_explained():
    message = (
        "The released transformer has a feed-forward width of 4864: two thirds of 4 * 1792, rounded up to a multiple "
        "of 256. model.dit.model.layers.0.feed_forward.linear_1.weight in checkpoint/model.safetensors has 7168, the "
        "whole 4 * 1792, which the reference builds on diffusers 0.33 and newer; released weights do not load "
        "into that, so these are not the released ones. Take the released checkpoint, or, if this one was trained at "
        'that width, pass `transformer_config={"ffn_dim": 7168}`.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(with_transformer_sizes(1792, 7168), Blip3oConfig)


def test_a_feed_forward_width_is_accepted_on_request(published, folder):
    config = config_of(with_transformer_sizes(1792, 7168), Blip3oConfig, {"ffn_dim": 7168})
    assert config.transformer_config["ffn_dim"] == 7168
    published(ffn_dim_multiplier=4.0)
    for door in DOORS.values():
        model = door(folder, transformer_config={"ffn_dim": feed_forward_width(4.0)})
        assert model.transformer.config.ffn_dim == feed_forward_width(4.0)
