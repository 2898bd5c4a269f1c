"""Every tensor of a published checkpoint has a name here and back, at full size, too."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints.published_doors import LEFT_OUT, assert_same_tensors, load
from tests.published_layout import published_config, published_shapes

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration
from blip3o_hf.checkpoints.headers import StoredTensor
from blip3o_hf.checkpoints.published_checkpoint import PublishedCheckpoint
from blip3o_hf.checkpoints.published_names import our_name, published_name
from blip3o_hf.checkpoints.published_saving import to_published_layout
from blip3o_hf.models.fitted_config import config_of

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def every_name():
    return published_shapes(tied=False, target_encoder=True)


def test_every_published_name_has_one_of_ours_and_back():
    names = [name for name in every_name() if not name.startswith(LEFT_OUT)]
    ours = [our_name(name) for name in names]
    assert len(set(ours)) == len(names)
    assert [published_name(name) for name in ours] == names
    assert {name.split(".")[0] for name in ours} == {"backbone", "queries", "transformer"}


def test_the_target_encoder_and_the_down_projector_are_left_out():
    tower = [name for name in every_name() if name.startswith("model.gen_vision_tower.")]
    assert tower and all(our_name(name) is None for name in [*tower, "model.down_projector.weight"])


@pytest.mark.parametrize("translate", [our_name, published_name])
@pytest.mark.parametrize(
    "name", ["model.mm_projector.weight", "model.dit.pos_embed", "visuals.x", "feature_head.weight", "queries.weights"]
)
def test_unknown_names_are_refused(translate, name):
    message = f"A tensor must belong to the backbone, the queries or the transformer. Got the .+ name '{name}'. Known"
    with pytest.raises(ValueError, match=message):
        translate(name)


def test_names_in_memory_and_in_saved_files_mean_the_same(published, folder, tmp_path):
    tensors = published(tied=False)
    model = load(folder)
    model.save_pretrained(tmp_path / "ours")
    assert_same_tensors(to_published_layout(model.state_dict()), tensors)
    assert_same_tensors(to_published_layout(load_file(tmp_path / "ours" / "model.safetensors")), tensors)


FULL_SIZES = {
    "4b": {"hidden": 2048, "layers": 36, "heads": 16, "kv_heads": 2, "ffn": 11008, "tied": True},
    "8b": {"hidden": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "ffn": 18944, "tied": False},
}


def full_size_tensors(size, vocab_size):
    """Every tensor of a full-size checkpoint: the recorded names of the 8B model, those of the 4B derived from it."""
    eight, wanted = FULL_SIZES["8b"], FULL_SIZES[size]
    head_dim = 128
    text = {
        152064: vocab_size,
        eight["hidden"]: wanted["hidden"],
        eight["ffn"]: wanted["ffn"],
        eight["kv_heads"] * head_dim: wanted["kv_heads"] * head_dim,
    }
    tensors = {}
    for pattern, entry in json.loads((FIXTURES / "published_keys_8b.json").read_text()).items():
        if pattern == "lm_head.weight" and wanted["tied"]:
            continue
        shape, count = entry["shape"], entry["count"]
        if pattern.startswith("model.layers."):
            count = wanted["layers"]
        if not pattern.startswith(("visual.blocks.", "model.gen_vision_tower.")):
            shape = [text.get(length, length) for length in shape]
        for index in range(count):
            tensors[pattern.replace("{i}", str(index))] = StoredTensor("model.safetensors", tuple(shape), "BF16")
    return tensors


def full_size_config(size):
    wanted = FULL_SIZES[size]
    return published_config(tied=wanted["tied"]) | {
        "hidden_size": wanted["hidden"],
        "intermediate_size": wanted["ffn"],
        "num_attention_heads": wanted["heads"],
        "num_hidden_layers": wanted["layers"],
        "num_key_value_heads": wanted["kv_heads"],
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "pad_token_id": 151643,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3420,
            "model_type": "qwen2_5_vl",
            "num_heads": 16,
            "out_hidden_size": wanted["hidden"],
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


@pytest.mark.parametrize("vocab_size", [151668, 152064])
@pytest.mark.parametrize("size", FULL_SIZES)
def test_every_tensor_of_a_full_size_checkpoint_has_its_place(size, vocab_size):
    tensors = full_size_tensors(size, vocab_size)
    checkpoint = PublishedCheckpoint("full size", full_size_config(size), tensors)
    config = config_of(checkpoint, Blip3oConfig)
    assert config.transformer_config == {
        "in_channels": 1792,
        "sample_size": 8,
        "condition_dim": FULL_SIZES[size]["hidden"],
        "multiple_of": 256,
        "ffn_dim_multiplier": None,
        "dim": 1792,
        "num_layers": 24,
        "num_attention_heads": 28,
        "num_key_value_heads": 28,
    }
    assert config.get_text_config().vocab_size == vocab_size
    assert config.get_text_config().rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.get_text_config().rope_parameters["rope_type"] == "default"
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(config)
    checkpoint.check(model)
    state = model.state_dict()
    if FULL_SIZES[size]["tied"]:
        del state["backbone.lm_head.weight"]
    assert {published_name(name) for name in state} == {name for name in tensors if our_name(name) is not None}
    left_out = [name for name in tensors if our_name(name) is None]
    assert len(left_out) == 4 + 12 * 64 and all(name.startswith("model.gen_vision_tower.") for name in left_out)
