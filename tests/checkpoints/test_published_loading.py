"""Published checkpoints load as they are, by every door and with the usual arguments."""

import json
import logging

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from tests.checkpoints.published_doors import DOORS, VARIANTS, assert_same_tensors, change_config, kept, load
from tests.published_layout import HIDDEN, NUM_QUERIES, VOCAB_SIZE, write_weights
from transformers import AutoConfig

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oProcessor
from blip3o_hf.checkpoints import lookup
from blip3o_hf.checkpoints.headers import StoredTensor
from blip3o_hf.checkpoints.published_checkpoint import PublishedCheckpoint
from blip3o_hf.checkpoints.published_saving import to_published_layout
from blip3o_hf.models.fitted_config import config_of


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_checkpoint_loads_bit_for_bit(published, folder, variant, door):
    tensors = published(**VARIANTS[variant])
    model, info = DOORS[door](folder, output_loading_info=True)
    assert type(model) is Blip3oForConditionalGeneration
    assert type(model.config) is Blip3oConfig
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_tensors(to_published_layout(model.state_dict()), kept(tensors))
    tied = VARIANTS[variant].get("tied", True)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_a_path_may_be_a_string(published, folder):
    published()
    assert load(str(folder)).config.num_queries == NUM_QUERIES


def test_a_published_checkpoint_counts_positions_on_over_images_as_it_was_trained(published, folder, tmp_path):
    published()
    model = load(folder)
    assert model.config.image_positions == "sequential"
    model.save_pretrained(tmp_path / "ours")
    assert load(tmp_path / "ours").config.image_positions == "sequential"
    assert Blip3oConfig().image_positions == "sequential"


