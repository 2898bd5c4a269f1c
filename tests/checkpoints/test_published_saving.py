"""Published checkpoints come back under our names or their own, bit for bit."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints.published_doors import VARIANTS, assert_same_tensors, kept, load
from tests.published_layout import published_shapes

from blip3o_hf import Blip3oForConditionalGeneration
from blip3o_hf.checkpoints.published_names import our_name
from blip3o_hf.checkpoints.published_saving import save_published_layout, to_published_layout


@pytest.mark.parametrize(("variant", "shard_size"), [*((variant, "5GB") for variant in VARIANTS), ("8b", "50KB")])
def test_a_copy_under_our_names_is_bit_equal(published, folder, inputs, tmp_path, variant, shard_size):
    published(**VARIANTS[variant])
    model = load(folder)
    model.save_pretrained(tmp_path / "ours", max_shard_size=shard_size)
    saved = {}
    for file in (tmp_path / "ours").glob("*.safetensors"):
        saved |= load_file(file)
    assert {name.split(".")[0] for name in saved} == {"backbone", "queries", "transformer"}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "blip3o"
    copy, info = load(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert copy.dtype == model.dtype
    with torch.no_grad():
        expected, actual = model(**inputs), copy(**inputs)
        assert torch.equal(actual.condition, expected.condition)
        assert torch.equal(actual.prediction, expected.prediction)
        questions = {"input_ids": inputs["input_ids"]}
        assert torch.equal(copy(**questions).logits, model(**questions).logits)


def test_names_of_a_copy_are_those_of_a_new_model(published, folder, tmp_path):
    published()
    model = load(folder)
    model.save_pretrained(tmp_path / "loaded")
    Blip3oForConditionalGeneration(model.config).save_pretrained(tmp_path / "new")
    loaded, new = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("loaded", "new"))
    assert loaded == new == {our_name(name) for name in published_shapes()}


def test_a_copy_of_weights_on_disk_is_bit_equal(published, folder, inputs, tmp_path):
    published(shards=2)
    device_map = {"backbone": "cpu", "queries": "disk", "transformer": "disk"}
    load(folder, device_map=device_map, offload_folder=tmp_path / "offload").save_pretrained(tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours")(**inputs).loss, load(folder)(**inputs).loss)


@pytest.mark.parametrize(("variant", "shard_size"), [*((variant, "5GB") for variant in VARIANTS), ("8b", "50KB")])
def test_back_in_the_published_layout_it_is_the_same_checkpoint(published, folder, tmp_path, variant, shard_size):
    tensors = kept(published(**VARIANTS[variant]))
    load(folder).save_pretrained(tmp_path / "ours")
    save_published_layout(load(tmp_path / "ours"), tmp_path / "back", max_shard_size=shard_size)
    written = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        written |= load_file(file)
    assert_same_tensors(written, tensors)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file() is (shard_size == "50KB")
    assert_same_tensors(to_published_layout(load(tmp_path / "back").state_dict()), tensors)


def test_back_in_the_published_layout_the_config_says_the_same(published, folder, tmp_path):
    published(model_type="blip3o_qwen")
    save_published_layout(load(folder), tmp_path / "back")
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back"))
    unsaid = {"transformers_version", "use_cache", "sliding_window"}
    assert before.keys() - after.keys() == unsaid
    assert after == {name: value for name, value in before.items() if name not in unsaid}
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize(
    ("settings", "received"),
    [
        ({"backbone": "llama"}, "the backbone llama"),
        ({"objective": "feature_regression", "num_queries": 16}, "the objective feature_regression"),
        ({"objective": "latent_flow"}, "the objective latent_flow"),
        ({"feature_mean": [0.0] * 16, "feature_std": [1.0] * 16}, "feature statistics"),
    ],
)
def test_what_the_published_layout_cannot_express_is_not_saved_as_one(make_model, tmp_path, settings, received):
    message = (
        "The published layout is for a Qwen2.5-VL backbone with flow matching on plain features. Got "
        f"{received}. Save this model with `save_pretrained`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_published_layout(make_model(**settings), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_with_weights_is_not_written_to(published, folder):
    published()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = (
        "A checkpoint is saved to a folder without weights, since old and new ones would mix. "
        f"{folder} holds model.safetensors. Choose another folder."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_published_layout(load(folder), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_on_disk_are_not_saved_in_the_published_layout(published, folder, tmp_path):
    published()
    device_map = {"backbone": "cpu", "queries": "cpu", "transformer": "disk"}
    model = load(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    message = (
        "Every weight must be in memory to be saved. model.dit.model.patch_embedder.proj.weight is offloaded to disk. "
        "Load the model without `device_map`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_published_layout(model, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_interrupted_save_leaves_nothing_behind(published, folder, tmp_path, monkeypatch):
    published()
    model = load(folder)

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(model.generation_config, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        save_published_layout(model, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []
