"""LoRA on the model itself: which layers, which gradients, and what saving and merging keep."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn

from blip3o_hf.models.adapters import Blip3oAdaptedQueries, export_lora, lora_config, read_lora, save_lora, split_lora
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration, Blip3oQueries
from blip3o_hf.objectives.feature_flow import add_noise

CAPTIONS = ["a red circle", "two small blue squares above a large green triangle"]
SIGMA = torch.tensor([0.2, 0.9])
BOTH = ("transformer", "backbone")


def randomize(model, scale=0.1):
    """As after training: `lora_B` and the trained queries are no longer what they began as."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (scale * noise if "lora_" in name else parameter.data + scale * noise).to(parameter.dtype)
    return model


def adapted(model, **settings):
    return randomize(get_peft_model(model, lora_config(model, **{"parts": BOTH, "rank": 2, "alpha": 3, **settings})))


@torch.no_grad()
def outputs(model, processor):
    """Condition and velocity."""
    target, noise = torch.randn(2, 2, 16, 4, 4, generator=torch.Generator().manual_seed(5))
    out = model.eval()(**processor.encode_prompts(CAPTIONS), target_features=target, noise=noise, sigma=SIGMA)
    return out.condition, out.prediction


def assert_same(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# Which layers


def targets(model, **settings):
    peft_model = get_peft_model(model, lora_config(model, **settings))
    return {
        name.removeprefix("base_model.model.").rsplit(".lora_A", 1)[0]
        for name, module in peft_model.named_modules()
        if name.endswith(".lora_A.default")
    }


def linear_layers(model, within):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and re.match(within, name)}


@pytest.mark.parametrize(
    ("backbone", "stack"), [("qwen", r"backbone\.model\.language_model\."), ("llama", r"backbone\.model\.layers\.")]
)
def test_layers_are_those_of_the_part(make_model, backbone, stack):
    blocks = linear_layers(make_model(backbone=backbone), r"transformer\.layers\.\d+\.(attn|feed_forward)")
    text = linear_layers(make_model(backbone=backbone), stack)
    assert len(blocks) == 2 * 10 and len(text) == 2 * 7
    assert targets(make_model(backbone=backbone)) == blocks
    assert targets(make_model(backbone=backbone), parts="backbone") == text
    assert targets(make_model(backbone=backbone), parts=BOTH) == blocks | text


def test_a_config_is_enough(make_config, make_model):
    for backbone in ("qwen", "llama"):
        expected = lora_config(make_model(backbone=backbone), parts=BOTH, rank=8).to_dict()
        assert lora_config(make_config(backbone), parts=BOTH, rank=8).to_dict() == expected


