"""Adapters on a pipeline whose parts are compiled or data-parallel work as on plain ones."""

import pytest
import torch
from peft import get_peft_model

from blip3o_hf.models.adapters import lora_config, save_lora


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    model = get_peft_model(make_model(), lora_config(make_model(), ("transformer", "backbone"), 2)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = noise if "lora_" in name else parameter.data + noise
    save_lora(model, folder)
    return folder


def draw(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline("two red circles", generator=generator, output_type="features").image_features


def compile_part(pipeline, part):
    if part == "model":
        pipeline.model = torch.compile(pipeline.model, backend="eager")
    elif part == "blocks":
        layers = pipeline.transformer.layers
        for index, layer in enumerate(layers):
            layers[index] = torch.compile(layer, backend="eager")
    elif part == "in place":
        pipeline.transformer.compile(backend="eager")
    else:
        setattr(pipeline.model, part, torch.compile(getattr(pipeline.model, part), backend="eager"))


@pytest.mark.parametrize("part", ["transformer", "backbone", "queries", "model", "blocks", "in place"])
def test_a_compiled_pipeline_takes_a_lora(make_pipeline, assert_close, folder, part, tmp_path):
    plain, compiled = make_pipeline(), make_pipeline()
    before = draw(plain)
    compile_part(compiled, part)
    kept = compiled.model.transformer
    assert_close(draw(compiled), before)
    for pipeline in (plain, compiled):
        pipeline.load_lora_weights(str(folder), adapter_name="style")
    assert compiled.get_list_adapters() == {"transformer": ["style"], "backbone": ["style"]}
    assert compiled.get_active_adapters() == ["style"]
    expected = draw(plain)
    assert (expected - before).abs().max() > 0.05 * before.abs().max()
    assert_close(draw(compiled), expected)
    for pipeline in (plain, compiled):
        pipeline.set_adapters("style", 0.5)
    assert_close(draw(compiled), draw(plain))
    compiled.disable_lora()
    assert_close(draw(compiled), before)
    compiled.enable_lora()
    compiled.fuse_lora()
    assert_close(draw(compiled), draw(plain))
    compiled.unfuse_lora()
    compiled.unload_lora_weights()
    assert_close(draw(compiled), before)
    assert compiled.model.transformer is kept
    compiled.save_pretrained(tmp_path)


def test_a_data_parallel_transformer_takes_a_lora(pipeline, folder):
    pipeline.model.transformer = parallel = torch.nn.DataParallel(pipeline.model.transformer)
    before = list(pipeline.model.state_dict())
    pipeline.load_lora_weights(str(folder), adapter_name="style")
    assert pipeline.get_list_adapters() == {"transformer": ["style"], "backbone": ["style"]}
    pipeline.delete_adapters("style")
    assert pipeline.model.transformer is parallel and list(pipeline.model.state_dict()) == before