def test_loading_reports_nothing(published, folder, caplog, monkeypatch):
    """No notice of a foreign model type, and none of the target encoder."""
    published(target_encoder=True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        load(folder)
    assert not caplog.records


@pytest.mark.parametrize(
    ("door", "settings"),
    [
        ("class", {"device_map": "cpu"}),
        ("class", {"device_map": "auto"}),
        ("auto", {"device_map": "auto"}),
        ("auto", {"device_map": {"": "cpu"}}),
        ("class", {"use_safetensors": True}),
        ("class", {"attn_implementation": "sdpa"}),
        ("class", {"key_mapping": {"no_such_name": "nothing"}}),
    ],
    ids=str,
)
def test_the_usual_arguments_change_no_output(published, folder, inputs, door, settings):
    published(shards=2)
    with torch.no_grad():
        expected = load(folder)(**inputs)
        output = DOORS[door](folder, **settings)(**inputs)
    assert torch.equal(output.condition, expected.condition)
    assert torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("door", DOORS)
def test_weights_may_stay_on_disk(published, folder, inputs, tmp_path, door):
    published(shards=2)
    device_map = {"backbone": "cpu", "queries": "disk", "transformer": "disk"}
    model = DOORS[door](folder, device_map=device_map, offload_folder=tmp_path / "offload")
    assert model.queries.weight.device.type == "meta"
    with torch.no_grad():
        assert torch.equal(model(**inputs).loss, load(folder)(**inputs).loss)


@pytest.mark.parametrize(
    ("door", "dtype"), [("class", torch.bfloat16), ("class", "float16"), ("auto", torch.bfloat16)]
)
def test_loading_in_another_dtype_casts_every_parameter(published, folder, door, dtype):
    tensors = published()
    model = DOORS[door](folder, dtype=dtype)
    expected = torch.float16 if dtype == "float16" else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert torch.equal(model.queries.weight, tensors["model.latent_queries"][0].to(expected))


def test_without_a_dtype_the_config_s_is_taken(published, folder):
    published(dtype=torch.bfloat16)
    assert load(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("door", DOORS)
def test_arguments_of_the_config_are_taken(published, folder, door):
    published()
    assert DOORS[door](folder, condition_dropout=0.3).config.condition_dropout == 0.3


@pytest.mark.parametrize("door", DOORS)
def test_a_subfolder_is_found(published, folder, inputs, door):
    published(num_key_value_heads=2)
    model = DOORS[door](folder.parent, subfolder=folder.name)
    assert torch.equal(model(**inputs).loss, load(folder)(**inputs).loss)


def test_a_passed_config_keeps_its_settings_and_takes_the_tensors_sizes(published, folder):
    published(num_key_value_heads=2)
    config = AutoConfig.from_pretrained(folder)
    config.condition_dropout = 0.25
    config.num_queries = 99
    config.transformer_config = {"dim": 8}
    model = load(folder, config=config)
    assert model.config.condition_dropout == 0.25
    assert model.config.num_queries == NUM_QUERIES
    assert model.config.transformer_config == load(folder).config.transformer_config
    assert config.num_queries == 99


def test_a_stray_output_layer_of_a_tied_checkpoint_is_ignored(published, folder):
    """As in the reference, which ties after loading."""
    tensors = published(tied=True)
    write_weights(folder, tensors | {"lm_head.weight": torch.randn(VOCAB_SIZE, HIDDEN)})
    model = load(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_config_silent_about_tying_is_read_from_the_tensors(published, folder, tied):
    published(tied=tied)
    change_config(folder, tie_word_embeddings=None)
    model = load(folder)
    assert model.config.tie_word_embeddings is tied
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_a_repository_in_the_hub_s_cache_loads_by_its_id(published, folder, inputs, tmp_path):
    published(shards=2, num_key_value_heads=2)
    expected = load(folder)(**inputs).loss
    repository, commit = tmp_path / "cache" / "models--owner--name", "a" * 40
    (repository / "refs").mkdir(parents=True)
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    for door in DOORS.values():
        for hub_arguments in ({}, {"revision": "v1"}, {"local_files_only": True}):
            model = door("owner/name", cache_dir=tmp_path / "cache", **hub_arguments)
            assert torch.equal(model(**inputs).loss, expected)
    assert Blip3oProcessor.from_pretrained("owner/name", cache_dir=tmp_path / "cache").training_turn_end


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_out_of_reach_is_no_missing_file(monkeypatch, tmp_path, offline):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(lookup, "hf_hub_download", unreachable)
    monkeypatch.setattr(lookup, "is_offline_mode", lambda: offline)
    files = lookup.checkpoint_files("owner/name")
    if offline:
        assert files.path("config.json") is None
    else:
        with pytest.raises(LocalEntryNotFoundError, match="no connection"):
            files.path("config.json")


def test_only_headers_of_a_repository_on_the_hub_are_fetched(published, folder, monkeypatch):
    published(num_key_value_heads=2)
    settings = json.loads((folder / "config.json").read_text())
    asked = []

    class Header:
        def __init__(self, file):
            shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
            self.tensors = {name: StoredTensor(file.name, tuple(shape), "F32") for name, shape in shapes.items()}

    def parse(repo_id, filename, *, revision, token):
        asked.append((repo_id, filename, revision, token))
        return Header(folder / filename)

    monkeypatch.setattr(lookup, "parse_safetensors_file_metadata", parse)
    checkpoint = PublishedCheckpoint.open("owner/name", settings, revision="v1", token="secret")
    assert asked == [("owner/name", "model.safetensors", "v1", "secret")]
    assert (
        config_of(checkpoint, Blip3oConfig).transformer_config
        == Blip3oConfig.from_pretrained(folder).transformer_config
    )


def test_our_own_layout_is_not_taken_for_a_published_one(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    assert PublishedCheckpoint.find(tmp_path) is None
    assert PublishedCheckpoint.find(tmp_path / "nowhere") is None
    assert PublishedCheckpoint.find(None) is None


def test_transformers_keeps_what_this_relies_on(published, folder, tmp_path):
    """Its table of names is not public, nor is the list that it saves by: a canary for new releases."""
    published()
    model = load(folder)
    read_by = [conversion for conversion in model._weight_conversions if conversion.scope_prefix is None]
    assert {pattern for conversion in read_by for pattern in conversion.target_patterns} == {
        "backbone.visual.",
        r"backbone.model.\1.",
        "transformer.",
        "queries.weight",
    }
    model.save_pretrained(tmp_path)
    assert all(conversion.scope_prefix for conversion in model._weight_conversions)
    assert all(conversion.scope_prefix for conversion in load(tmp_path)._weight_conversions)
