"""What training cannot take is a bad item with its address, in Python and by a recipe; a batch never fails on it."""

import json

import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from blip3o_hf import Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.data.mixture import open_mixture
from blip3o_hf.data.tolerance import TooManyBadItems
from blip3o_hf.training.precompute import precompute
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.tasks import JointTask, PairedDataset

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


@pytest.mark.parametrize("kinds", [("targets",), ("targets", "conditions")])
def test_a_cache_does_not_hide_a_special_token(tmp_path, kinds):
    RED["image"].save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": caption} for caption in ("red", "red", "red <image>", "red")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / "rows.jsonl")}]
    data = {"sources": sources, "max_bad_share": 0.9, "cache": str(tmp_path / "cache")}
    model = {"train": ["transformer"]}
    recipe = Recipe("generation", str(tmp_path / "run"), {"model": "blip3o-tiny"}, model, data, dict(SETTINGS))
    bad = precompute(recipe, kinds=kinds).bad
    assert [line.partition(": ")[0].rpartition(":")[2] for line in bad] == ["3"] * ("conditions" in kinds)
    trainer = recipe.trainer()
    trainer.train()
    (source,) = trainer.train_dataset.sources
    assert [key.rpartition(":")[2] for key in source.bad_items] == ["3"]


# Rows that a user passes as they are

RED = {"image": Image.new("RGB", (64, 64), "red"), "caption": "a red sheet"}
MARKED = {**RED, "caption": "a red <image> sheet"}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def trainer_of(tmp_path, rows, task="generation", **more):
    args = Blip3oTrainingArguments(str(tmp_path / "run"), save_strategy="no", **SETTINGS)
    return Blip3oTrainer("blip3o-tiny", args, train_dataset=rows, task=task, **more)


def test_one_bad_row_of_a_list_is_counted_by_its_index_and_training_goes_on(tmp_path):
    trainer = trainer_of(tmp_path, [*[RED] * 5, MARKED, RED])
    trainer.train()
    assert trainer.state.global_step == 4
    assert list(trainer.train_dataset.bad_items.bad_items) == ["train_dataset[5]"]


def test_too_many_bad_rows_of_a_list_stop_with_their_indices(tmp_path):
    trainer = trainer_of(tmp_path, [*[RED] * 5, MARKED, {"image": RED["image"]}])
    with pytest.raises(
        TooManyBadItems, match=r"train_dataset\[5\]: the text holds the special token <image>"
    ) as caught:
        trainer.train()
    assert "train_dataset[6]: no text under 'caption'" in str(caught.value)


def test_a_bad_row_of_a_stream_is_left_out(tmp_path):
    class Rows(IterableDataset):
        def __iter__(self):
            return iter([RED, MARKED, *[RED] * 8])

    trainer = trainer_of(tmp_path, Rows())
    trainer.train()
    assert list(trainer.train_dataset.bad_items.bad_items) == ["train_dataset[1]"]


def test_a_collator_of_the_users_own_reads_the_rows_as_they_are(tmp_path):
    rows = [{**RED, "text": index} for index in range(4)]
    trainer = trainer_of(tmp_path, rows, data_collator=lambda items: trainer.task([RED for _ in items]))
    assert trainer.train_dataset is rows
    trainer.train()


def test_held_out_rows_are_checked_too(tmp_path):
    trainer = trainer_of(tmp_path, [RED, RED], eval_dataset=[RED, MARKED, RED])
    assert trainer.evaluate()["eval_loss"] > 0
    assert list(trainer.eval_dataset.bad_items.bad_items) == ["eval_dataset[1]"]


@pytest.mark.parametrize("as_pairs", [False, True])
def test_rows_of_the_joint_task_are_checked(tmp_path, as_pairs):
    pictures, talks = [*[RED] * 3, MARKED], [TALK, {"messages": TALK["messages"][:1]}, TALK]
    given = PairedDataset(pictures, talks) if as_pairs else {"pictures": pictures, "conversations": talks}
    trainer = trainer_of(tmp_path, given, JointTask())
    data = trainer.train_dataset
    assert [data[index].picture.prompt for index in range(4)] == ["a red sheet"] * 4
    assert [data[index].conversation.turns for index in range(3)] == [(("Hi", "Hello"),)] * 3
    assert list(data.pictures.bad_items.bad_items) == ["train_dataset['pictures'][3]"]
    assert list(data.conversations.bad_items.bad_items) == ["train_dataset['conversations'][1]"]
    trainer.train()


def test_a_mixture_that_a_user_opened_gets_the_check_of_the_model(lines, tmp_path):
    path, _ = lines("a special token in a caption")
    trainer = trainer_of(tmp_path, open_mixture({"sources": [{"path": path}], "min_items": 1}))
    with pytest.raises(TooManyBadItems, match=r"rows\.jsonl:3: "):
        trainer.train()


# What is too long to draw


def test_samples_of_captions_that_are_too_long_do_not_stop_a_run(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("blip3o_hf.training.results.logger.warning_once", warnings.append)
    trainer = trainer_of(tmp_path, [{**RED, "caption": "a red kite " * 600}] * 4)
    trainer.train()
    prompt = "a red kite " * 600
    assert trainer.draw([prompt]).width == trainer.draw(["a red kite"]).width
    (warning,) = warnings
    assert warning.startswith("A prompt must fit the model: at most 416 tokens with its template. 'a red kite a red")
    assert "samples are drawn from its beginning, up to " in warning
