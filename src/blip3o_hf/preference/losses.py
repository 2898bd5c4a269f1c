r"""
Losses of a flow under rewards and preferences, one number for each picture.

All are of one velocity \(v\) at one noise level: \(x_\sigma = (1 - \sigma) x_0 + \sigma \epsilon\), target
\(u = \epsilon - x_0\). `old` is the policy that drew, `ref` the one to stay near.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_name

AWM_WEIGHTS = ("velocity", "sigma", "sigma_squared", "ghuber")
ADVANTAGE_CLIP = 5.0
_LEAST_WEIGHT = 1e-5
_HUBER_POWER, _HUBER_EPSILON = 0.25, 1e-10


def mean_square(values: Tensor) -> Tensor:
    """`[B, ...]` to the mean square of each, `[B]`."""
    return values.square().flatten(1).mean(dim=1)


def reward_of_advantage(advantages: Tensor) -> Tensor:
    """DiffusionNFT's reward in [0, 1] of advantages `[B]` that are clipped at [`ADVANTAGE_CLIP`]; 1/2 for 0."""
    return advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP) / (2 * ADVANTAGE_CLIP) + 0.5


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    mix_beta: float = 1.0,
    adaptive_weight: bool = True,
) -> Tensor:
    r"""
    DiffusionNFT (arXiv 2509.16117): with \(v^\pm = v_{old} \pm \beta (v - v_{old})\) and \(r\) the reward in [0, 1],
    \(r \, |v^+ - u|^2 + (1 - r) \, |v^- - u|^2\).

    With `adaptive_weight`, as released: the errors are those of \(\hat x_0^\pm = x_\sigma - \sigma v^\pm\), each over
    its own mean absolute error, and the whole is times \(5 / \beta\). On the policy that drew, the gradient is then
    the advantage times that of the flow with this weight, whatever \(\beta\) is.

    Args:
        velocity, old_velocity (`[B, ...]`): of the policy that learns, and of the one that drew.
        noisy, clean (`[B, ...]`): x at `sigma`, and the features that were drawn.
        sigma (`[B]`): noise levels in (0, 1].
        advantages (`[B]`): of the pictures.
        mix_beta: beta, above 0.
        adaptive_weight: the released form.

    Returns:
        `[B]`.
    """
    old_velocity = old_velocity.detach()
    step = mix_beta * (velocity - old_velocity)
    reward = reward_of_advantage(advantages)
    level = _as_factor(sigma, velocity)
    if not adaptive_weight:
        target = (noisy - clean) / level
        errors = (mean_square(old_velocity + sign * step - target) for sign in (1, -1))
    else:
        errors = (
            ADVANTAGE_CLIP / mix_beta * _over_own_size(noisy - level * (old_velocity + sign * step) - clean)
            for sign in (1, -1)
        )
    positive, negative = errors
    return reward * positive + (1 - reward) * negative


def _over_own_size(error: Tensor) -> Tensor:
    weight = error.detach().abs().flatten(1).mean(dim=1).clamp(min=_LEAST_WEIGHT)
    return mean_square(error) / weight


def positives_loss(
    velocity: Tensor,
    noisy: Tensor,
    clean: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    adaptive_weight: bool = True,
) -> Tensor:
    r"""
    Rejection fine-tuning: the flow's loss \(|v - u|^2\) of pictures with a positive advantage, and 0 of all others.

    Args:
        velocity, noisy, clean, sigma, advantages: as of `nft_loss`.
        adaptive_weight: the error of \(\hat x_0\) over its own mean absolute error, as there.

    Returns:
        `[B]`.
    """
    level = _as_factor(sigma, velocity)
    if adaptive_weight:
        errors = _over_own_size(noisy - level * velocity - clean)
    else:
        errors = mean_square(velocity - (noisy - clean) / level)
    return (advantages > 0).to(errors) * errors


