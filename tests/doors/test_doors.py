"""Every door opens on every kind of repository, and shows the same picture or gives the same answer."""

import re
from pathlib import Path

import numpy as np
import pytest
from tests.doors.doors import DRAWING, NEEDS_MODEL_INDEX, NEEDS_TORCHVISION, READING
from tests.published_layout import write_published_checkpoint
from transformers.pipelines import any_to_any
from transformers.utils import is_torchvision_available

from blip3o_hf import Blip3oPipeline, packaged_model_path

TABLE = Path(__file__).parents[2] / "docs" / "doors.md"
COLUMNS = ("packaged", "saved", "published")
CELLS = [
    (door, column)
    for door in DRAWING | READING
    for column in COLUMNS
    if not (column == "published" and door in NEEDS_MODEL_INDEX)
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder for each column."""
    root = tmp_path_factory.mktemp("sources")
    Blip3oPipeline.from_pretrained(packaged_model_path()).save_pretrained(root / "saved")
    write_published_checkpoint(root / "published", tied=False, diffusion_decoder=True, image_processor=False)
    return {"packaged": packaged_model_path(), **{name: str(root / name) for name in ("saved", "published")}}


@pytest.fixture(scope="module")
def first(sources):
    """What the first door of each kind gives, by column."""
    opened = {}

    def get(column, doors):
        name = next(iter(doors))
        if (column, name) not in opened:
            opened[column, name] = doors[name](sources[column])
        return opened[column, name]

    return get


@pytest.mark.parametrize(("door", "column"), CELLS)
def test_a_door_opens(sources, first, door, column, monkeypatch):
    if door in NEEDS_TORCHVISION and not is_torchvision_available():
        # transformers asks for it at this door; nothing behind the door needs it.
        monkeypatch.setattr(any_to_any, "requires_backends", lambda *arguments: None)
    if door in DRAWING:
        image, expected = DRAWING[door](sources[column]), first(column, DRAWING)
        assert image.shape == expected.shape == (64, 64, 3)
        assert np.abs(image.astype(int) - expected).max() <= 1
    else:
        assert READING[door](sources[column]) == first(column, READING)


@pytest.mark.parametrize("door", NEEDS_MODEL_INDEX)
def test_a_closed_door_says_what_it_looked_for(sources, door):
    with pytest.raises(OSError, match=r"model_index\.json"):
        DRAWING[door](sources["published"])


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("door", NEEDS_TORCHVISION)
def test_without_torchvision_transformers_closes_a_door(sources, door):
    with pytest.raises(ImportError, match="Torchvision"):
        (DRAWING | READING)[door](sources["packaged"])


def test_the_table_in_the_documentation_is_what_is_tested():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", TABLE.read_text(), re.M)
    ]
    table = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in DRAWING | READING}
    assert table.keys() == (DRAWING | READING).keys()
    for door, cells in table.items():
        opens = [cell.startswith("yes") for cell in cells]
        expected = [(door, column) in CELLS for column in ("packaged", "saved", "saved", "published")]
        assert opens == expected, door
