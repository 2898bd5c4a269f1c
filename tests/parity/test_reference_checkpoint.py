"""A whole checkpoint in the reference's own layout, loaded as published, against tensors recorded from the reference.

Set `BLIP3O_REFERENCE_TINY` to the folder of the recorded checkpoint (`config.json`, `model.safetensors`,
`expected.safetensors`, `expected.json`, `fixture_config.json`); it is too large to ship with the tests. Any folder of
this kind will do, whatever its sizes and settings: see `reference_folder.py`.
"""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
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

from blip3o_hf import (
    Blip3oFlowScheduler,
    Blip3oForConditionalGeneration,
    Blip3oPipeline,
    EvaClipImageProcessor,
    EvaClipVisionModel,
)
from blip3o_hf.checkpoints.published_names import published_name
from blip3o_hf.models.target_encoder import extract_features
from blip3o_hf.objectives.feature_flow import add_noise
from blip3o_hf.objectives.noise_levels import sigma_from_uniform

TOLERANCE = 1e-5
PROMPTS = recorded_parts(r"a_backbone\.single(\d+)\.query_hidden")
LAYOUTS = recorded_parts(r"a_backbone\.batch_(\w+)\.query_hidden")

pytestmark = pytest.mark.skipif(FOLDER is None, reason=NO_FOLDER)


@pytest.fixture(scope="module")
def recorded():
    return load_recorded()


@pytest.fixture(scope="module")
def notes():
    return read_json("expected.json")


@pytest.fixture(scope="module")
def config():
    """As the reference saved it."""
    return read_json("config.json")


@pytest.fixture(scope="module")
def sizes():
    """Of the transformer and the target encoder, which are in no published config."""
    return read_json("fixture_config.json")


@pytest.fixture(scope="module")
def model():
    return Blip3oForConditionalGeneration.from_pretrained(FOLDER).requires_grad_(False)


@pytest.fixture
def trained():
    """A model of its own, with gradients where the reference has them."""
    model = Blip3oForConditionalGeneration.from_pretrained(FOLDER)
    model.backbone.requires_grad_(False)
    return model


