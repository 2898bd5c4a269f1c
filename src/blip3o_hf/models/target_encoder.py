"""Target features: the features that a CLIP-style vision tower or a VAE gives for an image, on the model's grid."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..checkpoints.loading import load_complete, named_errors
from ..checkpoints.published_config import is_published
from ..objectives.latent_flow import scale_latents, vae_scale_factor
from .image_processing_eva_clip import EvaClipImageProcessor
from .modeling_eva_clip import EvaClipVisionModel
from .plain_weights import save_plain


@dataclass
class TargetEncoder:
    """
    A frozen encoder, and the image processor that prepares its images (paper section 3.1).

    Args:
        model: a vision tower, or an `AutoencoderKL`.
        image_processor: of that encoder.
        feature_size: height and width of the grid of features.
    """

    model: PreTrainedModel | AutoencoderKL
    image_processor: Any
    feature_size: int = 8

    @classmethod
    def load(
        cls, folder: str, subfolder: str = "", dtype: torch.dtype | None = None, feature_size: int = 8
    ) -> "TargetEncoder":
        """As [`load_target_encoder`]."""
        return cls(*load_target_encoder(folder, subfolder, dtype, feature_size), feature_size)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images of any size as the encoder takes them, `[B, 3, H, W]`."""
        return normalize(self.image_processor, crop(self.image_processor, images))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Target features `[B, C, feature_size, feature_size]` of what `pixel_values` returned."""
        return extract_features(self.model, pixel_values.to(self.model.device), self.feature_size)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write both."""
        save_plain(self.model, self.model.save_pretrained, folder)
        self.image_processor.save_pretrained(folder)


def load_target_encoder(
    folder: str, subfolder: str = "", dtype: torch.dtype | None = None, feature_size: int = 8
) -> tuple[PreTrainedModel | AutoencoderKL, BaseImageProcessor]:
    """
    The vision tower or VAE saved in `folder`, frozen and in evaluation mode, and its image processor.

    Args:
        folder: what `save_pretrained` of any vision tower that `AutoModel` knows wrote (CLIP, SigLIP, EVA-CLIP), with
            its image processor. Of a model with text and vision, such as CLIP whole, the vision tower is taken. Of a
            published BLIP3-o, the EVA-CLIP among its tensors is taken. Of diffusers, an `AutoencoderKL` is taken; its
            images get the size that gives `feature_size` x `feature_size` latents.
        subfolder: where in `folder`, unless that is a published BLIP3-o.
        dtype: of the weights; by default that of the file.
        feature_size: height and width of a VAE's latents; a vision tower's images have a size of their own.

    Raises:
        ValueError: naming the tensors that are missing.
    """
    settings: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if is_published(folder):
        encoder = EvaClipVisionModel.from_pretrained(folder, **settings)
        return encoder.eval().requires_grad_(False), load_image_processor(folder)
    try:
        stored, _ = PreTrainedConfig.get_config_dict(folder, subfolder=subfolder)
    except OSError as error:
        where = f"{folder}/{subfolder}".rstrip("/")
        raise OSError(
            f"A target encoder is a folder here or a repository of the Hub. Got {where!r}, and found no config.json "
            f"there: {str(error).splitlines()[0]}"
        ) from error
    if stored.get("_class_name") == AutoencoderKL.__name__:
        vae, _ = load_complete(AutoencoderKL.from_pretrained, folder, subfolder=subfolder or None, **settings)
        return vae.eval().requires_grad_(False), square_image_processor(feature_size * vae_scale_factor(vae))
    config = AutoConfig.from_pretrained(folder, subfolder=subfolder)
    config = getattr(config, "vision_config", config)
    settings |= {"config": config, "subfolder": subfolder, "may_hold_more": True}  # the text tower of a whole CLIP
    encoder, _ = load_complete(AutoModel.from_pretrained, folder, **settings)
    return encoder.eval().requires_grad_(False), load_image_processor(folder, subfolder)


