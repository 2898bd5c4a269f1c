"""A step with noise has the log-probability of a normal distribution, and is Euler's without noise."""

import math
from itertools import pairwise

import pytest
import torch

from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from blip3o_hf.schedulers.stochastic_step import SDE_TYPES, stochastic_step

ONE = torch.ones(1, 1, dtype=torch.float32)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))


def coefficients(sigma, next_sigma, noise_level, sde_type, of_velocity):
    """Of x in the mean where the velocity is `of_velocity * x`, and the standard deviation."""
    step = stochastic_step(ONE, of_velocity * ONE, sigma, next_sigma, noise_level, sde_type)
    return float(step.mean), step.std


def final_variance(sigmas, noise_level, sde_type, data=0.25):
    """Of samples of the flow to Gaussian data, whose velocity is exact; and the largest relative error on the way."""
    variance, worst = 1.0, 0.0
    for sigma, next_sigma in pairwise(sigmas):
        true = (1 - sigma) ** 2 * data + sigma**2
        clean = (1 - sigma) * data / true  # of x in the mean of the data given x
        factor, std = coefficients(sigma, next_sigma, noise_level, sde_type, (1 - clean) / sigma)
        variance = factor**2 * variance + std**2
        wanted = (1 - next_sigma) ** 2 * data + next_sigma**2
        worst = max(worst, abs(variance / wanted - 1))
    return variance, worst


def levels(number):
    return torch.linspace(1, 0, number + 1, dtype=torch.float64).tolist()


@pytest.mark.parametrize("sde_type", ["ddim", "flow"])
@pytest.mark.parametrize(("sigma", "next_sigma"), [(0.9, 0.8), (0.5, 0.1), (1.0, 0.9)])
def test_the_log_probability_is_the_mean_of_a_normal_one(sde_type, sigma, next_sigma):
    sample, velocity = tensors()
    step = stochastic_step(sample, velocity, sigma, next_sigma, 0.7, sde_type, torch.Generator().manual_seed(1))
    normal = torch.distributions.Normal(step.mean, step.std)
    torch.testing.assert_close(step.log_prob, normal.log_prob(step.sample).flatten(1).mean(dim=1))


@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_without_noise_it_is_the_step_of_the_scheduler(sde_type):
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(4)
    sample, velocity = tensors()
    sigma, next_sigma = scheduler.sigmas[1:3].tolist()
    scheduler.set_begin_index(1)
    expected = scheduler.step(velocity, scheduler.timesteps[1], sample).prev_sample
    step = stochastic_step(sample, velocity, sigma, next_sigma, 0.0, sde_type)
    torch.testing.assert_close(step.sample, expected)
    assert step.std == 0 and (step.log_prob == 0).all()


@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_the_first_replay_has_the_same_probability_to_the_bit(sde_type):
    sample, velocity = tensors()
    drawn = stochastic_step(sample, velocity, 0.9, 0.8, 0.7, sde_type, torch.Generator().manual_seed(1))
    again = stochastic_step(sample, velocity, 0.9, 0.8, 0.7, sde_type, next_sample=drawn.sample)
    assert torch.equal(again.log_prob, drawn.log_prob) and torch.equal(again.sample, drawn.sample)
    other = stochastic_step(sample, velocity + 0.1, 0.9, 0.8, 0.7, sde_type, next_sample=drawn.sample)
    assert not torch.equal(other.log_prob, drawn.log_prob)


def test_gradients_reach_the_velocity_and_not_the_sample_that_was_drawn():
    sample, velocity = tensors()
    velocity.requires_grad_()
    step = stochastic_step(sample, velocity, 0.9, 0.8, 0.7, generator=torch.Generator().manual_seed(1))
    assert not step.sample.requires_grad
    step.log_prob.sum().backward()
    assert velocity.grad.abs().sum() > 0


def test_ddim_keeps_the_distributions_of_the_flow():
    variance, worst = final_variance(levels(200), 0.7, "ddim")
    assert variance == pytest.approx(0.25, rel=0.02) and worst < 0.02
    euler, _ = final_variance(levels(200), 0.0, "ddim")
    assert euler == pytest.approx(0.25, rel=0.02)


def test_cps_loses_variance_whatever_the_number_of_steps():
    """It gives clean samples of less diversity; the figures are those of its own formula."""
    assert final_variance(levels(200), 0.8, "cps")[0] < 0.75 * 0.25


@pytest.mark.parametrize("noise_level", [0.7, 1.0])
def test_the_first_step_of_flow_adds_variance(noise_level):
    factor, std = coefficients(1.0, 1 - 1e-6, noise_level, "flow", 1.0)
    assert factor**2 + std**2 == pytest.approx(1 + noise_level**4 / 4, rel=1e-4)
    factor, std = coefficients(1.0, 1 - 1e-6, noise_level, "ddim", 1.0)
    assert factor**2 + std**2 == pytest.approx(1, rel=1e-4)


def test_ddim_has_the_noise_of_flow_of_the_same_level():
    for sigma in (0.9, 0.5, 0.2):
        stds = [coefficients(sigma, sigma - 1e-4, 0.7, sde_type, 0.0)[1] for sde_type in ("ddim", "flow")]
        assert stds[0] == pytest.approx(stds[1], rel=1e-3)


def test_the_exact_divergence_of_two_steps_is_that_of_their_velocities():
    """|dmean|^2 / (2 s^2), which torch knows as the divergence of normal distributions."""
    sample, velocity = tensors()
    first = stochastic_step(sample, velocity, 0.8, 0.7, 0.7, "flow")
    second = stochastic_step(sample, velocity + 0.3, 0.8, 0.7, 0.7, "flow")
    normals = [torch.distributions.Normal(step.mean, step.std) for step in (first, second)]
    divergence = torch.distributions.kl_divergence(*normals)
    g = 0.7 * math.sqrt(0.8 / 0.2)
    expected = 0.1 / 2 * (g * 0.2 / (2 * 0.8) + 1 / g) ** 2 * 0.3**2
    torch.testing.assert_close(divergence, torch.full_like(divergence, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.5, 0.7, "ddim"), r"1 >= sigma > next_sigma >= 0\. Got sigma=0\.5 and next_sigma=0\.5"),
        ((1.1, 0.5, 0.7, "ddim"), "Got sigma=1.1"),
        ((0.5, -0.1, 0.7, "flow"), "next_sigma=-0.1"),
        ((0.5, 0.4, -0.1, "flow"), "`noise_level` of 'flow' must be from 0 to inf. Got -0.1. Try 0.7."),
        ((0.5, 0.4, 1.5, "ddim"), "`noise_level` of 'ddim' must be from 0 to 1.414. Got 1.5."),
        ((0.5, 0.4, 1.1, "cps"), "`noise_level` of 'cps' must be from 0 to 1. Got 1.1."),
        ((0.5, 0.4, float("nan"), "ddim"), "Got nan."),
        ((0.5, 0.4, 0.7, "dance"), "Unknown `sde_type` 'dance'. Available: ddim, flow, cps."),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        stochastic_step(ONE, ONE, *arguments)
