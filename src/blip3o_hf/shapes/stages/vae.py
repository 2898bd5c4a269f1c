"""The stage `vae`: a VAE for the tiny world, where a published one would be out of place."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from ...data.records import targets
from ...models.target_encoder import crop, normalize, square_image_processor
from ...training.recipe_values import hints_of
from ...training.stages.base import Stage
from ...training.tasks.base import Task

SCALING_IMAGES = 256


class VaeWithLoss(nn.Module):
    """What trains: the VAE, called with images and noise, giving the loss."""

    def __init__(self, vae: AutoencoderKL, kl_weight: float):
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`[B, 3, H, W]`): images in [-1, 1].
            noise (`[B, latent channels, H / factor, W / factor]`): standard normal.
        """
        posterior = self.vae.encode(pixel_values).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return torch.nn.functional.mse_loss(decoded.float(), pixel_values) + self.kl_weight * kl


class VaeTask(Task):
    """
    Mean squared error of pixels, and a small KL divergence.

    Args:
        latent_shape: of one image's latents.
        image_processor: of the images.
    """

    name = "vae"
    reads_prompts = False

    def __init__(self, latent_shape: tuple[int, int, int], image_processor):
        self.latent_shape = latent_shape
        self.image_processor = image_processor
        self.first_images: list[Image.Image] = []
        """Training images by which the latents are scaled."""

    def collate(self, records):
        return {"pixel_values": normalize(self.image_processor, crop(self.image_processor, targets(records)))}

    def counts(self, batch):
        return {"records": len(batch["pixel_values"])}

    def loss(self, model, batch, generators: Sequence[torch.Generator]):
        images = batch["pixel_values"]
        generators = generators[: len(images)]
        noise = torch.stack([torch.randn(self.latent_shape, generator=generator) for generator in generators])
        return self.share("records") * model(pixel_values=images, noise=noise.to(images))

    def save(self, model, folder, weights=None):
        """With the factor that brings the latents of training images to unit variance."""
        weights = model.state_dict() if weights is None else weights
        vae = AutoencoderKL.from_config(model.vae.config)
        vae.load_state_dict({name.removeprefix("vae."): value for name, value in weights.items()})
        pixel_values = normalize(self.image_processor, crop(self.image_processor, self.first_images))
        with torch.no_grad():
            latents = vae.encode(pixel_values).latent_dist.mean
        vae.register_to_config(scaling_factor=1 / latents.std().item())
        vae.save_pretrained(folder)


class VaeStage(Stage):
    """A VAE from nothing. Leaves an `AutoencoderKL`."""

    name = "vae"
    size_keys = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "sample_size")
    model_keys = (*size_keys, "kl_weight")
    types = {
        "model": {
            **hints_of(AutoencoderKL.__init__, *size_keys),
            "block_out_channels": list[int],
            "kl_weight": float,
        }
    }

    def build(self):
        sizes = self._given(self.size_keys)
        depth = len(sizes["block_out_channels"])
        vae = AutoencoderKL(
            **sizes,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
        )
        return VaeWithLoss(vae, self.recipe.model.get("kl_weight", 1e-4)), None

    def task(self):
        sizes = self.recipe.model
        side = sizes["sample_size"] // 2 ** (len(sizes["block_out_channels"]) - 1)
        task = VaeTask((sizes["latent_channels"], side, side), square_image_processor(sizes["sample_size"]))
        task.first_images = list(self.data.images(SCALING_IMAGES))
        return task
