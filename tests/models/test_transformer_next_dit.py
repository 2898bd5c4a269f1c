"""Identities of the transformer that hold whatever its weights are."""

import re

import pytest
import torch
import torch.nn.functional as F
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig

from blip3o_hf.models.transformer_next_dit import (
    Blip3oConditionCache,
    Blip3oTransformer2DModel,
    apply_rotary,
    feed_forward_dim,
    rotary_table,
)

CONFIG = {
    "in_channels": 6,
    "sample_size": 4,
    "dim": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "condition_dim": 10,
    "multiple_of": 16,
    "gate_init": 0.5,
}


def make_model(**overrides):
    torch.manual_seed(0)
    model = Blip3oTransformer2DModel(**{**CONFIG, **overrides})
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("gate"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model.eval()


def make_inputs(batch=3, channels=6, height=4, width=4, num_queries=5, condition_dim=10):
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, channels, height, width, generator=generator),
        "timestep": torch.tensor([1000.0, 433.3, 1.0, 700.0])[:batch],
        "encoder_hidden_states": torch.randn(batch, num_queries, condition_dim, generator=generator),
    }


def run_cached(model, inputs, **options):
    cache = model.precompute_condition(inputs["encoder_hidden_states"], **options)
    return model(inputs["hidden_states"], inputs["timestep"], condition_cache=cache).sample


def assert_close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.fixture(scope="module")
def model():
    return make_model().requires_grad_(False)


@pytest.mark.parametrize("project_layers", [True, False])
def test_cached_equals_plain(model, project_layers):
    inputs = make_inputs()
    assert_close(run_cached(model, inputs, project_layers=project_layers), model(**inputs).sample)


def test_batch_equals_singles(model):
    inputs = make_inputs()
    singles = [model(**{name: value[i : i + 1] for name, value in inputs.items()}).sample for i in range(3)]
    assert_close(model(**inputs).sample, torch.cat(singles), 2e-6)


def test_scalar_timesteps_are_shared_by_the_batch(model):
    inputs = make_inputs() | {"timestep": torch.full((3,), 500.0)}
    expected = model(**inputs).sample
    for timestep in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert_close(model(**(inputs | {"timestep": timestep})).sample, expected)


def test_tuple_output(model):
    inputs = make_inputs()
    assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).sample)


def test_condition_matters_beyond_its_mean(model):
    inputs = make_inputs()
    condition = inputs["encoder_hidden_states"]
    mirrored = model(**(inputs | {"encoder_hidden_states": condition.flip(1)})).sample
    assert_close(mirrored, model(**inputs).sample, 1e-5)  # the condition is a set: it has no positions
    inputs["encoder_hidden_states"] = condition + torch.randn_like(condition)
    assert (model(**inputs).sample - mirrored).abs().max() > 1e-3


def test_gate_of_zero_silences_cross_attention():
    model = Blip3oTransformer2DModel(**(CONFIG | {"gate_init": 0.0})).requires_grad_(False)
    assert all(torch.equal(layer.gate, torch.zeros(4)) for layer in model.layers)
    inputs = make_inputs()
    cache = model.precompute_condition(inputs["encoder_hidden_states"])
    expected = model(inputs["hidden_states"], inputs["timestep"], condition_cache=cache).sample
    cache.values = tuple(value + 1 for value in cache.values)
    assert torch.equal(model(inputs["hidden_states"], inputs["timestep"], condition_cache=cache).sample, expected)


def test_grouped_queries_equal_explicit_repeat(model):
    """Query heads 0 and 1 read key-value head 0, heads 2 and 3 head 1."""
    attn = model.layers[0].attn1
    hidden_states = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
    rotary_emb = rotary_table(4, 4, 8)
    key, value = attn.project_key_value(hidden_states)
    query = apply_rotary(attn.project_query(hidden_states), rotary_emb)
    expected = []
    for head, kv_head in enumerate([0, 0, 1, 1]):
        weights = (query[:, :, head] @ key[:, :, kv_head].mT * 8**-0.5).softmax(-1)
        expected.append(weights @ value[:, :, kv_head])
    assert_close(attn(hidden_states, key, value, rotary_emb), torch.stack(expected, dim=2), 1e-5)


