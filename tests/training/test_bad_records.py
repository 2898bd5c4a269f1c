"""What training cannot take is a bad item with its address, in Python and by a recipe; a batch never fails on it."""

import json

import pytest
from PIL import Image

from blip3o_hf import Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.data.tolerance import TooManyBadItems
from blip3o_hf.training.recipes import Recipe

BAD = {
    "a special token in a caption": {"image": "a.png", "caption": "draw <|image_pad|> again"},
    "an input image that is far too long": {"images": ["long.png"], "target": "a.png", "prompt": "make it red"},
    "no room for the first answer": {
        "messages": [
            {"role": "user", "content": "why " * 3000},
            {"role": "assistant", "content": "so"},
        ]
    },
}


@pytest.fixture
def lines(tmp_path):
    """`lines(name)`: three good rows and the bad one, the third line."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (3000, 10), "red").save(tmp_path / "long.png")

    def write(name):
        is_talk = "messages" in BAD[name]
        talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        good = talk if is_talk else {"image": "a.png", "caption": "a red sheet"}
        rows = [good, good, BAD[name], good]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path), "understanding" if is_talk else "generation"

    return write


SETTINGS = {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}


@pytest.mark.parametrize("name", BAD)
def test_it_stops_with_its_address(lines, tmp_path, name):
    path, task = lines(name)
    args = Blip3oTrainingArguments(str(tmp_path / "run"), save_strategy="no", **SETTINGS)
    trainer = Blip3oTrainer(
        "blip3o-tiny", args, train_dataset={"sources": [{"path": path}], "min_items": 1}, task=task
    )
    with pytest.raises(TooManyBadItems, match=r"rows\.jsonl:3: "):
        trainer.train()


@pytest.mark.parametrize("name", [name for name in BAD if "messages" not in BAD[name]])
def test_a_recipe_tolerates_as_many_as_it_says(lines, tmp_path, name):
    path, _ = lines(name)
    data = {"sources": [{"path": path}], "max_bad_share": 0.9}
    recipe = Recipe("generation", str(tmp_path / "run"), {"model": "blip3o-tiny"}, {}, data, dict(SETTINGS))
    trainer = recipe.trainer()
    trainer.train()
    assert trainer.state.global_step == 4
    (source,) = trainer.train_dataset.sources
    assert [key.rpartition(":")[2] for key in source.bad_items] == ["3"]
