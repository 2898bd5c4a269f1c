"""The whole model against the reference's formulas, computed in fp64, on sizes that no recorded tensor covers.

Random checkpoints in the published layout are loaded as published ones are. The formulas themselves are compared with
what the reference recorded, where `BLIP3O_REFERENCE_TINY` names the folder (see `test_reference_checkpoint.py`).
"""

import json
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from tests import published_layout
from tests.parity import formulas
from tests.parity.reference_folder import (
    FOLDER,
    NO_FOLDER,
    encoder_heads,
    load_recorded,
    optimizer_settings,
    read_json,
    recorded_parts,
    sampling_settings,
)
from tests.published_layout import TOKEN_IDS, write_published_checkpoint

from blip3o_hf import (
    Blip3oDecoderPipeline,
    Blip3oFlowScheduler,
    Blip3oForConditionalGeneration,
    Blip3oPipeline,
    Blip3oProcessor,
    EvaClipVisionModel,
)
from blip3o_hf.checkpoints.published_names import published_name
from blip3o_hf.models.target_encoder import extract_features
from blip3o_hf.objectives.noise_levels import sigma_from_uniform

TOLERANCE = 1e-5
IMAGE_ID, START_ID, PAD_ID = (TOKEN_IDS[token] for token in ("<|image_pad|>", "[IMG]", "<|endoftext|>"))
FIRST_SPECIAL_ID = min(TOKEN_IDS.values())
DECODER_CHANNELS = published_layout.CHANNELS

# Sizes of tests/published_layout.py, and arguments of `write_published_checkpoint`. Head dims differ by part.
CASES = {
    "grouped_queries": {
        "sections": [1, 1, 1],
        "vision_heads": 2,
        "full_blocks": [1],
        "encoder_heads": 3,
        "arguments": {"num_key_value_heads": 2, "ffn_dim_multiplier": 3.3, "tied": False},
    },
    "one_key_head": {
        "sizes": {
            "HIDDEN": 60,
            "TEXT_LAYERS": 3,
            "TEXT_HEADS": 3,
            "TEXT_KV_HEADS": 1,
            "VISION_HIDDEN": 24,
            "VISION_LAYERS": 4,
            "DIM": 72,
            "DIT_LAYERS": 2,
            "DIT_HEADS": 6,
            "CHANNELS": 20,
            "NUM_QUERIES": 9,
            "ENCODER_LAYERS": 2,
            "ENCODER_FFN": 171,
        },
        "sections": [2, 3, 5],
        "vision_heads": 3,
        "full_blocks": [0, 2],
        "encoder_heads": 2,
        "arguments": {"num_key_value_heads": 1, "tied": True, "model_type": "blip3o_qwen"},
    },
}
GRIDS = {
    "a_window": [(1, 8, 8)],
    "narrower_than_a_window": [(1, 2, 6)],
    "edge_windows": [(1, 10, 18)],
    "two_images": [(1, 8, 12), (1, 18, 4)],
    "three_images": [(1, 4, 4), (1, 12, 10), (1, 4, 4)],
    "frames": [(3, 10, 4), (1, 4, 6)],
}


class Case:
    """A checkpoint in the published layout as tensors, as our model, and as what its formulas must be told."""

    def __init__(self, folder, sections, vision_heads, full_blocks, encoder_heads, arguments, sizes=None):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (sizes or {}).items():
                patch.setattr(published_layout, name, value)
            tensors = write_published_checkpoint(folder, target_encoder=True, **arguments)
            self.text = {"num_heads": published_layout.TEXT_HEADS, "sections": sections}
        self.vision = {"num_heads": vision_heads, "full_blocks": full_blocks}
        self.encoder_heads = encoder_heads
        config = json.loads((folder / "config.json").read_text())
        config["rope_scaling"]["mrope_section"] = sections
        config["vision_config"] |= {"num_heads": vision_heads, "fullatt_block_indexes": full_blocks}
        (folder / "config.json").write_text(json.dumps(config))

        self.folder = folder
        self.weights = {name: tensor.double() for name, tensor in tensors.items()}
        self.model = Blip3oForConditionalGeneration.from_pretrained(folder).requires_grad_(False)
        self.num_queries = self.model.config.num_queries
        self.channels = self.model.config.feature_dim
        self.pipeline = Blip3oPipeline(
            model=self.model,
            processor=Blip3oProcessor.from_pretrained(folder),
            scheduler=Blip3oFlowScheduler(),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def features(self, batch):
        return torch.randn(batch, self.channels, 8, 8)

    def conditions(self, batch):
        return torch.randn(batch, self.num_queries, self.model.config.hidden_size)

    def image_features(self, pixel_values, grids):
        return formulas.vision_tower(self.weights, pixel_values, grids, **self.vision)[0]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("published"), **CASES[request.param])


