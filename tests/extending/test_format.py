"""A data format that this file alone defines: one class, named in a recipe or a source."""

from pathlib import Path

import pytest
from PIL import Image

from blip3o_hf.data.mixture import open_mixture
from blip3o_hf.data.sources import Source
from blip3o_hf.training.recipes import Recipe


class ColorsSource(Source):
    """A text file with a colour in each line: a picture of it, and its name."""

    def _lines(self):
        return Path(self.settings.path).read_text().splitlines()

    def _count(self, shard):
        return len(self._lines())

    def _fields(self, shard, position):
        color = self._lines()[position]
        image = Image.new("RGB", (64, 64), color)
        return f"{self.settings.path}:{position + 1}", {"image": image, "caption": f"a {color} sheet"}


FORMAT = f"{__name__}:ColorsSource"


@pytest.fixture
def colors(tmp_path):
    path = tmp_path / "colors.txt"
    path.write_text("red\ngreen\nblue\n")
    return str(path)


def test_it_is_read(colors):
    data = open_mixture({"seed": 0, "sources": [{"path": colors, "format": FORMAT}]})
    assert {data[index].prompt for index in range(3)} == {"a red sheet", "a green sheet", "a blue sheet"}
    assert data[0].key.startswith(colors)


def test_a_recipe_trains_on_it(colors, tmp_path):
    data = {"sources": [{"path": colors, "format": FORMAT}]}
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    trainer = Recipe("generation", str(tmp_path / "run"), {"model": "blip3o-tiny"}, {}, data, training).trainer()
    trainer.train()
    assert trainer.state.global_step == 1
