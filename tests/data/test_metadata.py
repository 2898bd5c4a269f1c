"""Rows of metadata: the images they name, captions that are left out, and several rows of one image."""

import csv
import json

import pytest
from PIL import Image

from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import open_source


@pytest.fixture
def folder(tmp_path):
    """`sub/in.png`, `sub/out.png` and `top.png`, of the shades 1, 2 and 3."""
    (tmp_path / "sub").mkdir()
    for shade, name in enumerate(("sub/in.png", "sub/out.png", "top.png"), start=1):
        Image.new("RGB", (8, 6), (shade,) * 3).save(tmp_path / name)
    return tmp_path


def write(path, *rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def told(folder, **settings):
    """The shades of inputs and target, and the caption, of every item."""
    source = open_source({"path": str(folder), **settings})
    records = [source[i] for i in range(len(source))]
    return [(*[image.getpixel((0, 0))[0] for image in (*r.images, r.target)], r.prompt) for r in records]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("table", "target"),
    [
        ("sub/metadata", "out.png"),
        ("sub/metadata", "./out.png"),
        ("sub/metadata", "../sub/out.png"),
        ("sub/metadata", "sub/out.png"),
        ("sub/metadata", "sub\\out.png"),
        ("sub/metadata", "absolute"),
        ("metadata", "sub/out.png"),
        ("metadata", "sub\\out.png"),
        ("metadata", "absolute"),
    ],
)
def test_a_target_is_found_and_is_no_item_of_its_own(folder, ending, table, target, monkeypatch):
    (folder / "top.png").unlink()
    target = str(folder / "sub" / "out.png") if target == "absolute" else target
    row = {"file_name": "in.png" if "/" in table else "sub/in.png", "target": target, "prompt": "brighter"}
    write(folder / f"{table}.{ending}", row)
    assert told(folder) == [(1, 2, "brighter")]
    monkeypatch.chdir(folder.parent)
    assert told(folder.name) == told(f"./{folder.name}/sub/..") == [(1, 2, "brighter")]


def test_inputs_are_found_and_are_no_items_of_their_own(folder):
    write(
        folder / "sub" / "metadata.jsonl", {"file_name": "out.png", "images": ["in.png", "top.png"], "prompt": "mix"}
    )
    assert told(folder) == [(1, 3, 2, "mix")]
    write(
        folder / "sub" / "metadata.jsonl",
        {"file_name": "out.png", "images": "in.png", "mask": "../top.png", "text": "a"},
    )
    assert told(folder) == [(1, 2, "a")]
    write(folder / "sub" / "metadata.jsonl", {"file_name": "in.png", "goal": "none.png", "prompt": "brighter"})
    source = open_source({"path": str(folder), "target": "goal"})
    with pytest.raises(BadItem, match=r"in.png: no image file at .*sub/none.png"):
        source[0]


def test_a_named_image_with_a_caption_of_its_own_stays_an_item(folder):
    rows = [
        {"file_name": "in.png", "target": "out.png", "prompt": "brighter"},
        {"file_name": "out.png", "caption": "two"},
    ]
    write(folder / "sub" / "metadata.jsonl", *rows)
    (folder / "top.txt").write_text("three")
    assert told(folder) == [(1, 2, "brighter"), (2, "two"), (3, "three")]
    write(folder / "sub" / "metadata.jsonl", rows[0])
    (folder / "sub" / "out.txt").write_text("also two")
    assert told(folder) == [(1, 2, "brighter"), (2, "also two"), (3, "three")]


def test_several_rows_of_one_image_are_several_items(folder):
    (folder / "top.png").unlink()
    rows = [
        {"file_name": "in.png", "target": "out.png", "prompt": "brighter"},
        {"file_name": "in.png", "target": "", "caption": "one"},
        {"file_name": "in.png", "target": "out.png", "prompt": "lighter"},
    ]
    write(folder / "sub" / "metadata.jsonl", *rows)
    assert told(folder) == [(1, 2, "brighter"), (1, "one"), (1, 2, "lighter")]
    source = open_source({"path": str(folder)})
    assert [source[i].key.rpartition("/")[2] for i in range(3)] == ["in.png", "in.png#2", "in.png#3"]


@pytest.mark.parametrize("name", ["sub\\in.png", "sub/in.png", "./sub/in.png", "sub/../sub/in.png"])
def test_a_row_is_about_the_file_that_it_names_however_it_is_written(folder, name):
    write(folder / "metadata.csv", {"file_name": name, "caption": "one"})
    for path in (folder / "sub" / "out.png", folder / "top.png"):
        path.unlink()
    assert told(folder) == [(1, "one")]


