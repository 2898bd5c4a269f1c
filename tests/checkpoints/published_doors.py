"""Published checkpoints of several kinds, the doors that load them, and what tests of them compare."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from blip3o_hf import Blip3oForConditionalGeneration

LEFT_OUT = ("model.gen_vision_tower.", "model.down_projector.")
# Settings of `write_published_checkpoint`.
VARIANTS = {
    "4b": {"tied": True},
    "8b": {"tied": False},
    "training_class": {"model_type": "blip3o_qwen", "target_encoder": True},
    "sharded": {"shards": 3, "tied": False, "target_encoder": True, "diffusion_decoder": True},
    "grouped_queries": {"num_key_value_heads": 2},
    "ffn_multiplier": {"ffn_dim_multiplier": 4.0},
    "bfloat16": {"dtype": torch.bfloat16, "shards": 2},
}
DOORS = {
    "class": Blip3oForConditionalGeneration.from_pretrained,
    "auto": AutoModelForImageTextToText.from_pretrained,
}


def load(folder: Path, **settings):
    return Blip3oForConditionalGeneration.from_pretrained(folder, **settings)


def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model holds of a published checkpoint's tensors."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}


def change_config(folder: Path, **changes) -> None:
    """Set fields of a `config.json`; `None` removes one."""
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def assert_refused(folder: Path, message: str, doors: Collection[str] = tuple(DOORS)) -> None:
    """Every door refuses the checkpoint with this message (a pattern), and writes nothing beside it."""
    before = sorted(path.name for path in folder.iterdir())
    for name in doors:
        with pytest.raises(ValueError, match=message):
            DOORS[name](folder)
    assert sorted(path.name for path in folder.iterdir()) == before
