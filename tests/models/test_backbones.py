"""
Any backbone is read as it reads itself: measured on tiny random models of many families, and written down.

`python tests/models/test_backbones.py` writes the table of docs/backbones.md anew.
"""

import copy
import re
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from blip3o_hf.models.backbones import (
    TOKEN_TYPES,
    accepts,
    reading_model,
    reads_padding,
    token_cache,
    token_types,
)
from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parent))
from backbone_families import (
    EXPERTS,
    FAMILIES,
    IMAGE,
    LATENT,
    TEXT,
    TEXT_FAMILIES,
    VISION_FAMILIES,
    Prompts,
    backbone_config,
)

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
HEAD = "| `model_type` | images | queries run | a padded batch is read |\n| --- | --- | --- | --- |\n"
EXACT = 1e-5
DEEP_HEADS = ("modernbert-decoder", "roberta", "roformer")
"""Families with layers of their own between the hidden states and the output layer."""


def build(config, **settings) -> Blip3oForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"dim": 32, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16}
    model = Blip3oForConditionalGeneration(
        Blip3oConfig(
            backbone_config=config,
            transformer_config=sizes,
            num_queries=5,
            feature_dim=8,
            feature_size=4,
            image_positions="backbone",
            **settings,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.backbone.requires_grad_(False)
    return model


@cache
def shared_model(family: str) -> Blip3oForConditionalGeneration:
    return build(backbone_config(family))


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> Blip3oForConditionalGeneration:
    return shared_model(family)


@pytest.fixture
def prompts(family) -> Prompts:
    return Prompts.of(family)


@contextmanager
def hooked(module, record):
    handle = module.register_forward_hook(lambda module, args, output: record(args, output))
    yield
    handle.remove()


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def table_row(family: str) -> str:
    model = shared_model(family)
    decoder = model.get_decoder()
    runs = "after the prompt's cache" if token_cache(decoder) is not None else "in one pass with the prompt"
    is_measured = token_cache(decoder) is None or not accepts(decoder, "position_ids")
    is_alone = is_measured and reads_padding(decoder)
    images = "yes" if family in VISION_FAMILIES else "no"
    return f"| `{family}` | {images} | {runs} | {'one by one' if is_alone else 'as one'} |\n"


def table() -> str:
    return HEAD + "".join(map(table_row, FAMILIES))


def test_the_page_says_what_is_measured():
    assert table() in PAGE.read_text()
    readme = " ".join((PAGE.parents[1] / "README.md").read_text().split())
    assert f"on {len(VISION_FAMILIES)} families with images and {len(TEXT_FAMILIES)} with text only" in readme


def test_a_prompt_is_read_as_the_backbone_reads_it(model, prompts, family):
    """What the backbone hands to its output layer, and what it reads on the way to a condition."""
    own, read = [], []
    for index in range(len(prompts.rows)):
        inputs = prompts.alone(index)
        own.clear(), read.clear()
        kinds = token_types(model.backbone, inputs["input_ids"]) if prompts.pixels else {}
        with torch.no_grad():
            model.encode_condition(**inputs)  # the first call may measure how padding is read
            with hooked(reading_model(model.backbone), lambda args, output: read.append(output.last_hidden_state)):
                model.encode_condition(**inputs)
            if family in DEEP_HEADS:
                with hooked(reading_model(model.backbone), lambda args, output: own.append(output.last_hidden_state)):
                    model.backbone(**inputs, **kinds)
            else:
                with hooked(model.backbone.get_output_embeddings(), lambda args, output: own.append(args[0])):
                    model.backbone(**inputs, **kinds)
        assert difference(read[0][:, : inputs["input_ids"].shape[1]], own[0]) < EXACT


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_conditions_of_its_prompts_alone(model, prompts, side):
    with torch.no_grad():
        batch = model.encode_condition(**prompts.batch(side))
        for index in range(len(prompts.rows)):
            alone = model.encode_condition(**prompts.alone(index))
            assert difference(batch[index : index + 1], alone) < EXACT


def test_one_prompt_may_have_padding(model, prompts):
    alone = prompts.alone(0)
    ids = alone["input_ids"]
    padded = {"input_ids": torch.nn.functional.pad(ids, (4, 0))}
    padded["attention_mask"] = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
    with torch.no_grad():
        assert difference(model.encode_condition(**{**alone, **padded}), model.encode_condition(**alone)) < EXACT


def test_a_frozen_backbone_gives_what_a_trained_one_gives(model, prompts):
    """Condition and gradient, whether the prompt runs first and without gradient, or with the queries."""
    inputs = prompts.batch()
    frozen, trained = model.encode_condition(**inputs), None
    weights = torch.randn_like(frozen)
    (gradient,) = torch.autograd.grad((weights * frozen).sum(), model.queries.weight)
    model.backbone.requires_grad_(True)
    try:
        trained = model.encode_condition(**inputs)
        (expected,) = torch.autograd.grad((weights * trained).sum(), model.queries.weight)
    finally:
        model.backbone.requires_grad_(False)
    assert difference(frozen, trained) < EXACT
    assert difference(gradient, expected) < EXACT


def test_prompt_and_images_matter(model, prompts, family):
    inputs = prompts.alone(2)
    changed = inputs["input_ids"].clone()
    changed[0, -1] = 51
    with torch.no_grad():
        condition = model.encode_condition(**inputs)
        assert difference(model.encode_condition(**{**inputs, "input_ids": changed}), condition) > 1e-4
        if family in VISION_FAMILIES:
            other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
            assert difference(model.encode_condition(**other), condition) > 1e-4


def test_reading_changes_no_weight(model, prompts):
    """Some backbones scale the embeddings that they are given in place; of one prompt these are the queries."""
    before = model.queries.weight.clone()
    with torch.no_grad():
        model.encode_condition(**prompts.alone(0))
    assert torch.equal(model.queries.weight, before)


@pytest.mark.parametrize("family", ["trocr", "xlm"])
def test_what_is_measured_does_not_depend_on_dropout(family):
    model = build(backbone_config(family)).train()
    model.encode_condition(**Prompts.of(family).batch())
    assert model._reads_padding and all(module.training for module in model.modules())


@pytest.mark.parametrize("kinds", ["none", "given"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_kinds_of_tokens_are_told_by_the_prompt_where_they_are_not_given(model, prompts, kinds):
    inputs = prompts.batch("right")
    is_image = (inputs["input_ids"] == IMAGE).int()
    more = {name: is_image if kinds == "given" else None for name in TOKEN_TYPES}
    with torch.no_grad():
        assert torch.equal(model.encode_condition(**inputs, **more), model.encode_condition(**inputs))


# What cannot be right is refused


@pytest.mark.parametrize(
    ("family", "settings"),
    [("xlm", {"emb_dim": 32, "n_layers": 1, "n_heads": 4}), ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 4})],
)
def test_a_backbone_that_attends_both_ways_by_a_setting_of_its_own_is_refused_at_its_first_prompt(family, settings):
    settings |= {"vocab_size": 64, "d_inner": 48}
    model = build(AutoConfig.for_model(family, **settings))
    message = (
        f"A backbone must be autoregressive: no token may see those after it. Got '{family}', which attends in both"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.encode_condition(**Prompts.of(family).alone(0))


def test_a_backbone_that_attends_both_ways_is_refused():
    message = (
        "A backbone must be autoregressive: no token may see those after it. Got 'bert', which attends in both "
        "directions. Choose a causal model, or set `is_decoder=True` where its config has it."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build(AutoConfig.for_model("bert", **TEXT))
    build(AutoConfig.for_model("bert", **TEXT, is_decoder=True))


def test_an_encoder_with_a_decoder_is_refused():
    vision = {"model_type": "davit", "embed_dim": [8], "depths": [1], "num_heads": [1], "num_groups": [1]}
    vision |= {"patch_size": [7], "patch_stride": [4], "patch_padding": [3], "patch_prenorm": [False]}
    text = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = AutoConfig.for_model("florence2", text_config={"model_type": "bart", **text}, vision_config=vision)
    message = (
        "A backbone must be one autoregressive model that reads the prompt and the queries after it. Got 'florence2', "
        "which is an encoder with a decoder. Choose a model without an encoder of text."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build(config)


@pytest.mark.parametrize("family", ["bart", "pegasus", "prophetnet", "whisper"])
def test_the_decoder_of_an_encoder_is_refused_although_the_library_builds_it_alone(family):
    message = f"Got '{family}', which is an encoder with a decoder. Choose a model without an encoder of text."
    with pytest.raises(ValueError, match=re.escape(message)):
        build(AutoConfig.for_model(family))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "cpmant",
            {"num_attention_heads": 4, "dim_head": 8, "dim_ff": 48},
            "A backbone must read embeddings in the place of token ids, for queries have no ids. Got 'cpmant', which "
            "takes no `inputs_embeds`. Choose another backbone.",
        ),
        (
            "deepseek_v4",
            {**LATENT, **EXPERTS, "layer_types": None, "num_attention_heads": 4},
            "A backbone must read embeddings in the place of token ids, for queries have no ids. Got 'deepseek_v4', "
            "whose DeepseekV4HashRouter reads ids. Choose another backbone, or a config without this part.",
        ),
        (
            "opt",
            {"ffn_dim": 48, "word_embed_proj_dim": 16},
            "A backbone must have embeddings as wide as its hidden states, for queries are as wide as both. Got 'opt' "
            "with 16 and 32. Choose a backbone in which they are equal.",
        ),
        (
            "reformer",
            {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
            "A backbone must read sequences of any length. Got 'reformer', which reads them in chunks of one length. "
            "Choose another backbone.",
        ),
    ],
)
def test_a_backbone_that_cannot_read_queries_is_refused(family, settings, message):
    settings = {name: value for name, value in {**TEXT, **settings}.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        build(AutoConfig.for_model(family, **settings))


def test_images_before_the_prompt_are_refused():
    message = (
        "Images must enter a backbone at their placeholders, so that queries can follow. 'git' has none. Use a "
        "backbone such as Qwen2.5-VL, or prompts without images."
    )
    model, inputs = shared_model("git"), Prompts.of("git").alone(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.encode_condition(**inputs, pixel_values=torch.rand(1, 3, 8, 8))
    assert model.generate(**inputs, pixel_values=torch.rand(1, 3, 8, 8), max_new_tokens=1).shape[0] == 1


def test_inputs_that_queries_have_not_are_refused():
    inputs = Prompts.of("llava").alone(0)
    length = inputs["input_ids"].shape[1]
    message = (
        "Images must enter a backbone at their placeholders, so that queries can follow. 'llava' wants "
        "'cross_attention_mask' for each token, and queries have none. Use a backbone such as Qwen2.5-VL, or prompts "
        "without images."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        shared_model("llava").encode_condition(**inputs, cross_attention_mask=torch.ones(1, length, 1, 1))


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_a_backbone_that_needs_token_ids_takes_no_checkpointing(family):
    model = copy.deepcopy(shared_model(family)).train()
    model.activation_checkpointing_enable()
    message = (
        f"This backbone ({family}) reads token ids in every layer, and queries have none; they can only follow a "
        f"prompt in a cache. Gradient checkpointing takes none. Turn it off."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.encode_condition(**Prompts.of(family).batch())


def test_gemma_4_without_inputs_of_layers_takes_checkpointing():
    family = "gemma4_text"
    settings = {**TEXT, "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    model = build(AutoConfig.for_model(family, **settings, sliding_window=6, num_kv_shared_layers=0))
    expected = model.encode_condition(**Prompts.of(family).batch())
    model.train().activation_checkpointing_enable()
    assert difference(model.encode_condition(**Prompts.of(family).batch()), expected) < EXACT


if __name__ == "__main__":
    text = PAGE.read_text()
    begin = text.index(HEAD)
    end = text.index("\n\n", begin) + 1
    PAGE.write_text(text[:begin] + table() + text[end:])
