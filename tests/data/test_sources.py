"""Every format gives the same records by position; what is wrong in a file is a bad item with its address."""

import csv
import io
import json
import tarfile

import pytest
from PIL import Image

from blip3o_hf.data.images import decoded
from blip3o_hf.data.paths import expand_paths
from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import open_source


def picture(shade=0):
    return Image.new("RGB", (8, 6), (shade, shade, shade))


def encoded(shade=0):
    buffer = io.BytesIO()
    picture(shade).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(start, count):
    for number in range(start, start + count):
        yield f"{number:04d}.png", encoded(number)
        yield f"{number:04d}.txt", f"caption {number}".encode()


def told(source):
    """Shade and caption of every item."""
    return [(source[i].target.getpixel((0, 0))[0], source[i].prompt) for i in range(len(source))]


def bad(source, index=0):
    with pytest.raises(BadItem) as caught:
        source[index]
    return str(caught.value)


def open_lines(path, *lines, **settings):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return open_source({"path": str(path), **settings})


# image folders


def test_imagefolder_reads_metadata_sidecars_and_folder_names(tmp_path):
    for number, name in enumerate(("a.png", "b.png", "cats/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name)
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "caption"], ["a.png", "first, of three"]])
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "cats" / "metadata.jsonl").write_text('{"file_name": "c.png", "caption": "third"}\n')
    source = open_source({"path": str(tmp_path)})
    assert told(source) == [(0, "first, of three"), (1, "second"), (2, "third")]
    assert source[2].key == str(tmp_path / "cats" / "c.png")
    folders = open_source({"path": str(tmp_path), "prompt_template": "a photo of {folder}"})
    assert folders[2].prompt == "a photo of cats"
    templated = open_source({"path": str(tmp_path), "prompt_template": "sks: {caption}"})
    assert templated[1].prompt == "sks: second"


