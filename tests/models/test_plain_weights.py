"""A model is saved whole and plain, whatever was done to its parts; offloaded it saves as a stock model does."""

import re

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from torch.nn import DataParallel
from transformers import AutoModelForImageTextToText

from blip3o_hf.models.adapters import lora_config
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.transformer_next_dit import Blip3oTransformer2DModel


def assert_same(model, expected):
    actual = model.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("part", ["transformer", "backbone", "queries", "backbone.model.language_model"])
def test_compiled_parts_are_saved_as_what_was_compiled(model, pipeline, part, tmp_path):
    pipeline.model, before = model, weights(model)
    parent, _, name = part.rpartition(".")
    parent = model.get_submodule(parent)
    compiled = torch.compile(getattr(parent, name))
    setattr(parent, name, compiled)
    model.save_pretrained(tmp_path / "model")
    pipeline.save_pretrained(tmp_path / "pipe")
    assert getattr(parent, name) is compiled
    for folder in ("model", "pipe"):
        assert_same(Blip3oForConditionalGeneration.from_pretrained(tmp_path / folder), before)


def test_a_model_with_adapters_is_not_saved(model, tmp_path):
    before = weights(model)
    adapted = get_peft_model(model, lora_config(model, parts=("transformer", "backbone"), rank=2, train_queries=False))
    places = len([module for module in model.modules() if hasattr(module, "lora_A")])
    message = (
        f"A model is saved with its plain weights. This one has adapters in {places} places, such as "
        "backbone.model.language_model.layers.0.self_attn.q_proj. Unload them first: `unload_lora_weights()` of the "
        "pipeline, after `fuse_lora()` to keep what they do, or `merge_and_unload()` of PEFT."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.save_pretrained(tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.unload().save_pretrained(tmp_path / "plain")
    assert_same(Blip3oForConditionalGeneration.from_pretrained(tmp_path / "plain"), before)


def test_a_pipeline_s_adapters_are_not_saved_with_its_model(pipeline, tmp_path):
    """Loaded through the pipeline, which wraps the queries, too."""
    from blip3o_hf.models.adapters import save_lora

    adapted = get_peft_model(pipeline.model, lora_config(pipeline.model, rank=2))
    save_lora(adapted, tmp_path)
    pipeline.model = adapted.unload()
    pipeline.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="A model is saved with its plain weights"):
        pipeline.model.save_pretrained(tmp_path / "model")
    pipeline.unload_lora_weights()
    pipeline.model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("way", ["pipeline", "model"])
def test_a_transformer_with_adapters_is_not_saved(pipeline, way, tmp_path):
    """It would be read again with random tensors."""
    from blip3o_hf.models.adapters import save_lora

    before = weights(pipeline.transformer)
    adapted = get_peft_model(pipeline.model, lora_config(pipeline.model, rank=2))
    save_lora(adapted, tmp_path)
    pipeline.model = adapted.unload()
    if way == "pipeline":
        pipeline.load_lora_weights(tmp_path)
    else:
        pipeline.transformer.load_lora_adapter(load_file(tmp_path / "pytorch_lora_weights.safetensors"))
    message = (
        r"A model is saved with its plain weights. This one has adapters in \d+ places, such as layers.0.attn1.to_q. "
        r"Unload them first: `unload_lora_weights\(\)` of the pipeline, after `fuse_lora\(\)` to keep what they do, "
        r"or `unload_lora\(\)` of the model, or `merge_and_unload\(\)` of PEFT."
    )
    with pytest.raises(ValueError, match=message):
        pipeline.transformer.save_pretrained(tmp_path / "transformer")
    assert not (tmp_path / "transformer").exists()
    pipeline.unload_lora_weights() if way == "pipeline" else pipeline.transformer.unload_lora()
    pipeline.transformer.save_pretrained(tmp_path / "transformer")
    assert_same(Blip3oTransformer2DModel.from_pretrained(tmp_path / "transformer"), before)


def test_a_pipeline_whose_decoder_has_adapters_is_not_saved(pipeline, tmp_path):
    pipeline.decoder.proj_in = LoraLinear(pipeline.decoder.proj_in, "style", LoraConfig(r=2), r=2)
    with pytest.raises(ValueError, match=r"This one has adapters in 1 places, such as proj_in. Unload them first"):
        pipeline.save_pretrained(tmp_path)


# Names of wrapped parts


def wrapped_blocks(transformer, wrap):
    for index, layer in enumerate(transformer.layers):
        transformer.layers[index] = wrap(layer)


@pytest.mark.parametrize("wrap", [torch.compile, DataParallel])
def test_a_transformer_of_wrapped_blocks_is_saved_as_what_was_wrapped(model, wrap, tmp_path):
    transformer, before = model.transformer, weights(model.transformer)
    wrapped_blocks(transformer, wrap)
    names = list(transformer.state_dict())
    transformer.save_pretrained(tmp_path)
    assert_same(Blip3oTransformer2DModel.from_pretrained(tmp_path), before)
    assert list(transformer.state_dict()) == names != list(before)


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize(
    "wrap", [torch.compile, torch.nn.DataParallel, lambda part: torch.compile(DataParallel(part))]
)
@pytest.mark.parametrize("part", ["transformer", "blocks", "whole"])
def test_weights_of_wrapped_parts_are_written_under_plain_names(model, part, wrap, passed, tmp_path):
    before = weights(model)
    state_dict = None
    if part == "blocks":
        wrapped_blocks(model.transformer, wrap)
    elif part == "transformer":
        model.transformer = wrap(model.transformer)
    if passed:
        state_dict = (wrap(model) if part == "whole" else model).state_dict()
        assert state_dict.keys() != before.keys()
    model.save_pretrained(tmp_path, state_dict=state_dict)
    assert_same(Blip3oForConditionalGeneration.from_pretrained(tmp_path), before)


def test_a_part_that_is_itself_called_module_keeps_its_name(model, tmp_path):
    model.register_module("module", torch.nn.Linear(2, 2))
    model.save_pretrained(tmp_path, state_dict=torch.compile(model).state_dict())
    assert {"module.weight", "module.bias", "queries.weight"} <= load_file(tmp_path / "model.safetensors").keys()


def test_a_state_dict_with_adapters_is_not_saved(pipeline, tmp_path):
    before = weights(pipeline.model)
    adapted = get_peft_model(pipeline.model, lora_config(pipeline.model, rank=2, train_queries=False))
    model = adapted.get_base_model()
    with pytest.raises(ValueError, match="A model is saved with its plain weights"):
        model.save_pretrained(tmp_path / "model", state_dict=model.state_dict())
    model.save_pretrained(tmp_path / "model", state_dict=before)
    assert_same(Blip3oForConditionalGeneration.from_pretrained(tmp_path / "model"), before)


# accelerate


@pytest.fixture(params=["stock", "ours"])
def case(request, make_model):
    """A model, its class, and which of its parts lie where."""
    model = make_model(tied=False)
    if request.param == "stock":
        places = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "disk"}
        return model.backbone, AutoModelForImageTextToText, places
    return model, Blip3oForConditionalGeneration, {"backbone": "disk", "queries": "cpu", "transformer": "disk"}


