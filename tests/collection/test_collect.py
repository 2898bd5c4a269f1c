"""Pairs through an endpoint: the same shards whatever happens on the way, and a line for everything dropped."""

import base64
import json
import tarfile

import pytest
from tests.collection.standin import KEY, draw_shapes, error

from blip3o_hf.cli import main
from blip3o_hf.collection.endpoint import Endpoint
from blip3o_hf.collection.folder import CollectionFolder, opened
from blip3o_hf.data.sources import open_source


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def manifests(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("0*.json"))]


def dropped(folder):
    return {
        each["id"]: (each["reason"], each["detail"]) for one in manifests(folder) for each in one["dropped"]["items"]
    }


def prompts(folder):
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


@pytest.fixture
def whole(collect, endpoint, tmp_path):
    """A folder of 20 pairs, made without an interruption."""
    assert collect(tmp_path / "whole") == 0
    assert len(endpoint.drawn) == 20
    endpoint.bodies.clear()
    return tmp_path / "whole"


def test_pairs_are_items_that_training_reads(whole, endpoint, capsys):
    source = open_source({"path": str(whole)})
    wanted = prompts(whole)
    assert [record.prompt for record in source] == [each["text"] for each in wanted]
    assert [record.key.rpartition(":")[2] for record in source] == [each["id"] for each in wanted]
    assert {record.target.size for record in source} == {(64, 64)}
    assert [one["pairs"] for one in manifests(whole)] == [8, 8, 4]
    assert source.content(0)["revised_prompt"] == wanted[0]["text"] + ", plainly"
    assert not list((whole / "work").iterdir())
    assert main(["data", "check", str(whole)]) == 0


def test_a_manifest_says_where_pictures_come_from_and_never_the_key(whole, endpoint):
    one = manifests(whole)[0]
    assert one["terms"] == "for tests" and one["written"].endswith("Z") and one["complete"]
    assert one["teacher"]["model"] == "painter" and one["teacher"]["options"] == {"seed": "{seed}"}
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert not [path for path in whole.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_seeds_depend_on_the_number_of_the_prompt_alone(whole, collect, endpoint, tmp_path):
    assert collect(tmp_path / "again", "--seed", "0", "--at-once", "1") == 0
    seeds = {body["prompt"]: body["seed"] for _, body in endpoint.bodies}
    assert [seeds[each["text"]] for each in prompts(whole)] == list(range(20))
    assert tars(tmp_path / "again") == tars(whole)


@pytest.mark.parametrize(("method", "number"), [("keep", 2), ("keep", 13), ("write_shard", 2), ("write_manifest", 1)])
def test_an_interrupted_run_goes_on_to_the_same_shards(
    whole, collect, endpoint, tmp_path, monkeypatch, method, number
):
    calls, original = [], getattr(CollectionFolder, method)

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CollectionFolder, method, stop)
        assert collect(tmp_path / "cut", "--at-once", "1") == 130
    assert tars(tmp_path / "cut") != tars(whole)
    assert collect(tmp_path / "cut", "--at-once", "1") == 0
    assert tars(tmp_path / "cut") == tars(whole)
    assert len(endpoint.drawn) == 20 + (method == "keep")  # the answer that came when it stopped
    assert [{**one, "written": ""} for one in manifests(tmp_path / "cut")] == [
        {**one, "written": ""} for one in manifests(whole)
    ]


def test_a_finished_collection_asks_nothing(whole, collect, endpoint):
    before = tars(whole)
    assert collect(whole) == 0
    assert endpoint.bodies == [] and tars(whole) == before


def test_two_runs_do_not_write_into_one_folder(collect, tmp_path, capsys):
    with opened(tmp_path / "shared"):
        assert collect(tmp_path / "shared") == 2
    assert "Two runs must not write into one folder." in capsys.readouterr().err