def test_imagefolder_reports_what_is_missing(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "caption": "gone"}\n')
    source = open_source({"path": str(tmp_path)})
    assert "a.png: no text under 'caption'" in bad(source, 0)
    assert "b.png: no image file at" in bad(source, 1)
    (tmp_path / "metadata.jsonl").write_text('{"name": "b.png"}\n')
    with pytest.raises(ValueError, match=r"must have a `file_name`. Row 1 of .*metadata.jsonl has none"):
        open_source({"path": str(tmp_path)})
    (tmp_path / "metadata.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"must hold one JSON mapping a line. Line 1"):
        open_source({"path": str(tmp_path)})


def test_reconstruction_needs_no_captions(tmp_path):
    picture(7).save(tmp_path / "a.png")
    record = open_source({"path": str(tmp_path), "reconstruct": True})[0]
    assert record.kind == "reconstruction" and record.images[0] is record.target


# JSON


def test_jsonl_reads_captions_conversations_and_edits(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    source = open_lines(
        tmp_path / "a.jsonl",
        {"image": "0.png", "caption": " a dog "},
        "\n",
        {
            "id": 7,
            "image": "1.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A cat."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]},
        {"target": "2.png", "prompt": "make it brighter", "images": ["0.png", "1.png"]},
        {"turns": [["Which is darker?", "The first."]], "images": ["0.png", str(tmp_path / "1.png")]},
        {"image": "0.png", "target": "1.png", "prompt": "make it brighter"},
    )
    records = [source[i] for i in range(len(source))]
    kinds = ["generation", "understanding", "understanding", "editing", "understanding", "editing"]
    assert [record.kind for record in records] == kinds
    assert [record.key.rpartition(":")[2] for record in records] == ["1", "3", "4", "5", "6", "7"]  # lines of the file
    assert records[0].prompt == "a dog"
    assert records[1].turns == (("What is it?", "A cat."), ("Sure?", "Yes."))
    assert [image.getpixel((0, 0))[0] for image in records[3].images] == [0, 1]
    assert records[3].target.getpixel((0, 0))[0] == 2
    assert records[4].turns == (("Which is darker?", "The first."),) and len(records[4].images) == 2
    assert [image.getpixel((0, 0))[0] for image in (*records[5].images, records[5].target)] == [0, 1]


def test_columns_that_are_named_win_over_usual_names(tmp_path):
    picture(3).save(tmp_path / "a.png")
    line = {"file": "a.png", "text": "mine", "prompt": "other", "target": 7}
    source = open_lines(tmp_path / "a.jsonl", line, image="file", caption="text", target=None)
    assert told(source) == [(3, "mine")]


def test_a_json_list_and_an_image_root(tmp_path):
    (tmp_path / "images").mkdir()
    picture(5).save(tmp_path / "images" / "a.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"photo": "a.png", "text": "five"}]))
    settings = {"path": str(path), "image": "photo", "caption": "text", "image_root": str(tmp_path / "images")}
    source = open_source(settings)
    assert told(source) == [(5, "five")] and source[0].key == f"{path}[0]"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="must hold a list of items"):
        len(open_source(settings))
    path.write_text("[")
    with pytest.raises(ValueError, match="must be valid JSON"):
        len(open_source(settings))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{broken\n", "a.jsonl:2: not a line of JSON"),
        ([1], "a.jsonl:2: an item must be a mapping of keys, not list"),
        ({"image": "a.png"}, "no text under 'caption'; there is 'image'"),
        ({"image": "a.png", "caption": 3}, "no text under 'caption'"),
        ({"image": "a.png", "caption": " "}, "no text under 'caption'"),
        ({"caption": "a"}, "no image under 'image'"),
        ({"image": "none.png", "caption": "a"}, "no image file at"),
        ({"image": "a.jsonl", "caption": "a"}, "not a readable image"),
        ({"image": 3, "caption": "a"}, "an image must be a path, encoded bytes or a PIL image, not int"),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "user and assistant must take turns; the speakers are gpt",
        ),
        ({"conversations": ["a", "b"]}, "a message must be a mapping, not str"),
        ({"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": "a"}]}, "must be a text"),
        ({"turns": [["a"]]}, "a user's text and its answer"),
        ({"turns": ["ab"]}, "a user's text and its answer"),
        ({"turns": [["a", " "]]}, "A turn must be a user's text and its answer"),
        ({"turns": [["a", 1]]}, "a message must be a text"),
        ({"turns": [["<image>?", "a"]]}, "hold 1 times <image> and there are 0 images"),
    ],
)
def test_bad_lines_are_bad_items_with_file_and_line(tmp_path, line, text):
    source = open_lines(tmp_path / "a.jsonl", {"turns": [["a", "b"]]}, line)
    assert source[0].kind == "understanding"
    assert text in bad(source, 1) and f"{tmp_path / 'a.jsonl'}:2" in bad(source, 1)


def test_short_captions_are_drawn_by_seed_epoch_and_place(tmp_path):
    picture().save(tmp_path / "a.png")
    lines = [{"image": "a.png", "caption": "long", "short": "short"}] * 300 + [{"image": "a.png", "caption": "long"}]
    settings = {"short_caption": "short", "short_caption_rate": 0.3}
    source = open_lines(tmp_path / "a.jsonl", *lines, **settings)

    def drawn(source, epoch=0):
        return [source.read(0, i, epoch).prompt for i in range(len(source))]

    first = drawn(source)
    assert first == drawn(open_lines(tmp_path / "a.jsonl", *lines, **settings))
    assert first != drawn(source, epoch=1)
    assert first != drawn(open_lines(tmp_path / "a.jsonl", *lines, **settings, seed=1))
    assert 60 < first.count("short") < 120
    assert first[-1] == "long"
    assert set(drawn(open_lines(tmp_path / "a.jsonl", *lines))) == {"long"}


def test_variants_are_an_item_s_captions_and_decode_nothing(tmp_path):
    lines = [{"caption": "long", "short": "short"}, {"short": "short"}, {"caption": "long"}, {"other": "x"}]
    lines = [{"image": "none.png", **line} for line in lines]
    source = open_lines(tmp_path / "a.jsonl", *lines, short_caption="short")
    assert [[record.prompt for record in source.variants(index)] for index in range(3)] == [
        ["long", "short"],
        ["short"],
        ["long", "long"],
    ]
    with pytest.raises(BadItem, match="no text under 'caption'"):
        source.variants(3)
    (record,) = open_lines(tmp_path / "a.jsonl", *lines).variants(0)
    with pytest.raises(BadItem, match="no image file at"):
        decoded(record)


