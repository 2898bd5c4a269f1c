"""A config that its weights do not bear out is refused by its key, before memory and time are spent on it."""

import json
import os
import shutil
import time

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oPipeline
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.models.target_encoder import load_target_encoder

REFUSED = "config.json must describe the tensors beside it"


@pytest.fixture
def folder(tmp_path):
    """The packaged pipeline, its weights linked and its settings copied."""

    def copy(source, target):
        return os.link(source, target) if target.endswith(".safetensors") else shutil.copy2(source, target)

    return shutil.copytree(packaged_model_path(), tmp_path / "pipeline", copy_function=copy)


def change(path, key, value):
    """Set a key of a JSON file; `a.b` is `b` in `a`."""
    settings = json.loads(path.read_text())
    *parents, last = key.split(".")
    inner = settings
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "backbone_config.text_config.vocab_size", 10**12),
        ("model", "backbone_config.text_config.num_hidden_layers", 10**9),
        ("model", "backbone_config.text_config.num_hidden_layers", -1),
        ("model", "backbone_config.text_config.hidden_size", 10**7),
        ("model", "backbone_config.vision_config.num_hidden_layers", 10**9),
        ("model", "backbone_config.vision_config.intermediate_size", 10**10),
        ("model", "transformer_config.num_layers", 10**9),
        ("model", "transformer_config.dim", 10**9),
        ("model", "num_queries", 10**12),
        ("decoder", "num_layers", 10**9),
        ("decoder", "dim", 10**9),
        ("decoder", "sample_size", 10**6),
    ],
)
def test_a_config_that_asks_for_more_than_there_is_is_refused_at_once(folder, part, key, value):
    change(folder / part / "config.json", key, value)
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"{REFUSED}\. `{key}` is {value}, and .* holds .* Use the config that was"):
        Blip3oPipeline.from_pretrained(folder)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "backbone_config.vision_config.num_hidden_layers", 1),
        ("model", "transformer_config.num_layers", 1),
        ("model", "transformer_config.num_layers", 0),
        ("decoder", "num_layers", 0),
    ],
)
def test_layers_are_not_dropped_in_silence(folder, part, key, value):
    change(folder / part / "config.json", key, value)
    with pytest.raises(ValueError, match=r"must hold every tensor of the model and no other\. .* has \d+ too many: "):
        Blip3oPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone_config.text_config.num_hidden_layers", 3),
        ("backbone_config.text_config", 5),
    ],
)
def test_a_config_that_describes_no_model_is_named(folder, key, value):
    """Whatever the libraries think of it."""
    change(folder / "model" / "config.json", key, value)
    message = rf"The config.json of a model must describe one. That of {folder / 'model'} does not: "
    with pytest.raises(ValueError, match=message):
        Blip3oForConditionalGeneration.from_pretrained(folder / "model")
    with pytest.raises(ValueError, match=message):
        Blip3oConfig.from_pretrained(folder / "model")


def test_a_backbone_that_is_not_described_is_no_default_one(folder):
    change(folder / "model" / "config.json", "backbone_config", None)
    for load in (Blip3oConfig.from_pretrained, Blip3oForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match=r"says what its backbone is, under `backbone_config`\. "):
            load(folder / "model")


@pytest.mark.parametrize("before", ["", "backbone_config."])
@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_of_the_hub_is_code_from_elsewhere(folder, before, name):
    key = before + name
    change(folder / "model" / "config.json", key, "someone/kernel")
    message = rf"may name no code to run\. `{key}` of .*config\.json is 'someone/kernel', a kernel of the Hub\."
    with pytest.raises(ValueError, match=message):
        Blip3oForConditionalGeneration.from_pretrained(folder / "model")
    change(folder / "model" / "config.json", key, "eager")
    assert Blip3oForConditionalGeneration.from_pretrained(folder / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_queries", 0), ("num_queries", "many"), ("num_queries", 1.5), ("feature_size", -8), ("feature_dim", True)],
)
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1. Got {value!r}"):
        Blip3oConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("feature_mean", float("nan"), "finite"),
        ("feature_mean", "0", "finite"),
        ("feature_std", float("inf"), "positive finite"),
        ("feature_std", 0.0, "positive finite"),
        ("feature_std", -1.0, "positive finite"),
    ],
)
def test_statistics_are_numbers_to_divide_by(name, value, kind):
    config = Blip3oConfig.from_pretrained(f"{packaged_model_path()}/model")
    settings = config.to_dict()
    settings[name] = [*settings[name][:-1], value]
    with pytest.raises(ValueError, match=f"`{name}` must hold {kind} numbers, .* Got {value!r}"):
        Blip3oConfig.from_dict(settings)


def test_of_a_model_with_text_and_vision_the_tower_is_still_taken(tmp_path):
    """Where a part is asked for, more may be stored; what the config of the part asks for is compared all the same."""
    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    tower.save_pretrained(tmp_path)
    change(tmp_path / "config.json", "num_hidden_layers", 10**8)
    with torch.device("meta"), pytest.raises(ValueError, match=f"{REFUSED}. `num_hidden_layers` is 100000000"):
        load_target_encoder(str(tmp_path))