def error_of(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_parity(actual, expected):
    error = error_of(actual, expected)
    assert error < TOLERANCE, f"off by {error:.2e} of the largest value"


def random_ids(*lengths):
    """One prompt of ordinary tokens for every length."""
    return [torch.randint(FIRST_SPECIAL_ID, (length,)) for length in lengths]


def prompt_ids(length, grids=()):
    """`[L]`: ordinary tokens with the images among them, and `[IMG]` at the end."""
    parts = random_ids(length)
    for _, height, width in grids:
        parts += [torch.full((height * width // 4,), IMAGE_ID), *random_ids(3)]
    return torch.cat([*parts, torch.tensor([START_ID])])


def pixel_rows(grids):
    return torch.randn(sum(frames * height * width for frames, height, width in grids), 3 * 2 * 14 * 14)


def image_inputs(pixel_values, grids):
    return {"pixel_values": pixel_values, "image_grid_thw": torch.tensor(grids)}


def padded(prompts, side):
    """Prompts in one batch, and its mask."""
    longest = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        padding, mask = torch.full((longest - len(prompt),), PAD_ID), torch.ones_like(prompt)
        order = slice(None) if side == "right" else slice(None, None, -1)
        rows.append(torch.cat([prompt, padding][order]))
        masks.append(torch.cat([mask, torch.zeros_like(padding)][order]))
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}


# Backbone


@pytest.mark.parametrize("length", [1, 40])
def test_condition_of_a_prompt(case, length):
    prompt = prompt_ids(length)
    expected = formulas.query_states(case.weights, prompt, **case.text)
    assert_parity(case.model.encode_condition(prompt[None]), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_conditions_of_a_padded_batch(case, side):
    prompts = [prompt_ids(length) for length in (7, 30, 16)]
    expected = [formulas.query_states(case.weights, prompt, **case.text) for prompt in prompts]
    assert_parity(case.model.encode_condition(**padded(prompts, side)), torch.cat(expected))


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_image_encoder(case, grids):
    pixel_values, states = pixel_rows(grids), []
    expected, expected_states = formulas.vision_tower(case.weights, pixel_values, grids, **case.vision)
    handles = [
        block.register_forward_hook(lambda module, args, output: states.append(output))
        for block in case.model.backbone.model.visual.blocks
    ]
    inputs = image_inputs(pixel_values, grids)
    features = case.model.backbone.get_image_features(**inputs, return_dict=True).pooler_output
    for handle in handles:
        handle.remove()
    assert_parity(torch.cat(tuple(features)), expected)
    assert len(states) == len(expected_states)
    for state, expected_state in zip(states, expected_states, strict=True):
        assert_parity(state, expected_state)


@pytest.mark.parametrize("grids", [GRIDS["edge_windows"], GRIDS["two_images"]], ids=["one_image", "two_images"])
def test_condition_of_a_prompt_with_images(case, grids):
    """Positions stay sequential over image tokens."""
    pixel_values, prompt = pixel_rows(grids), prompt_ids(6, grids)
    features = case.image_features(pixel_values, grids)
    expected = formulas.query_states(case.weights, prompt, **case.text, image_id=IMAGE_ID, image_features=features)
    assert_parity(case.model.encode_condition(prompt[None], **image_inputs(pixel_values, grids)), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_conditions_of_a_batch_with_and_without_images(case, side):
    grids = [GRIDS["two_images"], [], GRIDS["edge_windows"]]
    prompts = [prompt_ids(length, own) for length, own in zip((5, 9, 2), grids, strict=True)]
    pixel_values, expected = [], []
    for prompt, own in zip(prompts, grids, strict=True):
        pixel_values.append(pixel_rows(own))
        features = case.image_features(pixel_values[-1], own) if own else None
        expected.append(
            formulas.query_states(case.weights, prompt, **case.text, image_id=IMAGE_ID, image_features=features)
        )
    inputs = {**padded(prompts, side), **image_inputs(torch.cat(pixel_values), list(chain(*grids)))}
    assert_parity(case.model.encode_condition(**inputs), torch.cat(expected))


# Text answers


def expected_logits(case, ids, grids, features):
    positions = formulas.spatial_positions(ids, IMAGE_ID, grids)
    embeddings = formulas.embed(case.weights, ids[None], IMAGE_ID, features)
    return formulas.logits(case.weights, formulas.text_stack(case.weights, embeddings, positions, **case.text)[-1])


@pytest.mark.parametrize("with_token_types", [True, False])
@pytest.mark.parametrize("images", ["edge_windows", "two_images", "three_images"])
def test_answer_to_a_question_about_images(case, images, with_token_types):
    grids, num_tokens = GRIDS[images], 4
    pixel_values, ids = pixel_rows(grids), prompt_ids(4, grids)[:-1]
    features = case.image_features(pixel_values, grids)
    inputs = {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        **image_inputs(pixel_values, grids),
    }
    if with_token_types:
        inputs["mm_token_type_ids"] = (ids == IMAGE_ID).int()[None]
    assert_parity(case.model(**inputs).logits, expected_logits(case, ids, grids, features))

    expected = ids
    for _ in range(num_tokens):
        chosen = expected_logits(case, expected, grids, features)[0, -1:, :FIRST_SPECIAL_ID].argmax(-1)
        expected = torch.cat([expected, chosen])
    special_ids = list(TOKEN_IDS.values())
    settings = {"max_new_tokens": num_tokens, "do_sample": False, "suppress_tokens": special_ids}
    assert torch.equal(case.model.generate(**inputs, **settings)[0], expected)
    input_ids = inputs.pop("input_ids")
    assert torch.equal(case.model.generate(input_ids, **inputs, **settings)[0], expected)
    assert torch.equal(case.model.generate(inputs=input_ids, **inputs, **settings)[0], expected)


# Diffusion transformer


@pytest.mark.parametrize("timestep", [1000, 1, 333])
def test_velocity(case, timestep):
    features, conditions = case.features(3), case.conditions(3)
    conditions[1] = 0
    timesteps = torch.tensor([timestep, 700, 45])
    expected = formulas.dit(case.weights, features.double(), timesteps, conditions.double())
    assert_parity(case.model.transformer(features, timesteps, encoder_hidden_states=conditions).sample, expected)


@pytest.mark.parametrize(("steps", "guidance"), [(1, 3.0), (7, 4.5), (30, 1.5), (6, 1.0), (4, 0.0)])
def test_sampling(case, steps, guidance):
    noise, conditions = case.features(4), case.conditions(2)
    expected = formulas.sample(case.weights, noise.double(), conditions.double(), steps, guidance)
    states = []
    latents = case.pipeline.denoise(
        noise,
        conditions.repeat_interleave(2, dim=0),
        steps,
        guidance,
        callback_on_step_end=lambda pipe, step, timestep, tensors: states.append(tensors["latents"]),
    )
    assert_parity(latents, expected[-1])
    for state, expected_state in zip(states, expected, strict=True):
        assert_parity(state, expected_state)
    timesteps = torch.tensor([int(sigma * 1000) for sigma in formulas.flow_sigmas(steps)]).float()
    assert torch.equal(case.pipeline.scheduler.timesteps, timesteps)


@pytest.mark.parametrize("guidance", [3.0, 7.5])
def test_features_of_prompts(case, guidance):
    """From text to features: the chat template, unpadded prompts, two images of each."""
    captions = ["a cat", "two dogs on the table"]
    tokenizer = case.pipeline.processor.tokenizer
    conditions = []
    for caption in captions:
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\nPlease generate image based on the following caption: {caption}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        ids = torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], START_ID])
        conditions.append(formulas.query_states(case.weights, ids, **case.text))
    noise = case.features(4)
    expected = formulas.sample(case.weights, noise.double(), torch.cat(conditions), 5, guidance)[-1]
    features = case.pipeline(
        captions,
        num_inference_steps=5,
        guidance_scale=guidance,
        num_images_per_prompt=2,
        latents=noise,
        output_type="features",
    ).image_features
    assert_parity(features, expected)


def test_features_of_the_null_prompt(case):
    """A single space outside any template, and the default guidance and steps."""
    ids = torch.tensor([*case.pipeline.processor.tokenizer(" ")["input_ids"], START_ID])
    assert len(ids) == 2
    noise = torch.randn(1, case.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = formulas.query_states(case.weights, ids, **case.text)
    expected = formulas.sample(case.weights, noise.double(), condition, 30, 3.0)[-1]
    assert_parity(case.pipeline.prepare_null_features(), expected)


# Training


@pytest.fixture
def batch(case):
    """Three prompts of different lengths and their targets, three draws of noise and of its level."""
    return {
        "prompts": [prompt_ids(length) for length in (21, 4, 13)],
        "target": case.features(3),
        "noise": torch.randn(3, 3, case.channels, 8, 8),
        "u": torch.tensor([[0.0, 0.9996, 0.5], [0.1239, 0.2, 0.71], [0.333, 0.042, 0.6]]),
    }


def expected_loss(case, weights, batch, draw=0):
    condition = formulas.training_condition(weights, batch["prompts"], pad_id=PAD_ID, **case.text)
    target, noise = batch["target"].double(), batch["noise"][draw].double()
    return *formulas.flow_loss(weights, condition, target, noise, batch["u"][draw]), condition


def our_output(model, batch, draw=0, side="right"):
    return model(
        **padded(batch["prompts"], side),
        target_features=batch["target"],
        noise=batch["noise"][draw],
        sigma=sigma_from_uniform(batch["u"][draw]),
    )


def trainable(case):
    """Our model and the published tensors, both with gradients where the reference has them."""
    model = Blip3oForConditionalGeneration.from_pretrained(case.folder)
    model.backbone.requires_grad_(False)
    names = [name for name in case.weights if name == formulas.QUERIES or name.startswith(formulas.DIT)]
    weights = case.weights | {name: case.weights[name].clone().requires_grad_() for name in names}
    return model, weights, {name: weights[name] for name in names}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("draw", range(3))
def test_training_loss(case, batch, draw, side):
    loss, velocity, condition = expected_loss(case, case.weights, batch, draw)
    output = our_output(case.model, batch, draw, side)
    assert_parity(output.condition, condition)
    assert_parity(output.prediction, velocity)
    assert_parity(output.loss, loss)


def test_training_loss_with_a_dropped_condition(case, batch):
    condition = expected_loss(case, case.weights, batch)[2]
    condition[1] = 0
    target, noise, u = batch["target"], batch["noise"][0], batch["u"][0]
    loss, _ = formulas.flow_loss(case.weights, condition, target.double(), noise.double(), u)
    inputs = {"condition": condition.float(), "target_features": target, "noise": noise}
    assert_parity(case.model(**inputs, sigma=sigma_from_uniform(u)).loss, loss)


def test_gradients(case, batch):
    model, weights, leaves = trainable(case)
    loss, _, _ = expected_loss(case, weights, batch)
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    our_output(model, batch).loss.backward()
    gradients = {
        published_name(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient.norm() > 1e-6:  # a bias of all keys moves no attention
            assert_parity(gradients[name].double().norm(), gradient.norm())
        if gradient.norm() > 0.1:  # the entries of smaller ones are differences of larger numbers
            assert_parity(gradients[name].reshape(gradient.shape), gradient)


def test_three_optimizer_steps(case, batch):
    model, weights, leaves = trainable(case)
    draws = [lambda draw=draw: expected_loss(case, weights, batch, draw)[0] for draw in range(3)]
    expected_losses, expected_norms = formulas.adamw_steps(list(leaves.values()), draws)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for draw in range(3):
        loss = our_output(model, batch, draw).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert_parity(torch.stack(losses), torch.tensor(expected_losses))
    assert_parity(torch.stack(norms), torch.tensor(expected_norms))
    assert min(expected_norms) > 1.0
    assert_parity(model.queries.weight.detach()[None], leaves[formulas.QUERIES].detach())


# Target encoder


def test_target_features(case):
    encoder = EvaClipVisionModel.from_pretrained(case.folder, num_attention_heads=case.encoder_heads)
    pixel_values = torch.randn(2, 3, 448, 448)
    tokens = formulas.eva_tokens(case.weights, pixel_values.double(), case.encoder_heads)
    assert_parity(encoder.requires_grad_(False)(pixel_values).last_hidden_state[:, 1:], tokens)
    assert_parity(extract_features(encoder, pixel_values), formulas.pool(tokens))


# Diffusion decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A decoder in the published layout; its norms and biases are random, too."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    published_layout.write_diffusion_decoder(folder)
    pipeline = Blip3oDecoderPipeline.from_pretrained(folder / "diffusion-decoder")
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae):
        for parameter in module.requires_grad_(False).parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * parameter.std(unbiased=False).clamp(min=0.5))
    return pipeline


def noise_prediction(unet):
    """A UNet as `formulas.decoder_latents` calls it."""

    def predict(latents, timestep, tokens, mean_tokens, time_ids):
        conditions = {"text_embeds": mean_tokens, "time_ids": time_ids}
        return unet(latents, timestep, encoder_hidden_states=tokens, added_cond_kwargs=conditions).sample

    return predict


@pytest.mark.parametrize(
    ("steps", "guidance", "size"),
    [(10, 3.0, (64, 64)), (7, 5.0, (64, 96)), (3, 1.5, (128, 64)), (1, 2.0, (64, 64)), (4, 1.0, (64, 64))],
)
def test_diffusion_decoder(decoder, steps, guidance, size):
    features, null_features = torch.randn(1, 64, DECODER_CHANNELS), torch.randn(1, 64, DECODER_CHANNELS)
    noise = torch.randn(1, 4, size[0] // 8, size[1] // 8)
    expected = formulas.decoder_latents(
        noise_prediction(decoder.unet), features, null_features, noise, steps, guidance
    )
    inputs = {
        "image_features": features.transpose(1, 2).unflatten(2, (8, 8)),
        "null_features": null_features.transpose(1, 2).unflatten(2, (8, 8)),
        "height": size[0],
        "width": size[1],
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "latents": noise,
    }
    assert_parity(decoder(**inputs, output_type="latent").images, expected)
    images = formulas.decoder_images(decoder.vae, expected)
    assert_parity(torch.from_numpy(decoder(**inputs, output_type="np").images), images)


# The formulas themselves, against tensors recorded from the reference


class Recorded:
    """The folder recorded from the reference; floating-point tensors in fp64."""

    def __init__(self):
        self.weights, self.tensors = (
            type(tensors)(
                (name, tensor.double() if tensor.is_floating_point() else tensor) for name, tensor in tensors.items()
            )
            for tensors in (load_file(FOLDER / "model.safetensors"), load_recorded())
        )
        self.notes, config = read_json("expected.json"), read_json("config.json")
        vision = config["vision_config"]
        self.text = {"num_heads": config["num_attention_heads"], "sections": config["rope_scaling"]["mrope_section"]}
        self.vision = {
            "num_heads": vision["num_heads"],
            "full_blocks": vision["fullatt_block_indexes"],
            "window": vision["window_size"] // (vision["patch_size"] * vision["spatial_merge_size"]),
        }
        self.encoder_heads = encoder_heads(read_json("fixture_config.json"))
        self.ids = {"image_id": config["image_token_id"], "pad_id": config["pad_token_id"]}

    def __getitem__(self, name):
        return self.tensors[name]

    def leaves(self):
        """All tensors, and those among them that the reference trains, with gradients."""
        weights = self.weights | {
            name: self.weights[name].clone().requires_grad_() for name in self.notes["grad_norms"]
        }
        return weights, {name: weights[name] for name in self.notes["grad_norms"]}

    def loss(self, weights, noise, u):
        rows, mask = self["e_train.input_ids"], self["e_train.attention_mask"].bool()
        num_queries = weights[formulas.QUERIES].shape[1]
        prompts = [row[keep][:-num_queries] for row, keep in zip(rows, mask, strict=True)]
        condition = formulas.training_condition(weights, prompts, pad_id=self.ids["pad_id"], **self.text)
        # As fp32, in which 1000 * u was cut to an integer: 0.42 is below 420 / 1000 in fp32, and 1000 times it is 420.
        loss, velocity = formulas.flow_loss(weights, condition, self["e_train.target_latents"], noise, u.float())
        return loss, velocity, condition


@pytest.fixture(scope="module")
def recorded():
    if FOLDER is None:
        pytest.skip(NO_FOLDER)
    return Recorded()


@pytest.mark.parametrize("index", recorded_parts(r"a_backbone\.single(\d+)\.query_hidden"))
def test_formula_of_the_condition(recorded, index):
    prompt = recorded[f"a_backbone.single{index}.input_ids"][0]
    condition = formulas.query_states(recorded.weights, prompt, **recorded.text)
    assert_parity(condition, recorded[f"a_backbone.single{index}.query_hidden"])


def test_formulas_of_images(recorded):
    weights, image_id, grids = recorded.weights, recorded.ids["image_id"], recorded["b_image.grid_thw"].tolist()
    features, states = formulas.vision_tower(weights, recorded["b_image.pixel_values"], grids, **recorded.vision)
    assert_parity(states[0], recorded["b_image.visual_block0_windowed_order"])
    assert_parity(features, recorded["b_image.visual_out"])
    prompt = recorded["b_image.input_ids"][0]
    condition = formulas.query_states(weights, prompt, **recorded.text, image_id=image_id, image_features=features)
    assert_parity(condition, recorded["b_image.query_hidden"])
    question = recorded["b_understand.input_ids"]
    positions = formulas.spatial_positions(question[0], image_id, grids)
    assert torch.equal(positions, recorded["b_understand.position_ids"])
    embeddings = formulas.embed(weights, question, image_id, features)
    logits = formulas.logits(weights, formulas.text_stack(weights, embeddings, positions, **recorded.text)[-1])
    first = recorded["b_understand.logits_last_first2048"]
    assert_parity(logits[:, -1, : first.shape[-1]], first)
    assert_parity(logits.logsumexp(-1), recorded["b_understand.logits_lse"])


def test_formula_of_the_velocity(recorded):
    inputs = (recorded[f"c_dit.{name}"] for name in ("x", "timestep", "z_latents"))
    assert_parity(formulas.dit(recorded.weights, *inputs), recorded["c_dit.velocity"])


@pytest.mark.parametrize("name", recorded_parts(r"(d_sample\w*)\.latents"))
def test_formula_of_sampling(recorded, name):
    noise, condition = recorded[f"{name}.latents0"], recorded[f"{name}.z_latents"]
    for steps, guidance in sampling_settings(name, recorded.tensors, recorded.notes):
        states = formulas.sample(recorded.weights, noise, condition, steps, guidance)
        if error_of(states[-1], recorded[f"{name}.latents"]) < TOLERANCE:
            break
    assert_parity(states[-1], recorded[f"{name}.latents"])


def test_formulas_of_training(recorded):
    weights, leaves = recorded.leaves()
    loss, velocity, condition = recorded.loss(weights, recorded["e_train.noise"], recorded["e_train.u"])
    assert_parity(condition, recorded["e_train.query_hidden"])
    assert_parity(velocity, recorded["e_train.velocity"])
    assert_parity(loss, recorded["e_train.loss"])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    for gradient, norm in zip(gradients, recorded.notes["grad_norms"].values(), strict=True):
        if norm > 1e-6:
            assert_parity(gradient.norm(), torch.tensor(norm))


def test_formula_of_optimizer_steps(recorded):
    weights, leaves = recorded.leaves()
    losses = [
        lambda noise=noise, u=u: recorded.loss(weights, noise, u)[0]
        for noise, u in zip(recorded["e_train.steps_noise"], recorded["e_train.steps_u"], strict=True)
    ]
    settings, clip = optimizer_settings(recorded.notes)
    settings["learning_rate"] = settings.pop("lr")
    values, norms = formulas.adamw_steps(list(leaves.values()), losses, clip=clip, **settings)
    assert_parity(torch.tensor(values), recorded["e_train.steps_loss"])
    assert_parity(torch.tensor(norms), recorded["e_train.steps_grad_norm_before_clip"])
    assert_parity(leaves[formulas.QUERIES].detach(), recorded["e_train.steps_latent_queries_after"])


def test_formula_of_target_features(recorded):
    pixel_values = recorded["f_eva.pixel_values_image0"]
    tokens = formulas.eva_tokens(recorded.weights, pixel_values, recorded.encoder_heads)
    assert_parity(tokens, recorded["f_eva.features"])
    assert_parity(formulas.pool(tokens), recorded["f_eva.pooled"][:1])


def test_formula_of_the_diffusion_decoder(recorded):
    pipeline = Blip3oDecoderPipeline.from_pretrained(FOLDER / "diffusion-decoder")
    steps, guidance = recorded.notes["decoder"]["steps"], recorded.notes["decoder"]["guidance"]
    inputs = (recorded[f"g_decoder.{name}"].float() for name in ("features", "null_features", "noise"))
    timesteps, sigmas = formulas.decoder_schedule(steps)
    assert torch.equal(timesteps.double(), recorded["g_decoder.timesteps"])
    assert_parity(sigmas, recorded["g_decoder.sigmas"])
    with torch.no_grad():
        latents = formulas.decoder_latents(noise_prediction(pipeline.unet), *inputs, steps, guidance)
        images = formulas.decoder_images(pipeline.vae, latents)
    assert_parity(latents, recorded["g_decoder.latents"])
    assert_parity(images, recorded["g_decoder.image_0_1_nhwc"])
