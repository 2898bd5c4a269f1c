"""The width of the transformer's gated feed-forward layers, and the arguments that give a width."""

import math


def feed_forward_dim(dim: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """
    Width of the gated feed-forward layer: two thirds of `4 * dim`, scaled, rounded up.

    >>> feed_forward_dim(1792)
    4864
    """
    width = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        width = int(ffn_dim_multiplier * width)
    return multiple_of * math.ceil(width / multiple_of)


def feed_forward_arguments(dim: int, width: int) -> dict[str, int | float | None]:
    """
    Arguments of [`Blip3oTransformer2DModel`] that give exactly this feed-forward width, the plainest ones.

    >>> feed_forward_arguments(1792, 4864)
    {'multiple_of': 256, 'ffn_dim_multiplier': None}
    >>> feed_forward_arguments(1792, 6400)
    {'multiple_of': 256, 'ffn_dim_multiplier': 1.3}
    """
    granules = [256 >> shift for shift in range(9)]
    for multiple_of in granules:
        if feed_forward_dim(dim, multiple_of) == width:
            return {"multiple_of": multiple_of, "ffn_dim_multiplier": None}
    multiple_of = next(granule for granule in granules if width % granule == 0)
    ratio = width / feed_forward_dim(dim, 1)
    for digits in range(18):
        below = math.floor(ratio * 10**digits)
        for multiplier in (below / 10**digits, (below + 1) / 10**digits):
            if feed_forward_dim(dim, multiple_of, multiplier) == width:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    raise AssertionError(f"no multiplier gives the width {width} at dim {dim}")


__all__ = ["feed_forward_arguments", "feed_forward_dim"]
