"""What the Next-DiT computes before its denoising steps: from its condition, and from its noise levels."""

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
        constants (`tuple[Tensor, ...]`): Per layer, what the cross-attention gives the first `B0` of the samples,
            `[B0, 1, heads, head_dim]`, where that is the same at every place: see [`as_constant`]. Keys and values
            are then those of the other `B - B0` samples.
    """

    pooled: Tensor
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    context: Tensor | None = None
    constants: tuple[Tensor, ...] = ()

    @property
    def batch_size(self) -> int:
        return self.pooled.shape[0]

    def of_layer(self, index: int) -> tuple[Tensor | None, ...]:
        """What a block takes of it: `context`, `key`, `value`, `constant`."""
        if self.context is not None:
            return self.context, None, None, None
        return None, self.keys[index], self.values[index], self.constants[index] if self.constants else None

    def _map(self, function: Callable[[Tensor], Tensor]) -> Blip3oConditionCache:
        return Blip3oConditionCache(
            pooled=function(self.pooled),
            keys=tuple(function(key) for key in self.keys),
            values=tuple(function(value) for value in self.values),
            context=None if self.context is None else function(self.context),
            constants=tuple(function(constant) for constant in self.constants),
        )

    def as_constant(self, num_heads: int) -> Blip3oConditionCache:
        """
        The same for a condition whose query tokens are all equal, as those of zeros are. Attention over equal keys
        gives the mean of equal values, whatever asks: so no attention is left to compute.

        Args:
            num_heads (`int`): Number of query heads of the transformer.

        Raises:
            ValueError: when the keys and values were left to the blocks.
        """
        if self.context is not None:
            raise ValueError(
                "A constant is made of the values of all layers; received a cache with `project_layers=False`. Call "
                "`precompute_condition` without it."
            )
        firsts = [value[:, :1] for value in self.values]
        constants = tuple(first.repeat_interleave(num_heads // first.shape[2], dim=2) for first in firsts)
        return Blip3oConditionCache(
            pooled=self.pooled,
            keys=tuple(key[:0] for key in self.keys),
            values=tuple(value[:0] for value in self.values),
            constants=constants,
        )

    def to(self, *args, **kwargs) -> Blip3oConditionCache:
        """Move or cast every tensor; takes what `Tensor.to` takes."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def repeat_interleave(self, repeats: int) -> Blip3oConditionCache:
        """Repeat each sample `repeats` times in a row, for several images per prompt."""
        return self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    @staticmethod
    def cat(caches: Sequence[Blip3oConditionCache]) -> Blip3oConditionCache:
        """
        Join caches along the batch, for instance `[null, condition]` for classifier-free guidance. Those of
        [`as_constant`] come first.
        """
        contexts = [cache.context for cache in caches if cache.context is not None]
        if len({len(cache.keys) for cache in caches}) != 1:
            raise ValueError(
                "Condition caches to be joined must come from one model and one value of `project_layers`; "
                f"received caches with {[len(cache.keys) for cache in caches]} projected layers. Compute all "
                "of them with the same `precompute_condition` call."
            )
        constant = [cache for cache in caches if cache.constants]
        if any(cache.constants for cache in caches[len(constant) :]):
            raise ValueError(
                f"Constant condition caches must be the first ones that are joined; received {len(constant)} of them "
                f"among others. Put them in front."
            )
        return Blip3oConditionCache(
            pooled=torch.cat([cache.pooled for cache in caches]),
            keys=tuple(torch.cat(keys) for keys in zip(*(cache.keys for cache in caches), strict=True)),
            values=tuple(torch.cat(values) for values in zip(*(cache.values for cache in caches), strict=True)),
            context=torch.cat(contexts) if contexts else None,
            constants=tuple(torch.cat(each) for each in zip(*(cache.constants for cache in constant), strict=True)),
        )


@dataclass
class Blip3oModulation:
    """
    What noise level and pooled condition do to the activations at one denoising step.

    Attributes:
        blocks (`tuple[Tensor, ...]`): Per layer, scales and gates `[B, 1, 4 * D]`.
        output (`Tensor` of shape `[B, 1, D]`): Scale before the projection to feature channels.
    """

    blocks: tuple[Tensor, ...]
    output: Tensor
