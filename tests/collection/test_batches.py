"""Batches: requests out, answers in, in any order; what is missing, twice or cut off is said."""

import json
import random

import pytest
from tests.collection.standin import draw_shapes, error
from tests.collection.test_collect import dropped, manifests, prompts, tars


@pytest.fixture
def batch(collect, tmp_path):
    """A folder, its requests, and `answer(file, requests)`, which draws them."""
    assert collect(tmp_path / "out", "--batch-out", str(tmp_path / "requests.jsonl")) == 0
    return tmp_path / "out", [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]


def answered(request, status=200, body=None):
    drawn = {"data": [draw_shapes(request["body"]["prompt"], request["body"]["seed"])]}
    response = {"status_code": status, "request_id": "r", "body": drawn if body is None else body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return ["--batch-in", str(path)]


def test_a_batch_gives_the_shards_of_live_requests(batch, collect, endpoint, tmp_path):
    folder, requests = batch
    assert [request["custom_id"][:-9] for request in requests] == [each["id"] for each in prompts(folder)]
    assert {(request["method"], request["url"]) for request in requests} == {("POST", "/v1/images/generations")}
    assert requests[3]["body"] == {"model": "painter", "prompt": prompts(folder)[3]["text"], "n": 1, "seed": 3}
    items = [answered(request) for request in requests]
    random.Random(0).shuffle(items)
    assert collect(folder, *write(tmp_path / "in.jsonl", items)) == 0
    assert endpoint.bodies == []
    assert collect(tmp_path / "live") == 0
    assert tars(folder) == tars(tmp_path / "live")
    assert manifests(folder)[0]["teacher"]["base_url"] == "batch"


def test_answers_come_in_parts_and_the_rest_is_asked_for_again(batch, collect, tmp_path, capsys):
    folder, requests = batch
    first = [answered(request) for request in requests[4:]]
    first[0] = answered(requests[4], *error(429, "slow down"))
    first[1] = answered(requests[5], *error(400, "not this", "moderation_blocked"))
    assert collect(folder, *write(tmp_path / "first.jsonl", first)) == 1
    said = capsys.readouterr().out
    assert f"1 answers of the batch failed, such as {requests[4]['custom_id'][:-9]}: 429: slow down" in said
    assert "5 prompts have no picture: no answer yet" in said
    assert [one["complete"] for one in manifests(folder)] == [False] * 3  # those after an open one may still change
    assert dropped(folder) == {requests[5]["custom_id"][:-9]: ("refused by the teacher", "not this")}
    assert collect(folder, "--batch-out", str(tmp_path / "rest.jsonl")) == 0
    rest = [json.loads(line) for line in (tmp_path / "rest.jsonl").read_text().splitlines()]
    assert rest == requests[:5]
    assert collect(folder, *write(tmp_path / "second.jsonl", map(answered, rest))) == 0
    whole = [answered(request) for request in requests]
    whole[5] = first[1]
    assert collect(tmp_path / "once", *write(tmp_path / "whole.jsonl", whole)) == 0
    assert tars(folder) == tars(tmp_path / "once")


def test_a_batch_is_within_the_budget(collect, tmp_path, capsys):
    words = ["--price", "1", "--budget", "6.5", "--batch-out", str(tmp_path / "requests.jsonl")]
    assert collect(tmp_path / "out", *words) == 0
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 6
    assert "6 of 20 open requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + text.splitlines()[0], "Line 21 of .* answers '000000-[a-z]+-[0-9a-f]{8}' again"),
        (lambda text: text[:-40], r"Line 20 of .* is not \(.*\). Download it again"),
        (lambda text: text.replace("000003-", "700003-"), "answers '700003-[a-z]+-[0-9a-f]{8}', which is none"),
        (lambda text: text.replace('"custom_id"', '"name"', 1), "Line 1 of .* has none. Is it a file of results"),
        (lambda text: text.replace('"response"', '"answer"', 1), "Line 1 of .* has neither"),
    ],
)
def test_bad_files_of_answers_change_nothing(batch, collect, tmp_path, capsys, change, message):
    import re

    folder, requests = batch
    words = write(tmp_path / "in.jsonl", map(answered, requests))
    path = tmp_path / "in.jsonl"
    path.write_text(change(path.read_text()))
    assert collect(folder, *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list((folder / "work").iterdir()) and not tars(folder)


@pytest.mark.parametrize("words", [["--seed", "7"], ["--set", "size=64x64"]])
def test_a_batch_of_other_requests_is_refused(batch, collect, tmp_path, capsys, words):
    _, requests = batch
    assert collect(tmp_path / "other", *words, "--batch-out", str(tmp_path / "other.jsonl")) == 0
    others = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert [each["custom_id"][:7] for each in others] == [each["custom_id"][:7] for each in requests]
    assert collect(tmp_path / "other", *words, *write(tmp_path / "in.jsonl", map(answered, requests))) == 2
    assert "A batch must answer requests of this collection. Line 1 of" in capsys.readouterr().err
    assert not list((tmp_path / "other" / "work").iterdir())


def test_batches_are_of_endpoints(collect, tmp_path, capsys):
    assert collect(tmp_path / "out", "--batch-out", str(tmp_path / "a.jsonl"), "--teacher", "shapes") == 2
    assert "A batch is of an endpoint." in capsys.readouterr().err
    assert collect(tmp_path / "out", "--batch-in", str(tmp_path / "a.jsonl")) == 2
    assert "There is no file" in capsys.readouterr().err