@pytest.mark.parametrize("is_loaded_so", [True, False])
def test_an_offloaded_model_is_saved_whole(case, is_loaded_so, tmp_path):
    model, auto, places = case
    before = weights(model)
    model.save_pretrained(tmp_path / "plain")
    if is_loaded_so:
        offloaded = auto.from_pretrained(tmp_path / "plain", device_map=places, offload_folder=tmp_path / "disk")
    else:
        offloaded = auto.from_pretrained(tmp_path / "plain")
        dispatch_model(offloaded, places, main_device="cpu", offload_dir=tmp_path / "disk", force_hooks=True)
    offloaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys()
    assert_same(auto.from_pretrained(tmp_path / "again"), before)


def test_accelerate_loads_a_checkpoint(case, tmp_path):
    """By the names of parameters, so a checkpoint must have these."""
    model, _, _ = case
    before = weights(model)
    model.save_pretrained(tmp_path, save_original_format=False)
    with init_empty_weights():
        empty = type(model)(model.config)
    loaded = load_checkpoint_and_dispatch(empty, tmp_path, device_map="auto")
    assert_same(loaded, before)


def test_a_pipeline_s_folder_is_loaded_with_parts_on_disk(pipeline, prompts, tmp_path):
    before = weights(pipeline.model)
    expected = pipeline.model.encode_condition(**prompts)
    pipeline.save_pretrained(tmp_path / "pipe")
    places = {"backbone": "disk", "queries": "cpu", "transformer": "disk"}
    model = Blip3oForConditionalGeneration.from_pretrained(
        tmp_path / "pipe", device_map=places, offload_folder=tmp_path / "disk"
    )
    torch.testing.assert_close(model.encode_condition(**prompts), expected)
    model.save_pretrained(tmp_path / "model")
    assert_same(Blip3oForConditionalGeneration.from_pretrained(tmp_path / "model"), before)


@pytest.fixture
def prompts(processor):
    return processor.encode_prompts(["two red circles", "a circle"])
