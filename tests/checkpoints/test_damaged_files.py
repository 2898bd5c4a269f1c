"""Damaged, missing, foreign and pickled weight files are refused by name before a tensor is read."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints.published_doors import assert_refused, load
from tests.published_layout import HIDDEN, NUM_QUERIES

from blip3o_hf import Blip3oConfig


def last_tensor(file):
    """Name and end of the tensor that ends the file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return max(((name, 8 + length + entry["data_offsets"][1]) for name, entry in header.items()), key=lambda x: x[1])


@pytest.mark.parametrize("shards", [1, 2])
def test_a_truncated_file_is_refused_by_name(published, folder, shards):
    published(shards=shards)
    file = sorted(folder.glob("*.safetensors"))[-1]
    name, end = last_tensor(file)
    file.write_bytes(file.read_bytes()[:-1])
    message = (
        f"A checkpoint must be whole safetensors files. {file} is cut short: it has {end - 1} bytes, and {name} ends "
        f"at byte {end}. Download it again."
    )
    assert_refused(folder, re.escape(message))
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        (4).to_bytes(8, "little") + b"[1,2",
        (2).to_bytes(8, "little") + b"[]",
        (14).to_bytes(8, "little") + b'{"weight": {}}',
        (20).to_bytes(8, "little") + b'{"weight": "pickled"}',
        (10**6).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(published, folder, content):
    published(shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(content)
    message = (
        f"A checkpoint must be readable safetensors files. {file} has no readable header: it is damaged, or no "
        "safetensors file. Download it again."
    )
    assert_refused(folder, re.escape(message))


def change_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    return file


def test_a_missing_shard_is_refused_by_name(published, folder):
    published(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    placed = min(
        name for name, file in json.loads(index.read_text())["weight_map"].items() if file.startswith("model-00002")
    )
    message = (
        f"Every file that the index of shards names must be there. {index} places {placed} in "
        "model-00002-of-00002.safetensors, which is missing. Download it."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize("outside", ["../other.safetensors", "/etc/passwd", "a/../../other.safetensors", ".."])
def test_a_shard_outside_the_folder_is_refused(published, folder, outside):
    published(shards=2)
    save_file({"model.norm.weight": torch.zeros(HIDDEN)}, folder.parent / "other.safetensors")
    index = change_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": outside}))
    message = (
        f"A shard must lie in the checkpoint's folder. {index} places model.norm.weight in {outside!r}, outside of "
        "it. Download the checkpoint again, from a source you trust."
    )
    assert_refused(folder, re.escape(message))


def rewrite_header(file, change):
    """`change` gets the header of a safetensors file, and changes it or gives another."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = json.dumps(change(header) or header).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


@pytest.mark.parametrize(
    "lie",
    [
        {"data_offsets": [0, 4 * HIDDEN]},
        {"data_offsets": [-4 * HIDDEN, 0]},
        {"data_offsets": [0.0, 1.0]},
        {"dtype": "F64"},
        {"shape": [HIDDEN + 1]},
        {"shape": [-HIDDEN]},
    ],
)
def test_a_header_that_lies_is_refused(published, folder, lie):
    published()
    rewrite_header(folder / "model.safetensors", lambda header: header["model.norm.weight"].update(lie))
    message = (
        f"The header of a safetensors file must describe its tensors. That of {folder}/model.safetensors does not"
    )
    assert_refused(folder, re.escape(message))


def test_bytes_after_the_last_tensor_are_refused(published, folder):
    published()
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert_refused(folder, r"model\.safetensors does not \(.*file not fully covered\)\. Download it again\.")


def test_a_header_of_endless_depth_is_refused(published, folder):
    published()
    header = b"[" * 100_000
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert_refused(folder, r"model\.safetensors has no readable header")


@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_in_two_shards_is_refused_by_name(published, folder, listed):
    """transformers would take either."""
    published(shards=3)
    name = "model.norm.weight"
    index = folder / "model.safetensors.index.json"
    first = json.loads(index.read_text())["weight_map"][name]
    second = next(path for path in sorted(folder.glob("model-*.safetensors")) if path.name != first)
    save_file(load_file(second) | {name: torch.zeros(HIDDEN)}, second, metadata={"format": "pt"})
    if not listed:
        change_index(folder, lambda index: index["weight_map"].pop(name))
    files = sorted([first, second.name]) if not listed else [first, second.name]
    message = f"{index} or another file places {name} in {files[0]}, and {files[1]} holds one of that name, too."
    assert_refused(folder, re.escape(message))


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(published, folder):
    published(shards=2)
    name = "model.norm.weight"
    change_index(
        folder,
        lambda index: index["weight_map"].update(
            {name: next(file for file in index["weight_map"].values() if file != index["weight_map"][name])}
        ),
    )
    assert_refused(folder, rf"A tensor must have one place\. \S+ or another file places {re.escape(name)} in")


def test_a_shard_without_its_tensor_is_refused_by_name(published, folder):
    published(shards=2)
    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    absent = min(tensors)
    del tensors[absent]
    save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    message = (
        f"A shard must hold the tensors that the index places in it. {index} places {absent} in {file.name}, which "
        "has no tensor of that name. Download both again."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [], "metadata": {}}'],
)
def test_a_broken_index_is_refused(published, folder, content):
    published(shards=2)
    file = folder / "model.safetensors.index.json"
    file.write_text(content)
    message = (
        "An index of shards must hold `metadata`, and in `weight_map` the file of each tensor. "
        f"{file} does not. Download it again."
    )
    assert_refused(folder, re.escape(message))


@pytest.mark.parametrize(("name", "file"), [("model.norm.weight", None), ("model.norm.weight", 3)])
def test_an_index_with_a_file_that_is_no_name_is_refused(published, folder, name, file):
    published(shards=2)
    change_index(folder, lambda index: index["weight_map"].update({name: file}))
    assert_refused(folder, "An index of shards must hold `metadata`, and in `weight_map` the file of each tensor.")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickled_checkpoint_is_refused_unread(published, folder, pickled):
    published()
    (folder / "model.safetensors").unlink()
    (folder / pickled).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    message = (
        "Weights are read from model.safetensors, or from shards with model.safetensors.index.json. "
        f"{folder} has only {pickled}. Reading a pickle can run any program: save it again as safetensors, where it "
        "was written."
    )
    assert_refused(folder, re.escape(message))
    with pytest.raises(ValueError, match=re.escape(message)):
        load(folder, use_safetensors=False)


def test_safetensors_are_read_where_there_is_a_pickle_too(published, folder):
    published()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    assert load(folder, use_safetensors=False).config.num_queries == NUM_QUERIES


def test_a_checkpoint_without_weights_is_refused(published, folder):
    published()
    (folder / "model.safetensors").unlink()
    message = (
        "Weights are read from model.safetensors, or from shards with model.safetensors.index.json. "
        f"{folder} has neither. Download the weights."
    )
    assert_refused(folder, re.escape(message))
