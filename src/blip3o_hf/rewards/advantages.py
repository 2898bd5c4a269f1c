"""What a group of pictures of one prompt tells about each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_name, check_sizes

SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
_EPSILON = 1e-4


@dataclass(frozen=True)
class Advantages:
    """
    Attributes:
        values (`[N]`): of each picture, float32; 0 where its reward is not known or all of its group are equal.
        metrics: `reward`, `reward_std` and `frac_reward_zero_std`, as TRL calls them.
    """

    values: Tensor
    metrics: dict[str, float]


def group_advantages(
    rewards: Tensor, num_generations: int, scale_rewards: str = "group", clip: float = 5.0
) -> Advantages:
    r"""
    \((r - \bar r) / (\operatorname{std}(r) + 10^{-4})\), the mean over the group of one prompt.

    Args:
        rewards (`[N]`): groups one after the other; NaN where none applied.
        num_generations: pictures of a prompt, at least 2.
        scale_rewards: whose standard deviation divides: the `group`'s, that of the whole `batch`, or `none`.
        clip: largest advantage, either way.

    Raises:
        ValueError: when the rewards are not whole groups of at least 2, or a setting is unknown.
    """
    check_sizes(2, num_generations=num_generations)
    check_name("`scale_rewards`", scale_rewards, SCALES)
    if len(rewards) % num_generations or not len(rewards):
        raise ValueError(
            f"Rewards must be whole groups of {num_generations}. Got {len(rewards)}. Draw so many pictures of each."
        )
    groups = rewards.double().unflatten(0, (-1, num_generations))
    known = ~groups.isnan()
    numbers = known.sum(dim=1, keepdim=True).clamp(min=1)
    means = groups.nansum(dim=1, keepdim=True) / numbers
    centred = (groups - means).masked_fill(~known, 0.0)
    deviations = (centred.square().sum(dim=1, keepdim=True) / (numbers - 1).clamp(min=1)).sqrt()
    highest = groups.masked_fill(~known, -math.inf).amax(dim=1, keepdim=True)
    lowest = groups.masked_fill(~known, math.inf).amin(dim=1, keepdim=True)
    is_flat = highest <= lowest  # of rewards themselves: their mean is rounded
    values = centred
    if scale_rewards == "group":
        values = centred / (deviations + _EPSILON)
    elif scale_rewards == "batch":
        all_known = rewards.double()[~rewards.isnan()]
        deviation = all_known.std().item() if len(all_known) > 1 else 0.0
        values = centred / (deviation + _EPSILON)
    values = values.masked_fill(is_flat, 0.0).clamp(-clip, clip)
    metrics = {
        "reward": rewards.nanmean().item(),
        "reward_std": deviations.mean().item(),
        "frac_reward_zero_std": is_flat.double().mean().item(),
    }
    return Advantages(values.flatten().float(), metrics)


def advantages_of(
    values: Tensor,
    weights: Sequence[float],
    num_generations: int,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
    clip: float = 5.0,
) -> Advantages:
    """
    Of several rewards with weights.

    Args:
        values (`[N, K]`): what each reward said; NaN where it did not apply.
        weights: of the rewards.
        num_generations, scale_rewards, clip: as of `group_advantages`.
        aggregation: `sum_then_normalize`: the advantage of the weighted sum. `normalize_then_sum`: the weighted
            sum of the advantages, so that a reward of small numbers counts as much.
    """
    check_name("`multi_objective_aggregation`", aggregation, AGGREGATIONS)
    total = weighted_sum(values, weights)
    found = group_advantages(total, num_generations, scale_rewards, clip)
    if aggregation == "sum_then_normalize":
        return found
    each = [group_advantages(column, num_generations, scale_rewards, clip).values for column in values.unbind(dim=1)]
    together = sum(weight * advantage for weight, advantage in zip(weights, each, strict=True))
    return Advantages(torch.as_tensor(together).clamp(-clip, clip), found.metrics)


def weighted_sum(values: Tensor, weights: Sequence[float]) -> Tensor:
    """`[N, K]` to `[N]`: NaN where no reward applied."""
    weighted = values * torch.tensor(weights, dtype=values.dtype, device=values.device)
    return weighted.nansum(dim=1).masked_fill(values.isnan().all(dim=1), math.nan)


__all__ = ["AGGREGATIONS", "SCALES", "Advantages", "advantages_of", "group_advantages", "weighted_sum"]
