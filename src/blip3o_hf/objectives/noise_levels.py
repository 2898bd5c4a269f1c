"""Which noise levels the flow objectives train on.

A noise level `sigma` is 0 for clean features and 1 for pure noise; the paper's t is 1 - sigma. The paper
draws t ~ U(0, 1) (section 3.2); the released training code draws it on a grid of 1000 levels, which is the
default here.
"""

import math

import torch

from ..checks import unknown_name

DISTRIBUTIONS = ("discrete_uniform", "uniform", "logit_normal")


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards noise (`shift` > 1) or towards clean (`shift` < 1); 0 and 1 stay in place.

    sigma' = shift * sigma / (1 + (shift - 1) * sigma), the same map that the sampling schedule applies.

    Raises:
        ValueError: if `shift` is not positive.
    """
    if not shift > 0:
        raise ValueError(f"`shift` must be positive, got {shift!r}. Use 1.0 to leave the noise levels alone.")
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_from_uniform(
    u: torch.Tensor,
    distribution: str = "discrete_uniform",
    shift: float = 1.0,
    num_train_timesteps: int = 1000,
) -> torch.Tensor:
    """Turn uniform random numbers into noise levels; every distribution falls as `u` rises.

    Args:
        u: [B], in [0, 1).
        distribution: "discrete_uniform" (sigma = (N - floor(N * u)) / N, so 1/N ... 1, with N =
            `num_train_timesteps`), "uniform" (sigma = 1 - u) or "logit_normal" (sigmoid of a standard normal
            number, by the quantile of 1 - u).
        shift: see `shift_sigma`; 1.0 changes nothing.
        num_train_timesteps: number of levels of "discrete_uniform".

    Returns:
        [B] float32, in (0, 1].

    Raises:
        ValueError: if the distribution is unknown or `shift` is not positive.

    Source: paper section 3.2, t ~ U(0, 1).

    Example:
        >>> sigma_from_uniform(torch.tensor([0.0, 0.5, 0.9999]))
        tensor([1.0000, 0.5000, 0.0010])
    """
    u = u.float()
    if distribution == "discrete_uniform":
        index = (u * num_train_timesteps).floor().clamp(max=num_train_timesteps - 1)
        sigma = (num_train_timesteps - index) / num_train_timesteps
    elif distribution == "uniform":
        sigma = 1 - u
    elif distribution == "logit_normal":
        sigma = torch.sigmoid(math.sqrt(2) * torch.erfinv(1 - 2 * u))
    else:
        raise ValueError(unknown_name("noise level distribution", distribution, DISTRIBUTIONS))
    return shift_sigma(sigma, shift)


def sample_noise_levels(
    batch_size: int,
    *,
    distribution: str = "discrete_uniform",
    shift: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw one noise level per sample.

    The random numbers are drawn where the generator lives (the CPU without one, as in the released code), so
    that a seed gives the same levels on every device.

    Returns:
        [batch_size] float32 on `device`, in (0, 1].

    Raises:
        ValueError: as `sigma_from_uniform`.
    """
    draw_device = generator.device if generator is not None else "cpu"
    u = torch.rand(batch_size, generator=generator, device=draw_device)
    return sigma_from_uniform(u, distribution, shift).to(device)
