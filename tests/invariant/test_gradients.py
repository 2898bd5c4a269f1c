"""The cheap training path (prompt in a cache, without gradient) has the gradients of the plain full sequence."""

import pytest
import torch

from blip3o_hf.objectives.feature_flow import add_noise

CAPTIONS = ["two red circles", "one small blue square above three green triangles", "a circle"]
SIGMA = torch.tensor([0.15, 0.6, 1.0])


def naive_condition(model, processor, caption, images):
    """One unpadded prompt and the queries in one pass through the backbone's text stack, nothing cached."""
    inputs = processor.encode_prompts([caption], images=None if images is None else [images])
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    if images:
        features = model.backbone.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        slots = inputs["input_ids"] == processor.image_token_id
        embeddings = embeddings.masked_scatter(slots[..., None], torch.cat(tuple(features.pooler_output)))
    embeddings = torch.cat([embeddings, model.queries.weight[None]], dim=1)
    positions = torch.arange(embeddings.shape[1])[None]
    output = model.get_decoder()(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    return output.last_hidden_state[:, -len(model.queries.weight) :]


def naive_loss(model, processor, images, target, noise):
    conditions = torch.cat(
        [
            naive_condition(model, processor, caption, None if images is None else own)
            for caption, own in zip(CAPTIONS, images or [None] * 3, strict=True)
        ]
    )
    noisy = add_noise(target, noise, SIGMA)
    velocity = model.transformer(noisy, 1000 * SIGMA, encoder_hidden_states=conditions).sample
    return (velocity - (noise - target)).square().mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    largest = max(value.norm().item() for value in expected.values())
    for name, value in expected.items():
        if name.endswith("attn2.norm_k.bias"):
            # A shift of all keys without rotation changes no attention: the true gradient is zero.
            assert max(value.norm(), actual[name].norm()) < 1e-6 * largest
            continue
        difference = (actual[name] - value).norm() / value.norm()
        assert difference < tolerance, (name, difference.item())


def make_case(make_model, processor, make_image, backbone, with_images):
    model = make_model(backbone=backbone, noise_distribution="uniform", condition_dropout=0.0).train()
    images = [[make_image(0)], [], [make_image(1), make_image(2)]] if with_images else None
    generator = torch.Generator().manual_seed(5)
    target, noise = torch.randn(2, 3, 16, 4, 4, generator=generator)
    inputs = processor.encode_prompts(CAPTIONS, images=images)
    assert len(set(inputs["attention_mask"].sum(-1).tolist())) == 3

    def cheap_loss():
        return model(**inputs, target_features=target, noise=noise, sigma=SIGMA).loss

    return model, cheap_loss, lambda: naive_loss(model, processor, images, target, noise)


CASES = pytest.mark.parametrize(("backbone", "with_images"), [("qwen", False), ("qwen", True), ("llama", False)])


@CASES
def test_with_a_frozen_backbone_gradients_equal_the_naive_path_s(
    make_model, processor, make_image, backbone, with_images
):
    model, cheap, naive = make_case(make_model, processor, make_image, backbone, with_images)
    model.backbone.requires_grad_(False)
    torch.testing.assert_close(cheap(), naive(), rtol=1e-5, atol=0)
    actual = gradients(model, cheap())
    expected_names = {n for n, _ in model.named_parameters() if n.startswith(("queries.", "transformer."))}
    assert actual.keys() == expected_names
    compare(actual, gradients(model, naive()))


@CASES
def test_with_a_trainable_backbone_gradients_reach_it_and_equal_the_naive_path_s(
    make_model, processor, make_image, backbone, with_images
):
    model, cheap, naive = make_case(make_model, processor, make_image, backbone, with_images)
    actual = gradients(model, cheap())
    reached = {name for name, value in actual.items() if value.abs().max() > 0}
    assert {"queries.weight", "backbone.model.embed_tokens.weight"} <= {
        name.replace("language_model.", "") for name in reached
    }
    assert any("layers.0.self_attn.k_proj.weight" in name for name in reached)
    assert any("visual" in name for name in reached) is with_images
    compare(actual, gradients(model, naive()))


def test_one_trainable_backbone_layer_is_enough_to_keep_the_prompt_s_gradient(make_model, processor, make_image):
    """As with LoRA: most of the backbone is frozen, but the prompt's keys and values still carry gradient."""
    model, cheap, naive = make_case(make_model, processor, make_image, "qwen", False)
    model.backbone.requires_grad_(False)
    trained = model.get_decoder().layers[0].self_attn.v_proj.weight.requires_grad_(True)
    actual = gradients(model, cheap())
    assert trained.grad.abs().max() > 0
    compare(actual, gradients(model, naive()))


def test_accumulated_gradients_equal_one_batch_s(make_model, processor):
    """Four batches of one, their losses averaged, have the gradient of one batch of four."""
    model = make_model(noise_distribution="uniform", condition_dropout=0.0).train()
    model.backbone.requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    target, noise = torch.randn(2, 4, 16, 4, 4, generator=generator)
    sigma = torch.tensor([0.15, 0.4, 0.6, 1.0])
    captions = [*CAPTIONS, "three blue squares"]

    def loss(part):
        return model(
            **processor.encode_prompts(captions[part]),
            target_features=target[part],
            noise=noise[part],
            sigma=sigma[part],
        ).loss

    singles = sum(loss(slice(i, i + 1)) for i in range(4)) / 4
    compare(gradients(model, singles), gradients(model, loss(slice(0, 4))))


def test_without_gradient_nothing_is_recorded(make_model, processor):
    model = make_model()
    with torch.no_grad():
        condition = model.encode_condition(**processor.encode_prompts(CAPTIONS))
    assert not condition.requires_grad
