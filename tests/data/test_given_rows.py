"""Rows that a user passes as they are: a bad one is counted under its index, as for sources."""

import pickle

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from blip3o_hf.data.given_rows import GivenRows, GivenStream, as_given, check_given
from blip3o_hf.data.images import decoded
from blip3o_hf.data.records import BadItem, Record
from blip3o_hf.data.tolerance import TooManyBadItems


def complete(identity, record):
    return decoded(record)


def rows(*bad, number=8):
    image = Image.new("RGB", (8, 8))
    return [{"image": image, "caption": "" if index in bad else f"number {index}"} for index in range(number)]


class Stream(IterableDataset):
    """A user's stream, with an attribute of its own."""

    epoch = 0

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_a_bad_row_is_counted_by_its_index_and_the_next_good_one_is_taken(caplog):
    given = GivenRows(rows(3), "train_dataset", complete)
    assert [given[index].prompt for index in range(8)][2:5] == ["number 2", "number 4", "number 4"]
    assert list(given.bad_items.bad_items) == ["train_dataset[3]"]
    assert "Bad item train_dataset[3]: no text under 'caption'" in caplog.text
    assert len(given) == 8 and given[-1].prompt == "number 7"
    with pytest.raises(IndexError, match=r"Items are numbered from 0 to 7\. Got 8"):
        given[8]


def test_too_many_bad_rows_stop_with_the_indices_of_all():
    given = GivenRows(rows(1, 6), "train_dataset", complete)
    with pytest.raises(TooManyBadItems, match=r"train_dataset\[1\]: .*train_dataset\[6\]: "):
        list(given)
    everything = GivenRows(rows(0, number=1), "train_dataset", complete)
    with pytest.raises(
        TooManyBadItems, match=r"`train_dataset` must hold at least one good item\. .*train_dataset\[0"
    ):
        everything[0]


def test_records_with_one_address_are_told_apart():
    image = Image.new("RGB", (8, 8))
    given = GivenRows([Record("same", image, "good"), Record("same", image, "[IMG]")], "train_dataset", refuse_marks)
    assert given[1].prompt == "good"
    assert list(given.bad_items.bad_items) == ["train_dataset[1] (same)"]


def refuse_marks(identity, record):
    if "[" in record.prompt:
        raise BadItem(record.key, "a mark")
    return record


def test_what_is_neither_a_row_nor_a_record_stays_as_it_is():
    items = [(1, 2), torch.zeros(2)]
    given = GivenRows(items, "train_dataset", complete)
    assert given[0] is items[0] and given[1] is items[1]


def test_a_stream_leaves_a_bad_row_out():
    given = GivenStream(Stream(rows(3)), "train_dataset", complete)
    assert [record.prompt for record in given] == [f"number {index}" for index in range(8) if index != 3]
    assert list(given.bad_items.bad_items) == ["train_dataset[3]"]
    given.set_epoch(5)
    assert given.dataset.epoch == 5
    with pytest.raises(TypeError, match="len"):
        len(given)


def test_many_rows_are_read_at_once_where_the_dataset_can():
    class Rows(list):
        calls = 0

        def __getitems__(self, indices):
            self.calls += 1
            return [self[index] for index in indices]

    given = GivenRows(Rows(rows(5)), "train_dataset", complete)
    loader = DataLoader(given, batch_size=4, collate_fn=list)
    assert [record.prompt for batch in loader for record in batch][4:6] == ["number 4", "number 6"]
    assert given.dataset.calls == 2 and list(given.bad_items.bad_items) == ["train_dataset[5]"]


def test_it_reaches_the_processes_of_a_loader_and_is_made_once():
    given = check_given(rows(), "train_dataset", complete)
    assert pickle.loads(pickle.dumps(given))[2].prompt == "number 2"
    assert check_given(given, "other", complete) is given
    assert as_given(given) is given.dataset and as_given([1]) == [1]
