"""Noise levels: values, ranges and directions of the distributions, and the shift."""

import math
import re

import pytest
import torch

from blip3o_hf.objectives.noise_levels import (
    DISTRIBUTIONS,
    sample_noise_levels,
    shift_sigma,
    sigma_from_uniform,
)

LARGEST_U = 1 - 2**-24


def test_discrete_uniform_is_the_grid_of_the_released_training_code():
    u = torch.tensor([0.0, 0.0005, 0.001, 0.5, 0.9999, LARGEST_U])
    sigma = sigma_from_uniform(u)
    assert torch.equal(sigma, torch.tensor([1000, 1000, 999, 500, 1, 1]) / 1000)
    assert sigma.dtype == torch.float32


def test_discrete_uniform_agrees_with_recorded_training_draws():
    # Three draws of the recorded reference run (to four digits), with the timesteps it derived from them.
    u = torch.tensor([0.1918, 0.5384, 0.5907])
    assert torch.equal(sigma_from_uniform(u), torch.tensor([809.0, 462.0, 410.0]) / 1000)


def test_discrete_uniform_reaches_every_level_and_only_those():
    u = (torch.arange(4000) + 0.5) / 4000
    levels, counts = sigma_from_uniform(u).unique(return_counts=True)
    assert torch.equal(levels, torch.arange(1, 1001) / 1000)
    assert counts.eq(4).all()
    assert sigma_from_uniform(u, num_train_timesteps=8).unique().tolist() == [k / 8 for k in range(1, 9)]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_levels_lie_above_zero_and_fall_as_u_rises(distribution, shift):
    u = torch.cat([torch.linspace(0, 0.999, 500), torch.tensor([LARGEST_U])])
    sigma = sigma_from_uniform(u, distribution, shift)
    assert sigma.shape == u.shape and sigma.dtype == torch.float32
    assert (sigma > 0).all() and (sigma <= 1).all()
    assert (sigma.diff() <= 0).all()


def test_continuous_uniform_is_within_one_level_of_the_discrete_one():
    u = torch.linspace(0, 0.999, 777)
    gap = sigma_from_uniform(u, "discrete_uniform") - sigma_from_uniform(u, "uniform")
    assert gap.min() > -1e-6 and gap.max() < 1e-3 + 1e-6


def test_logit_normal_has_standard_normal_logits():
    quartile = 0.6744897501960817
    sigma = sigma_from_uniform(torch.tensor([0.25, 0.5, 0.75]), "logit_normal")
    expected = [1 / (1 + math.exp(-z)) for z in (quartile, 0.0, -quartile)]
    torch.testing.assert_close(sigma, torch.tensor(expected))
    u = (torch.arange(20000) + 0.5) / 20000
    logits = torch.logit(sigma_from_uniform(u, "logit_normal").double())
    assert abs(logits.mean()) < 1e-3 and abs(logits.std() - 1) < 1e-2


def test_shift_moves_towards_noise_and_keeps_the_ends():
    sigma = torch.linspace(0, 1, 11)
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)
    shifted = shift_sigma(sigma, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] > sigma[1:-1]).all()
    torch.testing.assert_close(shifted[5], torch.tensor(0.75))
    torch.testing.assert_close(shift_sigma(shifted, 1 / 3.0), sigma)
    u = torch.linspace(0, 0.99, 50)
    assert torch.equal(sigma_from_uniform(u, shift=3.0), shift_sigma(sigma_from_uniform(u), 3.0))


def test_sampling_is_reproducible_and_follows_the_generator():
    draws = [sample_noise_levels(64, distribution="uniform", shift=1.0, generator=torch.manual_seed(7)) for _ in "ab"]
    assert torch.equal(*draws)
    u = torch.rand(64, generator=torch.manual_seed(7))
    assert torch.equal(draws[0], sigma_from_uniform(u, "uniform"))
    torch.manual_seed(7)
    assert torch.equal(sample_noise_levels(64, distribution="uniform", shift=1.0), draws[0])
    assert sample_noise_levels(3, device="meta").device.type == "meta"


def test_errors():
    text = (
        "Unknown noise level distribution 'logitnormal'. Did you mean 'logit_normal'? "
        "Available: discrete_uniform, uniform, logit_normal."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        sample_noise_levels(2, distribution="logitnormal")
    for shift in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`shift` must be positive, got"):
            sigma_from_uniform(torch.rand(2), shift=shift)