@pytest.mark.parametrize("caption", [None, "", "  ", float("nan"), 3])
def test_a_caption_that_is_left_out_hides_no_other(folder, caption):
    for name in ("sub/out.png", "top.png"):
        (folder / name).unlink()
    (folder / "sub" / "in.txt").write_text("from the text")
    write(folder / "metadata.jsonl", {"file_name": "sub/in.png", "caption": caption})
    assert told(folder) == [(1, "from the text")]
    write(folder / "metadata.jsonl", {"file_name": "sub/in.png", "caption": caption, "text": "from the row"})
    assert told(folder) == [(1, "from the row")]
    write(folder / "metadata.jsonl", {"file_name": "sub/in.png", "caption": caption, "text": "x", "title": "y"})
    assert told(folder) == [(1, "from the text")]


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
@pytest.mark.parametrize("key", ["target", "images"])
def test_an_image_that_is_left_out_is_none(folder, key, nothing):
    lines = [{"file_name": "sub/in.png", "image": "sub/in.png", "caption": "one", key: nothing}]
    write(folder / "metadata.jsonl", *lines)
    write(folder / "a.jsonl", *lines)
    assert told(folder / "a.jsonl") == [(1, "one")]
    for name in ("sub/out.png", "top.png"):
        (folder / name).unlink()
    assert told(folder) == [(1, "one")]


def test_conversations_that_are_left_out_or_no_list_are_told(folder):
    write(
        folder / "a.jsonl", {"image": "top.png", "caption": "three", "messages": None}, {"conversations": float("nan")}
    )
    source = open_source({"path": str(folder / "a.jsonl")})
    assert source[0].prompt == "three"
    with pytest.raises(BadItem, match=r"a.jsonl:2: a conversation must be a list of messages, not float"):
        source[1]


def test_an_empty_cell_of_a_table_is_nothing(folder):
    (folder / "sub" / "out.png").unlink()
    rows = [{"file_name": "top.png", "caption": "three", "target": ""}, {"file_name": "sub/in.png", "caption": "one"}]
    write(folder / "metadata.csv", *rows)
    assert told(folder) == [(1, "one"), (3, "three")]


def test_paths_in_tables_are_looked_for_beside_the_table(folder, tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    rows = {
        "image": ["in.png", "sub\\in.png", "top.png"],
        "target": ["out.png", None, None],
        "prompt": ["a", "b", "c"],
    }
    table = datasets.Dataset.from_dict(rows)
    table.to_parquet(str(folder / "sub" / "a.parquet"))
    for path in (folder / "sub" / "a.parquet", folder / "sub" / "*.parquet"):
        source = open_source({"path": str(path)})
        assert [image.getpixel((0, 0))[0] for image in (*source[0].images, source[0].target)] == [1, 2]
        with pytest.raises(BadItem, match=r"\[2\]: no image file at .*sub/top.png"):
            source[2]
    assert told(folder, format="hub") == [(1, 2, "a"), (1, "b"), (3, "c")]
    source = open_source({"path": str(folder / "sub" / "a.parquet"), "image_root": str(folder)})
    assert [source[i].target.getpixel((0, 0))[0] for i in (1, 2)] == [1, 3]
    table.save_to_disk(folder / "saved")
    for name in ("in.png", "out.png"):
        (folder / "saved" / name).write_bytes((folder / "sub" / name).read_bytes())
    source = open_source({"path": str(folder / "saved")})
    assert [image.getpixel((0, 0))[0] for image in (*source[0].images, source[0].target)] == [1, 2]
    monkeypatch.chdir(folder)
    with pytest.raises(BadItem, match=r"\[2\]: no image file at .*saved/top.png"):
        source[2]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nfile_name;caption\r\ntop.png;three\r\n",
        " file_name , caption\r\ntop.png,three\r\n",
        "file_name,caption\r\n\r\n,,\r\ntop.png,three,more\r\n",
        "file_name,caption\rtop.png,three\r",
        '"file_name"\t"caption"\n"top.png"\t"three"\n',
    ],
)
def test_tables_as_programs_write_them_are_read(folder, text):
    (folder / "metadata.csv").write_bytes(text.encode())
    assert open_source({"path": str(folder)})[2].prompt == "three"


def test_an_empty_table_says_nothing(folder):
    (folder / "metadata.csv").write_bytes(b"")
    (folder / "top.txt").write_text("three")
    assert open_source({"path": str(folder)})[2].prompt == "three"


def test_metadata_in_parquet_is_metadata(folder):
    from datasets import Dataset

    rows = {"file_name": ["in.png", "..\\top.png"], "target": ["out.png", None], "caption": ["brighter", "three"]}
    Dataset.from_dict(rows).to_parquet(str(folder / "sub" / "metadata.parquet"))
    assert told(folder) == [(1, 2, "brighter"), (3, "three")]
    (folder / "sub" / "metadata.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"A table must be parquet. .*metadata.parquet is not: "):
        open_source({"path": str(folder)})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"image": "https://a/b.png", "caption": "a"},
            "an image must be a path, not an address such as 'https://a/b.png';",
        ),
        (
            {"image": "data:image/png;base64,AAAA", "caption": "a"},
            "not an address such as 'data:image/png;base64,AAAA'",
        ),
        ({"image": "top.png", "caption": ["a"]}, "no text under 'caption', but a value of the type list; there is"),
    ],
)
def test_reasons_say_what_is_there(folder, row, reason):
    write(folder / "a.jsonl", row)
    with pytest.raises(BadItem) as caught:
        open_source({"path": str(folder / "a.jsonl")})[0]
    assert reason in str(caught.value)


def test_a_folder_is_no_file_of_json(folder):
    with pytest.raises(IsADirectoryError, match=r"JSON is read from files. .* is a folder. Name them, as .*\*.jsonl."):
        open_source({"path": str(folder), "format": "json"})
