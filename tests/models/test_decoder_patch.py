"""The decoder turns each feature into its own patch, and is the same again after a save."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    loaded = Blip3oPatchDecoder.from_pretrained(tmp_path, dtype=dtype)
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


@pytest.fixture
def change_weights(make_decoder, tmp_path):
    """Saves a decoder and rewrites its weights: `change_weights(removed=..., **replaced)`; returns the folder."""

    def change(removed=(), **replaced):
        make_decoder().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = {name: value for name, value in load_file(file).items() if name not in removed}
        save_file(weights | replaced, file, metadata={"format": "pt"})
        return tmp_path

    return change


def test_a_checkpoint_that_lacks_tensors_is_refused_by_name(change_weights):
    folder = change_weights(["proj_in.bias", "position"])
    message = (
        f"A checkpoint must hold every tensor of the model. {folder} lacks 2: position, proj_in.bias. Save or "
        "download it again."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oPatchDecoder.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_refused_by_name(change_weights):
    folder = change_weights(position=torch.zeros(3, 16))
    with pytest.raises(ValueError, match="position"):
        Blip3oPatchDecoder.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_a_damaged_file_is_refused(make_decoder, tmp_path, kept):
    make_decoder().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"must be (readable|whole) safetensors files\. {re.escape(str(file))} "):
        Blip3oPatchDecoder.from_pretrained(tmp_path)


def test_loading_info_is_given_on_request(make_decoder, tmp_path):
    make_decoder().save_pretrained(tmp_path)
    decoder, info = Blip3oPatchDecoder.from_pretrained(tmp_path, output_loading_info=True)
    assert type(decoder) is Blip3oPatchDecoder
    assert not info["missing_keys"]
