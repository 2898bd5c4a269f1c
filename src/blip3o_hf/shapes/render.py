"""Pixels of a scene, fast enough to draw every training image on the fly instead of storing it."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .scene import BACKGROUNDS, CELL, COLORS, IMAGE_SIZE, SIZES, Scene

_SUPERSAMPLING = 4
_INSET = 1
"""Pixels left free on each side of the box, so that no edge touches the neighbouring patch."""


@cache
def sprite_mask(shape: str, size: str) -> np.ndarray:
    """Coverage of a shape in its box.

    Args:
        shape: One of `SHAPES`.
        size: `"small"` or `"large"`.

    Returns:
        Read-only float32 array `[pixels, pixels]` in [0, 1].
    """
    pixels = SIZES[size]
    canvas = Image.new("L", (pixels * _SUPERSAMPLING, pixels * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    low, high = _INSET * _SUPERSAMPLING, (pixels - _INSET) * _SUPERSAMPLING - 1
    middle, arm = (low + high) / 2, (high - low) * 0.18
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=255)
    elif shape == "triangle":
        draw.polygon(((middle, low), (high, high), (low, high)), fill=255)
    else:
        draw.rectangle((low, middle - arm, high, middle + arm), fill=255)
        draw.rectangle((middle - arm, low, middle + arm, high), fill=255)
    fine = np.asarray(canvas, np.float32).reshape(pixels, _SUPERSAMPLING, pixels, _SUPERSAMPLING)
    mask = fine.mean(axis=(1, 3)) / 255.0
    mask.setflags(write=False)
    return mask


@cache
def _sprite(shape: str, color: str, size: str, background: str) -> np.ndarray:
    """The coloured sprite blended over the background: uint8 `[pixels, pixels, 3]`."""
    alpha = sprite_mask(shape, size)[..., None]
    blend = alpha * np.array(COLORS[color]) + (1 - alpha) * np.array(BACKGROUNDS[background])
    return np.rint(blend).astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: The scene; its boxes do not overlap, so the order of its objects does not matter.

    Returns:
        A fresh uint8 array `[64, 64, 3]`.
    """
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUNDS[scene.background][0], np.uint8)
    for o in scene.objects:
        top, left, pixels = o.row * CELL, o.col * CELL, SIZES[o.size]
        image[top : top + pixels, left : left + pixels] = _sprite(o.shape, o.color, o.size, scene.background)
    return image
