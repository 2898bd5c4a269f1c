"""A config that its weights do not bear out is refused by its key, before memory and time are spent on it."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from blip3o_hf import Blip3oConfig, Blip3oForConditionalGeneration, Blip3oPipeline
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
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


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("decoder/config.json", "in_channels", "x", "`in_channels` must be a whole number of at least 1. Got 'x'."),
        ("decoder/config.json", "patch_size", 1.5, "`patch_size` must be a whole number of at least 1. Got 1.5."),
        ("decoder/config.json", "dim", {}, "must be a whole number, and is {}."),
        ("decoder/config.json", "num_layers", None, "`num_layers` must be a whole number of at least 0. Got None."),
        ("scheduler/scheduler_config.json", "shift", "%s%n", "`shift` must be positive, got '%s%n'."),
        ("model/config.json", "transformer_config.multiple_of", 10**12, "`transformer_config.multiple_of` is 10000"),
        (
            "model/config.json",
            "transformer_config.num_layers",
            [],
            "`num_layers` must be a whole number of at least 0. Got [].",
        ),
        ("processor/processor_config.json", "num_image_tokens", [5], "`num_image_tokens` must be a whole number"),
        ("processor/processor_config.json", "plan_instruction", 5, "`plan_instruction` must contain '{caption}'"),
        ("processor/processor_config.json", "image_processor", "x", "AttributeError: "),
        ("processor/processor_config.json", "image_processor.crop_size.height", "x", "`crop_size.height` must be a"),
        ("processor/tokenizer_config.json", "tokenizer_class", 5, "AttributeError: 'int' object"),
        ("model_index.json", "model", " ", "cannot be opened: "),
        ("model_index.json", "decoder", [True], "cannot be opened: "),
        ("model_index.json", "scheduler", ["diffusers", 1.5], "AttributeError: 'float' object"),
        ("model_index.json", "default_num_attempts", 1e30, "`default_num_attempts` of a pipeline must be a whole num"),
        ("model_index.json", "default_plan", 1, "`default_plan` of a pipeline must be true or false."),
        ("model_index.json", "default_guidance_scale", "x", "`default_guidance_scale` of a pipeline must be a finite"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_with_its_folder(folder, file, key, value, said):
    """Whatever a library makes of it."""
    change(folder / file, key, value)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Blip3oPipeline.from_pretrained(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (file, content)
        for file in ("generation_config.json", "scheduler_config.json", "processor_config.json")
        for content in ("[5]", "[" * 10**5, '{"x": "\udcff"}')
    ],
)
def test_a_settings_file_of_another_content_is_named_with_its_folder(folder, file, content):
    (path,) = (path for path in folder.glob(f"*/{file}") if path.parent.name != "target_encoder")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises((ValueError, OSError), match=str(folder)):
        Blip3oPipeline.from_pretrained(folder)


def test_a_tokenizer_without_its_vocabulary_is_one_line(folder):
    (folder / "processor" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=f"{folder}/processor must be as `save_pretrained` wrote it") as caught:
        Blip3oPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_default_that_is_a_whole_number_is_one_with_a_point(folder, caplog):
    """As JSON writers leave the point out, and diffusers would warn of it."""
    change(folder / "model_index.json", "default_guidance_scale", 2)
    assert Blip3oPipeline.from_pretrained(folder).config.default_guidance_scale == 2.0
    assert "Expected types" not in caplog.text


def test_default_attempts_have_a_limit(folder):
    change(folder / "model_index.json", "default_num_attempts", 10**9)
    pipe = Blip3oPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"`num_attempts` must be an integer from 1 to 1,000\. Got 1000000000\."):
        pipe("a red circle")


def test_weights_are_floating_point_numbers(folder):
    path = folder / "decoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()  # it is linked
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"Weights must be floating-point numbers .* is I8\. "):
        Blip3oPipeline.from_pretrained(folder)


def test_what_is_refused_is_not_also_reported_by_the_libraries(folder, capfd):
    change(folder / "decoder" / "config.json", "patch_size", 7)
    change(folder / "model" / "config.json", "num_queries", 1)
    for part, message in (("decoder", "proj_out"), ("model", "queries")):
        load = Blip3oPatchDecoder if part == "decoder" else Blip3oForConditionalGeneration
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(folder / part)
    printed = capfd.readouterr()
    assert "LOAD REPORT" not in printed.err and "newly initialized" not in printed.err


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
