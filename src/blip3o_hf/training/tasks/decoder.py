"""The task `decoder`: from features to the pixels they came from, in one pass."""

import torch
import torch.nn.functional as F

from ...data.records import targets
from ...models.configuration_blip3o import Blip3oConfig
from ...models.decoder_patch import Blip3oPatchDecoder
from ...models.target_encoder import crop, normalize
from ...pipelines.pipeline_blip3o import has_pipeline
from .base import Task


def recolor(images: torch.Tensor, rate: float) -> torch.Tensor:
    """
    Mix the channels of a share `rate` in [0, 1] of the images `[B, 3, H, W]` at random; greys stay as they are.

    The mix is a convex combination of two permutations of the channels, so values keep their range.
    """
    count, device = images.shape[0], images.device
    identity = torch.eye(3, device=device)
    first, second = identity[torch.rand(2, count, 3, device=device).argsort(dim=-1)]
    blend = torch.rand(count, 1, 1, device=device)
    is_mixed = torch.rand(count, 1, 1, device=device) < rate
    mixing = torch.where(is_mixed, blend * first + (1 - blend) * second, identity)
    return torch.einsum("boc,bchw->bohw", mixing, images)


class DecoderTask(Task):
    """
    A patch decoder on frozen features: mean squared error of pixels, with noise on the features.

    Args:
        feature_noise: noise of up to so many standard deviations is added to the features.
        recolor_rate: share in [0, 1] of the images whose colours are mixed, so that a decoder learns that any shape
            may have any colour.
    """

    name = "decoder"
    reads_prompts = False

    def __init__(self, feature_noise: float = 0.0, recolor_rate: float = 0.0):
        self.feature_noise = feature_noise
        self.recolor_rate = recolor_rate

    def load(self, name, arguments):
        return Blip3oPatchDecoder.from_pretrained(name, subfolder="decoder", torch_dtype=torch.float32), None

    def needs_encoder(self, arguments):
        return True

    def feature_size(self, model, source):
        is_repository = bool(source) and has_pipeline(source)
        return (
            Blip3oConfig.from_pretrained(source).feature_size if is_repository else super().feature_size(model, source)
        )

    def collate(self, records):
        assert self.target_encoder is not None  # see `needs_encoder`
        return {"images": crop(self.target_encoder.image_processor, targets(records))}

    def counts(self, batch):
        return {"records": len(batch["images"])}

    def loss(self, model, batch, generators):
        assert self.target_encoder is not None  # see `needs_encoder`
        images = recolor(batch["images"], self.recolor_rate)
        features = self.target_encoder.features(normalize(self.target_encoder.image_processor, images))
        scale = features.std(dim=(0, 2, 3), keepdim=True) * self.feature_noise
        level = torch.rand(features.shape[0], 1, 1, 1, device=features.device)
        sample = model(features + level * scale * torch.randn_like(features)).sample
        return self.share("records") * F.mse_loss(sample.float(), 2 * images - 1)

    def save(self, model, folder, weights=None):
        decoder = Blip3oPatchDecoder.from_config(model.config)
        decoder.load_state_dict(model.state_dict() if weights is None else weights)
        decoder.save_pretrained(folder)
