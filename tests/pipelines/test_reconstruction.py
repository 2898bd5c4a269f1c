"""Images drawn again, measured, varied, and mixed."""

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o_hf import Blip3oPipeline, Blip3oReconstructionPipeline, interpolate, packaged_model_path
from blip3o_hf.shapes import Scene, SceneObject, render

TINY = packaged_model_path("blip3o-tiny")
CIRCLE = Image.fromarray(render(Scene((SceneObject("circle", "red", "large", 1, 1),), "white")))
CROSS = Image.fromarray(render(Scene((SceneObject("cross", "blue", "small", 5, 4),), "black")))


@pytest.fixture(scope="module")
def reconstruct():
    own = Blip3oReconstructionPipeline.from_pretrained(TINY)
    own.pipe.set_progress_bar_config(disable=True)
    return own


def seed(number):
    return torch.Generator().manual_seed(number)


def test_the_autoencoder_is_the_encoder_and_the_decoder_alone(reconstruct):
    output = reconstruct([CIRCLE, CROSS])
    assert torch.equal(output.image_features, reconstruct.encode_images([CIRCLE, CROSS]))
    decoded = reconstruct.pipe(image_features=output.image_features, output_type="np").images
    assert np.array_equal(np.asarray(output.images[1]), (decoded[1] * 255).round().astype(np.uint8))
    assert all(value > 0.99 for value in output.feature_cosine) and all(value > 30 for value in output.psnr)
    assert np.array_equal(np.asarray(output.originals[0]), np.asarray(CIRCLE))


def test_psnr_is_that_of_the_pixels(reconstruct):
    output = reconstruct(CROSS)
    drawn, original = (np.asarray(image[0]) / 255 for image in (output.images, output.originals))
    assert output.psnr[0] == pytest.approx(-10 * np.log10(((drawn - original) ** 2).mean()), abs=0.2)


def test_the_whole_model_draws_what_its_pipeline_draws(reconstruct):
    output = reconstruct(CIRCLE, "unified", generator=seed(1), num_inference_steps=3)
    own = reconstruct.pipe(
        "Please reconstruct the given image.", image=CIRCLE, generator=seed(1), num_inference_steps=3
    )
    assert torch.equal(output.image_features, own.image_features)
    assert np.array_equal(np.asarray(output.images[0]), np.asarray(own.images[0]))


def test_images_of_any_size_are_compared_as_the_encoder_sees_them(reconstruct):
    large = CIRCLE.resize((256, 128))
    output = reconstruct(large)
    assert output.originals[0].size == output.images[0].size == (64, 64)


def test_a_variation_keeps_more_at_less_strength(reconstruct):
    features = reconstruct.encode_images(CIRCLE)
    distances = []
    for strength in (0.1, 0.9):
        output = reconstruct.vary(CIRCLE, "a blue cross", strength, num_images=2, generator=seed(2))
        assert len(output.images) == 2
        distances.append(float((output.image_features - features).square().mean()))
    assert distances[0] < 0.5 * distances[1]


def test_interpolation_has_both_ends_and_the_middle():
    first, second = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    points = interpolate(first, second, 3)
    assert torch.equal(points, torch.cat([first, torch.full_like(first, 0.5), second]))
    for bad in ((first, torch.ones(1, 2), 3), (first, second, 1), (torch.zeros(2, 3), torch.zeros(2, 3), 3)):
        with pytest.raises(ValueError, match="Interpolation needs two tensors of the same shape"):
            interpolate(*bad)


def test_what_it_cannot_do_is_said(reconstruct):
    with pytest.raises(ValueError, match="Unknown mode 'both'"):
        reconstruct(CIRCLE, "both")
    with pytest.raises(ValueError, match="There must be at least one image"):
        reconstruct([])
    with pytest.raises(ValueError, match="target encoder of the model"):
        Blip3oReconstructionPipeline.from_pipe(Blip3oPipeline(**reconstruct.pipe.components))
