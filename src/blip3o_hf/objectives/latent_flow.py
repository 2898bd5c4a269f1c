"""VAE + Flow Matching: the flow of `feature_flow` on a VAE's latents (paper section 3.3, figure 3c).

The flow itself is the same; only the target differs. A VAE states the offset and the factor that bring its
latents to roughly unit variance, the scale of the noise they are mixed with.
"""

from typing import Any

import torch

from .feature_flow import FeatureFlow


class LatentFlow(FeatureFlow):
    """The flow of `feature_flow`, on the latents of a VAE, whose decoder makes the pixels."""

    name = "latent_flow"
    is_latent = True


def scale_latents(latents: torch.Tensor, scaling_factor: float, shift_factor: float | None = None) -> torch.Tensor:
    """Bring a VAE's latents to the scale of the noise: (latents - shift_factor) * scaling_factor.

    Args:
        latents: [B, C, H, W], as the VAE encodes them.
        scaling_factor: `vae.config.scaling_factor`, not 0.
        shift_factor: `vae.config.shift_factor`; None, as many VAEs have it, is 0.

    Returns:
        [B, C, H, W], the target of the flow.
    """
    return (latents - (shift_factor or 0.0)) * scaling_factor


def unscale_latents(latents: torch.Tensor, scaling_factor: float, shift_factor: float | None = None) -> torch.Tensor:
    """Undo `scale_latents` before decoding: latents / scaling_factor + shift_factor, [B, C, H, W]."""
    return latents / scaling_factor + (shift_factor or 0.0)


def vae_scale_factor(vae: Any) -> int:
    """Pixels per latent of an `AutoencoderKL`, in height and in width (8 for SDXL)."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
