"""Prompts of each step: in a new order in each epoch, repeated for all steps that learn from one drawing."""

import itertools

import datasets
import pytest
from accelerate.data_loader import BatchSamplerShard
from tests.preference.runs import ROWS
from torch.utils.data import BatchSampler

from blip3o_hf.preference.prompts import PromptDataset, collated
from blip3o_hf.preference.reward_trainer import RepeatedPrompts

MICRO_BATCH, ACCUMULATION, REPEATS = 2, 3, 2


def steps(num_processes, epoch=0, num_prompts=20):
    """Prompts of each step and micro-batch, `[step][micro-batch][process]`, as accelerate deals them out."""
    sampler = RepeatedPrompts(num_prompts, MICRO_BATCH * ACCUMULATION * num_processes, REPEATS, seed=3)
    sampler.set_epoch(epoch)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, MICRO_BATCH, drop_last=False), num_processes, process))
        for process in range(num_processes)
    ]
    assert sum(map(len, itertools.chain(*shards))) == len(sampler)
    rows = list(zip(*shards, strict=True))
    return [rows[start : start + ACCUMULATION] for start in range(0, len(rows), ACCUMULATION)]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_every_step_of_a_drawing_has_the_same_prompts_at_the_same_places(num_processes):
    found = steps(num_processes)
    assert len(found) % REPEATS == 0
    for start in range(0, len(found), REPEATS):
        assert all(step == found[start] for step in found[start : start + REPEATS])
    different = [number for step in found[::REPEATS] for row in step for batch in row for number in batch]
    order = different[:20]
    assert sorted(order) == list(range(20))
    assert different[20:] == order[: len(different) - 20]  # the last step is filled up with the first ones


def test_orders_are_new_in_each_epoch_and_the_same_after_resuming():
    assert steps(1, epoch=0) != steps(1, epoch=1) == steps(1, epoch=1)
    assert steps(1, num_prompts=2)[0][0][0] in ([0, 1], [1, 0])
    plain = RepeatedPrompts(5, 3, 1, seed=0, is_shuffled=False)
    assert list(plain) == [0, 1, 2, 3, 4, 0] and len(plain) == 6


def test_the_trainer_reads_them_in_order_where_it_is_told(start):
    trainer = start("nft", train_sampling_strategy="sequential", gradient_accumulation_steps=2)
    assert list(trainer._get_train_sampler()) == [0, 1, 2, 3]


def test_rows_are_those_of_a_list_or_of_datasets():
    for rows in (ROWS, datasets.Dataset.from_list(ROWS)):
        dataset = PromptDataset(rows, "rows")
        assert len(dataset) == len(ROWS) and [dataset[index] for index in range(len(dataset))] == ROWS
    assert collated(ROWS[:2]) == {"prompt": ["a red circle", "two blue squares"], "tag": [0, 1]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"prompt": " "}], r"rows\[1\] has ' '\. Correct it"),
        ([{"prompt": ["a"]}], r"rows\[0\] has \['a'\]"),
        (["a red circle"], r"rows\[0\] has None"),
        ([{"prompt": "a \ud800"}], r"The prompt of rows\[0\]"),
        ({"prompt": ["a"]}, "`rows` must be prompts: a dataset of `datasets` or a list of rows. Got dict."),
        (iter(ROWS), "Got list_iterator"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "Got IterableDataset"),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PromptDataset(rows, "rows")
