"""Rows of somebody else lead to no file outside of their folder, by no path and no link, unless that is asked for."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from blip3o_hf.data.records import BadItem
from blip3o_hf.data.sources import open_source
from blip3o_hf.data.tables import open_table


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path)
    return path


def written(folder, kind, name):
    """Data of a kind that names an image, and the settings of its source."""
    folder.mkdir(exist_ok=True)
    row = {"image": name, "caption": "a dog"}
    if kind == "parquet":
        datasets.Dataset.from_list([row]).to_parquet(folder / "a.parquet")
        return {"path": str(folder / "a.parquet")}
    if kind == "saved":
        datasets.Dataset.from_list([row]).save_to_disk(folder / "saved")
        return {"path": str(folder / "saved")}
    if kind == "metadata":
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "a dog"}))
        return {"path": str(folder), "format": "imagefolder"}
    if kind == "target":
        Image.new("RGB", (8, 8)).save(folder / "own.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "own.png", "target": name, "caption": "a"}))
        return {"path": str(folder), "format": "imagefolder"}
    (folder / f"a.{kind}").write_text(json.dumps([row] if kind == "json" else row))
    return {"path": str(folder / f"a.{kind}"), "format": "json"}


KINDS = ["jsonl", "json", "parquet", "saved", "metadata", "target"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["absolute", "up", "link", "link to its folder"])
def test_rows_lead_to_no_file_outside(tmp_path, private, kind, way):
    folder = tmp_path / "data"
    folder.mkdir()
    beside = folder / "saved" if kind == "saved" else folder
    beside.mkdir(exist_ok=True)
    if way == "link":
        (beside / "b.png").symlink_to(private)
    if way == "link to its folder":
        (beside / "sub").symlink_to(private.parent, target_is_directory=True)
    up = "../../private/a.png" if kind == "saved" else "../private/a.png"
    name = {"absolute": str(private), "up": up, "link": "b.png", "link to its folder": "sub/a.png"}[way]
    settings = written(folder, kind, name)
    with pytest.raises(BadItem, match=r"leads out of .*; move it there, .* set allow_outside=true"):
        open_source(settings)[0]
    record = open_source({**settings, "allow_outside": True})[0]
    assert record.target.getpixel((0, 0)) == (7, 7, 7)


def test_an_image_and_a_caption_that_are_links_out_are_not_read(tmp_path, private):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").symlink_to(private)
    with pytest.raises(BadItem, match="leads out of"):
        open_source({"path": str(folder), "reconstruct": True})[0]
    (folder / "a.png").unlink()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (private.parent / "secret.txt").write_text("nobody else's")
    (folder / "a.txt").symlink_to(private.parent / "secret.txt")
    with pytest.raises(BadItem, match=r"'a\.txt' leads out of"):
        open_source({"path": str(folder)})[0]


def test_a_named_root_and_rows_of_a_program_are_trusted(tmp_path, private):
    settings = written(tmp_path / "data", "jsonl", str(private))
    assert open_source({**settings, "image_root": str(private.parent)})[0].target.getpixel((0, 0))[0] == 7
    table = datasets.Dataset.from_list([{"image": str(private), "caption": "a dog"}])
    assert open_table(table, "train_dataset")[0].target.getpixel((0, 0))[0] == 7


def test_a_download_in_the_cache_of_the_hub_is_read(tmp_path, private):
    snapshot, blobs = tmp_path / "datasets--a--b" / "snapshots" / "0123", tmp_path / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    private.parent.rename(blobs)
    (snapshot / "b.png").symlink_to("../../blobs/a.png")
    settings = written(snapshot, "jsonl", "b.png")
    assert open_source(settings)[0].target.getpixel((0, 0))[0] == 7