def error_of(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_parity(actual, expected):
    error = error_of(actual, expected)
    assert error < TOLERANCE, f"off by {error:.2e} of the largest value"


def decoder_states(model, embeddings, **inputs):
    """Hidden states of every layer over a whole sequence, the last ones after the final norm."""
    output = model.get_decoder()(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False, **inputs)
    return output.hidden_states


# a_backbone


@pytest.mark.parametrize("index", PROMPTS)
def test_condition_of_a_prompt(model, recorded, index):
    prefix = f"a_backbone.single{index}"
    input_ids = recorded[f"{prefix}.input_ids"]
    assert_parity(model.encode_condition(input_ids), recorded[f"{prefix}.query_hidden"])


@pytest.mark.parametrize("index", PROMPTS)
def test_hidden_states_of_a_prompt(model, recorded, config, index):
    prefix = f"a_backbone.single{index}"
    embeddings = torch.cat([model.get_input_embeddings()(recorded[f"{prefix}.input_ids"]), model.queries(1)], dim=1)
    assert torch.equal(embeddings, recorded[f"{prefix}.inputs_embeds"])
    states = decoder_states(model, embeddings, position_ids=recorded[f"{prefix}.position_ids"])
    assert len(states) == 1 + config["num_hidden_layers"]
    for layer, state in enumerate(states):
        assert_parity(state, recorded[f"{prefix}.hidden_states.{layer}"])


# Padding on the right leaves a gap in the reference's default positions: its result is wrong there, ours is not.
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "right_default_pos"])
def test_condition_of_a_padded_batch(model, recorded, config, layout):
    prefix = f"a_backbone.batch_{layout}"
    mask = recorded[f"{prefix}.attention_mask"][:, : -config["n_query"]]
    condition = model.encode_condition(recorded[f"{prefix}.input_ids"], mask)
    assert_parity(condition, recorded[f"{prefix}.query_hidden"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backbone_on_recorded_positions(model, recorded, config, layout):
    prefix = f"a_backbone.batch_{layout}"
    input_ids = recorded[f"{prefix}.input_ids"]
    embeddings = torch.cat([model.get_input_embeddings()(input_ids), model.queries(len(input_ids))], dim=1)
    states = decoder_states(
        model,
        embeddings,
        attention_mask=recorded[f"{prefix}.attention_mask"],
        position_ids=recorded[f"{prefix}.position_ids"],
    )
    assert_parity(states[-1][:, -config["n_query"] :], recorded[f"{prefix}.query_hidden"])


# b_image, b_understand


def image_inputs(recorded):
    return {"pixel_values": recorded["b_image.pixel_values"], "image_grid_thw": recorded["b_image.grid_thw"]}


def test_image_encoder(model, recorded):
    seen = []
    handle = model.backbone.model.visual.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    features = model.backbone.get_image_features(**image_inputs(recorded), return_dict=True).pooler_output
    handle.remove()
    assert_parity(torch.cat(tuple(features)), recorded["b_image.visual_out"])
    assert_parity(seen[0], recorded["b_image.visual_block0_windowed_order"])


def test_condition_of_a_prompt_with_an_image(model, recorded):
    condition = model.encode_condition(recorded["b_image.input_ids"], **image_inputs(recorded))
    assert_parity(condition, recorded["b_image.query_hidden"])


def test_hidden_states_of_a_prompt_with_an_image(model, recorded):
    """Positions stay sequential over image tokens."""
    embeddings = recorded["b_image.inputs_embeds"]
    states = decoder_states(model, embeddings, position_ids=recorded["b_image.position_ids"])
    assert_parity(states[-1], recorded["b_image.last_hidden"])
    assert torch.equal(recorded["b_image.position_ids"][:, 0], torch.arange(embeddings.shape[1]).expand(3, -1))


@pytest.fixture
def question(model, recorded):
    input_ids = recorded["b_understand.input_ids"]
    is_image = (input_ids == model.config.backbone_config.image_token_id).int()
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": is_image,
        **image_inputs(recorded),
    }


def test_logits_of_a_question_about_an_image(model, recorded, question):
    logits = model(**question).logits
    first, special = recorded["b_understand.logits_last_first2048"], recorded["b_understand.logits_last_special"]
    assert_parity(logits[:, -1, : first.shape[-1]], first)
    assert_parity(logits[:, -1, -special.shape[-1] :], special)
    assert_parity(logits.logsumexp(-1), recorded["b_understand.logits_lse"])


def test_greedy_answer_to_a_question_about_an_image(model, recorded, question):
    expected = recorded["b_understand.greedy_new_tokens"]
    answer = model.generate(**question, max_new_tokens=expected.shape[1], min_new_tokens=1, do_sample=False)
    assert torch.equal(answer[:, question["input_ids"].shape[1] :], expected)


# c_dit, d_sample


def test_every_recorded_intermediate_of_the_transformer(model, recorded):
    transformer, reached, handles = model.transformer, {}, []
    layer = transformer.layers[0]
    modules = {
        "patch_embed": transformer.patch_embedder,
        "caption_projection": transformer.caption_projection,
        "time_embed": transformer.time_caption_embed.timestep_embedder,
        "caption_embed": transformer.time_caption_embed.caption_embedder,
        "layer0": layer,
        "layer0.norm1_mod": layer.norm1.linear,
        "layer0.norm1_scaled": layer.norm1,
        "layer0.attn1": layer.attn1,
        "layer0.attn1_q_normed": layer.attn1.norm_q,
        "layer0.attn2": layer.attn2,
        "layer0.attn2_k_normed": layer.attn2.norm_k,
        "layer0.attn_out_proj": layer.attn2.to_out[0],
        "layer0.ffn": layer.feed_forward,
        "layer_last": transformer.layers[-1],
        "norm_out": transformer.norm_out,
    }
    for name, module in modules.items():

        def keep(module, args, output, name=name):
            reached[name] = output[0] if isinstance(output, tuple) else output

        handles.append(module.register_forward_hook(keep))
    reached["velocity"] = transformer(
        recorded["c_dit.x"], recorded["c_dit.timestep"], encoder_hidden_states=recorded["c_dit.z_latents"]
    ).sample
    for handle in handles:
        handle.remove()
    for name, value in reached.items():
        assert_parity(value, recorded[f"c_dit.{name}"])


@pytest.mark.parametrize("name", recorded_parts(r"(d_sample\w*)\.latents"))
def test_sampling(model, recorded, notes, name):
    pipeline = Blip3oPipeline(model=model, processor=None, scheduler=Blip3oFlowScheduler())
    pipeline.set_progress_bar_config(disable=True)
    noise, condition = recorded[f"{name}.latents0"], recorded[f"{name}.z_latents"]
    for num_steps, guidance_scale in sampling_settings(name, recorded, notes):
        before_each_step = [noise]
        latents = pipeline.denoise(
            noise,
            condition.repeat_interleave(len(noise) // len(condition), dim=0),
            num_steps,
            guidance_scale,
            callback_on_step_end=lambda pipe, step, timestep, tensors, states=before_each_step: states.append(
                tensors["latents"]
            ),
        )
        if error_of(latents, recorded[f"{name}.latents"]) < TOLERANCE:
            break
    assert_parity(latents, recorded[f"{name}.latents"])
    if f"{name}.sigmas" in recorded:
        assert_parity(pipeline.scheduler.sigmas, recorded[f"{name}.sigmas"])
        assert torch.equal(pipeline.scheduler.timesteps, recorded[f"{name}.timesteps_given_to_dit"].float())
        assert_parity(latents.flatten(2).transpose(1, 2), recorded[f"{name}.features_tokens"])
    if f"{name}.latents_before_each_step" in recorded:
        assert_parity(torch.stack(before_each_step[:-1]), recorded[f"{name}.latents_before_each_step"])


# e_train


@pytest.fixture(scope="module")
def batch(recorded, config):
    """
    The training batch of the reference as ours: prompts that end with `[IMG]`, padded on the right.

    The reference's own rows go on with a placeholder for every query, and are padded after them.
    """
    rows, mask = recorded["e_train.input_ids"], recorded["e_train.attention_mask"].bool()
    prompts = [row[keep][: -config["n_query"]] for row, keep in zip(rows, mask, strict=True)]
    assert [len(prompt) for prompt in prompts] == recorded["e_train.i_s_pos"].tolist()
    input_ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=config["pad_token_id"])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        "target_features": recorded["e_train.target_latents"],
    }