def load_image_processor(folder: str, subfolder: str = "") -> Any:
    """The image processor of a vision tower, as [`load_target_encoder`] finds it."""
    if is_published(folder):
        return EvaClipImageProcessor()
    with named_errors(f"{folder}/{subfolder}".rstrip("/")):
        return AutoImageProcessor.from_pretrained(folder, subfolder=subfolder, backend="pil")


def square_image_processor(size: int) -> CLIPImageProcessorPil:
    """For a VAE: the shorter side to `size` pixels, the centre cut out, values in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    sides = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides, image_mean=half, image_std=half)


def feature_channels(encoder: PreTrainedModel | AutoencoderKL) -> int:
    """Channels of the features that `extract_features` gives."""
    is_vae = isinstance(encoder, AutoencoderKL)
    return encoder.config.latent_channels if is_vae else encoder.config.hidden_size


def stack_images(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 images `[H, W, 3]` of one size as a batch `[B, 3, H, W]`, fp32 in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def crop(image_processor, images: Sequence[Image.Image]) -> torch.Tensor:
    """
    RGB images of any size as the encoder sees them, before its colours are normalised: resized and cropped.

    Returns:
        `torch.Tensor` `[B, 3, H, W]`, fp32 in [0, 1].
    """
    return image_processor(images, do_normalize=False, return_tensors="pt")["pixel_values"].float()


def normalize(image_processor, images: torch.Tensor) -> torch.Tensor:
    """Pixel values for the encoder from images `[B, 3, H, W]` in [0, 1] that already have its size."""
    mean, std = (
        torch.tensor(v, device=images.device)[:, None, None]
        for v in (image_processor.image_mean, image_processor.image_std)
    )
    return (images - mean) / std


@torch.no_grad()
def extract_features(encoder: PreTrainedModel, pixel_values: torch.Tensor, feature_size: int = 8) -> torch.Tensor:
    """
    Features X that the model learns to generate (paper section 3.1).

    Of a vision tower: the last hidden states, without the class token, averaged over windows down to the grid (the
    reference's `early_pool2d_4`: 32 x 32 to 8 x 8). Of a VAE: the mean of the latents, scaled as its config says, at
    their own size, since an average over windows could not be decoded.

    Args:
        encoder: a vision tower with `last_hidden_state` `[B, N (+ 1), C]` (CLIP, SigLIP, EVA-CLIP), or an
            `AutoencoderKL`.
        pixel_values (`[B, 3, H, W]`): images as the encoder's image processor prepares them.
        feature_size: height and width of the grid.

    Returns:
        `torch.Tensor` `[B, C, feature_size, feature_size]`, row-major: token index = feature_size * row + column.

    Raises:
        ValueError: when a tower's grid is no multiple of `feature_size`, or a VAE's is not `feature_size`.
    """
    if isinstance(encoder, AutoencoderKL):
        latents = encoder.encode(pixel_values.to(encoder.dtype)).latent_dist.mode().to(pixel_values.dtype)
        if latents.shape[-2:] != (feature_size, feature_size):
            raise ValueError(
                f"Latents keep their size: {feature_size} x {feature_size} were asked for, and the images gave "
                f"{latents.shape[-2]} x {latents.shape[-1]}. Load the VAE with load_target_encoder(..., feature_size="
                f"{feature_size}) and prepare the images with its image processor."
            )
        return scale_latents(latents, encoder.config.scaling_factor, encoder.config.shift_factor)
    tokens = encoder(pixel_values=pixel_values.to(encoder.dtype)).last_hidden_state.to(pixel_values.dtype)
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        tokens = tokens[:, 1:]
        side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1] or side % feature_size != 0:
        raise ValueError(
            f"The encoder must give a square grid of features that divides into {feature_size} x {feature_size}. "
            f"It gave {tokens.shape[1]} tokens. Choose its image and patch size accordingly."
        )
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(grid, side // feature_size) if side != feature_size else grid
