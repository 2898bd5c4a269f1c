"""New captions for pictures of any source, long and short; what cannot be described is listed."""

import io
import json

import pytest
from PIL import Image
from tests.collection.standin import error
from tests.collection.test_collect import manifests, tars

from blip3o_hf.cli import main
from blip3o_hf.collection.folder import CollectionFolder
from blip3o_hf.data.sources import open_source


@pytest.fixture
def photos(tmp_path):
    """Ten pictures as PNG and JPEG, some with captions, one damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        image = Image.new("RGB", (32, 24), (20 * number, 0, 99))
        image.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    (folder / "0.txt").write_text("an old caption")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:50])
    return folder


@pytest.fixture
def recaption(endpoint):
    def run(data, folder, *words):
        command = ["recaption", str(data), str(folder), "--model", "openai:poet", "--base-url", endpoint.base_url]
        return main([*command, "--shard-size", "4", "--at-once", "2", *words])

    return run


def test_pictures_get_a_long_and_a_short_caption(photos, recaption, endpoint, tmp_path, capsys):
    endpoint.say = lambda text, body: (
        "a blue sheet" if "one plain sentence" in text else "A large sheet in plain blue."
    )
    assert recaption(photos, tmp_path / "out", "--terms", "photos of mine") == 0
    source = open_source({"path": str(tmp_path / "out"), "short_caption": "short", "short_caption_rate": 1.0})
    assert len(source) == 9 and {record.prompt for record in source} == {"a blue sheet"}
    assert {source.content(number)["caption"] for number in range(9)} == {"A large sheet in plain blue."}
    assert source.content(0)["original_caption"] == "an old caption"
    for number, place in ((0, 0), (1, 1), (8, 9)):  # the same bytes, of either kind
        stored = source.content(number)["image"]
        name = f"{place}.{'jpg' if place % 2 else 'png'}"
        assert (stored() if callable(stored) else stored) == (photos / name).read_bytes()
    one = manifests(tmp_path / "out")[1]
    assert one["dropped"]["counts"] == {"no picture that can be used": 1}
    assert one["dropped"]["items"][0]["id"].endswith("4.png")
    assert one["terms"] == "photos of mine" and one["captioner"]["model"] == "poet"
    assert "9 of 10 pictures have captions" in capsys.readouterr().out


def test_captions_that_cannot_be_used_are_listed(photos, recaption, endpoint, tmp_path):
    answers = iter(["", "a [IMG] b", "fine"])
    endpoint.say = lambda text, body: next(answers, "fine")
    content = endpoint.content

    def cut(path, body):
        said = content(path, body)
        said["choices"][0]["finish_reason"] = "length" if len(endpoint.bodies) == 4 else "stop"
        return said

    endpoint.content = cut
    assert recaption(photos, tmp_path / "out", "--short", "", "--at-once", "1") == 0
    found = [each for one in manifests(tmp_path / "out") for each in one["dropped"]["items"]]
    assert [each["reason"] for each in found] == [
        "long caption is empty",
        "long caption cannot be learned from",
        "long caption cut off",
        "no picture that can be used",
    ]
    assert "short" not in open_source({"path": str(tmp_path / "out")}).content(0)


def test_an_interrupted_run_asks_for_no_caption_twice(photos, recaption, endpoint, tmp_path, monkeypatch):
    said = iter(range(1000))
    endpoint.say = lambda text, body: f"caption {next(said)}"  # never the same again
    original, calls = CollectionFolder.keep, []

    def stop(self, *arguments):
        original(self, *arguments)
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CollectionFolder, "keep", stop)
        assert recaption(photos, tmp_path / "out") == 130
    assert recaption(photos, tmp_path / "out") == 0
    assert len(endpoint.bodies) == 18
    before = tars(tmp_path / "out")
    assert recaption(photos, tmp_path / "out") == 0
    assert len(endpoint.bodies) == 18 and tars(tmp_path / "out") == before
    assert not list((tmp_path / "out" / "work").iterdir())


def test_other_instructions_are_another_folder(photos, recaption, tmp_path, capsys):
    assert recaption(photos, tmp_path / "out") == 0
    assert recaption(photos, tmp_path / "out", "--long", "Say what it is.") == 2
    assert "`instructions.long` was" in capsys.readouterr().err
    assert recaption(photos, tmp_path / "other", "--long", " ") == 2
    assert "A picture needs a caption." in capsys.readouterr().err
    assert recaption(photos, tmp_path / "other", "--model", "poet") == 2
    assert "Write --model openai:NAME" in capsys.readouterr().err


def test_settings_of_the_source_are_compared_and_no_path_is_shown(photos, recaption, tmp_path, capsys):
    assert recaption(photos, tmp_path / "out") == 0
    one = manifests(tmp_path / "out")[1]
    assert one["source"] == {"path": "photos", "format": "auto"}
    assert one["dropped"]["items"][0]["id"] == "photos/4.png"
    assert not [path for path in (tmp_path / "out").glob("*.json") if str(tmp_path) in path.read_text()]
    assert recaption(photos, tmp_path / "out", "--format", "imagefolder") == 2
    assert "`source.format` was 'auto', and is now 'imagefolder'." in capsys.readouterr().err
    assert recaption(photos, tmp_path / "out", "caption=text") == 2
    assert "`source.caption` was not set, and is now 'text'." in capsys.readouterr().err


def test_captions_belong_to_their_picture(photos, recaption, endpoint, tmp_path, monkeypatch):
    said = iter(range(1000))
    endpoint.say = lambda text, body: f"caption {next(said)}"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blip3o_hf.collection.folder._digest", stop)
        assert recaption(photos, tmp_path / "out", "--short", "") == 130
    Image.new("RGB", (32, 24), "green").save(photos / "0.png")
    assert recaption(photos, tmp_path / "out", "--short", "") == 0
    source = open_source({"path": str(tmp_path / "out")})
    found = [int(source[number].prompt.split()[1]) for number in range(4)]
    assert min(found[:2]) >= 4 and max(found[2:]) < 4  # the group of the other picture is described again


def test_a_picture_that_an_endpoint_rejects_is_listed(photos, recaption, endpoint, tmp_path, capsys):
    endpoint.faults = [error(413, "too large")] * 2
    assert recaption(photos, tmp_path / "none", "--short", "") == 2  # it answered nothing yet
    assert "It answered 413: too large." in capsys.readouterr().err
    endpoint.faults = [(200, None), error(413, "too large")]
    assert recaption(photos, tmp_path / "out", "--short", "", "--at-once", "1") == 0
    found = [each for one in manifests(tmp_path / "out") for each in one["dropped"]["items"]]
    assert found[0] == {
        "id": "photos/1.jpg",
        "reason": "long caption rejected by the endpoint",
        "detail": "too large",
    }


def test_half_characters_in_captions_are_replaced(photos, recaption, endpoint, tmp_path):
    endpoint.say = lambda text, body: "a \ud83d b"
    assert recaption(photos, tmp_path / "out") == 0
    assert {record.prompt for record in open_source({"path": str(tmp_path / "out")})} == {"a ? b"}


def test_rows_of_parquet_are_described_by_our_own_model(tmp_path):
    datasets = pytest.importorskip("datasets")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    rows = {"picture": [{"bytes": file.getvalue(), "path": None}] * 2}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "a.parquet"))
    words = ["--long", "describe the image", "--short", ""]
    assert main(["recaption", str(tmp_path / "a.parquet"), str(tmp_path / "out"), "image=picture", *words]) == 0
    source = open_source({"path": str(tmp_path / "out")})
    assert len(source) == 2 and source[0].prompt == source[1].prompt
    assert json.dumps(manifests(tmp_path / "out")[0]["captioner"]["model"]) == '"blip3o-tiny"'
