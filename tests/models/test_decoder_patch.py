"""The decoder turns each feature into its own patch, and is the same again after a save."""

import re

import pytest
import torch

from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder, Blip3oPatchDecoderOutput


def test_every_feature_becomes_the_patch_at_its_place(make_decoder):
    """Without layers no feature knows of another, so a changed one changes its own patch alone."""
    decoder = make_decoder(num_layers=0)
    features = torch.randn(1, 16, 4, 4)
    changed = features.clone()
    changed[0, :, 1, 2] += 1.0
    difference = (decoder(changed).sample - decoder(features).sample).abs()
    assert difference.shape == (1, 3, 16, 16)
    assert difference[..., 4:8, 8:12].min() > 0
    difference[..., 4:8, 8:12] = 0
    assert difference.max() == 0


def test_a_patch_is_laid_out_channel_row_column(make_decoder):
    decoder = make_decoder(num_layers=0)
    features = torch.randn(2, 16, 4, 4)
    hidden = decoder.proj_in(features[:, :, 3, 1]) + decoder.position[3 * 4 + 1]
    patch = decoder.proj_out(decoder.norm_out(hidden)).reshape(2, 3, 4, 4)
    torch.testing.assert_close(decoder(features).sample[:, :, 12:16, 4:8], patch)


def test_layers_let_features_know_of_each_other(make_decoder):
    decoder = make_decoder()
    features = torch.randn(1, 16, 4, 4)
    changed = features.clone()
    changed[0, :, 0, 0] += 1.0
    assert (decoder(changed).sample - decoder(features).sample)[..., 12:, 12:].abs().max() > 0


def test_batch_equals_singles(make_decoder, assert_close):
    decoder, features = make_decoder(), torch.randn(3, 16, 4, 4)
    singles = torch.cat([decoder(feature[None]).sample for feature in features])
    assert_close(decoder(features).sample, singles)


def test_a_tuple_holds_the_same_images(make_decoder):
    decoder, features = make_decoder(), torch.randn(1, 16, 4, 4)
    output = decoder(features)
    assert type(output) is Blip3oPatchDecoderOutput
    (sample,) = decoder(features, return_dict=False)
    assert torch.equal(sample, output.sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_decoder_is_bit_equal(make_decoder, tmp_path, dtype):
    decoder = make_decoder().to(dtype)
    decoder.save_pretrained(tmp_path)
    loaded = Blip3oPatchDecoder.from_pretrained(tmp_path, torch_dtype=dtype)
    settings = {name: value for name, value in decoder.config.items() if not name.startswith("_")}
    assert {name: loaded.config[name] for name in settings} == settings
    features = torch.randn(2, 16, 4, 4, dtype=dtype)
    assert loaded(features).sample.dtype == dtype
    assert torch.equal(loaded(features).sample, decoder(features).sample)


@pytest.mark.parametrize("shape", [(2, 15, 4, 4), (2, 16, 8, 8), (2, 16, 16)])
def test_features_of_another_shape_are_refused(make_decoder, shape):
    message = (
        f"The decoder reads features of shape [batch, 16, 4, 4]. Got {list(shape)}. Use the decoder that was "
        "trained for this model's features."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_decoder()(torch.randn(shape))
