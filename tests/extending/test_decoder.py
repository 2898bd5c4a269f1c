"""A decoder that this file alone defines: passed to the pipeline it draws, is saved, and is loaded again."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from blip3o_hf import Blip3oFeatureDecoder, Blip3oPipeline


class NearestDecoder(Blip3oFeatureDecoder, ModelMixin, ConfigMixin):
    """Three linear channels of each feature, as one square of colour."""

    settings = ("height", "generator")

    @register_to_config
    def __init__(self, in_channels: int, patch_size: int = 4):
        super().__init__()
        self.to_colors = nn.Conv2d(in_channels, 3, kernel_size=1)

    def image_size(self, features, height=None):
        height = features.shape[-2] * self.config.patch_size if height is None else height
        return height, height * features.shape[-1] // features.shape[-2]

    def check_inputs(self, features, height=None, generator=None):
        if height is not None and height % features.shape[-2]:
            raise ValueError(f"`height` must be a multiple of {features.shape[-2]}. Got {height}. Leave it out.")

    def decode(self, features, height=None, generator=None):
        return F.interpolate(self.to_colors(features).tanh(), self.image_size(features, height))


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(decoder=NearestDecoder(in_channels=16))


def draw(pipeline, **settings):
    return pipeline("two red circles", output_type="pt", generator=torch.Generator().manual_seed(0), **settings)


def test_it_draws(pipeline, assert_close):
    output = draw(pipeline)
    assert output.images.shape == (1, 3, 16, 16)
    colors = pipeline.decoder.to_colors(output.image_features).tanh()
    assert_close(output.images, (colors / 2 + 0.5).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))
    assert torch.equal(pipeline(image_features=output.image_features, output_type="pt").images, output.images)


def test_it_says_how_large_its_images_are_before_it_draws_them(pipeline):
    features = torch.empty(2, *pipeline.feature_shape, device="meta")
    assert pipeline.feature_decoder.image_size(features) == (16, 16)
    assert pipeline.feature_decoder.image_size(features, height=32) == (32, 32)
    assert draw(pipeline, height=32).images.shape == (1, 3, 32, 32)


def test_what_it_does_not_take_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"Got decoder_num_inference_steps, and this pipeline has none\."):
        draw(pipeline, height=32, decoder_num_inference_steps=3)
    with pytest.raises(ValueError, match=r"`height` must be a multiple of 4\. Got 30\."):
        draw(pipeline, height=30)


def test_it_is_saved_and_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.decoder) is NearestDecoder
    assert torch.equal(draw(loaded).images, draw(pipeline).images)


def test_it_works_in_another_precision(pipeline):
    images = pipeline.to(torch.bfloat16).decode_features(torch.randn(1, *pipeline.feature_shape))
    assert images.dtype == torch.bfloat16 and images.shape == (1, 3, 16, 16)
