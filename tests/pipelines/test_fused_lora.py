"""Adapters that are fused, deleted, or chosen while others are fused: every part and the queries have the same."""

import pytest
import torch
from peft import get_peft_model

from blip3o_hf.models.adapters import Blip3oAdaptedQueries, lora_config, save_lora

PROMPTS = ["two red circles", "a small blue square"]


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    """Two adapters as files, both on everything."""
    root = tmp_path_factory.mktemp("lora")
    for seed, name in enumerate("ab"):
        model = get_peft_model(make_model(), lora_config(make_model(), ("transformer", "backbone"), 2, 3)).eval()
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data = noise if "lora_" in key else parameter.data + noise
        save_lora(model, root / name)
    return {name: root / name for name in "ab"}


@pytest.fixture
def adapted(make_pipeline, folders):
    """`adapted(a=1.0, b=1.0)`: a pipeline with both adapters, active at these scales."""

    def make(**scales):
        pipeline = make_pipeline()
        for name, folder in folders.items():
            pipeline.load_lora_weights(folder, adapter_name=name)
        pipeline.set_adapters(list(scales), list(scales.values()))
        return pipeline

    return make


def draw(pipeline, **settings):
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPTS, generator=generator, output_type="features", **settings).image_features


def assert_same(pipeline, expected, assert_close):
    assert_close(pipeline.model.queries(1), expected.model.queries(1))
    assert_close(pipeline.encode_prompt(PROMPTS), expected.encode_prompt(PROMPTS))
    assert_close(draw(pipeline), draw(expected))


def test_fused_one_after_the_other_both_act(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora(adapter_names=["a"])
    pipeline.fuse_lora(adapter_names=["b"])
    assert pipeline.fused_loras == {"a", "b"}
    assert_same(pipeline, adapted(a=1.0, b=1.0), assert_close)
    pipeline.unfuse_lora()
    assert_same(pipeline, adapted(a=1.0), assert_close)


def test_a_scale_of_fusing_is_for_what_is_fused(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora(adapter_names=["a"], lora_scale=0.5)
    pipeline.fuse_lora(adapter_names=["b"], lora_scale=0.25)
    assert_same(pipeline, adapted(a=0.5, b=0.25), assert_close)
    pipeline.unfuse_lora()
    pipeline.set_adapters([])
    assert_same(pipeline, adapted(), assert_close)


@pytest.mark.parametrize("deleted", ["a", "b"])
def test_what_is_fused_of_a_deleted_adapter_stays(adapted, assert_close, deleted):
    pipeline = adapted(a=1.0, b=0.5)
    pipeline.fuse_lora()
    pipeline.delete_adapters(deleted)
    assert_same(pipeline, adapted(a=1.0, b=0.5), assert_close)
    pipeline.unfuse_lora()
    pipeline.set_adapters([])
    assert_same(pipeline, adapted(**{deleted: 1.0 if deleted == "a" else 0.5}), assert_close)


def test_the_only_fused_adapter_deleted_leaves_the_active_one(adapted, assert_close):
    pipeline = adapted(b=0.5)
    pipeline.fuse_lora(adapter_names=["a"])
    pipeline.delete_adapters("a")
    assert pipeline.get_active_adapters() == ["b"] and pipeline.fused_loras == set()
    assert_same(pipeline, adapted(a=1.0, b=0.5), assert_close)


def test_a_name_may_be_used_again_after_its_adapter_was_fused_and_deleted(adapted, folders, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora()
    pipeline.delete_adapters("a")
    once = draw(pipeline)
    pipeline.load_lora_weights(folders["a"], adapter_name="a")
    twice = draw(pipeline)
    assert not torch.allclose(twice, once, rtol=0.01)
    pipeline.fuse_lora()
    assert pipeline.fused_loras == {"a"}
    assert_close(draw(pipeline), twice)


@pytest.mark.parametrize("deletes", [["a"], ["b"], ["a", "b"]])
def test_a_fused_adapter_and_then_all_deleted_leave_plain_layers(adapted, assert_close, deletes):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora()
    for name in deletes:
        pipeline.delete_adapters(name)
    pipeline.unload_lora_weights()
    assert not isinstance(pipeline.model.queries, Blip3oAdaptedQueries)
    assert_same(pipeline, adapted(a=1.0), assert_close)


def test_loading_takes_fused_adapters_out_of_every_part(make_pipeline, adapted, folders, assert_close):
    pipeline = make_pipeline()
    pipeline.load_lora_weights(folders["a"], adapter_name="a")
    pipeline.fuse_lora()
    pipeline.load_lora_weights(folders["b"], adapter_name="b")
    assert pipeline.fused_loras == set()
    assert_same(pipeline, adapted(b=1.0), assert_close)


def test_choosing_takes_fused_adapters_out_of_every_part(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora()
    pipeline.set_adapters("b", 0.5)
    assert_same(pipeline, adapted(b=0.5), assert_close)
    pipeline.fuse_lora()
    pipeline.set_adapters("b", 1.0)
    pipeline.unload_lora_weights()
    assert_same(pipeline, adapted(), assert_close)


def test_a_choice_that_is_refused_changes_nothing(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora(adapter_names=["b"])
    for names, weights in ((["a", "c"], None), (["a"], [1.0, 2.0])):
        with pytest.raises(ValueError, match=r"Unknown adapter 'c'|not equal to the length"):
            pipeline.set_adapters(names, weights)
    assert pipeline.fused_loras == {"b"}
    assert_same(pipeline, adapted(b=1.0), assert_close)


def test_a_load_that_fails_leaves_the_active_adapters(adapted, folders, monkeypatch, assert_close):
    pipeline = adapted(b=0.5)

    def fail(self, name, weight):
        raise MemoryError("full")

    monkeypatch.setattr(Blip3oAdaptedQueries, "add", fail)
    with pytest.raises(MemoryError, match="full"):
        pipeline.load_lora_weights(folders["a"], adapter_name="c")
    monkeypatch.undo()
    assert pipeline.get_active_adapters() == ["b"]
    assert_same(pipeline, adapted(b=0.5), assert_close)


def test_disabling_takes_fused_adapters_out_of_every_part(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.fuse_lora(adapter_names=["b"])
    pipeline.disable_lora()
    assert_same(pipeline, adapted(), assert_close)
    pipeline.enable_lora()
    assert_same(pipeline, adapted(a=1.0), assert_close)


def test_no_adapter_may_be_active(adapted, make_pipeline, assert_close):
    pipeline = adapted(a=1.0, b=1.0)
    pipeline.set_adapters([])
    assert pipeline.get_active_adapters() == []
    assert_same(pipeline, make_pipeline(), assert_close)
    make_pipeline().set_adapters([])
    pipeline.set_adapters("a")
    assert_same(pipeline, adapted(a=1.0), assert_close)


def test_a_deleted_active_adapter_makes_room_for_the_first_left_in_every_part(adapted, assert_close):
    pipeline = adapted(a=1.0)
    pipeline.delete_adapters("a")
    assert pipeline.get_active_adapters() == ["b"]
    assert_same(pipeline, adapted(b=1.0), assert_close)
