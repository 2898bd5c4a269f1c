"""Pictures of the tiny world as a camera would take them, to ask what is worse to learn from than a clean drawing."""

import numpy as np
from PIL import Image, ImageFilter

BLUR = (0.4, 1.0)
"""Radius, pixels."""
LIGHT = (0.7, 1.1)
"""Brightness at two opposite borders."""
WHITE = 0.12
"""Largest change of a colour channel, as a share of it."""
NOISE = 0.04
"""Standard deviation of the sensor's, of values in [0, 1]."""


def photograph(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """
    A picture seen through a camera: out of focus, in uneven light, with colours a little off and a noisy sensor. What
    it shows stays where it is.

    Args:
        picture: RGB.
        rng: where the accidents come from.
    """
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    values = np.asarray(blurred, dtype=np.float64) / 255
    height, width = values.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * np.linspace(-0.5, 0.5, width) + np.sin(angle) * np.linspace(-0.5, 0.5, height)[:, None]
    ends = rng.uniform(*LIGHT, size=2)
    light = ends.mean() + (ends[1] - ends[0]) * across
    white = rng.uniform(1 - WHITE, 1 + WHITE, size=3)
    noise = rng.normal(0, NOISE, size=values.shape)
    taken = np.clip(values * light[..., None] * white + noise, 0, 1)
    return Image.fromarray(np.rint(taken * 255).astype(np.uint8))


__all__ = ["photograph"]