# webdataset


def test_webdataset_reads_pairs_of_all_shards_in_any_order(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard:02d}.tar", pairs(10 * shard, 2 + shard))
    expected = [(n, f"caption {n}") for n in (0, 1, 10, 11, 12, 20, 21, 22, 23)]
    for path in (str(tmp_path), str(tmp_path / "{00..02}.tar"), str(tmp_path / "*.tar")):
        source = open_source({"path": path})
        assert source[8].prompt == "caption 23"
        assert told(source) == expected
    assert source[2].key == f"{tmp_path / '01.tar'}:0010"
    assert [source.shard_length(shard) for shard in range(3)] == [2, 3, 4]


def test_webdataset_reads_json_edits_and_long_names(tmp_path):
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "yes"}]
    members = [
        ("a.png", encoded(1)),
        ("a.json", b'{"caption": "one", "long": "the one"}'),
        ("folder/" + "b" * 150 + ".png", encoded(2)),
        ("folder/" + "b" * 150 + ".txt", b"two"),
        ("c.input.png", encoded(3)),
        ("c.target.png", encoded(4)),
        ("c.txt", b"brighter"),
        ("d.PNG", encoded(5)),
        ("d.json", json.dumps({"conversations": talk}).encode()),
    ]
    path = str(write_tar(tmp_path / "a.tar", members))
    source = open_source({"path": path})
    kinds = ["generation", "generation", "editing", "understanding"]
    assert [source[i].kind for i in range(len(source))] == kinds
    assert [source[i].prompt for i in range(3)] == ["one", "two", "brighter"]
    assert [source[2].images[0].getpixel((0, 0))[0], source[2].target.getpixel((0, 0))[0]] == [3, 4]
    assert open_source({"path": path, "caption": "long"})[0].prompt == "the one"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("../../a.png", encoded()), ("../../a.txt", b"a")], "'../../a.png' points outside the archive"),
        ([("/etc/a.png", encoded()), ("/etc/a.txt", b"a")], "'/etc/a.png' points outside the archive"),
        ([("b.png", encoded()), ("b.png", encoded())], "two members of the name 'b.png'"),
        ([("b.png", b"junk"), ("b.txt", b"a")], "b: not a readable image"),
        ([("b.png", encoded())], "b: no text under 'caption'"),
        ([("b.txt", b"a")], "b: no image under 'image'"),
        ([("b.json", b"{")], "member json is not valid JSON"),
        ([("b.json", b"[]")], "member json must be a mapping"),
        ([("b.json", b'{"image": "/etc/passwd", "caption": "a"}')], "image path '/etc/passwd' without `image_root`"),
    ],
)
def test_bad_members_are_bad_items_and_their_neighbours_are_read(tmp_path, members, text):
    path = write_tar(tmp_path / "a.tar", [*pairs(0, 1), *members, *pairs(2, 1)])
    source = open_source({"path": str(path)})
    assert len(source) == 3
    assert text in bad(source, 1) and str(path) in bad(source, 1)
    assert (source[0].prompt, source[2].prompt) == ("caption 0", "caption 2")


def test_links_in_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "member 'b.png' is no regular file" in bad(open_source({"path": str(tmp_path / "a.tar")}))


@pytest.mark.parametrize("cut", ["data", "header", "overwritten"])
def test_a_broken_tar_gives_what_stands_before_the_break_and_one_bad_item(tmp_path, cut):
    path = write_tar(tmp_path / "a.tar", pairs(0, 4))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        broken = tar.getmember("0002.png")
    if cut == "data":
        data = data[: broken.offset_data + 20]
    elif cut == "header":
        data = data[: broken.offset + 100]
    else:
        data[broken.offset : broken.offset + 512] = b"x" * 512
    path.write_bytes(data)
    source = open_source({"path": str(path)})
    assert [source[0].prompt, source[1].prompt, len(source)] == ["caption 0", "caption 1", 3]
    assert ("the tar ends within" if cut == "data" else "broken tar") in bad(source, 2)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match=r"must be a plain tar, not compressed. .*a.tar"):
        len(open_source({"path": str(tmp_path / "a.tar")}))


