"""Target features are the vision tower's last hidden states, class token left out, averaged down to the grid."""

import re

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from blip3o_hf.models.target_encoder import extract_features, load_target_encoder

TOWER = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


class FakeEncoder:
    """A tower that sees the given tokens `[B, N, C]` in every image."""

    dtype = torch.float32

    def __init__(self, tokens):
        self.last_hidden_state = tokens

    def __call__(self, pixel_values):
        return self


@pytest.fixture
def clip():
    return CLIPVisionModel(CLIPVisionConfig(**TOWER)).eval()


@pytest.mark.parametrize("has_class_token", [True, False])
def test_features_are_row_major_and_know_no_class_token(has_class_token):
    tokens = torch.randn(2, 16, 3)
    seen = torch.cat([torch.full((2, 1, 3), 100.0), tokens], dim=1) if has_class_token else tokens
    features = extract_features(FakeEncoder(seen), torch.zeros(2, 3, 8, 8), feature_size=4)
    assert features.shape == (2, 3, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(features[:, :, row, column], tokens[:, 4 * row + column])


def test_a_finer_grid_is_averaged_over_windows():
    tokens = torch.randn(1, 64, 3)
    features = extract_features(FakeEncoder(tokens), torch.zeros(1, 3, 8, 8), feature_size=4)
    grid = tokens.reshape(1, 8, 8, 3)
    for row in range(4):
        for column in range(4):
            window = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2))
            torch.testing.assert_close(features[:, :, row, column], window)


def test_clip_and_siglip_towers_give_features(clip):
    pixels = torch.randn(2, 3, 32, 32)
    features = extract_features(clip, pixels)
    expected = clip(pixel_values=pixels).last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 16, 8, 8)
    assert torch.equal(features, expected)
    assert not features.requires_grad
    siglip = SiglipVisionModel(SiglipVisionConfig(**TOWER)).eval()
    expected = siglip(pixel_values=pixels).last_hidden_state.transpose(1, 2).reshape(2, 16, 8, 8)
    assert torch.equal(extract_features(siglip, pixels), expected)


def test_a_loaded_encoder_is_frozen_and_bit_equal(clip, tmp_path, make_image):
    clip.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    encoder, image_processor = load_target_encoder(str(tmp_path))
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    pixels = image_processor([make_image()], return_tensors="pt")["pixel_values"]
    assert torch.equal(extract_features(encoder, pixels), extract_features(clip, pixels))


@pytest.mark.parametrize(("num_tokens", "seen", "feature_size"), [(36, 36, 4), (37, 36, 4), (12, 11, 2)])
def test_a_grid_that_does_not_divide_is_refused(num_tokens, seen, feature_size):
    message = (
        f"The encoder must give a square grid of features that divides into {feature_size} x {feature_size}. It "
        f"gave {seen} tokens. Choose its image and patch size accordingly."
    )
    encoder = FakeEncoder(torch.randn(1, num_tokens, 3))
    with pytest.raises(ValueError, match=re.escape(message)):
        extract_features(encoder, torch.zeros(1, 3, 8, 8), feature_size)
