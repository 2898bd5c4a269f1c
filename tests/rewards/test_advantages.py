"""Advantages compare the pictures of one prompt, and are 0 where these tell nothing."""

import math

import pytest
import torch

from blip3o_hf.rewards.advantages import group_advantages

NAN = math.nan


def test_advantages_of_a_group_sum_to_0_and_are_those_of_trl():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 1.0, 2.0, 2.0])
    values = group_advantages(rewards, 4).values
    groups = rewards.view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(values, expected.flatten())
    torch.testing.assert_close(values.view(2, 4).sum(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_equal_rewards_tell_nothing(scale_rewards):
    found = group_advantages(torch.tensor([0.3, 0.3, 0.3, 1.0, 0.0, 0.5]), 3, scale_rewards)
    assert found.values[:3].tolist() == [0, 0, 0] and found.values[3:].abs().sum() > 0
    assert found.metrics["frac_reward_zero_std"] == 0.5
    everything = group_advantages(torch.full((6,), 0.7), 3, scale_rewards)
    assert everything.values.tolist() == [0] * 6 and everything.values.isfinite().all()


def test_what_is_not_known_is_left_out():
    found = group_advantages(torch.tensor([1.0, NAN, 0.0, NAN, NAN, NAN]), 3)
    assert found.values[1] == 0 and found.values[0] == -found.values[2] > 0
    assert found.values[3:].tolist() == [0, 0, 0] and found.metrics["reward"] == 0.5


def test_scales_and_the_clip():
    rewards = torch.tensor([1.0, 0.0, 10.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 2, "none").values, torch.tensor([0.5, -0.5, 5.0, -5.0]))
    batch = group_advantages(rewards, 2, "batch").values
    torch.testing.assert_close(batch, torch.tensor([0.5, -0.5, 5.0, -5.0]) / (rewards.std() + 1e-4))
    assert group_advantages(rewards, 2, "none", clip=1.0).values.abs().max() == 1.0


@pytest.mark.parametrize(
    ("rewards", "size", "scale", "message"),
    [
        ([1.0, 0.0, 1.0], 2, "group", "Rewards must be whole groups of 2. Got 3. Draw so many pictures of each."),
        ([], 2, "group", "Got 0."),
        ([1.0], 1, "group", "`num_generations` must be a whole number of at least 2. Got 1."),
        ([1.0, 0.0], 2, "all", "Unknown `scale_rewards` 'all'. Available: group, batch, none."),
    ],
)
def test_bad_groups_are_refused(rewards, size, scale, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(rewards), size, scale)
