"""Bad items are counted, reported once with their address, and tolerated up to a stated share."""

import json
import logging

import pytest

from blip3o_hf.data.sources import open_source
from blip3o_hf.data.tolerance import TolerantSource, TooManyBadItems


def make(tmp_path, number, bad, **settings):
    path = tmp_path / "a.jsonl"
    lines = [
        {"turns": [[str(i), "broken" if i in bad else "ok"]]} if i not in bad else {"turns": [["a"]]}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TolerantSource(open_source({"path": str(path)}), **settings)


def asked(source, index):
    return int(source[index].turns[0][0])


def test_a_bad_item_is_logged_once_and_the_next_good_one_stands_in(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("blip3o_hf"), "propagate", True)  # diffusers' loggers do not
    monkeypatch.setattr(logging.getLogger("blip3o_hf.data.tolerance"), "disabled", False)  # as import-linter leaves it
    source = make(tmp_path, 300, bad={3, 4, 299}, max_bad_share=0.1)
    with caplog.at_level(logging.WARNING):
        assert [asked(source, i) for i in (2, 3, 4, 5, 299, 3)] == [2, 5, 5, 5, 0, 5]
    assert [record.getMessage().split(": ")[0].rpartition("/")[2] for record in caplog.records] == [
        "a.jsonl:4",
        "a.jsonl:5",
        "a.jsonl:300",
    ]
    assert (source.num_read, source.num_bad) == (12, 3)  # each bad item once, however often it is read
    assert list(source.bad_items) == [str(tmp_path / f"a.jsonl:{line}") for line in (4, 5, 300)]


def test_reading_stops_past_the_tolerance_and_names_the_first_addresses(tmp_path):
    source = make(tmp_path, 1000, bad=set(range(500, 1000, 10)))
    for index in range(500):
        source[index]
    with pytest.raises(
        TooManyBadItems, match=r"At most 1.00% .*`max_bad_share`.* 6 of 556 are. The first of 6: "
    ) as caught:
        for index in range(500, 1000):
            source[index]
    message = str(caught.value)
    assert "a.jsonl:501: turns must be" in message and "a.jsonl:541" in message and "a.jsonl:551" not in message


def test_one_early_bad_item_does_not_stop_and_two_in_a_hundred_do(tmp_path):
    source = make(tmp_path, 200, bad={0, 60})
    for index in range(60):
        source[index]
    with pytest.raises(TooManyBadItems, match="2 of 62 are"):
        source[60]


def test_a_small_source_is_judged_at_its_end(tmp_path):
    source = make(tmp_path, 20, bad={5})
    for index in range(20):
        source[index]
    with pytest.raises(TooManyBadItems, match="1 of 21 are"):
        source.check()
    make(tmp_path, 20, bad=set()).check()


def test_tolerance_zero_stops_at_once_and_one_only_when_nothing_is_left(tmp_path):
    with pytest.raises(TooManyBadItems, match="1 of 1 are"):
        make(tmp_path, 5, bad={0}, max_bad_share=0)[0]
    assert asked(make(tmp_path, 5, bad={0, 1, 2, 3}, max_bad_share=1), 0) == 4
    with pytest.raises(TooManyBadItems, match=r"must hold at least one good item. The first of 5"):
        make(tmp_path, 5, bad=set(range(5)), max_bad_share=1)[0]
    with pytest.raises(ValueError, match=r"`max_bad_share` must be in \[0, 1\]. Got 2"):
        make(tmp_path, 5, bad=set(), max_bad_share=2)
