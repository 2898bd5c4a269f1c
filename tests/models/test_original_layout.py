"""Published checkpoints load as they are, come back under our names or their own, and say what is wrong with them."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tests.original_layout import (
    CHANNELS,
    DIM,
    DIT_HEADS,
    DIT_LAYERS,
    HIDDEN,
    NUM_QUERIES,
    SPECIAL_TOKENS,
    TOKEN_IDS,
    VOCAB_SIZE,
    feed_forward_width,
    original_config,
    original_shapes,
    write_original_checkpoint,
    write_weights,
)
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oProcessor
from blip3o_hf.models import checkpoint_files
from blip3o_hf.models.checkpoint_files import StoredTensor
from blip3o_hf.models.original_layout import (
    OriginalCheckpoint,
    feed_forward_arguments,
    original_name,
    own_name,
    save_original_layout,
    to_original_layout,
)
from blip3o_hf.models.transformer_next_dit import feed_forward_dim

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
LEFT_OUT = ("model.gen_vision_tower.", "model.down_projector.")
VARIANTS = {
    "4b": {"tied": True},
    "8b": {"tied": False},
    "training_class": {"model_type": "blip3o_qwen", "target_encoder": True},
    "sharded": {"shards": 3, "tied": False, "target_encoder": True, "diffusion_decoder": True},
    "grouped_queries": {"num_key_value_heads": 2},
    "ffn_multiplier": {"ffn_dim_multiplier": 4.0},
    "bfloat16": {"dtype": torch.bfloat16, "shards": 2},
}
DOORS = {
    "class": Blip3oForConditionalGeneration.from_pretrained,
    "auto": AutoModelForImageTextToText.from_pretrained,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "original"


@pytest.fixture
def published(folder):
    """`published(**settings of write_original_checkpoint)`: writes a checkpoint, returns its tensors."""

    def write(**settings):
        return write_original_checkpoint(folder, **settings)

    return write


@pytest.fixture
def inputs():
    input_ids = torch.tensor([[65, 66, 67, TOKEN_IDS["[IMG]"]], [70, 71, 72, TOKEN_IDS["[IMG]"]]])
    features = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": input_ids, "target_features": features, "noise": features.flip(0), "sigma": torch.ones(2) / 2}


def kept(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def load(folder, **settings):
    return Blip3oForConditionalGeneration.from_pretrained(folder, **settings)


def change_config(folder, **changes):
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


# Names


def every_name():
    return original_shapes(tied=False, target_encoder=True)


def test_every_published_name_has_one_of_ours_and_back():
    names = [name for name in every_name() if not name.startswith(LEFT_OUT)]
    own = [own_name(name) for name in names]
    assert len(set(own)) == len(names)
    assert [original_name(name) for name in own] == names
    assert {name.split(".")[0] for name in own} == {"backbone", "queries", "transformer"}


def test_the_target_encoder_and_the_down_projector_are_left_out():
    tower = [name for name in every_name() if name.startswith("model.gen_vision_tower.")]
    assert tower and all(own_name(name) is None for name in [*tower, "model.down_projector.weight"])


@pytest.mark.parametrize("translate", [own_name, original_name])
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
    assert_same_tensors(to_original_layout(model.state_dict()), tensors)
    assert_same_tensors(to_original_layout(load_file(tmp_path / "ours" / "model.safetensors")), tensors)


# Loading


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_checkpoint_loads_bit_for_bit(published, folder, variant, door):
    tensors = published(**VARIANTS[variant])
    model, info = DOORS[door](folder, output_loading_info=True)
    assert type(model) is Blip3oForConditionalGeneration
    assert type(model.config) is Blip3oConfig
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_tensors(to_original_layout(model.state_dict()), kept(tensors))
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
    assert Blip3oConfig().image_positions == "backbone"


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
    """As in the original, which ties after loading."""
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
        for where in ({}, {"revision": "v1"}, {"local_files_only": True}):
            model = door("owner/name", cache_dir=tmp_path / "cache", **where)
            assert torch.equal(model(**inputs).loss, expected)
    assert Blip3oProcessor.from_pretrained("owner/name", cache_dir=tmp_path / "cache").training_turn_end


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_out_of_reach_is_no_missing_file(monkeypatch, tmp_path, offline):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoint_files, "hf_hub_download", unreachable)
    monkeypatch.setattr(checkpoint_files, "is_offline_mode", lambda: offline)
    files = checkpoint_files.checkpoint_files("owner/name")
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

    monkeypatch.setattr(checkpoint_files, "parse_safetensors_file_metadata", parse)
    checkpoint = OriginalCheckpoint.open("owner/name", settings, revision="v1", token="secret")
    assert asked == [("owner/name", "model.safetensors", "v1", "secret")]
    assert checkpoint.config().transformer_config == Blip3oConfig.from_pretrained(folder).transformer_config


# Config


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
    flat = original_config()
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


def test_an_auto_config_without_weights_has_the_sizes_of_the_original_s_source(published, folder):
    published()
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_queries, config.feature_dim) == (64, 1792)
    assert "dim" not in config.transformer_config


def with_transformer_sizes(dim, width):
    """The headers of a checkpoint of this width and feed-forward width, as far as the config needs them."""
    shapes = original_shapes()
    shapes["model.dit.model.patch_embedder.proj.weight"] = (dim, CHANNELS)
    for index in range(DIT_LAYERS):
        prefix = f"model.dit.model.layers.{index}."
        shapes[f"{prefix}attn1.to_k.weight"] = (dim, dim)
        shapes[f"{prefix}feed_forward.linear_1.weight"] = (width, dim)
    tensors = {name: StoredTensor("model.safetensors", shape, "BF16") for name, shape in shapes.items()}
    return OriginalCheckpoint("checkpoint", original_config(), tensors)


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
    sizes = with_transformer_sizes(dim, width).config().transformer_config
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
        "whole 4 * 1792, which the original code builds on diffusers 0.33 and newer; released weights do not load "
        "into that, so these are not the released ones. Take the released checkpoint, or, if this one was trained at "
        'that width, pass `transformer_config={"ffn_dim": 7168}`.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        with_transformer_sizes(1792, 7168).config()


def test_a_feed_forward_width_is_accepted_on_request(published, folder):
    config = with_transformer_sizes(1792, 7168).config({"ffn_dim": 7168})
    assert config.transformer_config["ffn_dim"] == 7168
    published(ffn_dim_multiplier=4.0)
    for door in DOORS.values():
        model = door(folder, transformer_config={"ffn_dim": feed_forward_width(4.0)})
        assert model.transformer.config.ffn_dim == feed_forward_width(4.0)


# Full size


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
    for pattern, entry in json.loads((FIXTURES / "reference_keys_8b.json").read_text()).items():
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
    return original_config(tied=wanted["tied"]) | {
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
    checkpoint = OriginalCheckpoint("full size", full_size_config(size), tensors)
    config = checkpoint.config()
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
    assert {original_name(name) for name in state} == {name for name in tensors if own_name(name) is not None}
    left_out = [name for name in tensors if own_name(name) is None]
    assert len(left_out) == 4 + 12 * 64 and all(name.startswith("model.gen_vision_tower.") for name in left_out)


# Saving


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
    assert loaded == new == {own_name(name) for name in original_shapes()}


def test_a_copy_of_weights_on_disk_is_bit_equal(published, folder, inputs, tmp_path):
    published(shards=2)
    device_map = {"backbone": "cpu", "queries": "disk", "transformer": "disk"}
    load(folder, device_map=device_map, offload_folder=tmp_path / "offload").save_pretrained(tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours")(**inputs).loss, load(folder)(**inputs).loss)


@pytest.mark.parametrize(("variant", "shard_size"), [*((variant, "5GB") for variant in VARIANTS), ("8b", "50KB")])
def test_back_in_the_original_layout_it_is_the_same_checkpoint(published, folder, tmp_path, variant, shard_size):
    tensors = kept(published(**VARIANTS[variant]))
    load(folder).save_pretrained(tmp_path / "ours")
    save_original_layout(load(tmp_path / "ours"), tmp_path / "back", max_shard_size=shard_size)
    written = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        written |= load_file(file)
    assert_same_tensors(written, tensors)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file() is (shard_size == "50KB")
    assert_same_tensors(to_original_layout(load(tmp_path / "back").state_dict()), tensors)


def test_back_in_the_original_layout_the_config_says_the_same(published, folder, tmp_path):
    published(model_type="blip3o_qwen")
    save_original_layout(load(folder), tmp_path / "back")
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
def test_what_the_original_cannot_express_is_not_saved_as_one(make_model, tmp_path, settings, received):
    message = (
        "The original layout is for a Qwen2.5-VL backbone with flow matching on plain features. Got "
        f"{received}. Save this model with `save_pretrained`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_original_layout(make_model(**settings), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_with_weights_is_not_written_to(published, folder):
    published()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = (
        "A checkpoint is saved to a folder without weights, since old and new ones would mix. "
        f"{folder} holds model.safetensors. Choose another folder."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_original_layout(load(folder), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_on_disk_are_not_saved_in_the_original_layout(published, folder, tmp_path):
    published()
    device_map = {"backbone": "cpu", "queries": "cpu", "transformer": "disk"}
    model = load(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    message = (
        "Every weight must be in memory to be saved. model.dit.model.patch_embedder.proj.weight is offloaded to disk. "
        "Load the model without `device_map`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        save_original_layout(model, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_interrupted_save_leaves_nothing_behind(published, folder, tmp_path, monkeypatch):
    published()
    model = load(folder)

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(model.generation_config, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        save_original_layout(model, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


# Bad input


def assert_refused(folder, message, doors=DOORS):
    before = sorted(path.name for path in folder.iterdir())
    for name in doors:
        with pytest.raises(ValueError, match=message):
            DOORS[name](folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def last_tensor(file):
    """Name and end of the tensor that ends the file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return max(((name, 8 + length + entry["data_offsets"][1]) for name, entry in header.items()), key=lambda x: x[1])


