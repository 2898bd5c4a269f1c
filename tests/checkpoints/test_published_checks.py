"""Tensors and a config that contradict each other, or make no model, are refused by name and file."""

import re

import pytest
import torch
from tests.checkpoints.published_doors import assert_refused, change_config, load
from tests.published_layout import CHANNELS, DIT_HEADS, HIDDEN, NUM_QUERIES, VOCAB_SIZE, write_weights
from transformers import AutoConfig

from blip3o_hf import Blip3oConfig, Blip3oProcessor


def test_missing_and_unexpected_tensors_are_named_at_once(published, folder):
    tensors = published(tied=False)
    for name in ("lm_head.weight", "model.dit.model.layers.1.gate"):
        del tensors[name]
    tensors |= {"model.dit.model.layers.2.bias": torch.zeros(2), "model.layers.7.mlp.bias": torch.zeros(2)}
    write_weights(folder, tensors)
    message = (
        f"A checkpoint must hold every tensor of the model and no other. {folder} lacks 2: lm_head.weight, "
        "model.dit.model.layers.1.gate, and has 2 too many: model.dit.model.layers.2.bias (in model.safetensors), "
        "model.layers.7.mlp.bias (in model.safetensors). Download it again, with the config.json that was saved "
        "with it."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize("name", ["model.mm_projector.0.weight", "model.vision_tower.x", "weight"])
def test_tensors_that_no_checkpoint_has_are_named(published, folder, name):
    write_weights(folder, published() | {name: torch.zeros(2)})
    assert_refused(folder, re.escape(f"{folder} has 1 too many: {name} (in model.safetensors)."))


def test_a_checkpoint_without_a_transformer_is_refused(published, folder):
    tensors = {name: value for name, value in published().items() if not name.startswith("model.dit.")}
    del tensors["model.latent_queries"]
    write_weights(folder, tensors)
    message = (
        f"A BLIP3-o checkpoint must hold queries and a diffusion transformer. {folder} lacks model.latent_queries, "
        "model.dit.model.patch_embedder.proj.weight, model.dit.model.layers.0.gate, "
        "model.dit.model.layers.0.attn1.to_k.weight, model.dit.model.layers.0.feed_forward.linear_1.weight. To build "
        "on a plain backbone, use `from_backbone`."
    )
    assert_refused(folder, re.escape(message))


def test_a_tensor_of_other_dimensions_is_refused_by_name(published, folder):
    write_weights(folder, published() | {"model.latent_queries": torch.zeros(NUM_QUERIES, HIDDEN)})
    message = (
        f"model.latent_queries must have 3 dimensions, none of them empty. In {folder}/model.safetensors it has the "
        f"shape [{NUM_QUERIES}, {HIDDEN}]. Download the checkpoint again."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.latent_queries", (1, 0, HIDDEN)),
        ("model.embed_tokens.weight", (0, HIDDEN)),
        ("model.dit.model.layers.0.gate", (0,)),
        ("model.dit.model.patch_embedder.proj.weight", (0, CHANNELS)),
    ],
)
def test_an_empty_tensor_is_refused_by_name(published, folder, name, shape):
    write_weights(folder, published() | {name: torch.zeros(shape)})
    assert_refused(folder, rf"{re.escape(name)} must have \d dimensions?, none of them empty|{re.escape(str(shape))}")


def test_a_layer_far_away_is_too_many(published, folder):
    """The number of layers is counted: a name does not decide how large a model is built."""
    name = "model.dit.model.layers.1000000.gate"
    write_weights(folder, published() | {name: torch.zeros(DIT_HEADS)})
    assert_refused(folder, re.escape(f"too many: {name} (in model.safetensors)"))


@pytest.mark.parametrize("lie", [{"num_hidden_layers": 10**9}, {"vision_config": {"depth": 10**9}}])
def test_a_config_of_more_layers_than_tensors_is_refused_at_once(published, folder, lie):
    number = len(published())
    change_config(folder, **lie)
    message = f"It asks for 1000000000 layers, and {folder} holds {number} tensors."
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"hidden_size": str(HIDDEN)}, "StrictDataclassFieldValidationError"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"torch_dtype": "float17"}, "AttributeError"),
        ({"pad_token_id": 10**9}, "AssertionError"),
    ],
)
def test_a_config_of_no_model_is_refused_by_its_place(published, folder, lie, reason):
    published()
    change_config(folder, **lie)
    message = f"config.json must describe a Qwen2.5-VL model. That of {folder} does not ({reason}"
    assert_refused(folder, re.escape(message), doors=["class"])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 100_000, "\ufeff{}"])