def test_settings(make_config):
    config = lora_config(make_config(), rank=8, dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.modules_to_save) == (8, 8, 0.1, ["queries"])
    assert lora_config(make_config(), alpha=4, train_queries=False).lora_alpha == 4
    assert lora_config(make_config(), train_queries=False).modules_to_save is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"parts": ("transfomer",)},
            r"Unknown part 'transfomer'. Did you mean 'transformer'\? Available: t",
        ),
        ({"parts": ()}, "needs at least one part of the model. Got none. Choose from transformer, backbone"),
        ({"rank": 0}, "`rank` must be at least 1. Got 0."),
    ],
)
def test_bad_settings_are_refused(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        lora_config(make_config(), **settings)


def test_a_model_without_transformer_has_no_such_part(make_config):
    config = make_config(objective="feature_regression", num_queries=16)
    with pytest.raises(ValueError, match=r"objective of this one is 'feature_regression', which has none. Use parts="):
        lora_config(config)
    assert lora_config(config, parts=("backbone",)).target_modules.startswith(r"backbone\.model")


def test_a_backbone_without_linear_layers_is_named(make_model, monkeypatch):
    model = make_model()
    monkeypatch.setattr(model, "get_decoder", lambda: model.backbone.model.language_model.embed_tokens)
    with pytest.raises(
        ValueError, match=r"text stack of this backbone \(Embedding\) has none. Choose `target_modules`"
    ):
        lora_config(model, parts="backbone")


# Gradients


def naive_loss(model, processor, target, noise):
    """Every prompt alone, one pass over prompt and queries, no cache."""
    conditions = []
    for caption in CAPTIONS:
        inputs = processor.encode_prompts([caption])
        embeddings = torch.cat([model.get_input_embeddings()(inputs["input_ids"]), model.queries(1)], dim=1)
        positions = torch.arange(embeddings.shape[1])[None]
        output = model.get_decoder()(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
        conditions.append(output.last_hidden_state[:, -model.config.num_queries :])
    velocity = model.transformer(
        add_noise(target, noise, SIGMA), 1000 * SIGMA, encoder_hidden_states=torch.cat(conditions)
    ).sample
    return (velocity - (noise - target)).square().mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("parts", [("transformer",), ("backbone",), BOTH])
@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_gradients_equal_the_naive_path_s(make_model, processor, backbone, parts, checkpointing):
    model = make_model(backbone=backbone, noise_distribution="uniform", condition_dropout=0.0)
    model = adapted(model, parts=parts).train()
    target, noise = torch.randn(2, 2, 16, 4, 4, generator=torch.Generator().manual_seed(5))
    expected = gradients(model, naive_loss(model.get_base_model(), processor, target, noise))
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable()
    inputs = processor.encode_prompts(CAPTIONS)
    loss = model(**inputs, target_features=target, noise=noise, sigma=SIGMA).loss
    actual = gradients(model, loss)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert actual.keys() == expected.keys() == trained
    assert all("lora_" in name or name.endswith("queries.modules_to_save.default.weight") for name in trained)
    for part in BOTH:
        assert any(f".{part}." in name for name in trained) is (part in parts)
    for name, value in expected.items():
        assert value.norm() > 0
        assert (actual[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize(("parts", "passes"), [(("transformer",), [False, True]), (("backbone",), [True])])
def test_the_prompt_runs_with_gradient_only_under_a_lora_of_the_backbone(make_model, processor, parts, passes):
    model = adapted(make_model(), parts=parts).train()
    seen = []
    first_layer = model.get_base_model().get_decoder().layers[0]
    first_layer.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model.encode_condition(**processor.encode_prompts(CAPTIONS))
    assert seen == passes


def test_half_precision_runs_and_trains(make_model, processor):
    """PEFT keeps adapters in float32 around weights in bfloat16; the queries are as precise as one makes them."""
    model = make_model().to(torch.bfloat16)
    model.queries.float()
    model = adapted(model).train()
    assert model.get_base_model().transformer.dtype == torch.bfloat16
    loss = model(**processor.encode_prompts(CAPTIONS), target_features=torch.randn(2, 16, 4, 4)).loss
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


# Saving and merging


def test_peft_saves_and_loads_the_same_model(make_model, processor, tmp_path):
    model = adapted(make_model())
    expected = outputs(model, processor)
    plain = outputs(make_model(), processor)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(expected, plain, strict=True))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert_same(outputs(PeftModel.from_pretrained(make_model(), tmp_path), processor), expected)

    native = make_model()
    native.load_adapter(tmp_path)
    assert_same(outputs(native, processor), expected)


def test_a_merged_model_is_a_plain_complete_one(make_model, processor, tmp_path, assert_close):
    model = adapted(make_model())
    expected = outputs(model, processor)
    merged = model.merge_and_unload()
    assert type(merged.queries) is Blip3oQueries
    for actual, value in zip(outputs(merged, processor), expected, strict=True):
        assert_close(actual, value)
    merged.save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == make_model().state_dict().keys()
    assert_same(outputs(loaded, processor), outputs(merged, processor))


def test_the_model_s_own_adapters_round_trip(make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    model = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "base")
    model.add_adapter(lora_config(model, parts=BOTH, rank=2))
    randomize(model)
    expected = outputs(model, processor)
    model.save_pretrained(tmp_path / "adapter")
    opened = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "base")
    opened.load_adapter(tmp_path / "adapter")
    assert_same(outputs(opened, processor), expected)
    # One call opens base and adapter: the adapter's config knows its base.
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    assert_same(outputs(Blip3oForConditionalGeneration.from_pretrained(tmp_path / "adapter"), processor), expected)
    opened.disable_adapters()
    assert_same(outputs(opened, processor), outputs(make_model(), processor))


# The exported file


def test_exported_names_and_metadata(make_model, tmp_path):
    path = save_lora(adapted(make_model()), tmp_path / "new")
    assert path == tmp_path / "new" / "pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    layers = linear_layers(
        make_model(), r"transformer\.layers\.\d+\.(attn|feed_forward)|backbone\.model\.language_model"
    )
    assert names == {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"} | {"queries.weight"}
    for part in BOTH:
        assert (metadata[f"{part}.r"], metadata[f"{part}.lora_alpha"]) == (2, 3)
        own = {layer.removeprefix(f"{part}.") for layer in layers if layer.startswith(part)}
        assert set(metadata[f"{part}.target_modules"]) == own
    assert {key.split(".")[0] for key in metadata} == set(BOTH)


def test_export_reads_the_same_from_memory_its_file_and_peft_s_folder(make_model, tmp_path):
    model = adapted(make_model())
    tensors, metadata = export_lora(model)
    save_lora(model, tmp_path)
    model.save_pretrained(tmp_path / "peft")
    for source in (tmp_path, tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "peft"):
        read, read_metadata = read_lora(source)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)
        assert read_metadata == json.loads(json.dumps(metadata))


def test_ranks_and_alphas_of_single_layers_survive(make_model):
    model = make_model()
    config = lora_config(model, parts=BOTH, rank=2, alpha=4)
    config.rank_pattern = {"layers.0.attn1.to_q": 3}
    config.alpha_pattern = {"^transformer.layers.1.attn2.to_k": 7, "o_proj": 5}
    peft_model = get_peft_model(model, config)
    parts, queries = split_lora(*export_lora(peft_model), make_model())
    for name, part in parts.items():
        fresh = make_model()
        getattr(fresh, name).requires_grad_(False)
        rebuilt = get_peft_model(getattr(fresh, name), part.config)
        for layer in {name.rsplit(".lora_", 1)[0] for name in part.tensors}:
            expected = peft_model.get_submodule(f"base_model.model.{name}.{layer}")
            actual = rebuilt.get_submodule(f"base_model.model.{layer}")
            assert (actual.r, actual.scaling) == (expected.r, expected.scaling)
    assert queries.shape == (5, 32)


def test_a_native_adapter_is_exported_too(make_model):
    model = make_model()
    model.add_adapter(lora_config(model, rank=2), "style")
    tensors, _ = export_lora(model, "style")
    assert len(tensors) == 2 * 20 + 1
    with pytest.raises(ValueError, match=r"Got 'default'; it has style. Make one with get_peft_model"):
        export_lora(model)
    with pytest.raises(ValueError, match=r"Got 'default'; it has none."):
        export_lora(make_model())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "Adapter 'default' holds 2 other tensors: .*lora_magnitude_vector.*Export it with"),
        ({"init_lora_weights": "pissa"}, "Adapter 'default' is 'pissa', which changes them or needs more. Merge it"),
        ({"modules_to_save": ["norm_out"]}, r"other tensors: transformer.norm_out.linear_1.bias, "),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_not_exported(make_model, settings, message):
    config = LoraConfig(r=2, target_modules=r"transformer\.layers\.\d\.attn1\.to_q", **settings)
    with pytest.raises(ValueError, match=message):
        export_lora(get_peft_model(make_model(), config))


# Queries of several adapters


def test_queries_scale_and_add_up():
    base = Blip3oQueries(3, 4)
    first, second, own = torch.randn(3, 3, 4)
    base.weight.data = own.clone()
    queries = Blip3oAdaptedQueries(base)
    queries.add("first", first)
    queries.add("second", second)
    assert torch.equal(queries(2), own.expand(2, -1, -1))
    queries.active = ("first",)
    assert torch.equal(queries(1)[0], first)
    queries.active, queries.scales = ("first", "second"), {"first": 0.5, "second": 2.0}
    expected = own + 0.5 * (first - own) + 2 * (second - own)
    torch.testing.assert_close(queries(1)[0], expected)
    queries.scales = dict.fromkeys(queries.scales, 0.0)
    assert torch.equal(queries(1)[0], own)
    queries.scales["second"] = 1.0
    queries.fuse(1.0, names=["second"])
    queries.remove("first")
    queries.scales["second"] = 0.0
    assert torch.equal(queries(1)[0], second)
    assert queries.unload() is base and torch.equal(base.weight, second)
