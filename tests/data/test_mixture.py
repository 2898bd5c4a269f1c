"""The order is decided by the seed alone, an epoch holds everything once, and reading goes on exactly where it was."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

from blip3o_hf.data.mixture import MixtureDataset, StreamingMixture, open_mixture
from blip3o_hf.data.sources import Source, open_source


@pytest.fixture
def make_source(tmp_path):
    """`make_source("a", 3, 4)`: items a0, a1, ... in files of 3 and 4 lines."""

    def make(name, *lengths):
        (tmp_path / name).mkdir(exist_ok=True)
        start = 0
        for shard, length in enumerate(lengths):
            lines = [{"turns": [[f"{name}{number}", "answer"]]} for number in range(start, start + length)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / name / f"{shard:03d}.jsonl").write_text(text)
            start += length
        return open_source({"path": str(tmp_path / name / "*.jsonl")})

    return make


@pytest.fixture
def sources(make_source):
    return [make_source("a", 7, 5, 6, 4), make_source("b", 9, 3)]


NAMES = {f"a{i}" for i in range(22)} | {f"b{i}" for i in range(12)}


def names(records):
    return [record.turns[0][0] for record in records]


def batches(stream, num_workers, count=None, batch_size=2):
    loader = DataLoader(stream, batch_size=batch_size, num_workers=num_workers, collate_fn=names)
    return list(loader if count is None else islice(loader, count))


# Map-style


def test_an_item_is_decided_by_seed_and_index(sources):
    first, second = (MixtureDataset(sources, weights=[1, 3], seed=1, length=length) for length in (5000, 60))
    order = [second.locate(index) for index in range(60)]
    assert [first.locate(index) for index in reversed(range(60))] == order[::-1]
    assert names([first[7]]) == names([second[7]])
    assert [MixtureDataset(sources, [1, 3], 2, 60).locate(index) for index in range(60)] != order


def test_by_default_everything_comes_about_once(sources):
    mixture = MixtureDataset(sources)
    assert len(mixture) == 34
    assert len(set(names(mixture[i] for i in range(34)))) > 28
    alone = MixtureDataset(sources[:1], length=44)
    told = names(alone[i] for i in range(44))
    assert set(told[:22]) == set(told[22:]) == {f"a{i}" for i in range(22)}
    assert told[:22] != told[22:]


def test_weights_hold_in_every_thousand_items_and_passes_are_permutations(sources):
    mixture = MixtureDataset(sources, weights=[1, 2], length=3000)
    located = [mixture.locate(index) for index in range(3000)]
    for start in (0, 1000, 2000):
        assert Counter(source for source, _, _ in located[start : start + 1000])[0] in (333, 334)
    for source, length in ((0, 22), (1, 12)):
        items = [(epoch, item) for number, item, epoch in located if number == source]
        assert [epoch for epoch, _ in items] == sorted(epoch for epoch, _ in items)
        for epoch in range(5):
            assert sorted(item for e, item in items if e == epoch) == list(range(length))
    assert any(source != located[i + 1][0] for i, (source, _, _) in enumerate(located[:20]))


@pytest.mark.parametrize("weights", [[1, 1e-9], [1e6, 1], [0.3335, 0.6665], [1, 1]])
def test_every_weighted_source_is_drawn(sources, weights):
    mixture = MixtureDataset(sources, weights=weights, length=1000)
    counts = Counter(mixture.locate(index)[0] for index in range(1000))
    assert sum(counts.values()) == 1000 and min(counts[0], counts[1]) >= 1


def test_wrong_mixtures_are_refused(sources, make_source):
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match="`weights` must be one finite number above 0 for each"):
            MixtureDataset(sources, weights)
        with pytest.raises(ValueError, match="`passes` must be one finite number above 0 for each"):
            StreamingMixture(sources, weights)
    with pytest.raises(ValueError, match="`weights` must be one"):
        MixtureDataset([])
    with pytest.raises(ValueError, match="Source 1 is empty"):
        MixtureDataset([sources[0], make_source("empty", 0)])
    with pytest.raises(IndexError, match=r"Items are numbered from 0 to 33. Got 34"):
        MixtureDataset(sources)[34]
    with pytest.raises(ValueError, match="`rank` must be below `world_size`"):
        StreamingMixture(sources, rank=2, world_size=2)
    with pytest.raises(ValueError, match="`shuffle_buffer` must be at least 1"):
        StreamingMixture(sources, shuffle_buffer=0)


# Streaming


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (3, 0), (2, 2), (5, 2)])
def test_ranks_and_workers_together_give_everything_once(sources, world_size, num_workers, shuffle):
    told = []
    for rank in range(world_size):
        stream = StreamingMixture(
            sources, shuffle=shuffle, shuffle_buffer=5, epochs=2, rank=rank, world_size=world_size
        )
        told += [name for batch in batches(stream, num_workers) for name in batch]
    assert Counter(told) == {name: 2 for name in NAMES}


@pytest.mark.parametrize("world_size", [7, 23])
def test_more_readers_than_shards_share_the_items_of_a_shard(sources, world_size):
    told = [names(StreamingMixture(sources, epochs=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert Counter(name for part in told for name in part) == {name: 1 for name in NAMES}


def test_the_order_is_decided_by_seed_and_epoch(sources):
    def epochs(**settings):
        told = names(StreamingMixture(sources, epochs=3, shuffle_buffer=10, **settings))
        return [told[start : start + 34] for start in (0, 34, 68)]

    first, second, third = epochs()
    assert set(first) == set(second) == set(third) == NAMES
    assert first != second != third != first
    assert epochs() == [first, second, third]
    assert epochs(seed=1)[0] != first
    plain = epochs(shuffle=False)
    assert plain[0] == plain[1] == [f"a{i}" for i in range(22)] + [f"b{i}" for i in range(12)]


def test_passes_repeat_and_thin_out_sources(make_source):
    sources = [make_source("c", 20, 20), make_source("d", 300, 100)]
    told = names(StreamingMixture(sources, passes=[2, 0.25], epochs=2))
    counts = Counter(told)
    assert all(counts[f"c{i}"] == 4 for i in range(40))
    thinned = [counts[f"d{i}"] for i in range(400)]
    assert 150 < sum(thinned) < 250 and 0 in thinned and 1 in thinned


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_resume_gives_the_uninterrupted_order(sources, num_workers, shuffle, rank):
    def stream():
        return StreamingMixture(sources, shuffle=shuffle, shuffle_buffer=4, seed=3, rank=rank, world_size=2)

    whole = batches(stream(), num_workers, 40)  # about four epochs of 17 items in batches of 2
    assert len({name for batch in whole for name in batch}) > 9
    rng = np.random.default_rng(num_workers)
    for done in (0, int(rng.integers(1, 7)), int(rng.integers(19, 25)), 29):
        resumed = stream()
        state = resumed.state_dict(batches=done, batch_size=2, num_workers=num_workers)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert batches(resumed, num_workers, 40 - done) == whole[done:]


def test_skipping_decodes_nothing(sources):
    class Watched(Source):
        def __init__(self):
            self.read_places = []

        num_shards = 3

        def shard_length(self, shard):
            return 10

        def read(self, shard, position, epoch=0):
            self.read_places.append((shard, position, epoch))
            return super().read

    watched = Watched()
    stream = StreamingMixture([watched], shuffle_buffer=4)
    stream.load_state_dict(stream.state_dict(batches=50, batch_size=1))
    list(islice(stream, 2))
    assert len(watched.read_places) == 2 and {epoch for _, _, epoch in watched.read_places} == {1}


def test_bad_items_do_not_shift_the_order(tmp_path):
    lines = [{"turns": [[f"{i}", "a"]] if i % 7 else [["a"]]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def stream():
        return open_mixture(
            {"sources": [{"path": str(tmp_path / "a.jsonl")}], "streaming": True, "max_bad_share": 0.5}
        )

    whole = batches(stream(), 0, 30)
    resumed = stream()
    resumed.load_state_dict(resumed.state_dict(batches=23, batch_size=2))
    assert batches(resumed, 0, 7) == whole[23:]


def test_a_state_of_another_order_is_refused(sources):
    state = StreamingMixture(sources).state_dict(batches=3, batch_size=2, num_workers=2)
    for settings, text in [
        ({"seed": 1}, "Its state has `seed` 0 and the stream has 1"),
        ({"shuffle": False}, "Its state has `shuffle` True"),
        ({"shuffle_buffer": 7}, "Its state has `shuffle_buffer` 10000"),
        ({"passes": [1, 2]}, r"Its state has `passes` \[1.0, 1.0\]"),
        ({"rank": 0, "world_size": 2}, "Its state has `world_size` 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            StreamingMixture(sources, **settings).load_state_dict(state)
    stream = StreamingMixture(sources)
    stream.load_state_dict(state)
    with pytest.raises(ValueError, match=r"same number of workers as before. Its state has 2 and there are 1"):
        next(iter(stream))


def test_the_launcher_says_which_rank_this_is(sources, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = names(StreamingMixture(sources, epochs=1, rank=1, world_size=2))
    assert names(StreamingMixture(sources, epochs=1)) == given


def test_a_reader_without_items_is_told(make_source):
    with pytest.raises(ValueError, match=r"Every worker must have items to read. Reader 1 of 2 has none"):
        next(iter(StreamingMixture([make_source("e", 1)], rank=1, world_size=2)))


# Settings


def test_a_mixture_opens_from_settings(tmp_path, sources):
    entries = [{"path": str(tmp_path / "a" / "*.jsonl"), "weight": 1}, {"path": str(tmp_path / "b"), "format": "json"}]
    entries[1] = {"path": str(tmp_path / "b" / "{000..001}.jsonl"), "weight": 3}
    mixture = open_mixture({"sources": entries, "seed": 5, "length": 400})
    plain = MixtureDataset(sources, [1, 3], 5, 400)
    assert [mixture.locate(i) for i in range(400)] == [plain.locate(i) for i in range(400)]
    stream = open_mixture({"sources": entries, "seed": 5, "streaming": True, "shuffle_buffer": 9})
    again = StreamingMixture(sources, [1, 3], 5, shuffle_buffer=9)
    assert names(islice(stream, 50)) == names(islice(again, 50))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": []}, r"Unknown key 'source' in the data settings. Did you mean 'sources'\?"),
        ({}, "must list `sources`"),
        (
            {"sources": [{"path": "x"}], "streaming": True, "length": 3},
            "`length` has no meaning with `streaming: true`",
        ),
        ({"sources": [{"path": "x"}], "shuffle_buffer": 3}, "`shuffle_buffer` has no meaning with `streaming: false`"),
    ],
)
def test_mixture_settings_are_checked(settings, text):
    with pytest.raises(ValueError, match=text):
        open_mixture(settings)


def test_weights_are_for_all_or_none(tmp_path, sources):
    entries = [{"path": str(tmp_path / "a" / "*.jsonl"), "weight": 1}, {"path": str(tmp_path / "b" / "*.jsonl")}]
    with pytest.raises(ValueError, match="`weight` must be given for all sources or for none"):
        open_mixture({"sources": entries})