def test_a_damaged_config_is_refused_by_its_place(published, folder, content):
    published()
    (folder / "config.json").write_text(content, encoding="utf-8")
    message = f"A settings file must hold one JSON object. {folder}/config.json does not. Save or download it again."
    for door in (load, Blip3oConfig.from_pretrained, Blip3oProcessor.from_pretrained):
        with pytest.raises(ValueError, match=re.escape(message)):
            door(folder)


@pytest.mark.parametrize("model_type", [None, "llava", 5, ["blip3o_qwen"]])
def test_a_config_of_another_model_is_refused(published, folder, model_type):
    """transformers would build a model of the largest default sizes."""
    published()
    if model_type is None:
        (folder / "config.json").unlink()
    else:
        change_config(folder, model_type=model_type)
    found = "has none" if model_type is None else f"has {model_type!r}"
    for door in (load, Blip3oConfig.from_pretrained):
        with pytest.raises(ValueError, match=re.escape(f"{folder} {found}. Check the path; to build on a plain")):
            door(folder)


def test_a_config_that_lies_about_the_width_is_refused(published, folder):
    published()
    change_config(folder, hidden_size=32)
    message = (
        "config.json must describe the tensors beside it. It says hidden_size=32, and model.embed_tokens.weight in "
        f"{folder}/model.safetensors is [{VOCAB_SIZE}, {HIDDEN}]. Use the config that was saved with these weights."
    )
    assert_refused(folder, re.escape(message))
    for from_pretrained in (Blip3oConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=re.escape(message)):
            from_pretrained(folder)


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (
            {"intermediate_size": 64},
            f"have another shape than it asks for: model.layers.0.mlp.down_proj.weight (in model.safetensors) is "
            f"[{HIDDEN}, 56], not [{HIDDEN}, 64], model.layers.0.mlp.gate_proj.weight (in model.safetensors) is "
            f"[56, {HIDDEN}], not [64, {HIDDEN}], ....",
        ),
        ({"num_hidden_layers": 1}, "too many: model.layers.1.input_layernorm.weight (in model.safetensors)"),
        ({"num_hidden_layers": 3}, "lacks 12: model.layers.2.input_layernorm.weight"),
        ({"tie_word_embeddings": False}, "lacks 1: lm_head.weight."),
    ],
)
def test_a_config_that_lies_about_other_sizes_is_refused(published, folder, lie, found):
    published()
    change_config(folder, **lie)
    assert_refused(folder, re.escape(found))


def test_an_output_layer_of_another_vocabulary_is_refused(published, folder):
    tensors = published(tied=False)
    write_weights(folder, tensors | {"lm_head.weight": torch.randn(VOCAB_SIZE + 1, HIDDEN)})
    message = f"lm_head.weight (in model.safetensors) is [{VOCAB_SIZE + 1}, {HIDDEN}], not [{VOCAB_SIZE}, {HIDDEN}]"
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(
    ("name", "value", "shards"),
    [
        ("model.latent_queries", torch.nan, 1),
        ("model.dit.model.layers.1.gate", torch.nan, 2),
        ("visual.blocks.0.attn.qkv.weight", torch.inf, 2),
        ("lm_head.weight", -torch.inf, 1),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(published, folder, name, value, shards):
    tensors = published(tied=False, shards=shards)
    tensors[name].view(-1)[-1] = value
    write_weights(folder, tensors, shards)
    file = "model.safetensors" if shards == 1 else f"model-0000{1 + sorted(tensors).index(name) % 2}-of-00002"
    message = f"Weights must be finite numbers. {name} (in {file}"
    assert_refused(folder, re.escape(message), doors=["class"])


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_that_are_integers_are_refused_by_name(published, folder, shards):
    name = "visual.blocks.0.attn.qkv.weight"
    tensors = published(shards=shards)
    tensors[name] = tensors[name].to(torch.int8)
    write_weights(folder, tensors, shards)
    assert_refused(folder, r"Weights must be floating-point numbers .* visual\S+ \(in model\S*\) of \S+ is I8\.")


def test_shapes_may_differ_on_request(published, folder):
    tensors = published()
    name = "model.dit.model.norm_out.linear_2.bias"
    write_weights(folder, tensors | {name: torch.zeros(CHANNELS + 1)})
    assert_refused(folder, re.escape(f"{name} (in model.safetensors) is [{CHANNELS + 1}], not [{CHANNELS}]"))
    model = load(folder, ignore_mismatched_sizes=True)
    assert model.transformer.norm_out.linear_2.bias.shape == (CHANNELS,)