def test_grouped_queries_equal_full_attention_with_repeated_heads():
    """The whole model, with every projection of keys and values repeated and no norm over their width."""
    grouped, full = make_model(), make_model(num_key_value_heads=4)
    weights = grouped.state_dict()
    for name in [name for name in weights if re.search(r"(to_k|to_v|norm_k)\.", name)]:
        tensor = weights[name]
        weights[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    inputs = make_inputs()
    assert_close(full(**inputs).sample, grouped(**inputs).sample, 1e-5)


def test_rotary_attention_is_relative():
    rotary_emb = rotary_table(3, 5, 8).unflatten(0, (3, 5))
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))

    def score(query_at, key_at):
        return (apply_rotary(query, rotary_emb[query_at][None]) * apply_rotary(key, rotary_emb[key_at][None])).sum()

    torch.testing.assert_close(score((0, 1), (1, 3)), score((1, 2), (2, 4)))


@pytest.mark.parametrize(
    "overrides, height, width",
    [
        ({"patch_size": 2}, 4, 8),
        ({"patch_size": 2, "num_key_value_heads": None}, 6, 4),
        ({}, 3, 7),
        ({}, 1, 1),
    ],
)
def test_patches_and_grids(overrides, height, width):
    model = make_model(**overrides).requires_grad_(False)
    inputs = make_inputs(height=height, width=width)
    velocity = model(**inputs).sample
    assert velocity.shape == (3, 6, height, width)
    assert velocity.isfinite().all()
    assert_close(run_cached(model, inputs), velocity)


def test_patches_match_lumina_order():
    """In a token the embedding reads channel-major and the output writes channel-minor, as in Lumina-Next."""
    model = make_model(patch_size=2).requires_grad_(False)
    image = torch.arange(2 * 6 * 4 * 6, dtype=torch.float32).reshape(2, 6, 4, 6)
    model.patch_embedder.proj = torch.nn.Identity()
    tokens = model.patch_embedder(image)
    torch.testing.assert_close(tokens.mT, F.unfold(image, kernel_size=2, stride=2))
    channel_last = tokens.unflatten(2, (6, 2, 2)).permute(0, 1, 3, 4, 2).flatten(2)
    torch.testing.assert_close(model._unpatchify(channel_last, 2, 3), image)


def test_cache_operations(model):
    inputs = make_inputs(batch=2)
    hidden_states, timestep = inputs["hidden_states"], inputs["timestep"]
    condition = inputs["encoder_hidden_states"]
    null = model.precompute_condition(torch.zeros(1, 5, 10)).repeat_interleave(2)
    cond = model.precompute_condition(condition)
    joined = Blip3oConditionCache.cat([null, cond])
    assert joined.batch_size == 4
    both = model(hidden_states.repeat(2, 1, 1, 1), timestep.repeat(2), condition_cache=joined).sample
    assert_close(both[2:], model(**inputs).sample)
    assert_close(both[:2], model(hidden_states, timestep, encoder_hidden_states=torch.zeros(2, 5, 10)).sample)
    repeated = cond.repeat_interleave(3)
    assert torch.equal(repeated.pooled[3:], cond.pooled[1:].expand(3, -1))
    halved = cond.to(torch.bfloat16)
    assert {tensor.dtype for tensor in (halved.pooled, *halved.keys, *halved.values)} == {torch.bfloat16}
    unprojected = Blip3oConditionCache.cat([model.precompute_condition(condition, project_layers=False)] * 2)
    assert_close(
        model(hidden_states.repeat(2, 1, 1, 1), timestep.repeat(2), condition_cache=unprojected).sample[2:],
        model(**inputs).sample,
    )


@pytest.mark.parametrize("num_key_value_heads", [2, 4])
def test_a_condition_of_equal_tokens_is_a_constant(num_key_value_heads):
    model = make_model(num_key_value_heads=num_key_value_heads)
    inputs = make_inputs(batch=2)
    null = model.precompute_condition(torch.zeros(1, 5, 10))
    other = model.precompute_condition(inputs["encoder_hidden_states"])
    hidden_states, timestep = inputs["hidden_states"].repeat(2, 1, 1, 1), inputs["timestep"].repeat(2)
    constant = null.as_constant(4).repeat_interleave(2)
    assert constant.batch_size == 2 and not constant.keys[0].numel()
    joined = Blip3oConditionCache.cat([constant, other])
    assert joined.batch_size == 4 and len(joined.keys[0]) == 2
    expected = Blip3oConditionCache.cat([null.repeat_interleave(2), other])
    assert_close(
        model(hidden_states, timestep, condition_cache=joined).sample,
        model(hidden_states, timestep, condition_cache=expected).sample,
    )
    with pytest.raises(ValueError, match=r"must be the first ones that are joined; received 1 of them"):
        Blip3oConditionCache.cat([other, constant])


