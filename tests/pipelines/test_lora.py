"""Adapters in the pipeline: what they change, what stays, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from blip3o_hf.models.adapters import Blip3oAdaptedQueries, export_lora, lora_config, save_lora
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration, Blip3oQueries
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline

BOTH = ("transformer", "backbone")
PROMPTS = ["two red circles", "a small blue square"]
NAME = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def make_adapter(make_model):
    """`make_adapter(seed, **settings of lora_config and make_model)`: a model with a LoRA, as after training."""

    def make(seed=1, parts=BOTH, train_queries=True, scale=0.1, rank=2, alpha=3, **settings):
        model = make_model(**settings)
        model = get_peft_model(model, lora_config(model, parts, rank, alpha, train_queries=train_queries)).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = scale * torch.randn(parameter.shape, generator=generator)
                parameter.data = noise if "lora_" in name else parameter.data + noise
        return model

    return make


@pytest.fixture(scope="module")
def folders(make_adapter, tmp_path_factory):
    """Two adapters as files: `first` on everything, `second` on the transformer alone."""
    root = tmp_path_factory.mktemp("lora")
    save_lora(make_adapter(1), root / "first")
    save_lora(make_adapter(2, parts=("transformer",), train_queries=False), root / "second")
    return {name: root / name for name in ("first", "second")}


def draw(pipeline, **settings):
    return pipeline(PROMPTS, generator=torch.Generator().manual_seed(0), output_type="features", **settings)[
        "image_features"
    ]


def state(pipeline):
    return {name: tensor.clone() for name, tensor in pipeline.model.state_dict().items()}


def assert_untouched(pipeline, before):
    after = pipeline.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert type(pipeline.model.queries) is Blip3oQueries
    assert pipeline.get_list_adapters() == {} and pipeline.get_active_adapters() == []


# Loading


@pytest.mark.parametrize(
    "settings", [{}, {"parts": ("transformer",)}, {"parts": ("backbone",)}, {"backbone": "llama"}]
)
def test_a_trained_adapter_draws_in_the_pipeline_as_in_training(make_pipeline, make_adapter, tmp_path, settings):
    backbone = {key: value for key, value in settings.items() if key == "backbone"}
    model = make_adapter(**settings)
    reference, pipeline = make_pipeline(**backbone), make_pipeline(**backbone)
    plain = draw(reference)
    reference.model = model.get_base_model()
    expected = draw(reference)
    assert (expected - plain).abs().max() > 0.05 * plain.abs().max()
    path = save_lora(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")
    for number, source in enumerate((tmp_path / "ours", path, tmp_path / "peft", load_file(path))):
        metadata = {"metadata": export_lora(model)[1]} if isinstance(source, dict) else {}
        pipeline.load_lora_weights(source, **metadata)
        assert pipeline.get_active_adapters() == [f"default_{number}"]
        assert torch.equal(draw(pipeline), expected)


def test_unloading_brings_back_the_very_same_pipeline(pipeline, folders):
    before, expected = state(pipeline), draw(pipeline)
    modules = dict(pipeline.model.named_modules())
    trainable = {name: parameter.requires_grad for name, parameter in pipeline.model.named_parameters()}
    for _ in range(2):
        pipeline.load_lora_weights(folders["first"], adapter_name="style")
        assert pipeline.get_list_adapters() == {"transformer": ["style"], "backbone": ["style"]}
        assert not torch.equal(draw(pipeline), expected)
        pipeline.unload_lora_weights()
        assert_untouched(pipeline, before)
        assert dict(pipeline.model.named_modules()) == modules
        assert {name: parameter.requires_grad for name, parameter in pipeline.model.named_parameters()} == trainable
        assert torch.equal(draw(pipeline), expected)


def test_scale_zero_is_the_base_and_scales_are_continuous(pipeline, folders, assert_close):
    plain = draw(pipeline)
    pipeline.load_lora_weights(folders["first"], adapter_name="style")
    full = draw(pipeline)
    pipeline.set_adapters("style", 0.0)
    assert torch.equal(draw(pipeline), plain)
    pipeline.set_adapters("style", 0.5)
    half = draw(pipeline)
    assert not torch.allclose(half, full) and not torch.allclose(half, plain)
    pipeline.set_adapters("style", 1.0)
    assert torch.equal(draw(pipeline), full)
    pipeline.disable_lora()
    assert torch.equal(draw(pipeline), plain)
    pipeline.enable_lora()
    assert torch.equal(draw(pipeline), full)


def test_parts_have_scales_of_their_own(pipeline, folders, make_adapter):
    plain = draw(pipeline)
    condition = pipeline.encode_prompt(PROMPTS)
    pipeline.load_lora_weights(folders["first"], adapter_name="style")
    pipeline.set_adapters("style", {"transformer": 0.5, "backbone": 0.0, "queries": 0.0})
    assert torch.equal(pipeline.encode_prompt(PROMPTS), condition)
    assert not torch.equal(draw(pipeline), plain)
    pipeline.set_adapters("style", {"transformer": 0.0, "backbone": 0.0})
    assert not torch.equal(pipeline.encode_prompt(PROMPTS), condition)
    with pytest.raises(ValueError, match=r"Unknown part 'unet'.* Available: transformer, backbone, queries"):
        pipeline.set_adapters("style", {"unet": 0.5})


@pytest.mark.parametrize("scale", [0.0, 0.5, np.float32(0.5), 2])
def test_a_call_may_scale_the_active_adapters(pipeline, folders, scale):
    pipeline.load_lora_weights(folders["second"], adapter_name="second")
    pipeline.load_lora_weights(folders["first"], adapter_name="first")
    pipeline.set_adapters("first", 0.5)
    full, null = draw(pipeline), pipeline.prepare_null_features()
    scaled = draw(pipeline, attention_kwargs={"scale": scale})
    assert torch.equal(draw(pipeline), full) and pipeline.null_features is null
    pipeline.set_adapters("first", 0.5 * float(scale))
    assert torch.equal(scaled, draw(pipeline))


def test_a_scale_is_taken_back_after_an_error(pipeline, folders):
    pipeline.load_lora_weights(folders["first"])
    full = draw(pipeline)

    def fail(pipe, step, timestep, tensors):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        draw(pipeline, attention_kwargs={"scale": 0.0}, callback_on_step_end=fail)
    assert torch.equal(draw(pipeline), full)


@pytest.mark.parametrize("attention_kwargs", [{"gligen": 1}, {"scale": "1"}, {"scale": float("nan")}])
def test_other_attention_arguments_are_refused(pipeline, attention_kwargs):
    with pytest.raises(ValueError, match=r"`attention_kwargs` takes only the key 'scale', a factor on LoRA"):
        draw(pipeline, attention_kwargs=attention_kwargs)


def test_two_adapters_add_up(pipeline, make_pipeline, folders, assert_close):
    pipeline.load_lora_weights(folders["first"], adapter_name="first")
    first = draw(pipeline)
    pipeline.load_lora_weights(folders["second"], adapter_name="second")
    assert pipeline.get_active_adapters() == ["second"]
    second = draw(pipeline)
    alone = make_pipeline()
    alone.load_lora_weights(folders["second"])
    assert torch.equal(second, draw(alone))

    pipeline.set_adapters(["first", "second"], [1.0, 0.0])
    assert torch.equal(draw(pipeline), first)
    pipeline.set_adapters(["first", "second"], [0.7, -0.4])
    assert pipeline.get_active_adapters() == ["first", "second"]
    both = draw(pipeline)
    layer = pipeline.transformer.layers[0].attn1.to_q
    base = make_pipeline().transformer.layers[0].attn1.to_q.weight
    expected = base + sum(
        scale * 1.5 * layer.lora_B[name].weight @ layer.lora_A[name].weight
        for name, scale in (("first", 0.7), ("second", -0.4))
    )
    # What the two do together is what their sum does in the weights.
    pipeline.fuse_lora()
    torch.testing.assert_close(layer.base_layer.weight, expected)
    assert_close(draw(pipeline), both)
    pipeline.unfuse_lora()
    pipeline.delete_adapters("second")
    pipeline.set_adapters("first")
    assert_close(draw(pipeline), first)


def test_deleting_the_last_adapter_leaves_plain_layers(pipeline, folders):
    before = state(pipeline)
    pipeline.load_lora_weights(folders["first"], adapter_name="first")
    pipeline.load_lora_weights(folders["second"], adapter_name="second")
    pipeline.delete_adapters("first")
    assert pipeline.get_list_adapters()["transformer"] == ["second"]
    pipeline.delete_adapters(["second"])
    assert_untouched(pipeline, before)


def test_the_condition_cache_sees_adapters(pipeline, folders, assert_close):
    pipeline.load_lora_weights(folders["first"])
    condition = pipeline.encode_prompt(PROMPTS)
    latents = torch.randn(2, 16, 4, 4)
    plain = pipeline.transformer(latents, 500.0, encoder_hidden_states=condition).sample
    cache = pipeline.transformer.precompute_condition(condition)
    assert_close(pipeline.transformer(latents, 500.0, condition_cache=cache).sample, plain)
    pipeline.disable_lora()
    other = pipeline.transformer.precompute_condition(condition)
    assert all(not torch.equal(a, b) for a, b in zip(cache.keys, other.keys, strict=True))


def test_null_features_are_those_of_the_weights(pipeline, folders):
    before = pipeline.prepare_null_features()
    pipeline.load_lora_weights(folders["first"], adapter_name="style")
    adapted = pipeline.prepare_null_features()
    assert not torch.equal(adapted, before)
    for change in (pipeline.disable_lora, pipeline.unload_lora_weights):
        change()
        assert torch.equal(pipeline.prepare_null_features(), before)


def test_a_regressing_model_takes_a_lora_of_its_backbone(make_pipeline, make_adapter, tmp_path):
    settings = {"objective": "feature_regression", "num_queries": 16}
    model = make_adapter(parts=("backbone",), **settings)
    save_lora(model, tmp_path)
    pipeline, reference = make_pipeline(**settings), make_pipeline(**settings)
    before, plain = state(pipeline), draw(pipeline)
    reference.model = model.get_base_model()
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(draw(pipeline), draw(reference))
    pipeline.unload_lora_weights()
    assert_untouched(pipeline, before)
    assert torch.equal(draw(pipeline), plain)


def test_half_precision(make_pipeline, folders):
    """Adapters are saved in float32 and run in the precision of the model."""
    expected, pipeline = make_pipeline(), make_pipeline()
    pipeline.model.to(torch.bfloat16)
    for each in (expected, pipeline):
        each.load_lora_weights(folders["first"])
    assert {parameter.dtype for parameter in pipeline.model.parameters()} == {torch.bfloat16}
    latents = torch.randn(2, 16, 4, 4)
    actual, expected = (draw(each, latents=latents).float() for each in (pipeline, expected))
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


# Fusing


def test_fusing_draws_the_same_and_unfusing_goes_back(pipeline, folders, assert_close):
    plain = draw(pipeline)
    pipeline.load_lora_weights(folders["first"], adapter_name="style")
    expected = draw(pipeline)
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    assert_close(draw(pipeline), expected)
    pipeline.unfuse_lora()
    assert pipeline.num_fused_loras == 0
    assert_close(draw(pipeline), expected)
    pipeline.unload_lora_weights()
    assert_close(draw(pipeline), plain)


def test_fused_and_unloaded_weights_are_plain_and_can_be_saved(pipeline, folders, assert_close, tmp_path):
    names = pipeline.model.state_dict().keys()
    pipeline.load_lora_weights(folders["first"])
    pipeline.set_adapters("default_0", 0.5)
    expected = draw(pipeline)
    with pytest.raises(ValueError, match=r"saved without adapters in its layers. This one has adapters. Call unload"):
        pipeline.save_pretrained(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert pipeline.num_fused_loras == 0
    assert pipeline.model.state_dict().keys() == names
    fused = draw(pipeline)
    assert_close(fused, expected)
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), fused)
    # The root of the repository opens in transformers, too.
    model = Blip3oForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(model.queries.weight, pipeline.model.queries.weight)


def test_fusing_takes_a_scale_and_parts(pipeline, make_pipeline, folders, assert_close):
    pipeline.load_lora_weights(folders["first"], adapter_name="style")
    pipeline.set_adapters("style", 0.5)
    expected = draw(pipeline)
    other = make_pipeline()
    other.load_lora_weights(folders["first"])
    other.fuse_lora(lora_scale=0.5)
    assert_close(draw(other), expected)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    assert torch.equal(pipeline.model.queries.weight, make_pipeline().model.queries.weight)
    assert torch.equal(pipeline.encode_prompt(PROMPTS), make_pipeline().encode_prompt(PROMPTS))
    for call in (pipeline.fuse_lora, pipeline.unfuse_lora):
        with pytest.raises(ValueError, match=r"Unknown part 'unet'. Available: transformer, backbone, queries."):
            call(components=["transformer", "unet"])


# Saving from the pipeline's side


def test_layers_are_saved_as_by_diffusers_training_scripts(pipeline, make_pipeline, tmp_path):
    pipeline.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    expected = draw(pipeline)
    Blip3oPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["default"].to_dict(),
        queries=pipeline.model.queries.weight + 1,
    )
    loaded = make_pipeline()
    loaded.load_lora_weights(tmp_path, adapter_name="style")
    loaded.set_adapters("style", {"queries": 0.0})
    assert torch.equal(draw(loaded), expected)
    # diffusers reads the transformer's part by itself.
    alone = make_pipeline()
    alone.transformer.load_lora_adapter(tmp_path, weight_name=NAME, use_safetensors=True)
    assert torch.equal(draw(alone), expected)
    with pytest.raises(ValueError, match=r"at least one part. Got neither `transformer_lora_layers` nor"):
        Blip3oPipeline.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match=r"written as safetensors alone. Got safe_serialization=False"):
        Blip3oPipeline.save_lora_weights(tmp_path, safe_serialization=False)


# Offloading


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_loads_scales_and_unloads(make_pipeline, folders, method, monkeypatch):
    import accelerate

    cpu_offload = accelerate.cpu_offload
    # `cpu:0`, which diffusers asks for, is another device than the weights'.
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, _, **kwargs: cpu_offload(model, torch.device("cpu"), **kwargs)
    )
    plain, pipeline = make_pipeline(), make_pipeline()
    expected = [draw(plain)]
    getattr(pipeline, method)(device="cpu")
    for change in (
        lambda pipeline: pipeline.load_lora_weights(folders["first"], adapter_name="style"),
        lambda pipeline: pipeline.set_adapters("style", 0.5),
        lambda pipeline: pipeline.fuse_lora(),
        lambda pipeline: pipeline.unfuse_lora(),
        lambda pipeline: pipeline.unload_lora_weights(),
    ):
        change(plain)
        change(pipeline)
        expected.append(draw(plain))
        assert torch.equal(draw(pipeline), expected[-1])
        is_offloaded = any(parameter.is_meta for parameter in pipeline.model.parameters())
        assert is_offloaded is (method == "enable_sequential_cpu_offload")
        assert hasattr(pipeline.model, "_hf_hook")


def test_groups_of_layers_are_offloaded_after_loading(pipeline, folders):
    pipeline.load_lora_weights(folders["first"])
    expected = draw(pipeline)
    pipeline.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(draw(pipeline), expected)
    with pytest.raises(ValueError, match=r"offloads groups of layers. Call enable_group_offload"):
        pipeline.load_lora_weights(folders["second"])
    assert torch.equal(draw(pipeline), expected)


# What is refused


def broken(tensors, **changes):
    """A state dict with some tensors changed; `None` takes one away."""
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


TO_Q = "transformer.layers.0.attn1.to_q"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"unet.down.lora_A.weight": torch.zeros(2, 2)},
            r"The dictionary holds 1 other tensors: unet.down.lora_A.weight. Export it with `save_lora`",
        ),
        ({f"{TO_Q}.alpha": torch.tensor(1.0)}, "holds 1 other tensors: transformer.layers.0.attn1.to_q.alpha"),
        ({f"{TO_Q}.lora_B.weight": None}, f"holds only one of them in 1: {TO_Q}. Save or download it again"),
        (
            {f"transformer.layers.9.attn1.to_q.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"},
            "does not in 1 places: there is no transformer.layers.9.attn1.to_q. Load it into the model that",
        ),
        (
            {f"transformer.layers.0.norm2.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"},
            "transformer.layers.0.norm2 is no linear layer",
        ),
        (
            {f"{TO_Q}.lora_A.weight": torch.zeros(2, 48)},
            rf"{TO_Q}.lora_A.weight is \[2, 48\], not \[2, 32\]. Load it into the model that it was trained on",
        ),
        ({f"{TO_Q}.lora_B.weight": torch.zeros(32, 4)}, rf"{TO_Q}.lora_B.weight is \[32, 4\], not \[32, 2\]"),
        ({"queries.weight": torch.zeros(7, 32)}, r"queries.weight is \[7, 32\], not \[5, 32\]"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_whole(pipeline, folders, changes, message):
    before = state(pipeline)
    with pytest.raises(ValueError, match=message):
        pipeline.load_lora_weights(broken(load_file(folders["first"] / NAME), **changes))
    assert_untouched(pipeline, before)


def test_an_adapter_of_another_model_is_refused(make_pipeline, folders, tmp_path):
    text_only = make_pipeline(backbone="llama")
    before = state(text_only)
    with pytest.raises(ValueError, match=r"first does not in 14 places: there is no backbone.model.language_model"):
        text_only.load_lora_weights(folders["first"])
    assert_untouched(text_only, before)
    text_only.load_lora_weights(folders["second"])
    regressing = make_pipeline(objective="feature_regression", num_queries=16)
    with pytest.raises(ValueError, match=r"second does not in 20 places: there is no transformer.layers.0.attn1.to_k"):
        regressing.load_lora_weights(folders["second"])
    with pytest.raises(ValueError, match=r"The dictionary holds none. Check that it is the file"):
        text_only.load_lora_weights({"queries.weight": torch.zeros(5, 32)})


def test_a_failure_halfway_leaves_nothing_behind(pipeline, folders, monkeypatch):
    before, expected = state(pipeline), draw(pipeline)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Blip3oAdaptedQueries, "add", fail)
    with pytest.raises(RuntimeError, match=r"out of memory"):
        pipeline.load_lora_weights(folders["first"])
    assert_untouched(pipeline, before)
    assert torch.equal(draw(pipeline), expected)


def test_pickles_are_refused(pipeline, make_adapter, folders, tmp_path):
    before = state(pipeline)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(pickle.dumps({}))
    for settings in ({}, {"weight_name": "pytorch_lora_weights.bin"}):
        with pytest.raises(ValueError, match=r"Got pytorch_lora_weights.bin, and reading a pickle can run any"):
            pipeline.load_lora_weights(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"Got use_safetensors=False. Reading a pickle can run any program"):
        pipeline.load_lora_weights(folders["first"], use_safetensors=False)
    with pytest.raises(ValueError, match=r"Got lora.pt, and reading a pickle"):
        save_lora(make_adapter(), tmp_path, weight_name="lora.pt")
    assert_untouched(pipeline, before)


def test_files_that_are_missing_or_damaged_are_named(pipeline, folders, tmp_path):
    with pytest.raises(ValueError, match=r"from pytorch_lora_weights.safetensors or adapter_model.safetensors. /"):
        pipeline.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match=r"has no such file. Pass its name as `weight_name`"):
        pipeline.load_lora_weights(folders["first"], weight_name="style.safetensors")
    content = (folders["first"] / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"lora_weights.safetensors is damaged \("):
        pipeline.load_lora_weights(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"rank and alpha in adapter_config.json, beside adapter_model.safetensors"):
        pipeline.load_lora_weights(tmp_path, weight_name="adapter_model.safetensors")
    with pytest.raises(TypeError, match=r"Unknown argument 'revison'. Did you mean 'revision'"):
        pipeline.load_lora_weights(folders["first"], revison="main")


def test_names_of_adapters(pipeline, make_adapter, folders):
    pipeline.load_lora_weights(folders["second"], adapter_name="style")
    with pytest.raises(ValueError, match=r"Got adapter_name='style', which is already in use. Choose another"):
        pipeline.load_lora_weights(folders["first"], adapter_name="style")
    assert pipeline.get_list_adapters() == {"transformer": ["style"]}
    with pytest.raises(ValueError, match=r"must not be empty or hold a dot. Got 'v1.0'"):
        pipeline.load_lora_weights(folders["first"], adapter_name="v1.0")
    with pytest.raises(ValueError, match=r"Unknown adapter 'other'. Available: style."):
        pipeline.set_adapters("other")
    for call in (
        lambda name: pipeline.set_adapters([name]),
        lambda name: pipeline.fuse_lora(adapter_names=[name]),
        lambda name: pipeline.fuse_lora(adapter_names=name),
        lambda name: pipeline.delete_adapters(name),
        lambda name: pipeline.set_lora_device([name], "cpu"),
    ):
        with pytest.raises(ValueError, match=r"Unknown adapter 'styl'. Did you mean 'style'\? Available: style."):
            call("styl")
    assert pipeline.get_active_adapters() == ["style"] and not pipeline.fused_loras
    pipeline.fuse_lora(adapter_names="style")
    assert pipeline.fused_loras == {"style"}
    pipeline.unload_lora_weights()
    message = (
        r"An adapter is loaded before it is named. Got 'style', and none is loaded. Call load_lora_weights\(..., "
        r"adapter_name='style'\) first."
    )
    for call in (pipeline.set_adapters, pipeline.delete_adapters):
        with pytest.raises(ValueError, match=message):
            call("style")
    with pytest.raises(ValueError, match=message):
        pipeline.fuse_lora(adapter_names=["style"])
    pipeline.model = make_adapter().get_base_model()
    with pytest.raises(ValueError, match=r"carries default, which PEFT added to the whole model. Merge it first"):
        pipeline.load_lora_weights(folders["first"])


def test_the_home_folder_may_begin_the_path_of_a_lora(make_pipeline, folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["first"].parent))
    pipeline = make_pipeline()
    pipeline.load_lora_weights(f"~/{folders['first'].name}")
    pipeline.load_lora_weights(f"~/{folders['first'].name}/{NAME}")
    with pytest.raises(FileNotFoundError, match=r"Got ~/none, and there is none at .*/none\. Check it; a Hub id"):
        pipeline.load_lora_weights("~/none")
