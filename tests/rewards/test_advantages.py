"""Advantages compare the pictures of one prompt, and are 0 where these tell nothing."""

import math

import pytest
import torch

from blip3o_hf.rewards.advantages import advantages_of, group_advantages

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


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_equal_rewards_are_equal_whatever_rounding_does_to_their_mean(scale_rewards):
    rewards = torch.tensor([0.1, 0.1, 0.1, NAN, 0.0, 1.0, NAN, NAN], dtype=torch.float64)
    assert rewards[:3].sum() / 3 != rewards[0]
    found = group_advantages(rewards, 4, scale_rewards)
    assert found.values[:4].tolist() == [0, 0, 0, 0] and found.values[5] == -found.values[4] > 0
    assert found.metrics["frac_reward_zero_std"] == 0.5


def test_a_weighted_sum_becomes_one_advantage():
    values = torch.tensor([[1.0, 10.0], [0.0, 30.0], [NAN, 20.0], [NAN, NAN]], dtype=torch.float64)
    found = advantages_of(values, [2.0, 0.1], 4)
    expected = group_advantages(torch.tensor([3.0, 3.0, 2.0, NAN]), 4)
    torch.testing.assert_close(found.values, expected.values)
    assert found.metrics == pytest.approx(expected.metrics) and found.metrics["reward"] == pytest.approx(8 / 3)


def test_rewards_of_small_numbers_count_as_much_when_each_becomes_an_advantage():
    small, large = torch.tensor([0.0, 1e-1, 0.0, 1e-1]), torch.tensor([100.0, 0.0, 0.0, 100.0])
    values = torch.stack([small, large], dim=1).double()
    summed = advantages_of(values, [1.0, 1.0], 4).values
    each = advantages_of(values, [1.0, 1.0], 4, aggregation="normalize_then_sum").values
    assert summed[1] < 0 and each[1].abs() < 1e-2 and each[3] > 1.5
    parts = [group_advantages(column, 4).values for column in values.unbind(dim=1)]
    weighted = advantages_of(values, [0.5, -2.0], 4, aggregation="normalize_then_sum")
    torch.testing.assert_close(weighted.values, 0.5 * parts[0] - 2 * parts[1])
    clipped = advantages_of(values, [1.0, 1.0], 4, "none", "normalize_then_sum", clip=0.5).values
    assert clipped.abs().max() == 0.5


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_reward_that_never_applies_changes_nothing(aggregation):
    known = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    alone = advantages_of(known[:, None], [1.0], 2, aggregation=aggregation)
    both = advantages_of(
        torch.stack([known, torch.full_like(known, NAN)], dim=1), [1.0, 3.0], 2, aggregation=aggregation
    )
    assert torch.equal(alone.values, both.values) and alone.metrics == both.metrics


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match=r"Unknown `multi_objective_aggregation` 'mean'\. Available: sum_then"):
        advantages_of(torch.zeros(2, 1), [1.0], 2, aggregation="mean")
