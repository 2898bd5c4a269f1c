"""Identities of the losses: what their gradients are on the policy that drew, and at their special values."""

import math

import pytest
import torch

from blip3o_hf.preference.losses import (
    AWM_WEIGHTS,
    awm_loss,
    clip_of,
    clipped_ratio_loss,
    dpo_loss,
    guarded_log_ratio,
    mean_square,
    nft_loss,
    reward_of_advantage,
)

SHAPE = (4, 3, 2, 2)


@pytest.fixture
def flow():
    """Clean, noise, levels, noisy, target and a velocity that learns."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, velocity = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    level = sigma.view(-1, 1, 1, 1)
    noisy = (1 - level) * clean + level * noise
    return {"clean": clean, "sigma": sigma, "noisy": noisy, "target": noise - clean, "velocity": velocity}


def gradient(loss, velocity):
    """Of the sum of a loss at a velocity, so that each picture has its own."""
    velocity = velocity.clone().requires_grad_()
    loss(velocity).sum().backward()
    return velocity.grad


def nft(flow, velocity, old, advantages, **settings):
    return nft_loss(velocity, old, flow["noisy"], flow["clean"], flow["sigma"], advantages, **settings)


ADVANTAGES = torch.tensor([1.0, -2.0, 0.0, 5.0], dtype=torch.float64)


def test_rewards_are_half_for_an_advantage_of_0_and_bounded():
    rewards = reward_of_advantage(torch.tensor([0.0, 5.0, -5.0, 50.0, -50.0]))
    assert rewards.tolist() == [0.5, 1, 0, 1, 0]


@pytest.mark.parametrize("mix_beta", [0.1, 0.5, 1.0])
def test_nft_is_a_pull_to_the_old_policy_where_rewards_say_nothing(flow, mix_beta):
    zero, velocity = torch.zeros(4, dtype=torch.float64), flow["velocity"]
    on_policy = gradient(lambda v: nft(flow, v, velocity, zero, mix_beta=mix_beta, adaptive_weight=False), velocity)
    torch.testing.assert_close(on_policy, torch.zeros(SHAPE, dtype=torch.float64), atol=1e-12, rtol=0)
    old = velocity - 0.3
    off_policy = gradient(lambda v: nft(flow, v, old, zero, mix_beta=mix_beta, adaptive_weight=False), velocity)
    delta = (velocity - old) / velocity[0].numel()
    torch.testing.assert_close(off_policy, 2 * mix_beta**2 * delta)


def test_nft_of_the_best_reward_is_the_flow_loss(flow):
    best = torch.full((4,), 5.0, dtype=torch.float64)
    for old in (flow["velocity"], flow["velocity"] + 0.4):
        found = gradient(lambda v, old=old: nft(flow, v, old, best, adaptive_weight=False), flow["velocity"])
        expected = gradient(lambda v: mean_square(v - flow["target"]), flow["velocity"])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mix_beta", [0.1, 1.0])
def test_nft_on_policy_is_the_flow_loss_times_beta_and_twice_the_reward_less_1(flow, mix_beta):
    velocity = flow["velocity"]
    found = gradient(lambda v: nft(flow, v, velocity, ADVANTAGES, mix_beta=mix_beta, adaptive_weight=False), velocity)
    flow_gradient = gradient(lambda v: mean_square(v - flow["target"]), velocity)
    factor = mix_beta * (2 * reward_of_advantage(ADVANTAGES) - 1)
    torch.testing.assert_close(found, factor.view(-1, 1, 1, 1) * flow_gradient)


@pytest.mark.parametrize("mix_beta", [0.1, 0.5, 1.0])
def test_the_released_form_on_policy_is_the_advantage_times_the_weighted_flow_whatever_beta(flow, mix_beta):
    velocity = flow["velocity"]
    level = flow["sigma"].view(-1, 1, 1, 1)

    def weighted_flow(v):
        error = flow["noisy"] - level * v - flow["clean"]
        return mean_square(error) / error.detach().abs().flatten(1).mean(dim=1)

    found = gradient(lambda v: nft(flow, v, velocity, ADVANTAGES, mix_beta=mix_beta), velocity)
    torch.testing.assert_close(found, ADVANTAGES.view(-1, 1, 1, 1) * gradient(weighted_flow, velocity))


def test_the_loss_on_policy_does_not_tell_the_reward(flow):
    """So it is judged by its gradient, and by rewards."""
    velocity = flow["velocity"]
    losses = [nft(flow, velocity, velocity, advantages) for advantages in (ADVANTAGES, -ADVANTAGES)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("weight", AWM_WEIGHTS)
def test_awm_on_policy_is_the_advantage_times_the_weighted_flow(flow, weight):
    velocity = flow["velocity"]

    def weighted(v):
        error = mean_square(v - flow["target"])
        sigma = flow["sigma"]
        return {
            "velocity": error,
            "sigma": sigma * error,
            "sigma_squared": sigma**2 * error,
            "ghuber": 4 * sigma * (error + 1e-10) ** 0.25,
        }[weight]

    found = gradient(
        lambda v: awm_loss(v, velocity, flow["target"], flow["sigma"], ADVANTAGES, weight=weight), velocity
    )
    torch.testing.assert_close(found, ADVANTAGES.view(-1, 1, 1, 1) * gradient(weighted, velocity))


def test_awm_stops_at_its_clip(flow):
    better, old = flow["target"] + 0.1 * (flow["velocity"] - flow["target"]), flow["velocity"]
    good = ADVANTAGES.abs()
    found = gradient(lambda v: awm_loss(v, old, flow["target"], flow["sigma"], good, 0.01, "velocity"), better)
    assert (found[[0, 1, 3]] == 0).all()  # the ratio is past its clip already


def test_the_clipped_ratio_is_ppo_s():
    log_ratio = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0])
    advantages = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    found = clipped_ratio_loss(log_ratio, advantages, 0.2)
    torch.testing.assert_close(found, torch.tensor([-2.0, -1.2, -math.exp(-1), math.exp(1), 0.8]))


def test_clips_follow_the_number_of_dimensions():
    assert clip_of(6.5, 4096) == pytest.approx(1.6e-3, rel=0.01)
    assert clip_of(6.5, 114_688) == pytest.approx(5.7e-5, rel=0.01)


def test_the_guarded_ratio_has_no_bias():
    """Of normal steps whose mean moved: the plain mean log-ratio is below 0, the guarded one is 0 on average."""
    generator = torch.Generator().manual_seed(0)
    std, moved = 0.5, 0.2
    old_mean = torch.zeros(4000, 64)
    drawn = old_mean + std * torch.randn(old_mean.shape, generator=generator)
    mean = old_mean + moved
    log_ratio = -((drawn - mean).square() - (drawn - old_mean).square()).mean(dim=1) / (2 * std**2)
    assert log_ratio.mean() == pytest.approx(-(moved**2) / (2 * std**2), rel=0.05)
    guarded = guarded_log_ratio(log_ratio, mean, old_mean, std)
    assert abs(guarded.mean()) < 0.002 and guarded.std() == pytest.approx(moved / 8, rel=0.05)


def test_dpo_at_the_reference_is_log_2_with_a_quarter_of_beta(flow):
    beta, reference = 1000.0, mean_square(flow["velocity"] - flow["target"])
    lost = reference + 0.01

    def loss(velocity):
        return dpo_loss(mean_square(velocity - flow["target"]), lost, reference, lost, beta).loss

    assert loss(flow["velocity"]).tolist() == pytest.approx([math.log(2)] * 4)
    expected = gradient(lambda v: mean_square(v - flow["target"]), flow["velocity"])
    torch.testing.assert_close(gradient(loss, flow["velocity"]), beta / 4 * expected)


def test_dpo_of_a_swapped_pair_has_the_other_sign_and_of_an_equal_pair_log_2():
    one, two = torch.tensor([0.3, 0.1]), torch.tensor([0.2, 0.2])
    found, swapped = dpo_loss(one, two, two, two, 10.0), dpo_loss(two, one, two, two, 10.0)
    torch.testing.assert_close(found.chosen - found.rejected, -(swapped.chosen - swapped.rejected))
    equal = dpo_loss(one, one, two, two, 1e4)
    torch.testing.assert_close(equal.loss, torch.full((2,), math.log(2)))
    smoothed = dpo_loss(one, two, two, two, 10.0, label_smoothing=0.5)
    torch.testing.assert_close(smoothed.loss, (found.loss + swapped.loss) / 2)


def test_an_unknown_weight_is_named():
    with pytest.raises(ValueError, match=r"Unknown AWM weight 'huber'\. .* Available: velocity, sigma, sigma_sq"):
        awm_loss(*(torch.zeros(SHAPE),) * 3, torch.ones(4), torch.ones(4), weight="huber")