def awm_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    clip: float = 1.0,
    weight: str = "ghuber",
) -> Tensor:
    r"""
    Advantage-weighted matching (arXiv 2509.25050): \(\log p = -w(|v - u|^2)\), then the clipped ratio of PPO. On the
    policy that drew, the gradient is the advantage times that of the weighted flow loss.

    Args:
        velocity, old_velocity (`[B, ...]`): of the policy that learns, and of the one that drew.
        target (`[B, ...]`): u.
        sigma (`[B]`): noise levels.
        advantages (`[B]`): of the pictures.
        clip: largest distance of the ratio from 1.
        weight: `velocity` w(l) = l, `sigma` sigma l, `sigma_squared` sigma^2 l, or `ghuber`,
            4 sigma ((l + 1e-10)^(1/4) - (1e-10)^(1/4)).

    Returns:
        `[B]`.
    """
    check_name("AWM weight", weight, AWM_WEIGHTS)
    old = _awm_log_prob(old_velocity, target, sigma, weight).detach()
    return clipped_ratio_loss(_awm_log_prob(velocity, target, sigma, weight) - old, advantages, clip)


def _awm_log_prob(velocity: Tensor, target: Tensor, sigma: Tensor, weight: str) -> Tensor:
    error = mean_square(velocity - target)
    if weight == "ghuber":
        error = ((error + _HUBER_EPSILON) ** _HUBER_POWER - _HUBER_EPSILON**_HUBER_POWER) / _HUBER_POWER
    factor = {"velocity": torch.ones_like(sigma), "sigma_squared": sigma.square()}.get(weight, sigma)
    return -factor * error


def clipped_ratio_loss(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    r"""
    PPO's: \(\max(-A \rho, -A \, \text{clip}(\rho, 1 - \epsilon, 1 + \epsilon))\), \(\rho\) the exponential of
    `log_ratio` `[B]`.
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clip_of(scale: float, num_dimensions: int) -> float:
    r"""
    The clip of ratios of mean log-probabilities: \(\kappa / D\). A change of the policy by a given divergence moves a
    mean over \(D\) numbers by so much less, and a fixed clip would be wrong for other features.

    Args:
        scale: kappa; 6.5 for all steps of a rollout, 0.65 for a window.
        num_dimensions: D, numbers of the features of a picture.
    """
    return scale / num_dimensions


def guarded_log_ratio(log_ratio: Tensor, mean: Tensor, old_mean: Tensor, std: float) -> Tensor:
    r"""
    GRPO-Guard (arXiv 2510.22319): \((\Delta \log \pi + |\mu - \mu_{old}|^2 / (2 s^2)) \, s\), whose ratio has no bias
    below 1 and one scale at all steps.

    Args:
        log_ratio (`[B]`): of mean log-probabilities.
        mean, old_mean (`[B, ...]`): of the step, by the policy that learns and by the one that drew.
        std: of the step.
    """
    return (log_ratio + mean_square(mean - old_mean.detach()) / (2 * std**2)) * std


@dataclass(frozen=True)
class PreferenceLoss:
    """
    Attributes:
        loss (`[B]`): of each pair.
        chosen, rejected (`[B]`): implicit rewards, -beta / 2 times how much larger the error is than the reference's.
    """

    loss: Tensor
    chosen: Tensor
    rejected: Tensor


def dpo_loss(
    chosen_error: Tensor,
    rejected_error: Tensor,
    chosen_reference: Tensor,
    rejected_reference: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    r"""
    Diffusion-DPO for flows (arXiv 2311.12908): \(-\log \text{sigmoid}\) of the margin of the implicit rewards, with
    one noise and level for both pictures of a pair.

    Args:
        chosen_error, rejected_error (`[B]`): mean squared errors of the velocity.
        chosen_reference, rejected_reference (`[B]`): those of the reference.
        beta: on mean errors, of the order of 1000.
        label_smoothing: share of pairs that are taken to be the other way round, in [0, 0.5).
    """
    chosen = -beta / 2 * (chosen_error - chosen_reference.detach())
    rejected = -beta / 2 * (rejected_error - rejected_reference.detach())
    margin = chosen - rejected
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


def _as_factor(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.to(like).view(-1, *[1] * (like.ndim - 1))


__all__ = [
    "AWM_WEIGHTS",
    "PreferenceLoss",
    "awm_loss",
    "clip_of",
    "clipped_ratio_loss",
    "dpo_loss",
    "guarded_log_ratio",
    "mean_square",
    "nft_loss",
    "positives_loss",
    "reward_of_advantage",
]
