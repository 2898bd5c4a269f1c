"""A sampling step with noise, whose probability is known: what policy gradients need of a flow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..checks import check_name, is_finite_number

SDE_TYPES = ("ddim", "flow", "cps")


@dataclass(frozen=True)
class StochasticStep:
    """
    Attributes:
        sample (`[B, ...]`): the next one, float32.
        log_prob (`[B]`): of it, given the one before: the mean over all its numbers, not the sum; 0 where `std` is 0.
        mean (`[B, ...]`): of the normal distribution that it is drawn from.
        std: its standard deviation, one for all numbers.
    """

    sample: Tensor
    log_prob: Tensor
    mean: Tensor
    std: float


def stochastic_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: float,
    next_sigma: float,
    noise_level: float,
    sde_type: str = "ddim",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    next_sample: Tensor | None = None,
) -> StochasticStep:
    r"""
    One step from noise level `sigma` to `next_sigma`, in float32.

    With \(\hat x_0 = x - \sigma v\) and \(\hat\epsilon = x + (1 - \sigma) v\):

    - `ddim`: mean \((1 - \sigma') \hat x_0 + \sqrt{\sigma'^2 - s^2} \, \hat\epsilon\), standard deviation
      \(s = \eta \sigma' \sqrt{1 - ((1 - \sigma) \sigma' / ((1 - \sigma') \sigma))^2}\), \(\eta = a / \sqrt 2\); for
      \(\eta = 1\) DDPM's posterior. Many steps keep the distributions of the flow at every noise level.
    - `flow`: Flow-GRPO (arXiv 2505.05470): \(g = a \sqrt{\sigma / (1 - \sigma)}\), mean
      \(x + (v + g^2 \hat\epsilon / (2 \sigma)) (\sigma' - \sigma)\), \(s = g \sqrt{\sigma - \sigma'}\). At
      \(\sigma = 1\) the denominator is that of the next level, and the variance grows to \(1 + a^4 / 4\).
    - `cps`: coefficients-preserving (arXiv 2509.05952): the mean of `ddim`, \(s = \sigma' \sin(a \pi / 2)\); its
      log-probability is minus the mean squared distance.

    Args:
        sample (`[B, ...]`): at `sigma`, normalised features.
        velocity (`[B, ...]`): the network's, dx/dsigma.
        sigma, next_sigma: noise levels, 1 >= `sigma` > `next_sigma` >= 0.
        noise_level: a, at least 0; 0 is Euler's step. For `cps` at most 1.
        sde_type: `ddim`, `flow` or `cps`.
        generator: of the noise, on the CPU or the sample's device; one for all, or one for each of B.
        next_sample (`[B, ...]`, *optional*): that of an earlier call, of which the log-probability is wanted; it gets
            no gradient.

    Raises:
        ValueError: when there is no such type, or a number is out of range.
    """
    check_name("`sde_type`", sde_type, SDE_TYPES)
    _check(sigma, next_sigma, noise_level, sde_type)
    sample, velocity = sample.float(), velocity.float()
    clean, noise = sample - sigma * velocity, sample + (1 - sigma) * velocity
    if sde_type == "flow":
        diffusion = noise_level**2 * sigma / (1 - (sigma if sigma < 1 else next_sigma))  # its square
        std = math.sqrt(diffusion * (sigma - next_sigma))
        mean = sample + (velocity + diffusion / (2 * sigma) * noise) * (next_sigma - sigma)
    else:
        std = _std(sigma, next_sigma, noise_level, sde_type)
        mean = (1 - next_sigma) * clean + math.sqrt(next_sigma**2 - std**2) * noise
    if next_sample is None:
        next_sample = mean.detach()
        if std:
            given = list(generator) if isinstance(generator, Sequence) else generator
            next_sample = next_sample + std * randn_tensor(tuple(mean.shape), given, mean.device)
    next_sample = next_sample.detach().float()
    return StochasticStep(next_sample, _log_prob(next_sample, mean, std, sde_type), mean, std)


def _std(sigma: float, next_sigma: float, noise_level: float, sde_type: str) -> float:
    """Of `ddim` and `cps`."""
    if sde_type == "cps":
        return next_sigma * math.sin(noise_level * math.pi / 2)
    kept = (1 - sigma) * next_sigma / ((1 - next_sigma) * sigma)  # share of the noise that a step without noise keeps
    return noise_level / math.sqrt(2) * next_sigma * math.sqrt(1 - kept**2)


def _log_prob(next_sample: Tensor, mean: Tensor, std: float, sde_type: str) -> Tensor:
    squares = (next_sample - mean).square().flatten(1).mean(dim=1)
    if sde_type == "cps":
        return -squares
    if not std:
        return torch.zeros_like(squares)
    return -squares / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2


def _check(sigma: float, next_sigma: float, noise_level: float, sde_type: str) -> None:
    if not 0 <= next_sigma < sigma <= 1:
        raise ValueError(
            f"A step goes from a noise level to a lower one, 1 >= sigma > next_sigma >= 0. Got sigma={sigma} and "
            f"next_sigma={next_sigma}. Take neighbours of a scheduler's `sigmas`."
        )
    check_noise_level(noise_level, sde_type)


def check_noise_level(noise_level: float, sde_type: str) -> None:
    """
    Raises:
        ValueError: when it is out of the range of the form: at most sqrt(2) of `ddim`, 1 of `cps`, any of `flow`.
    """
    highest = {"ddim": math.sqrt(2), "cps": 1.0, "flow": math.inf}[sde_type]
    if not is_finite_number(noise_level) or not 0 <= noise_level <= highest:
        raise ValueError(
            f"`noise_level` of {sde_type!r} must be from 0 to {highest:.4g}. Got {noise_level!r:.40}. Try 0.7."
        )


__all__ = ["SDE_TYPES", "StochasticStep", "check_noise_level", "stochastic_step"]
