"""The stage `decoder`: from features to the pixels they came from, in one pass."""

import torch

from ...data.records import targets
from ...models.decoder_patch import Blip3oPatchDecoder
from ...models.target_encoder import crop, extract_features, load_target_encoder, normalize
from ..distributed import whole_weights
from .base import Stage


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


class DecoderStage(Stage):
    """
    The decoder from frozen features to pixels: mean squared error, with noise on the features.

    It builds a new one on the encoder in `inputs`, or goes on from the decoder of the BLIP3-o in `inputs.model`.
    Recolouring teaches it that any shape may have any colour, which the tiny world's training scenes do not show.
    """

    name = "decoder"
    optional_inputs = ("encoder", "model")
    size_keys = ("patch_size", "dim", "num_layers", "num_attention_heads")
    model_keys = (*size_keys, "feature_noise", "recolor_rate")
    evaluation_keys = ("per_family",)

    def __init__(self, recipe):
        super().__init__(recipe)
        if len(recipe.inputs) != 1:
            raise ValueError(
                f"Stage 'decoder' starts from an encoder or from a whole model. {self.where} names "
                f"{'both' if recipe.inputs else 'neither'}. Put one of 'encoder' and 'model' under 'inputs'."
            )
        self._check_sizes_kept("decoder", "encoder")
        self.feature_noise = recipe.model.get("feature_noise", 0.0)
        self.recolor_rate = recipe.model.get("recolor_rate", 0.0)

    def build(self):
        if "model" in self.folders:
            folder = self.folders["model"]
            with whole_weights(self.arguments):
                self.encoder, self.image_processor = load_target_encoder(folder, "target_encoder", torch.float32)
            return Blip3oPatchDecoder.from_pretrained(folder, subfolder="decoder", torch_dtype=torch.float32)
        with whole_weights(self.arguments):
            self.encoder, self.image_processor = load_target_encoder(self.folders["encoder"])
        sizes = {key: value for key, value in self.recipe.model.items() if key in self.size_keys}
        return Blip3oPatchDecoder(in_channels=self.encoder.config.hidden_size, **sizes)

    def collate(self, records):
        return {"images": crop(self.image_processor, targets(records))}

    def loss(self, model, batch, generators):
        images = recolor(batch["images"], self.recolor_rate)
        features = extract_features(self.encoder, normalize(self.image_processor, images))
        scale = features.std(dim=(0, 2, 3), keepdim=True) * self.feature_noise
        level = torch.rand(features.shape[0], 1, 1, 1, device=features.device)
        sample = model(features + level * scale * torch.randn_like(features)).sample
        return torch.nn.functional.mse_loss(sample.float(), 2 * images - 1)

    def save(self, model, folder, weights=None):
        decoder = Blip3oPatchDecoder.from_config(model.config)
        decoder.load_state_dict(model.state_dict() if weights is None else weights)
        decoder.save_pretrained(folder)
