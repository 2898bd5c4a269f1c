"""Names of weight files are those that the libraries write and read; headers are read without the tensors."""

import json
import re
import struct

import pytest
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from blip3o_hf.checkpoints.headers import HeaderEntry, StoredTensor, read_header, stored_tensors
from blip3o_hf.checkpoints.lookup import LocalFiles
from blip3o_hf.checkpoints.stored_weights import read_tensors, read_values
from blip3o_hf.checkpoints.weight_files import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    index_name,
    shard_index,
    weight_files,
    weights_name,
)

FILES = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.bf16-00001-of-00001.safetensors",
    "model.bf16.safetensors",
    "model.safetensors",
    "model_ema.safetensors",
)


def test_names_are_those_of_the_libraries():
    assert weights_name(TRANSFORMERS_STEM) == SAFE_WEIGHTS_NAME
    assert index_name(TRANSFORMERS_STEM) == SAFE_WEIGHTS_INDEX_NAME
    assert weights_name(DIFFUSERS_STEM) == SAFETENSORS_WEIGHTS_NAME


@pytest.mark.parametrize("variant", [None, "bf16"])
def test_names_are_those_that_are_written(make_model, tmp_path, variant):
    """In one file and in shards, by transformers itself."""
    model = make_model()
    model.save_pretrained(tmp_path / "whole", variant=variant)
    assert [path.name for path in weight_files(tmp_path / "whole", "model", variant)] == [
        weights_name("model", variant)
    ]
    model.save_pretrained(tmp_path / "shards", variant=variant, max_shard_size="50KB")
    listed = weight_files(tmp_path / "shards", "model", variant)
    assert len(listed) > 1 and listed == weight_files(tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / index_name("model", variant)).read_text())
    assert {path.name for path in listed} == set(index["weight_map"].values())


@pytest.mark.parametrize(
    ("stem", "variant", "listed"),
    [
        (None, None, FILES),
        ("model", None, (FILES[0], FILES[1], FILES[4])),
        ("model", "bf16", (FILES[2], FILES[3])),
        ("model_ema", None, (FILES[5],)),
        ("adapter_model", None, ()),
    ],
)
def test_files_of_a_stem_and_a_variant_are_listed_in_order(tmp_path, stem, variant, listed):
    for name in (*FILES, "model.safetensors.index.json", "model.bin"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path, stem, variant)] == list(listed)


def test_a_folder_that_is_not_there_has_no_weights(tmp_path):
    assert weight_files(tmp_path / "nowhere") == []


def test_an_index_is_read_as_it_was_written(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}
    weight_map = {"b": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, tmp_path / file)
    (tmp_path / index_name("model")).write_text(json.dumps(shard_index(weight_map, 32)))
    assert list(shard_index(weight_map, 32)["weight_map"]) == ["a", "b"]
    stored = read_tensors(LocalFiles(tmp_path))
    assert stored == {
        "a": StoredTensor(weight_map["a"], (4,), "BF16"),
        "b": StoredTensor(weight_map["b"], (2, 3), "F32"),
    }
    values = read_values(LocalFiles(tmp_path), stored)
    assert values.keys() == tensors.keys()
    assert all(torch.equal(values[name], tensor) for name, tensor in tensors.items())
    assert read_tensors(LocalFiles(tmp_path), prefix="a").keys() == {"a"}
    assert read_tensors(LocalFiles(tmp_path), variant="bf16") is None


def test_only_the_shards_of_the_tensors_asked_for_are_needed(tmp_path):
    save_file({"tower.a": torch.ones(2)}, tmp_path / "one.safetensors")
    index = shard_index({"tower.a": "one.safetensors", "model.b": "missing.safetensors"}, 8)
    (tmp_path / index_name("model")).write_text(json.dumps(index))
    assert read_tensors(LocalFiles(tmp_path), prefix="tower.").keys() == {"tower.a"}
    with pytest.raises(ValueError, match=re.escape("places model.b in missing.safetensors, which is missing.")):
        read_tensors(LocalFiles(tmp_path))


def test_a_header_says_where_the_bytes_of_a_tensor_lie(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(3.0), "b": torch.tensor([7.0])}, path, metadata={"format": "pt"})
    header = read_header(path)
    entry = header["a"]
    assert entry == HeaderEntry("F32", (3,), entry.begin, entry.begin + 12)
    assert struct.unpack("<3f", path.read_bytes()[entry.begin : entry.end]) == (0.0, 1.0, 2.0)
    assert stored_tensors(path, "model.safetensors") == {
        "a": StoredTensor("model.safetensors", (3,), "F32"),
        "b": StoredTensor("model.safetensors", (1,), "F32"),
    }