# Hub


@pytest.fixture
def table(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = {"picture": [picture(1), picture(2), None], "text": ["one", "two", "three"]}
    return datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())


def test_hub_reads_parquet_and_saved_datasets_by_column(tmp_path, table):
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    columns = {"image": "picture", "caption": "text"}
    for path in ("parquet/a.parquet", "parquet", "parquet/*.parquet", "saved"):
        source = open_source({"path": str(tmp_path / path), **columns})
        assert len(source) == 3
        assert [(source[i].target.getpixel((0, 0))[0], source[i].prompt) for i in range(2)] == [(1, "one"), (2, "two")]
        assert bad(source, 2).endswith("[2]: no image under 'picture'")
    with pytest.raises(ValueError, match=r"Unknown key 'pictur' in `image` of .*saved.* Did you mean 'picture'\?"):
        open_source({"path": str(tmp_path / "saved"), "image": "pictur"})


def test_hub_reads_lists_of_images(tmp_path, table):
    import datasets

    features = {
        "images": datasets.List(datasets.Image()),
        "target": datasets.Image(),
        "prompt": datasets.Value("string"),
    }
    rows = {"images": [[picture(1), picture(2)]], "target": [picture(3)], "prompt": ["mix them"]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "edits")
    record = open_source({"path": str(tmp_path / "edits")})[0]
    assert record.kind == "editing"
    assert [image.getpixel((0, 0))[0] for image in (*record.images, record.target)] == [1, 2, 3]


# settings


def test_paths_expand_in_order(tmp_path):
    for name in ("a-00", "a-01", "b-00"):
        (tmp_path / name).touch()
    assert [path.name for path in expand_paths(str(tmp_path / "{a,b}-{00..00}"))] == ["a-00", "b-00"]
    assert [path.name for path in expand_paths([str(tmp_path / "b-*"), str(tmp_path / "a-*")])] == [
        "b-00",
        "a-00",
        "a-01",
    ]
    with pytest.raises(FileNotFoundError, match=r"There is none at .*a-02"):
        expand_paths(str(tmp_path / "a-{00..02}"))


def test_settings_are_checked(tmp_path):
    picture().save(tmp_path / "a.png")
    path = str(tmp_path)
    for settings, text in [
        ({"path": path, "captoin": "a"}, r"Unknown key 'captoin' in a data source. Did you mean 'caption'\?"),
        ({"path": path, "format": "webdatset"}, r"Unknown key 'webdatset' in `format` .*Did you mean 'webdataset'\?"),
        ({"format": "json"}, "must have the key 'path'"),
        ({"path": path, "prompt_template": "{captoin}"}, "must hold {caption} or {folder}"),
        ({"path": path, "prompt_template": "a photo"}, "must hold {caption} or {folder}"),
        ({"path": path, "short_caption_rate": 2}, r"`short_caption_rate` must be in \[0, 1\]. Got 2"),
    ]:
        with pytest.raises(ValueError, match=text):
            open_source(settings)
    for settings, text in [
        ({"path": path + "/none.tar"}, "There is none at .*none.tar"),
        ({"path": "none/none.tar"}, "There is none at none/none.tar"),
        ({"path": path, "format": "webdataset"}, "A webdataset is .tar files. There is none"),
        ({"path": path + "/a.png", "format": "imagefolder"}, "An imagefolder is one folder"),
    ]:
        with pytest.raises(FileNotFoundError, match=text):
            open_source(settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`format: auto` must find tars, parquet, .json, .jsonl or images"):
        open_source({"path": path + "/empty"})


def test_positions_outside_are_index_errors(tmp_path):
    source = open_lines(tmp_path / "a.jsonl", {"turns": [["a", "b"]]})
    for index in (-1, 1):
        with pytest.raises(IndexError, match="Items are numbered from 0 to 0"):
            source[index]