@pytest.mark.parametrize("shards", [1, 2])
def test_a_truncated_file_is_refused_by_name(published, folder, shards):
    published(shards=shards)
    file = sorted(folder.glob("*.safetensors"))[-1]
    name, end = last_tensor(file)
    file.write_bytes(file.read_bytes()[:-1])
    message = (
        f"A checkpoint must be whole safetensors files. {file} is cut short: it has {end - 1} bytes, and {name} ends "
        f"at byte {end}. Download it again."
    )
    assert_refused(folder, re.escape(message))
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        (4).to_bytes(8, "little") + b"[1,2",
        (2).to_bytes(8, "little") + b"[]",
        (14).to_bytes(8, "little") + b'{"weight": {}}',
        (20).to_bytes(8, "little") + b'{"weight": "pickled"}',
        (10**6).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(published, folder, content):
    published(shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(content)
    message = (
        f"A checkpoint must be readable safetensors files. {file} has no readable header: it is damaged, or no "
        "safetensors file. Download it again."
    )
    assert_refused(folder, re.escape(message))


def change_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    return file


def test_a_missing_shard_is_refused_by_name(published, folder):
    published(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    placed = min(
        name for name, file in json.loads(index.read_text())["weight_map"].items() if file.startswith("model-00002")
    )
    message = (
        f"Every file that the index of shards names must be there. {index} places {placed} in "
        "model-00002-of-00002.safetensors, which is missing. Download it."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize("outside", ["../other.safetensors", "/etc/passwd", "a/../../other.safetensors", ".."])
def test_a_shard_outside_the_folder_is_refused(published, folder, outside):
    published(shards=2)
    save_file({"model.norm.weight": torch.zeros(HIDDEN)}, folder.parent / "other.safetensors")
    index = change_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": outside}))
    message = (
        f"A shard must lie in the checkpoint's folder. {index} places model.norm.weight in {outside!r}, outside of "
        "it. Download the checkpoint again, from a source you trust."
    )
    assert_refused(folder, re.escape(message))


def rewrite_header(file, change):
    """`change` gets the header of a safetensors file, and changes it or gives another."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = json.dumps(change(header) or header).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize(
    "lie",
    [
        {"data_offsets": [0, 4 * HIDDEN]},
        {"data_offsets": [-4 * HIDDEN, 0]},
        {"data_offsets": [0.0, 1.0]},
        {"dtype": "F64"},
        {"shape": [HIDDEN + 1]},
        {"shape": [-HIDDEN]},
    ],
)
def test_a_header_that_lies_is_refused(published, folder, lie):
    published()
    rewrite_header(folder / "model.safetensors", lambda header: header["model.norm.weight"].update(lie))
    message = (
        f"The header of a safetensors file must describe its tensors. That of {folder}/model.safetensors does not"
    )
    assert_refused(folder, re.escape(message))


def test_bytes_after_the_last_tensor_are_refused(published, folder):
    published()
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert_refused(folder, r"model\.safetensors does not \(.*file not fully covered\)\. Download it again\.")


def test_a_header_of_endless_depth_is_refused(published, folder):
    published()
    header = b"[" * 100_000
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert_refused(folder, r"model\.safetensors has no readable header")


@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_in_two_shards_is_refused_by_name(published, folder, listed):
    """transformers would take either."""
    published(shards=3)
    name = "model.norm.weight"
    index = folder / "model.safetensors.index.json"
    first = json.loads(index.read_text())["weight_map"][name]
    second = next(path for path in sorted(folder.glob("model-*.safetensors")) if path.name != first)
    save_file(load_file(second) | {name: torch.zeros(HIDDEN)}, second, metadata={"format": "pt"})
    if not listed:
        change_index(folder, lambda index: index["weight_map"].pop(name))
    files = sorted([first, second.name]) if not listed else [first, second.name]
    message = f"{index} or another file places {name} in {files[0]}, and {files[1]} holds one of that name, too."
    assert_refused(folder, re.escape(message))


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(published, folder):
    published(shards=2)
    name = "model.norm.weight"
    change_index(
        folder,
        lambda index: index["weight_map"].update(
            {name: next(file for file in index["weight_map"].values() if file != index["weight_map"][name])}
        ),
    )
    assert_refused(folder, rf"A tensor must have one place\. \S+ or another file places {re.escape(name)} in")


def test_a_shard_without_its_tensor_is_refused_by_name(published, folder):
    published(shards=2)
    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    absent = min(tensors)
    del tensors[absent]
    save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    message = (
        f"A shard must hold the tensors that the index places in it. {index} places {absent} in {file.name}, which "
        "has no tensor of that name. Download both again."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [], "metadata": {}}'],
)
def test_a_broken_index_is_refused(published, folder, content):
    published(shards=2)
    file = folder / "model.safetensors.index.json"
    file.write_text(content)
    message = (
        "An index of shards must hold `metadata`, and in `weight_map` the file of each tensor. "
        f"{file} does not. Download it again."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(("name", "file"), [("model.norm.weight", None), ("model.norm.weight", 3)])
def test_an_index_with_a_file_that_is_no_name_is_refused(published, folder, name, file):
    published(shards=2)
    change_index(folder, lambda index: index["weight_map"].update({name: file}))
    assert_refused(folder, "An index of shards must hold `metadata`, and in `weight_map` the file of each tensor.")


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


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickled_checkpoint_is_refused_unread(published, folder, pickled):
    published()
    (folder / "model.safetensors").unlink()
    (folder / pickled).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    message = (
        "Weights are read from model.safetensors, or from shards with model.safetensors.index.json. "
        f"{folder} has only {pickled}. Reading a pickle can run any program: save it again as safetensors, where it "
        "was written."
    )
    assert_refused(folder, re.escape(message))
    with pytest.raises(ValueError, match=re.escape(message)):
        load(folder, use_safetensors=False)


def test_safetensors_are_read_where_there_is_a_pickle_too(published, folder):
    published()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(folder, use_safetensors=False).config.num_queries == NUM_QUERIES


def test_a_checkpoint_without_weights_is_refused(published, folder):
    published()
    (folder / "model.safetensors").unlink()
    message = (
        "Weights are read from model.safetensors, or from shards with model.safetensors.index.json. "
        f"{folder} has neither. Download the weights."
    )
    assert_refused(folder, re.escape(message))


def test_shapes_may_differ_on_request(published, folder):
    tensors = published()
    name = "model.dit.model.norm_out.linear_2.bias"
    write_weights(folder, tensors | {name: torch.zeros(CHANNELS + 1)})
    assert_refused(folder, re.escape(f"{name} (in model.safetensors) is [{CHANNELS + 1}], not [{CHANNELS}]"))
    model = load(folder, ignore_mismatched_sizes=True)
    assert model.transformer.norm_out.linear_2.bias.shape == (CHANNELS,)


# Other folders


def test_our_own_layout_is_not_taken_for_the_original(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    assert OriginalCheckpoint.find(tmp_path) is None
    assert OriginalCheckpoint.find(tmp_path / "nowhere") is None
    assert OriginalCheckpoint.find(None) is None


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


# Processor


@pytest.mark.parametrize("image_processor", [True, False])
@pytest.mark.parametrize("tokenizer", ["fast", "slow"])
def test_a_processor_is_built_from_a_published_folder(published, folder, make_image, tokenizer, image_processor):
    published(tokenizer=tokenizer, image_processor=image_processor)
    processor = Blip3oProcessor.from_pretrained(folder)
    assert type(processor.image_processor) is Qwen2VLImageProcessorPil
    longest = 112 * 112 if image_processor else 12845056
    assert processor.image_processor.size["longest_edge"] == longest
    assert processor.image_processor.size["shortest_edge"] == 56 * 56
    for token in SPECIAL_TOKENS:
        assert processor.tokenizer.convert_tokens_to_ids(token) == TOKEN_IDS[token]
    inputs = processor.encode_prompts(["the cat"], images=[make_image()])
    assert inputs["input_ids"][0, -1] == TOKEN_IDS["[IMG]"]
    # 64 pixels become 56 or 84, in cells of 28.
    cells = int(inputs["image_grid_thw"].prod()) // 4
    assert (inputs["input_ids"] == TOKEN_IDS["<|image_pad|>"]).sum() == cells > 0
    assert load(folder).encode_condition(**inputs).shape == (1, NUM_QUERIES, HIDDEN)


PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nPlease generate image based on the following caption: the cat<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_prompts_are_those_of_the_reference(published, folder):
    """Training closes the assistant's turn before the image; drawing does not. The tokenizer's own template is not
    the reference's."""
    published()
    processor = Blip3oProcessor.from_pretrained(folder)

    def text(inputs):
        return processor.tokenizer.decode(inputs["input_ids"][0])

    assert text(processor.encode_prompts(["the cat"])) == PROMPT + "[IMG]"
    assert text(processor.encode_prompts(["the cat"], training=True)) == PROMPT + "<|im_end|>\n[IMG]"
    raw = processor.encode_prompts(["the cat"], raw=True, training=True)
    assert text(raw) == "the cat[IMG]"


def test_a_tokenizer_without_its_vocabulary_is_refused(published, folder):
    """The library would read every prompt as empty."""
    published(tokenizer="slow")
    (folder / "merges.txt").unlink()
    message = (
        f"A tokenizer must have its vocabulary: tokenizer.json, or vocab.json and merges.txt. {folder} has not. "
        f"Download them."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oProcessor.from_pretrained(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_damaged_file_of_the_processor_is_refused_by_its_place(published, folder, name):
    published()
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(f"{folder}/{name} does not. Save or download it again.")):
        Blip3oProcessor.from_pretrained(folder)


def test_our_own_processors_draw_and_train_on_the_same_prompt(processor):
    drawn, trained = (processor.encode_prompts(["a circle"], training=training) for training in (False, True))
    assert torch.equal(drawn["input_ids"], trained["input_ids"])


def test_settings_of_the_processor_are_taken_and_saved(published, folder, tmp_path):
    published()
    processor = Blip3oProcessor.from_pretrained(folder, instruction="Draw {caption}", max_prompt_length=90)
    processor.save_pretrained(tmp_path / "ours")
    loaded = Blip3oProcessor.from_pretrained(tmp_path / "ours")
    for each in (processor, loaded):
        assert each.instruction == "Draw {caption}"
        assert each.max_prompt_length == 90
        assert each.training_turn_end == "<|im_end|>\n"
    expected, actual = (each.encode_prompts(["the cat"], training=True) for each in (processor, loaded))
    assert torch.equal(actual["input_ids"], expected["input_ids"])


def test_a_processor_saved_beside_published_weights_is_taken_as_it_is(published, folder, make_processor):
    published()
    make_processor(instruction="Draw {caption}").save_pretrained(folder)
    processor = Blip3oProcessor.from_pretrained(folder)
    assert processor.instruction == "Draw {caption}"
    assert processor.training_turn_end == ""


def test_the_pipeline_of_transformers_answers_from_a_published_folder(published, folder, make_image):
    published(image_processor=False)
    assert type(AutoProcessor.from_pretrained(folder)) is Blip3oProcessor
    content = [{"type": "image", "image": make_image()}, {"type": "text", "text": "the cat"}]
    answer = pipeline("image-text-to-text", model=str(folder))(
        text=[{"role": "user", "content": content}], max_new_tokens=2, return_full_text=False
    )
    assert isinstance(answer[0]["generated_text"], str)