def test_modulations_of_steps_are_those_of_each_step(model):
    inputs = make_inputs()
    cache = model.precompute_condition(inputs["encoder_hidden_states"])
    steps = torch.tensor([1000.0, 600.5, 3.0])
    modulations = model.precompute_modulations(steps, cache.pooled)
    assert len(modulations) == 3
    for step, modulation in zip(steps, modulations, strict=True):
        given = model(inputs["hidden_states"], step, condition_cache=cache, modulation=modulation).sample
        assert_close(given, model(inputs["hidden_states"], step, condition_cache=cache).sample)
    message = "3 layers and 3 samples; received 3 layers and 1 samples"
    with pytest.raises(ValueError, match=message):
        few = model.precompute_modulations(steps, cache.pooled[:1])[0]
        model(inputs["hidden_states"], steps[0], condition_cache=cache, modulation=few)


def test_rotation_of_pairs_is_that_of_complex_numbers():
    table = rotary_table(3, 5, 8)
    states = torch.randn(2, 15, 4, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = table[:, None].unbind(-1)
    first, second = states[..., ::2], states[..., 1::2]
    rotated = apply_rotary(states, table)
    assert_close(rotated[..., ::2], first * cos - second * sin)
    assert_close(rotated[..., 1::2], first * sin + second * cos)
    assert apply_rotary(states.bfloat16(), table).dtype == torch.bfloat16
    assert_close(apply_rotary(states.double(), table).float(), rotated)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Blip3oTransformer2DModel.from_pretrained(tmp_path)
    assert dict(loaded.config)["num_key_value_heads"] == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    inputs = make_inputs()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).sample, model(**inputs).sample)


def test_half_precision_stays_near(model):
    inputs = make_inputs()
    half = make_model().to(torch.bfloat16).requires_grad_(False)
    inputs_half = {name: value.to(torch.bfloat16) for name, value in inputs.items() if name != "timestep"}
    velocity = half(**inputs_half, timestep=inputs["timestep"]).sample
    assert velocity.dtype == torch.bfloat16
    assert_close(velocity.float(), model(**inputs).sample, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**inputs).sample.float(), model(**inputs).sample.float(), 0.05)


