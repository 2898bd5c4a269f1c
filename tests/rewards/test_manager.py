"""Rewards are called by TRL's protocol, and what they return is checked before it is added up."""

import asyncio
import math

import pytest
import torch
from PIL import Image

from blip3o_hf.rewards.manager import RewardManager

PICTURES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "black")]


def redness(prompts, completions, **columns):
    return [image.getpixel((0, 0))[0] / 255 for image in completions]


def only_even(prompts, completions, number, **columns):
    return [float(each) if each % 2 == 0 else None for each in number]


async def slow(prompts, completions, **columns):
    await asyncio.sleep(0)
    return [float(len(prompt)) for prompt in prompts]


class Constant:
    def __call__(self, prompts, completions, **columns):
        return torch.ones(len(prompts))


ready = Constant()


def test_rewards_are_added_by_their_weights_and_what_does_not_apply_is_left_out():
    manager = RewardManager([redness, only_even, slow, Constant()], [2.0, 1.0, 0.5, 10.0])
    scores = manager(["a", "bb", "ccc"], PICTURES, {"number": [4, 3, 2]})
    assert scores.names == ("redness", "only_even", "slow", "Constant")
    assert scores.values[:, 0].tolist() == [1, 0, 0] and math.isnan(scores.values[1, 1])
    assert scores.total.tolist() == [2 + 4 + 0.5 + 10, 1 + 10, 2 + 1.5 + 10]
    assert scores.metrics["rewards/only_even/mean"] == 3 and scores.metrics["rewards/only_even/std"] == 1


def test_a_picture_that_no_reward_applies_to_has_none():
    scores = RewardManager([only_even])(["a", "b", "c"], PICTURES, {"number": [1, 2, 3]})
    assert [math.isnan(value) for value in scores.total] == [True, False, True]


def test_values_that_are_not_finite_are_counted_and_never_0():
    def broken(prompts, completions, **columns):
        return [float("nan"), float("inf"), 0.5]

    scores = RewardManager([broken])(["a", "b", "c"], PICTURES)
    assert scores.not_finite == (2,) and scores.total.isnan().tolist() == [True, True, False]


def test_async_rewards_work_where_a_loop_runs():
    async def in_a_notebook():
        return RewardManager([slow])(["a", "bb", "ccc"], PICTURES).total.tolist()

    assert asyncio.run(in_a_notebook()) == [1, 2, 3]


def test_names_of_functions_are_found():
    manager = RewardManager([f"{__name__}:redness"])
    assert manager(["a", "b", "c"], PICTURES).total.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            [1.0],
            r"a list with a value for each of 3 pictures\. bad returned 1 values\. Return `None`",
        ),
        (5, "bad returned int."),
        (["x", 1, 2], r"A reward returns numbers and None\. bad returned 'x'\. Use float\(\)\."),
    ],
)
def test_what_a_reward_returns_is_checked(returned, message):
    def bad(prompts, completions, **columns):
        return returned

    with pytest.raises(ValueError, match=message):
        RewardManager([bad])(["a", "b", "c"], PICTURES)


def raising(prompts, completions, **columns):
    raise RuntimeError("the judge is away")


async def raising_later(prompts, completions, **columns):
    await asyncio.sleep(0)
    raise RuntimeError("the judge is away")


@pytest.mark.parametrize("reward", [raising, raising_later])
def test_an_error_in_a_reward_is_its_own_and_the_log_says_whose(reward, caplog):
    with pytest.raises(RuntimeError, match="the judge is away"):
        RewardManager([redness, reward])(["a", "b", "c"], PICTURES)
    assert caplog.messages == [f"The reward {reward.__name__} raised the RuntimeError that follows."]


def test_objects_that_can_be_called_are_found_by_name():
    manager = RewardManager([f"{__name__}:ready"])
    assert manager.names == ("Constant",) and manager(["a", "b", "c"], PICTURES).total.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([], None, "There must be a reward. Got none."),
        ([redness, redness], None, "Each reward must have a name of its own. Got redness, redness."),
        ([redness], [1.0, 2.0], r"`weights` must be a finite number for each of 1 rewards\. Got \[1\.0, 2\.0\]"),
        ([redness], [float("nan")], r"Got \[nan\]"),
        (["redness"], None, "A function of your own is written module:function. Got 'redness' in the rewards"),
    ],
)
def test_bad_settings_are_refused(rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        RewardManager(rewards, weights)


def test_columns_are_as_long_as_the_prompts():
    with pytest.raises(ValueError, match=r"`number` must have a value for each prompt. Got 1 for 3. Repeat them."):
        RewardManager([only_even])(["a", "b", "c"], PICTURES, {"number": [1]})
    with pytest.raises(ValueError, match=r"`completions` must have a value for each prompt. Got 3 for 2."):
        RewardManager([redness])(["a", "b"], PICTURES)
