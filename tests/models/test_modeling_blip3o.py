"""One model: its backbone's understanding untouched, a condition that padding does not change, exact saves."""

import copy
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.objectives.feature_flow import add_noise

CAPTIONS = ["two red circles", "one small blue square above three green triangles", "a circle"]


@pytest.fixture
def prompts(processor):
    return processor.encode_prompts(CAPTIONS)


@pytest.fixture
def question(processor, make_image):
    content = [{"type": "image", "image": make_image()}, {"type": "text", "text": "How many circles are there?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def make_targets(batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, 4, 4, generator=generator)


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def randomise(model):
    """Weights that no initialisation would give, so that a reload cannot pass by initialising alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# Initialisation


def test_fresh_queries_gates_and_norms_follow_the_configuration(make_model):
    model = make_model(num_queries=64, initializer_range=0.25)
    assert model.queries.weight.std().item() == pytest.approx(0.25, rel=0.1)
    assert model.queries.weight.mean().abs() < 0.05
    for layer in model.transformer.layers:
        assert (layer.gate == 0.5).all()
        assert (layer.norm2.weight == 1).all()
    bound = 16**-0.5
    weight = model.transformer.patch_embedder.proj.weight
    assert bound * 0.9 < weight.abs().max() <= bound


def test_loading_without_weights_initialises_every_parameter(make_config):
    """The path of `from_pretrained`, on which PyTorch's own initialisation does not run."""
    with torch.device("meta"):
        model = Blip3oForConditionalGeneration(make_config())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    uninitialised = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    assert uninitialised == []


# Understanding


def test_forward_without_targets_is_the_backbone_s(model, question):
    labels = question["input_ids"]
    ours = model(**question, labels=labels)
    theirs = model.backbone(**question, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


def test_generate_is_the_backbone_s(model, question):
    ours = model.generate(**question, max_new_tokens=6, do_sample=False)
    theirs = model.backbone.generate(**question, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] > question["input_ids"].shape[1]


def test_generate_uses_the_model_s_generation_config(model, question):
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = None
    assert model.generate(**question).shape[1] == question["input_ids"].shape[1] + 3


def test_an_image_changes_the_answer_and_the_condition(model, processor, question, make_image):
    other = processor.image_processor([make_image(9)], return_tensors="pt")["pixel_values"]
    changed = {**question, "pixel_values": other}
    assert not torch.equal(model(**question).logits, model(**changed).logits)
    inputs = processor.encode_prompts(["a red circle"], images=[make_image()])
    changed = {**inputs, "pixel_values": other}
    assert not torch.equal(model.encode_condition(**inputs), model.encode_condition(**changed))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_the_backbone_s(make_model, tied):
    model = make_model(tied=tied)
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    assert model.get_output_embeddings() is model.backbone.get_output_embeddings()
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    new = torch.nn.Embedding(7, 32)
    model.set_input_embeddings(new)
    assert model.backbone.get_input_embeddings() is new


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_understanding_is_bitwise_unchanged_by_generation_training(make_model, prompts, question, processor, backbone):
    model = make_model(backbone=backbone).train()
    model.backbone.requires_grad_(False)
    asked = question if backbone == "qwen" else processor.encode_prompts(["What is a circle?"], raw=True)
    before = model(**asked).logits
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.1)
    for step in range(3):
        model(**prompts, target_features=make_targets(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model(**asked).logits, before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) is name.startswith("backbone."), name


# The condition


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_condition(make_model, processor, prompts, assert_close, backbone, side):
    model = make_model(backbone=backbone)
    inputs = dict(prompts)
    if side == "right":
        lengths = prompts["attention_mask"].sum(-1)
        for name, value in prompts.items():
            inputs[name] = torch.stack(
                [row.roll(int(n)) for row, n in zip(value, lengths - value.shape[1], strict=True)]
            )
        assert inputs["attention_mask"][0, -1] == 0
    batch = model.encode_condition(**inputs)
    assert batch.shape == (3, 5, 32)
    for index, caption in enumerate(CAPTIONS):
        alone = processor.encode_prompts([caption])
        assert_close(batch[index : index + 1], model.encode_condition(**alone))
        assert_close(batch[index : index + 1], model.encode_condition(alone["input_ids"]))


POSITIONS = pytest.mark.parametrize("image_positions", ["backbone", "sequential"])


def picture_prompts(processor, make_image, captions=CAPTIONS):
    """Prompts with one image, with two and one before, and with none; and a function for each alone."""
    images = [[make_image(0)], [make_image(1), make_image(2)], []]
    shown = {"type": "image", "image": make_image(3).resize((64, 32))}
    history = [{"role": "user", "content": [shown, {"type": "text", "text": "How many?"}]}]
    history += [{"role": "assistant", "content": "There are three circles."}]
    histories = [[], history, history[:0]]

    def alone(index):
        return processor.encode_prompts([captions[index]], images=[images[index]], histories=[histories[index]])

    return processor.encode_prompts(captions, images=images, histories=histories), alone


@POSITIONS
@pytest.mark.parametrize("trains", [False, True])
def test_padding_changes_no_condition_of_input_images(
    make_model, processor, make_image, assert_close, image_positions, trains
):
    model = randomise(make_model(image_positions=image_positions)).requires_grad_(trains)
    inputs, alone = picture_prompts(processor, make_image)
    batch = model.encode_condition(**inputs)
    assert batch.requires_grad is trains
    for index in range(len(CAPTIONS)):
        assert_close(batch[index : index + 1], model.encode_condition(**alone(index)))


@POSITIONS
def test_the_cache_changes_no_condition_of_input_images(
    make_model, processor, make_image, assert_close, image_positions
):
    """Prompt and queries one after the other, and both in one pass where the backbone trains."""
    model = randomise(make_model(image_positions=image_positions))
    inputs, _ = picture_prompts(processor, make_image)
    with torch.no_grad():
        cached = model.encode_condition(**inputs)
    assert_close(model.encode_condition(**inputs).detach(), cached)
    frozen = copy.deepcopy(model)
    frozen.backbone.requires_grad_(False)
    condition = frozen.encode_condition(**inputs)
    assert_close(condition.detach(), cached)
    weights = torch.randn_like(condition)
    gradients = [
        torch.autograd.grad((weights * each.encode_condition(**inputs)).sum(), each.queries.weight)[0]
        for each in (frozen, model)
    ]
    assert_close(*gradients)


def positions_read(model, inputs):
    """Positions of the prompt and of the queries as the backbone gets them."""
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        model.encode_condition(**inputs)
    hook.remove()
    return seen


def test_images_have_the_backbone_s_own_positions(make_model, processor, make_image):
    model = make_model(image_positions="backbone")
    inputs, _ = picture_prompts(processor, make_image)
    prompt, queries = positions_read(model, inputs)
    types = (inputs["input_ids"] == processor.image_token_id).int()
    expected, deltas = model.backbone.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=types,
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    real = inputs["attention_mask"].bool()
    assert prompt.shape == (3, 3, real.shape[1])
    assert torch.equal(prompt[:, real], expected[:, real])
    grid = prompt[:, 0, types[0].bool()]
    assert len(grid[0].unique()) == 1 and len(grid[1].unique()) == len(grid[2].unique()) == 8  # rows and columns
    # The queries go on after the largest position, as the backbone's own answer would.
    first = real.sum(-1, keepdim=True) + deltas
    assert torch.equal(queries, (first + torch.arange(5)).expand(3, -1, -1))


def test_sequential_positions_count_on_over_images(make_model, processor, make_image):
    model = make_model()
    inputs, _ = picture_prompts(processor, make_image)
    prompt, queries = positions_read(model, inputs)
    for row, mask, following in zip(prompt, inputs["attention_mask"], queries, strict=True):
        length = int(mask.sum())
        assert torch.equal(row[mask.bool()], torch.arange(length))
        assert torch.equal(following, torch.arange(length, length + 5))


def test_where_images_stand_matters_to_prompts_with_images_alone(make_model, processor, make_image, assert_close):
    own = randomise(make_model(image_positions="backbone"))
    sequential = copy.deepcopy(own)
    sequential.config.image_positions = "sequential"
    words = processor.encode_prompts(CAPTIONS)
    assert torch.equal(own.encode_condition(**words), sequential.encode_condition(**words))
    inputs, _ = picture_prompts(processor, make_image)
    difference = (own.encode_condition(**inputs) - sequential.encode_condition(**inputs)).abs().amax((1, 2))
    assert (difference[:2] > 0.02).all() and difference[2] < 1e-4


def test_a_text_only_backbone_counts_positions_on(make_model, prompts):
    model = make_model(backbone="llama")
    positions = model.prompt_positions(prompts["input_ids"], prompts["attention_mask"])
    assert torch.equal(positions.amax(-1) + 1, prompts["attention_mask"].sum(-1))


@pytest.mark.parametrize("backbone", ["qwen", "llama"])
def test_the_condition_is_the_hidden_states_at_the_queries(make_model, processor, assert_close, backbone):
    model = make_model(backbone=backbone)
    inputs = processor.encode_prompts([CAPTIONS[0]])
    embeddings = torch.cat([model.get_input_embeddings()(inputs["input_ids"]), model.queries(1)], dim=1)
    positions = torch.arange(embeddings.shape[1])[None]
    full = model.get_decoder()(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    assert_close(model.encode_condition(**inputs), full.last_hidden_state[:, -5:])


@pytest.mark.parametrize("trains_backbone", [True, False])
def test_gradient_checkpointing_changes_no_condition(model, prompts, assert_close, trains_backbone):
    model.backbone.requires_grad_(trains_backbone)
    model.train()
    expected = model.encode_condition(**prompts)
    model.activation_checkpointing_enable()
    assert_close(model.encode_condition(**prompts), expected)


# Generation


def test_the_loss_is_the_flow_matching_loss_of_its_prediction(make_model, prompts, assert_close):
    model = make_model(noise_distribution="uniform")
    target, noise, sigma = make_targets(), make_targets(seed=2), torch.tensor([0.1, 0.55, 1.0])
    output = model(**prompts, target_features=target, noise=noise, sigma=sigma)
    velocity = model.transformer(
        add_noise(target, noise, sigma), 1000 * sigma, encoder_hidden_states=model.encode_condition(**prompts)
    ).sample
    assert_close(output.prediction, velocity)
    assert_close(output.loss, (velocity - (noise - target)).square().mean())
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize("with_targets", [False, True])
def test_what_the_backbone_would_say_at_the_queries_is_returned_on_request(model, prompts, with_targets):
    inputs = {**prompts, "target_features": make_targets(), "num_noise_draws": 2} if with_targets else prompts
    output = model(**inputs, output_query_logits=True)
    expected = model.get_output_embeddings()(model.encode_condition(**prompts))
    assert torch.equal(output.query_logits, expected)
    assert (output.loss is not None) is with_targets and (output.prediction is not None) is with_targets
    assert not with_targets or model(**inputs).query_logits is None
    output.query_logits.logsumexp(-1).sum().backward()
    assert model.queries.weight.grad.abs().max() > 0


def test_a_condition_computed_earlier_saves_the_backbone(model, prompts):
    drawn = {"noise": make_targets(seed=2), "sigma": torch.tensor([0.1, 0.5, 1.0])}
    full = model(**prompts, target_features=make_targets(), **drawn)
    model.backbone = None
    short = model(condition=full.condition, target_features=make_targets(), **drawn)
    assert torch.equal(short.loss, full.loss)
    assert torch.equal(short.prediction, full.prediction)


@pytest.fixture
def timesteps_of():
    """Runs the model and returns the timesteps its transformer received."""

    def run(model, **inputs):
        seen = []
        hook = model.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
        )
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        return seen[0]

    return run


def test_every_level_of_the_training_grid_reaches_the_transformer_as_an_integer(model, timesteps_of):
    """In float32 ten of the thousand products 1000 * sigma miss their integer."""
    grid = torch.arange(1, 1001)
    inputs = {"target_features": torch.zeros(1000, 16, 4, 4), "condition": torch.zeros(1000, 5, 32)}
    assert torch.equal(timesteps_of(model, sigma=grid / 1000, **inputs), grid.float())


@pytest.mark.parametrize(
    ("settings", "is_grid"),
    [
        ({"noise_distribution": "discrete_uniform"}, True),
        ({"noise_distribution": "discrete_uniform", "noise_shift": 4.0}, False),
        ({"noise_distribution": "uniform"}, False),
    ],
)
def test_noise_levels_are_drawn_from_the_configuration_s_distribution(
    make_model, prompts, timesteps_of, settings, is_grid
):
    timestep = timesteps_of(make_model(**settings), **prompts, target_features=make_targets())
    assert ((timestep > 0) & (timestep <= 1000)).all()
    assert torch.equal(timestep, timestep.round()) is is_grid


def test_the_noise_shift_moves_levels_towards_noise(make_model, timesteps_of):
    inputs = {"target_features": torch.zeros(500, 16, 4, 4), "condition": torch.zeros(500, 5, 32)}
    plain, shifted = (
        timesteps_of(make_model(noise_distribution="uniform", noise_shift=shift), **inputs) for shift in (1.0, 4.0)
    )
    assert plain.mean() == pytest.approx(500, abs=40)
    assert shifted.mean() > 650


def test_num_noise_draws_equals_explicit_repetition(model, prompts, assert_close):
    noise, sigma = torch.randn(9, 16, 4, 4), torch.rand(9)
    target = make_targets()
    output = model(**prompts, target_features=target, noise=noise, sigma=sigma, num_noise_draws=3)
    repeated = {name: value.repeat_interleave(3, dim=0) for name, value in prompts.items()}
    explicit = model(**repeated, target_features=target.repeat_interleave(3, dim=0), noise=noise, sigma=sigma)
    assert output.prediction.shape == (9, 16, 4, 4)
    assert_close(output.prediction, explicit.prediction)
    assert_close(output.condition, explicit.condition)
    assert_close(output.loss, explicit.loss)


def test_the_backbone_runs_once_for_all_noise_draws(model, prompts):
    model.backbone.requires_grad_(False)
    batches = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    model(**prompts, target_features=make_targets(), num_noise_draws=4)
    assert batches == [3, 3]  # the prompt, then the queries
    model.backbone.requires_grad_(True)
    model(**prompts, target_features=make_targets(), num_noise_draws=4)
    assert batches == [3, 3, 3]  # both at once


def test_condition_dropout_replaces_whole_conditions_by_zeros(make_model):
    """Each sample sees its condition or none of it; about the configured share sees none."""
    model = make_model(condition_dropout=0.3)
    batch = 400
    condition, target = torch.randn(1, 5, 32).expand(batch, -1, -1), torch.zeros(batch, 16, 4, 4)
    noise, sigma = torch.randn(1, 16, 4, 4).expand(batch, -1, -1, -1), torch.full((batch,), 0.5)
    inputs = {"target_features": target, "noise": noise, "sigma": sigma}
    with torch.no_grad():
        shown = model(condition=condition, **inputs).prediction
        hidden = model(condition=torch.zeros_like(condition), **inputs).prediction
        dropped = model.train()(condition=condition, **inputs)

    def distance(reference):
        return (dropped.prediction - reference).flatten(1).abs().amax(-1)

    saw, missed = distance(shown) < 1e-5, distance(hidden) < 1e-5
    assert (saw ^ missed).all()
    assert missed.float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert torch.equal(dropped.condition, condition)
    # In evaluation every sample sees its condition.
    assert (shown - hidden).abs().max() > 1e-3
    assert torch.equal(shown, shown[:1].expand_as(shown))


def test_normalized_features_are_standard_and_denormalized_back(make_model, assert_close):
    features = 3 * torch.randn(200, 16, 4, 4) + 5 * torch.randn(16, 1, 1)
    mean, std = features.mean((0, 2, 3)), features.std((0, 2, 3))
    model = make_model(feature_mean=mean.tolist(), feature_std=std.tolist())
    normalized = model.normalize_features(features)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.std((0, 2, 3)), torch.ones(16), rtol=0, atol=1e-4)
    assert_close(model.denormalize_features(normalized), features)


def test_without_statistics_features_stay_as_they_are(model):
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(model.normalize_features(features), features)
    assert torch.equal(model.denormalize_features(features), features)


def test_statistics_act_on_the_targets_of_the_loss(make_model, prompts, assert_close):
    statistics = {"feature_mean": [0.5] * 16, "feature_std": [2.0] * 16}
    drawn = {"noise": make_targets(seed=2), "sigma": torch.tensor([0.1, 0.5, 1.0])}
    with_statistics = make_model(**statistics)(**prompts, target_features=make_targets(), **drawn)
    by_hand = make_model()(**prompts, target_features=(make_targets() - 0.5) / 2, **drawn)
    assert_close(with_statistics.loss, by_hand.loss)


def test_a_text_only_backbone_learns_to_draw(make_model, prompts):
    model = make_model(backbone="llama")
    assert model.backbone.config.model_type == "llama"
    output = model(**prompts, target_features=make_targets())
    output.loss.backward()
    assert output.prediction.shape == (3, 16, 4, 4)
    assert model.queries.weight.grad.abs().max() > 0


@pytest.mark.parametrize("call", ["generate", "forward", "encode_condition", "training"])
def test_a_text_only_backbone_says_so_when_given_an_image(make_model, question, call):
    model = make_model(backbone="llama")
    message = (
        "This model's backbone (llama) reads text only. Got an image. Use a model with a vision-language backbone "
        "such as Qwen2.5-VL."
    )
    calls = {
        "generate": model.generate,
        "forward": model,
        "encode_condition": model.encode_condition,
        "training": lambda **inputs: model(**inputs, target_features=make_targets(1)),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        calls[call](**question)


# Feature regression


def test_feature_regression_has_a_linear_head_and_no_transformer(make_model, prompts, assert_close):
    model = make_model(objective="feature_regression", num_queries=16)
    assert not hasattr(model, "transformer")
    target = make_targets()
    output = model(**prompts, target_features=target)
    condition = model.encode_condition(**prompts)
    predicted = model.feature_head(condition)
    for row in range(4):
        for column in range(4):
            assert_close(output.prediction[:, :, row, column], predicted[:, 4 * row + column])
    assert_close(output.loss, (output.prediction - target).square().mean())


def test_feature_regression_needs_one_query_per_feature(make_model, prompts):
    message = "`feature_regression` needs one query per feature: 16. This model has 5 queries. Set `num_queries=16`."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model(objective="feature_regression")(**prompts, target_features=make_targets())


# Bad input


@pytest.mark.parametrize("shape", [(3, 15, 4, 4), (3, 16, 8, 8), (3, 16, 16)])
def test_targets_of_another_shape_are_refused(model, prompts, shape):
    message = (
        f"`target_features` must have shape [batch, 16, 4, 4]. Got {list(shape)}. Encode images with the target "
        "encoder this model was made for."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model(**prompts, target_features=torch.zeros(shape))


def test_more_images_than_placeholders_are_refused(model, processor, make_image):
    inputs = processor.encode_prompts(["a circle"], images=[make_image()])
    two = processor.image_processor([make_image(), make_image()], return_tensors="pt")
    message = (
        "The prompt must hold one image placeholder per image feature. The backbone says: Image features and image "
        "tokens do not match, tokens: 64, features: 128. Prepare prompts and images together with the processor."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.encode_condition(**{**inputs, **two})


# Saves


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("backbone", "tied", "objective"),
    [
        ("qwen", True, "feature_flow"),
        ("qwen", False, "feature_flow"),
        ("llama", True, "feature_flow"),
        ("llama", False, "latent_flow"),
        ("qwen", True, "feature_regression"),
    ],
)
def test_a_saved_model_is_bit_equal(make_model, prompts, tmp_path, dtype, backbone, tied, objective):
    model = randomise(make_model(backbone=backbone, tied=tied, objective=objective, num_queries=16))
    if dtype == torch.bfloat16:
        # Loading keeps rotary frequencies in float32, which `model.to` would round.
        model.save_pretrained(tmp_path / "float32")
        model = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "float32", dtype=dtype).eval()
    model.save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert_same_weights(loaded, model)
    drawn = {"noise": make_targets(seed=2), "sigma": torch.tensor([0.1, 0.5, 1.0])}
    before = model(**prompts, target_features=make_targets(), **drawn)
    after = loaded(**prompts, target_features=make_targets(), **drawn)
    assert before.condition.dtype == dtype
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(loaded(**prompts).logits, model(**prompts).logits)


def test_a_saved_model_sees_images_alike(model, question, tmp_path):
    randomise(model).save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**question).logits, model(**question).logits)


@pytest.mark.parametrize(
    ("objective", "head"), [("feature_flow", "transformer"), ("feature_regression", "feature_head")]
)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_keys_name_the_three_parts_and_hold_every_weight_once(make_model, tmp_path, tied, objective, head):
    model = make_model(tied=tied, objective=objective, num_queries=16)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {key.split(".")[0] for key in saved} == {"backbone", "queries", head}
    assert "queries.weight" in saved
    assert sum(value.numel() for value in saved.values()) == sum(p.numel() for p in model.parameters())


def test_sharded_saves_are_bit_equal(model, tmp_path):
    randomise(model).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(Blip3oForConditionalGeneration.from_pretrained(tmp_path), model)


def test_loading_in_another_dtype_casts_every_parameter(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.queries.weight, model.queries.weight.bfloat16())


def test_auto_classes_load_a_saved_folder(model, processor, prompts, tmp_path):
    randomise(model).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Blip3oConfig
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is Blip3oForConditionalGeneration
    assert_same_weights(loaded, model)
    auto_processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(auto_processor) is Blip3oProcessor
    assert torch.equal(auto_processor.encode_prompts(CAPTIONS)["input_ids"], prompts["input_ids"])


def test_a_generation_config_is_saved_with_the_model(model, tmp_path):
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(tmp_path)
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.max_new_tokens == 17
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.fixture
def change_weights(model, tmp_path):
    """Saves the model and rewrites its weights: `change_weights(removed=..., **replaced)`; returns the folder."""

    def change(removed=(), **replaced):
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        weights = {name: value for name, value in load_file(file).items() if name not in removed}
        save_file(weights | replaced, file, metadata={"format": "pt"})
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        (["queries.weight"], "1: queries.weight"),
        (["transformer.layers.1.gate", "queries.weight"], "2: queries.weight, transformer.layers.1.gate"),
        (["backbone.model.norm.weight"], "1: backbone.model.language_model.norm.weight"),
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_refused_by_name(change_weights, removed, named):
    folder = change_weights(removed)
    message = f"A checkpoint must hold every tensor of the model. {folder} lacks {named}. Save or download it again."
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(("wrong", "expected"), [("queries.weight", (5, 32)), ("transformer.layers.1.gate", (2,))])
def test_a_tensor_of_another_shape_is_refused_by_name(change_weights, wrong, expected):
    found = (3, *expected[1:])
    folder = change_weights(**{wrong: torch.zeros(found)})
    message = (
        f"A checkpoint's tensors must have the model's shapes. {folder} has 1 that do not: {wrong} is {list(found)}, "
        f"the config asks for {list(expected)}. Use the config that was saved with these weights, or "
        f"download them again."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_drawn_anew_on_request(model, change_weights):
    folder = change_weights(**{"queries.weight": torch.zeros(3, 32)})
    loaded = Blip3oForConditionalGeneration.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert loaded.queries.weight.shape == (5, 32)
    assert loaded.queries.weight.std() > 0.5
    assert torch.equal(loaded.transformer.layers[1].gate, model.transformer.layers[1].gate)


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_damaged_file_is_refused(model, tmp_path, kept):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    pattern = rf"{re.escape(str(file))} (has no readable header|is cut short: it has \d+ bytes, and \S+ ends at byte)"
    with pytest.raises(ValueError, match=pattern):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(change_weights, value):
    folder = change_weights(**{"queries.weight": torch.full((5, 32), value)})
    message = (
        f"Weights must be finite numbers. queries.weight (in model.safetensors) of {folder} holds NaN or infinity."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oForConditionalGeneration.from_pretrained(folder)


def test_weights_that_are_integers_are_refused_by_name(change_weights):
    folder = change_weights(**{"queries.weight": torch.ones(5, 32, dtype=torch.int32)})
    message = f"queries.weight (in model.safetensors) of {folder} is I32."
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("use_safetensors", [None, False])
def test_a_pickle_is_never_read(model, tmp_path, use_safetensors):
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has only pytorch_model\.bin\. Reading a pickle can run any program"):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path, use_safetensors=use_safetensors)


def test_a_shard_outside_the_folder_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "ours", max_shard_size="50KB")
    file = tmp_path / "ours" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shutil.move(tmp_path / "ours" / index["weight_map"]["queries.weight"], tmp_path / "elsewhere.safetensors")
    index["weight_map"]["queries.weight"] = "../elsewhere.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"places queries\.weight in '\.\./elsewhere\.safetensors', outside of it"):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path / "ours")


def test_a_variant_of_the_files_is_loaded(model, tmp_path):
    model.save_pretrained(tmp_path, variant="bf16", max_shard_size="50KB")
    assert_same_weights(Blip3oForConditionalGeneration.from_pretrained(tmp_path, variant="bf16"), model)


def test_loading_info_is_given_on_request(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = Blip3oForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert_same_weights(loaded, model)
    assert not info["missing_keys"] and not info["unexpected_keys"]


# From a backbone


@pytest.mark.parametrize(
    ("backbone", "auto_class"), [("qwen", AutoModelForImageTextToText), ("llama", AutoModelForCausalLM)]
)
def test_a_model_is_built_on_a_trained_backbone(
    make_backbone_config, make_config, processor, tmp_path, backbone, auto_class
):
    trained = randomise(auto_class.from_config(make_backbone_config(backbone))).eval()
    trained.generation_config.max_new_tokens = 9
    trained.save_pretrained(tmp_path)
    model = Blip3oForConditionalGeneration.from_backbone(str(tmp_path), make_config(num_queries=7)).eval()
    assert_same_weights(model.backbone, trained)
    assert model.generation_config.max_new_tokens == 9
    assert model.config.num_queries == 7
    assert type(model.config.backbone_config) is type(trained.config)
    inputs = processor.encode_prompts(CAPTIONS)
    assert model.encode_condition(**inputs).shape == (3, 7, 32)
    model.save_pretrained(tmp_path / "built")
    assert_same_weights(Blip3oForConditionalGeneration.from_pretrained(tmp_path / "built"), model)