def test_training_prompts_close_the_turn(recorded, notes, config):
    rows, mask = recorded["e_train.input_ids"], recorded["e_train.attention_mask"].bool()
    for row, keep, prompt, drawn in zip(
        rows, mask, notes["prompt_ids"]["train"], notes["prompt_ids"]["infer"], strict=True
    ):
        assert row[keep][: len(prompt)].tolist() == prompt
        newline = drawn[-1]
        assert prompt == [*drawn, config["eos_token_id"], newline]


def test_noise_levels(recorded):
    sigma = sigma_from_uniform(recorded["e_train.u"])
    assert_parity((1000 * sigma).round(), recorded["e_train.timesteps"])
    noisy = add_noise(recorded["e_train.target_latents"], recorded["e_train.noise"], sigma)
    assert_parity(noisy, recorded["e_train.noisy_latents"])


def test_loss_and_prediction(model, recorded, batch):
    sigma = sigma_from_uniform(recorded["e_train.u"])
    output = model(**batch, noise=recorded["e_train.noise"], sigma=sigma)
    assert_parity(output.condition, recorded["e_train.query_hidden"])
    assert_parity(output.prediction, recorded["e_train.velocity"])
    assert_parity(output.loss, recorded["e_train.loss"])


@pytest.mark.parametrize("row", recorded_parts(r"e_train\.loss_drop_sample(\d+)"))
def test_loss_with_a_dropped_condition(model, recorded, batch, row):
    condition = recorded["e_train.query_hidden"].clone()
    condition[int(row)] = 0
    output = model(
        condition=condition,
        target_features=batch["target_features"],
        noise=recorded["e_train.noise"],
        sigma=sigma_from_uniform(recorded["e_train.u"]),
    )
    assert_parity(output.loss, recorded[f"e_train.loss_drop_sample{row}"])


def test_hidden_states_and_logits_of_training_rows(model, recorded):
    real = recorded["e_train.attention_mask"].bool()
    states = decoder_states(
        model,
        recorded["e_train.inputs_embeds"],
        attention_mask=recorded["e_train.attention_mask"],
        position_ids=recorded["e_train.position_ids"],
    )
    assert_parity(states[-1][real], recorded["e_train.last_hidden"][real])
    logits, special = model.get_output_embeddings()(states[-1]), recorded["e_train.logits_special"]
    assert_parity(logits[..., -special.shape[-1] :][real], special[real])
    assert_parity(logits.logsumexp(-1)[real], recorded["e_train.logits_lse"][real])


def test_gradients(trained, recorded, notes, batch):
    sigma = sigma_from_uniform(recorded["e_train.u"])
    trained(**batch, noise=recorded["e_train.noise"], sigma=sigma).loss.backward()
    gradients = {
        published_name(name): parameter.grad
        for name, parameter in trained.named_parameters()
        if parameter.grad is not None
    }
    assert gradients.keys() == notes["grad_norms"].keys()
    names = sorted(gradients)
    norms = torch.stack([gradients[name].norm() for name in names])
    expected = torch.tensor([notes["grad_norms"][name] for name in names])
    assert_parity(norms, expected)
    assert_parity(norms.norm(), torch.tensor(notes["grad_norm_total"]))
    # Each by itself, where it is more than rounding: the bias of the keys moves no attention.
    for norm, reference in zip(norms, expected, strict=True):
        if reference > 1e-6:
            assert_parity(norm, reference)
    for key in [key for key in recorded if key.startswith("e_train.grad.")]:
        name = key.removeprefix("e_train.grad.").replace("dit.", "dit.model.", 1)
        gradient = gradients[f"model.{name}"]
        assert_parity(gradient.reshape(recorded[key].shape), recorded[key])


