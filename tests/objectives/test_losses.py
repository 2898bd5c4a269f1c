"""The three objectives: round trips of the path, float32 losses, and the errors for mismatched tensors."""

import re

import pytest
import torch

from blip3o_hf.objectives.feature_flow import add_noise, flow_loss, predicted_target, velocity
from blip3o_hf.objectives.feature_regression import regression_loss
from blip3o_hf.objectives.latent_flow import scale_latents, unscale_latents
from blip3o_hf.objectives.phrases import phrase_loss


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(dtype) for _ in range(2)]


def test_path_runs_from_target_to_noise():
    target, noise = pair(3, 4, 2, 2)
    assert torch.equal(add_noise(target, noise, torch.zeros(3)), target)
    assert torch.equal(add_noise(target, noise, torch.ones(3)), noise)
    half = add_noise(target, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(half[0], target[0]) and torch.equal(half[2], noise[2])
    torch.testing.assert_close(half[1], (target[1] + noise[1]) / 2)
    assert torch.equal(add_noise(target, noise, torch.tensor(0.3)), add_noise(target, noise, torch.full((3,), 0.3)))


@pytest.mark.parametrize("shape", [(5,), (5, 6), (5, 6, 3), (5, 6, 2, 2)])
def test_velocity_leads_back_to_the_target_from_every_level(shape):
    target, noise = pair(*shape)
    sigma = torch.tensor([0.0, 0.001, 0.4, 0.999, 1.0])
    noisy = add_noise(target, noise, sigma)
    torch.testing.assert_close(predicted_target(noisy, velocity(target, noise), sigma), target)


def test_velocity_is_the_derivative_of_the_path():
    target, noise = (x.double() for x in pair(2, 8))
    _, derivative = torch.autograd.functional.jvp(
        lambda sigma: add_noise(target, noise, sigma), torch.tensor(0.4).double(), torch.tensor(1.0).double()
    )
    torch.testing.assert_close(derivative, velocity(target, noise))


def test_sigma_is_cast_to_the_dtype_of_the_target_before_mixing():
    target, noise = pair(2, 8, dtype=torch.bfloat16)
    sigma = torch.tensor([0.809, 0.462])
    noisy = add_noise(target, noise, sigma)
    rounded = sigma.bfloat16()[:, None]
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy, (1 - rounded) * target + rounded * noise)


def test_flow_loss_is_zero_at_the_exact_velocity_and_plain_mean_elsewhere():
    target, noise = pair(3, 4, 5)
    exact = velocity(target, noise)
    assert flow_loss(exact, target, noise) == 0
    assert flow_loss(exact + 2.0, target, noise).item() == pytest.approx(4.0, rel=1e-5)
    per_sample = flow_loss(exact * torch.tensor([1.0, 2.0, 3.0])[:, None, None], target, noise, reduction="none")
    assert per_sample.shape == (3,) and per_sample[0] == 0
    torch.testing.assert_close(per_sample[2], exact[2].mul(2).square().mean())
    torch.testing.assert_close(
        per_sample.mean(), flow_loss(exact * torch.tensor([1.0, 2.0, 3.0])[:, None, None], target, noise)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_are_computed_in_float32(dtype, reduction):
    target, noise = pair(4, 64, dtype=dtype)
    prediction = torch.zeros_like(target, requires_grad=True)
    for loss, expected in (
        (flow_loss(prediction, target, noise, reduction), noise.double() - target.double()),
        (regression_loss(prediction, target, reduction), target.double()),
    ):
        dims = None if reduction == "mean" else 1
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected.square().mean(dims), rtol=1e-6, atol=0)
        loss.sum().backward()
    assert prediction.grad.dtype == dtype and prediction.grad.abs().sum() > 0


def test_regression_is_minimal_at_the_mean_of_the_targets():
    # The paper's reason for flow matching: MSE fits the mean of the target distribution.
    targets, _ = pair(50, 6)
    weight = torch.zeros(1, 6, requires_grad=True)
    regression_loss(weight.expand(50, 6), targets).backward()
    torch.testing.assert_close(weight.grad, -2 * targets.mean(0, keepdim=True) / 6)


@pytest.mark.parametrize("shift_factor", [None, 0.0, 0.1159])
def test_latent_scaling_round_trip(shift_factor):
    latents, _ = pair(2, 4, 3, 3)
    scaled = scale_latents(latents, 0.3611, shift_factor)
    torch.testing.assert_close(scaled, (latents - (shift_factor or 0)) * 0.3611)
    torch.testing.assert_close(unscale_latents(scaled, 0.3611, shift_factor), latents)


def test_errors():
    target, noise = pair(2, 4)
    text = "Got prediction (1, 4) and target (2, 4). Bring the target to the layout of the model's output."
    with pytest.raises(ValueError, match=re.escape(text)):
        regression_loss(target[:1], target)
    with pytest.raises(ValueError, match=re.escape(text)):
        flow_loss(target[:1], target, noise)
    with pytest.raises(ValueError, match=r"Unknown reduction 'non'. Did you mean 'none'\? Available: mean, none\."):
        flow_loss(target, target, noise, reduction="non")
    for sigma in (torch.rand(4), torch.rand(2, 1)):
        with pytest.raises(ValueError, match=r"`sigma` holds one noise level per sample, shape \[2\] or \[\]"):
            add_noise(target, noise, sigma)
        with pytest.raises(ValueError, match="`sigma` holds one noise level per sample"):
            predicted_target(target, noise, sigma)


def test_each_part_of_the_queries_learns_all_words_of_its_phrase():
    query_logits, _ = pair(2, 4, 7, dtype=torch.bfloat16)
    phrase_ids = torch.tensor([[[1, 2, 3], [4, -100, -100]], [[0, 6, -100], [5, 5, 5]]])
    log_shares = query_logits.float().log_softmax(-1)
    expected = [
        -torch.stack([log_shares[row, query, word] for word in phrase_ids[row, query // 2] if word >= 0]).mean()
        for row in range(2)
        for query in range(4)
    ]
    loss = phrase_loss(query_logits, phrase_ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_phrases_divide_the_queries():
    message = "`phrase_ids` must divide the queries evenly. Got 3 phrases for 4 queries."
    with pytest.raises(ValueError, match=re.escape(message)):
        phrase_loss(torch.zeros(1, 4, 7), torch.zeros(1, 3, 1, dtype=torch.long))