def test_gradient_checkpointing_gives_equal_gradients():
    gradients = []
    for is_checkpointed in (False, True):
        model = make_model().train()
        if is_checkpointed:
            model.enable_gradient_checkpointing()
        inputs = make_inputs()
        inputs["encoder_hidden_states"].requires_grad_()
        model(**inputs).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        gradients[-1]["condition"] = inputs["encoder_hidden_states"].grad
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("condition_dim, num_parameters", [(3584, 1_365_010_336), (2048, 1_362_257_824)])
def test_full_size(condition_dim, num_parameters):
    with torch.device("meta"):
        model = Blip3oTransformer2DModel(condition_dim=condition_dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert model.layers[0].feed_forward.linear_1.out_features == 4864
    assert not list(model.buffers())


def test_feed_forward_dim():
    assert feed_forward_dim(1792) == 4864
    assert feed_forward_dim(64, 256) == 256
    assert feed_forward_dim(64, 16, 1.3) == 224
    assert Blip3oTransformer2DModel(**CONFIG, ffn_dim=21).layers[0].feed_forward.linear_2.in_features == 21


def test_parameter_names():
    layer = {
        "gate",
        *(f"attn{i}.{name}.weight" for i in (1, 2) for name in ("to_q", "to_k", "to_v")),
        *(f"attn{i}.norm_{n}.{part}" for i in (1, 2) for n in "qk" for part in ("weight", "bias")),
        "attn2.to_out.0.weight",
        *(f"feed_forward.linear_{i}.weight" for i in (1, 2, 3)),
        "norm1.linear.weight",
        "norm1.linear.bias",
        "norm1.norm.weight",
        *(f"{name}.weight" for name in ("norm2", "ffn_norm1", "ffn_norm2", "norm1_context")),
    }
    affine = (
        "caption_projection.linear_1",
        "caption_projection.linear_2",
        "patch_embedder.proj",
        "time_caption_embed.timestep_embedder.linear_1",
        "time_caption_embed.timestep_embedder.linear_2",
        "time_caption_embed.caption_embedder.0",
        "time_caption_embed.caption_embedder.1",
        "norm_out.linear_1",
        "norm_out.linear_2",
    )
    expected = {f"layers.{i}.{name}" for i in range(3) for name in layer}
    expected |= {f"{name}.{part}" for name in affine for part in ("weight", "bias")}
    assert set(make_model().state_dict()) == expected


def test_lora(tmp_path):
    model, inputs = make_model(), make_inputs()
    before = model(**inputs).sample
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
    adapted = model(**inputs).sample
    assert (adapted - before).abs().max() > 1e-3
    assert_close(model(**inputs, attention_kwargs={"scale": 0.0}).sample, before)
    assert_close(run_cached(model, inputs), adapted)
    model.save_lora_adapter(tmp_path)
    fresh = make_model()
    fresh.load_lora_adapter(
        tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
    )
    assert_close(fresh(**inputs).sample, adapted)


def test_attention_backend():
    model, inputs = make_model().requires_grad_(False), make_inputs()
    expected = model(**inputs).sample
    with attention_backend("native"):  # the model's own choice is one for all models, too, until here
        model.set_attention_backend("_native_math")
        assert {str(processor._attention_backend.value) for processor in model.attn_processors.values()} == {
            "_native_math"
        }
        assert_close(model(**inputs).sample, expected, 1e-5)


@pytest.mark.parametrize("is_cached", [True, False])
def test_first_block_cache(is_cached):
    """A repeated call is answered from the first block and the remembered rest."""
    model, inputs = make_model().requires_grad_(False), make_inputs()
    expected = model(**inputs).sample
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    calls = []
    model.layers[1].feed_forward.register_forward_hook(lambda *arguments: calls.append(1))
    with model.cache_context("condition"):
        for _ in range(2):
            velocity = run_cached(model, inputs) if is_cached else model(**inputs).sample
            assert_close(velocity, expected, 1e-5)
    assert len(calls) == 1
    model.disable_cache()
    assert_close(model(**inputs).sample, expected)


def test_block_offloading(model):
    offloaded, inputs = make_model().requires_grad_(False), make_inputs()
    offloaded.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    assert_close(offloaded(**inputs).sample, model(**inputs).sample)


def test_layerwise_casting_keeps_norms_and_embeddings():
    model, inputs = make_model().requires_grad_(False), make_inputs()
    expected = model(**inputs).sample
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert model.layers[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.patch_embedder.proj.weight.dtype == torch.float32
    assert model.layers[0].norm1.linear.weight.dtype == torch.float32
    assert_close(model(**inputs).sample, expected, 0.05)


@pytest.mark.parametrize("is_cached", [True, False])
def test_traces_as_one_graph(model, is_cached):
    """torch.compile without graph breaks; the eager backend spares the minutes of code generation."""
    inputs = make_inputs()
    expected = model(**inputs).sample
    if is_cached:
        inputs["condition_cache"] = model.precompute_condition(inputs.pop("encoder_hidden_states"))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(**inputs).sample, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"encoder_hidden_states": None},
            "Exactly one of `encoder_hidden_states` and `condition_cache` must be given; received neither. "
            "Pass the condition itself, or the result of `precompute_condition` when many steps share it.",
        ),
        (
            {"encoder_hidden_states": torch.zeros(3, 5, 11)},
            "`encoder_hidden_states` must have shape [batch, query tokens, 10]; received [3, 5, 11]. Pass "
            "the backbone's hidden states at the query tokens",
        ),
        (
            {"encoder_hidden_states": torch.zeros(2, 5, 10)},
            "The condition must have the batch size of `hidden_states`; received 2 conditions for 3 samples. "
            "Repeat the condition first",
        ),
        (
            {"hidden_states": torch.zeros(3, 16, 6)},
            "`hidden_states` must have shape [batch, 6, height, width] with sides divisible by 1; received "
            "[3, 16, 6]. Arrange feature tokens",
        ),
        (
            {"timestep": torch.zeros(2)},
            "`timestep` must be a scalar or have shape [3], one per sample; received [2]. Repeat it like the samples.",
        ),
        (
            {"attention_kwargs": {"scale": 1.0, "mask": None}},
            "`attention_kwargs` takes only the key 'scale'; received also ['mask']. Choose an attention",
        ),
    ],
)
def test_bad_inputs(model, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(**(make_inputs() | changes))


def test_bad_caches(model):
    inputs = make_inputs()
    cache = model.precompute_condition(inputs["encoder_hidden_states"])
    with pytest.raises(ValueError, match=r"Exactly one of .* received both"):
        model(**inputs, condition_cache=cache)
    foreign = make_model(num_layers=2).precompute_condition(inputs.pop("encoder_hidden_states"))
    with pytest.raises(ValueError, match="received keys of 2 layers where the model has 3"):
        model(**inputs, condition_cache=foreign)
    with pytest.raises(ValueError, match=re.escape("received caches with [3, 2] projected layers")):
        Blip3oConditionCache.cat([cache, foreign])


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dim": 30}, "received dim=30 and num_attention_heads=4. Choose for instance dim=16."),
        (
            {"num_key_value_heads": 3},
            "received num_key_value_heads=3 and num_attention_heads=4. Leave it at None",
        ),
    ],
)
def test_bad_config(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oTransformer2DModel(**(CONFIG | overrides))