def test_optimizer_steps(trained, recorded, notes, batch):
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    settings, clip = optimizer_settings(notes)
    optimizer = torch.optim.AdamW(parameters, **settings)
    losses, norms = [], []
    for noise, u in zip(recorded["e_train.steps_noise"], recorded["e_train.steps_u"], strict=True):
        loss = trained(**batch, noise=noise, sigma=sigma_from_uniform(u)).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert_parity(torch.stack(losses), recorded["e_train.steps_loss"])
    assert_parity(torch.stack(norms), recorded["e_train.steps_grad_norm_before_clip"])
    assert_parity(trained.queries.weight.detach()[None], recorded["e_train.steps_latent_queries_after"])


# f_eva, g_decoder


@pytest.fixture(scope="module")
def encoder(sizes):
    heads = encoder_heads(sizes)
    return EvaClipVisionModel.from_pretrained(FOLDER, num_attention_heads=heads).requires_grad_(False)


def test_target_features(encoder, recorded, sizes):
    images = [Image.open(FOLDER / f"image{index}.png") for index in range(len(recorded["f_eva.pooled"]))]
    side = sizes["eva"]["image_size"]
    processor = EvaClipImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixel_values = processor(images, return_tensors="pt")["pixel_values"]
    assert_parity(pixel_values[:1], recorded["f_eva.pixel_values_image0"])
    output = encoder(pixel_values[:1], output_hidden_states=True)
    tokens = recorded["f_eva.block0_first16_tokens"]
    assert_parity(output.hidden_states[1][:, : tokens.shape[1]], tokens)
    assert_parity(output.last_hidden_state[:, 1:], recorded["f_eva.features"])
    assert_parity(extract_features(encoder, pixel_values), recorded["f_eva.pooled"])


def test_image_of_features(recorded, notes, sizes):
    pipeline = Blip3oPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    grid = [sizes["dit"]["input_size"]] * 2
    features, null = (
        recorded[f"g_decoder.{name}"].transpose(1, 2).unflatten(2, grid) for name in ("features", "null_features")
    )
    decoder, settings = pipeline.decoder_pipeline, notes["decoder"]
    images = decoder(
        features,
        null,
        height=settings["height"],
        width=settings["width"],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance"],
        latents=recorded["g_decoder.noise"],
        output_type="pt",
    ).images
    assert_parity(images.permute(0, 2, 3, 1), recorded["g_decoder.image_0_1_nhwc"])
    assert torch.equal((images[0] * 255).round().byte().permute(1, 2, 0), recorded["g_decoder.image_uint8"])


# eps_probe


def test_every_norm_at_small_activations(model, encoder):
    probes = load_file(FOLDER / "eps_probe.safetensors")
    roots = {
        "dit": (model.transformer, "layers"),
        "text": (model.get_decoder(), "layers"),
        "visual": (model.backbone.model.visual, "blocks"),
        "eva": (encoder, "blocks"),
    }
    names = {name.rpartition(".")[0] for name in probes}
    assert len(names) >= 16  # one norm of every kind, whatever the sizes
    for name in names:
        part, _, path = name.partition(".")
        root, layers = roots[part]
        norm = root.get_submodule(re.sub(r"^(?:layer|block)(\d+)\.", rf"{layers}.\1.", path))
        if f"{name}.weight" in probes:
            assert torch.equal(norm.weight, probes[f"{name}.weight"])
        for magnitude in ("3e-3", "1e-3"):
            assert_parity(norm(probes[f"{name}.in_{magnitude}"]), probes[f"{name}.out_{magnitude}"])


# What a saved copy says


def test_a_copy_saved_under_our_names_says_the_same(model, recorded, question, tmp_path):
    model.save_pretrained(tmp_path)
    # Attention has another kernel where gradients are asked for, with other rounding.
    copy = Blip3oForConditionalGeneration.from_pretrained(tmp_path).requires_grad_(False)
    assert torch.equal(copy(**question).logits, model(**question).logits)
    input_ids = recorded["a_backbone.single0.input_ids"]
    assert torch.equal(copy.encode_condition(input_ids), model.encode_condition(input_ids))
    inputs = {"timestep": recorded["c_dit.timestep"], "encoder_hidden_states": recorded["c_dit.z_latents"]}
    expected = model.transformer(recorded["c_dit.x"], **inputs).sample
    assert torch.equal(copy.transformer(recorded["c_dit.x"], **inputs).sample, expected)