def test_other_settings_are_another_folder(whole, collect, capsys):
    for words, key in (
        (["--terms", "others"], "terms"),
        (["--seed", "1"], "seed"),
        (["--shard-size", "9"], "shard_size"),
    ):
        assert collect(whole, *words) == 2
        assert f"`{key}` was" in capsys.readouterr().err
    assert collect(whole, number=21) == 2
    assert "`number` was 20, and is now 21." in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(collect, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert collect(tmp_path) == 2
    assert "OUT must be a new folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "photo.png"]


def test_a_shard_that_is_not_as_its_manifest_says_is_an_error(whole, collect, capsys):
    (whole / "00001.tar").write_bytes(b"")
    assert collect(whole) == 2
    assert "A shard must be as its manifest says." in capsys.readouterr().err


def test_damaged_and_refused_pictures_are_listed(collect, endpoint, tmp_path, capsys):
    def draw(prompt, seed):
        if seed == 1:
            return {
                "b64_json": base64.b64encode(base64.b64decode(draw_shapes(prompt, seed)["b64_json"])[:90]).decode()
            }
        return {"b64_json": ""} if seed == 2 else draw_shapes(prompt, 5 if seed in (5, 6) else seed)

    endpoint.draw = draw
    endpoint.faults = [error(400, "not for this teacher", "content_policy_violation")]
    assert collect(tmp_path / "out", "--at-once", "1") == 0
    names = [each["id"] for each in prompts(tmp_path / "out")]
    found = dropped(tmp_path / "out")
    assert list(found) == names[:3]
    assert found[names[0]] == ("refused by the teacher", "not for this teacher")
    assert found[names[1]][0] == "no picture that can be read" and "not a readable image" in found[names[1]][1]
    assert found[names[2]] == ("no picture in the answer", "")
    assert "17 pairs of 20 prompts" in capsys.readouterr().out


def test_pictures_that_look_the_same_are_kept_once(collect, endpoint, tmp_path):
    endpoint.draw = lambda prompt, seed: draw_shapes("a red circle on a white background", 0 if seed < 10 else seed)
    assert collect(tmp_path / "out") == 0
    names = [each["id"] for each in prompts(tmp_path / "out")]
    for name in names[1:10]:  # across shards, too
        assert dropped(tmp_path / "out")[name] == ("looks like an earlier picture", names[0])


def test_what_goes_wrong_for_a_while_is_tried_again(collect, endpoint, tmp_path, waited):
    endpoint.faults = [error(429, "slow down"), error(503, "busy"), error(500, "oops")]
    assert collect(tmp_path / "out", "--at-once", "1") == 0
    assert waited == [1, 2, 4] and len(endpoint.drawn) == 23


def test_an_endpoint_that_never_answers_ends_the_run_and_keeps_what_came(collect, endpoint, tmp_path, waited, capsys):
    endpoint.faults = [(200, None)] * 3 + [error(500, f"failed for {KEY}")] * 6
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    said = capsys.readouterr()
    assert "It was asked 6 times, and at last answered 500: failed for [key]." in said.err
    assert KEY not in said.err + said.out
    assert len(list((tmp_path / "out" / "work").iterdir())) >= 3
    assert collect(tmp_path / "out") == 0
    assert len(endpoint.drawn) == 20 + 6


def test_an_endpoint_that_is_not_there_is_named(collect, tmp_path, waited, capsys):
    assert collect(tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1", "--at-once", "1") == 2
    said = capsys.readouterr().err
    assert "http://127.0.0.1:9/v1/images/generations must answer." in said and "did not answer (ConnectError" in said
    assert waited == [1, 2, 4, 8, 16]


def test_a_wrong_key_and_a_wrong_address_say_what_to_check(collect, endpoint, tmp_path, capsys, monkeypatch):
    endpoint.faults = [error(401, f"Incorrect API key provided: {KEY}")]
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    said = capsys.readouterr().err
    assert "answered 401: Incorrect API key provided: [key]" in said and "--key-env" in said and KEY not in said
    endpoint.faults = [(404, b"<html>no page</html>")]
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    assert "Check --base-url, which often ends with /v1" in capsys.readouterr().err
    assert collect(tmp_path / "out", "--base-url", "http://user:word@127.0.0.1/v1") == 2
    said = capsys.readouterr().err
    assert "must hold neither a password nor a query" in said and "word@" not in said
    monkeypatch.delenv("MY_KEY")
    assert collect(tmp_path / "out") == 2
    assert "There is none called MY_KEY." in capsys.readouterr().err


@pytest.mark.parametrize("key", ["sk-first\nsk-second", "sk-first sk-second", "sk-sécret", "sk-\x07first"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(collect, endpoint, tmp_path, capsys, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    assert collect(tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "A key must be printable ASCII without spaces and quotes." in said.err
    assert "sk-" not in said.err + said.out and endpoint.bodies == []
    with pytest.raises(ValueError, match="A key must be printable ASCII") as caught:
        Endpoint(endpoint.base_url, key)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--key-env", "sk-SECRET"], "There is none of the name that was given."),
        (["--base-url", "user:sk-SECRET@host"], "must hold neither a password nor a query"),
        (["--base-url", "localhost/v1?key=sk-SECRET"], "must hold neither a password nor a query"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(collect, tmp_path, capsys, words, message):
    assert collect(tmp_path / "out", *words) == 2
    said = capsys.readouterr()
    assert message in said.err and "SECRET" not in said.err + said.out


def test_no_part_of_a_key_is_at_the_end_of_a_long_answer(endpoint):
    endpoint.faults = [(401, b"no:" + b" " * (1997 - 9) + KEY.encode())]
    with pytest.raises(OSError, match=r"answered 401: no: \[key\]\."):
        Endpoint(endpoint.base_url, KEY).post("/images/generations", {})


@pytest.mark.parametrize("address", ["http://localhost:abc/v1", "http://[::1/v1", "ftp://host/v1", "http://a b\n/v1"])
def test_what_is_no_address_is_named(collect, tmp_path, capsys, address):
    assert collect(tmp_path / "out", "--base-url", address) == 2
    assert "--base-url must be an address such as http://localhost:8000/v1. Got 'http" in (
        capsys.readouterr().err.replace("ftp", "http")
    )


def test_an_answer_that_is_packed_wrongly_is_asked_for_again(collect, endpoint, tmp_path, waited, capsys):
    endpoint.headers = {"Content-Encoding": "gzip"}
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    assert "at last did not answer (DecodingError" in capsys.readouterr().err and len(waited) == 5


def test_addresses_of_pictures_are_not_opened(collect, endpoint, tmp_path, capsys):
    endpoint.draw = lambda prompt, seed: {"url": "http://169.254.169.254/secret.png"}
    assert collect(tmp_path / "out", "--at-once", "1") == 2
    assert "Add `--set response_format=b64_json`." in capsys.readouterr().err


def test_a_budget_is_never_passed_and_a_higher_one_goes_on(whole, collect, endpoint, tmp_path, capsys):
    budget = ["--price", "0.1", "--budget"]
    assert collect(tmp_path / "out", *budget, "1.1") == 1
    said = capsys.readouterr().out
    assert "11 pictures cost 1.1" in said and "9 prompts have no picture: the budget is reached" in said
    assert [(one["pairs"], one["complete"], one["cost"]) for one in manifests(tmp_path / "out")] == [
        (8, True, "0.8"),
        (3, False, "0.3"),
    ]
    assert len(endpoint.drawn) == 11
    assert collect(tmp_path / "out", *budget, "1.1") == 1
    assert len(endpoint.drawn) == 11
    assert collect(tmp_path / "out", *budget, "5") == 0
    assert len(endpoint.drawn) == 20 and tars(tmp_path / "out") == tars(whole)
    assert "20 pictures cost 2.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--price", "0"], ["--price", "1e-40", "--budget", "1"], ["--price", "nan"], ["--price", "x"], ["--budget", "3"]],
)
def test_bad_prices_are_refused(collect, tmp_path, capsys, words):
    assert collect(tmp_path / "out", *words) == 2
    assert "must be a number above 0" in (said := capsys.readouterr().err) or "Add --price" in said


def test_terms_and_a_teacher_are_required(tmp_path, capsys):
    command = ["collect", str(tmp_path / "out"), "--number", "2", "--categories", "shapes"]
    assert main([*command, "--teacher", "shapes"]) == 2
    assert "There is no --terms." in capsys.readouterr().err
    assert main([*command, "--terms", "mine"]) == 2
    assert "There is no --teacher." in capsys.readouterr().err
    assert main([*command, "--terms", "mine", "--teacher", "shape"]) == 2
    assert "No model found at 'shape'" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


def test_members_of_a_tar_say_nothing_about_the_machine(whole):
    with tarfile.open(whole / "00000.tar") as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
