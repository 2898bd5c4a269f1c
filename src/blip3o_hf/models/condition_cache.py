"""What the Next-DiT computes from its condition alone, kept between denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Blip3oConditionCache:
    """
    What the transformer needs to know of the condition, which is the same at every denoising step.

    Attributes:
        pooled (`Tensor` of shape `[B, E]`): Caption part of the time-and-caption embedding.
        keys (`tuple[Tensor, ...]`): Per layer, normalised cross-attention keys `[B, Q, kv_heads, head_dim]`.
        values (`tuple[Tensor, ...]`): Per layer, cross-attention values, same shape.
        context (`Tensor` of shape `[B, Q, D]`, *optional*): Projected condition; present instead of keys and
            values where the blocks are left to compute them.
    """

    pooled: Tensor
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    context: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.pooled.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Blip3oConditionCache:
        return Blip3oConditionCache(
            pooled=function(self.pooled),
            keys=tuple(function(key) for key in self.keys),
            values=tuple(function(value) for value in self.values),
            context=None if self.context is None else function(self.context),
        )

    def to(self, *args, **kwargs) -> Blip3oConditionCache:
        """Move or cast every tensor; takes what `Tensor.to` takes."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def repeat_interleave(self, repeats: int) -> Blip3oConditionCache:
        """Repeat each sample `repeats` times in a row, for several images per prompt."""
        return self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def index(self, indices: Tensor | slice) -> Blip3oConditionCache:
        """Select samples, by an index or boolean tensor of shape `[n]` or by a slice."""
        return self._map(lambda tensor: tensor[indices])

    @staticmethod
    def cat(caches: Sequence[Blip3oConditionCache]) -> Blip3oConditionCache:
        """Join caches along the batch, for instance `[null, condition]` for classifier-free guidance."""
        contexts = [cache.context for cache in caches if cache.context is not None]
        if len({len(cache.keys) for cache in caches}) != 1:
            raise ValueError(
                "Condition caches to be joined must come from one model and one value of `project_layers`; "
                f"received caches with {[len(cache.keys) for cache in caches]} projected layers. Compute all "
                "of them with the same `precompute_condition` call."
            )
        return Blip3oConditionCache(
            pooled=torch.cat([cache.pooled for cache in caches]),
            keys=tuple(torch.cat(keys) for keys in zip(*(cache.keys for cache in caches), strict=True)),
            values=tuple(torch.cat(values) for values in zip(*(cache.values for cache in caches), strict=True)),
            context=torch.cat(contexts) if contexts else None,
        )
