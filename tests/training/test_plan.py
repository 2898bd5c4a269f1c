"""A recipe is found by its name from any folder, and says what it needs before anything starts."""

import re
import shutil
from pathlib import Path

import pytest
from tests.processes import ROOT

from blip3o_hf.cli import main
from blip3o_hf.training import recipe_files
from blip3o_hf.training.chain import load_chain
from blip3o_hf.training.plan import plan
from blip3o_hf.training.recipe_files import find_recipe
from blip3o_hf.training.recipes import load_recipe


@pytest.mark.parametrize(
    "name",
    ["tiny/understanding", "tiny/understanding.yaml", "recipes/tiny/understanding.yaml", "recipes/tiny/understanding"],
)
def test_a_recipe_of_the_repository_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == ROOT / "recipes" / "tiny" / "understanding.yaml"
    assert load_recipe(name).stage == "understanding"
    assert len(load_chain("tiny/chain").links) > 5


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "tiny").mkdir(parents=True)
    shutil.copy(ROOT / "recipes" / "tiny" / "decoder.yaml", tmp_path / "recipes" / "tiny" / "understanding.yaml")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("tiny/understanding") == Path("recipes/tiny/understanding.yaml")


def test_a_name_that_is_none_says_where_recipes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = (
        rf"There is none at {tmp_path}/understandin\. Did you mean 'tiny/understanding'\? Name a file, or one of "
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_recipe("understandin")
    monkeypatch.setattr(recipe_files, "REPOSITORY_RECIPES", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"Name a file of yours; the recipes of the repository are in a clone"):
        load_recipe("tiny/understanding")


def test_the_full_size_recipe_says_what_a_small_machine_lacks(monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert main(["train", "blip3o-8b/pretrain", "--plan"]) == 1
    printed = capsys.readouterr().out
    for text in (
        "weights 'backbone': MISSING, Qwen/Qwen2.5-VL-7B-Instruct is not on this machine",
        "data: MISSING, there is none at data/BLIP3o-Pretrain-Long-Caption/*.tar",
        "accelerator: MISSING",
        "processes: MISSING, 32 for steps of 512 records; this machine has a CPU",
        "time: 150000 steps",
    ):
        assert text in printed
    trained = int(re.search(r"\(([\d,]+) parameters train\)", printed)[1].replace(",", ""))
    assert trained == pytest.approx(1.365e9, rel=0.02)
    assert printed.splitlines()[-1].startswith("missing: ")


def test_a_recipe_that_can_run_misses_nothing_and_writes_nothing(tmp_path, monkeypatch, make_image, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    make_image(0).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("a picture")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stage: generation\noutput_dir: out\ninputs: {model: blip3o-tiny}\ndata: {sources: [{path: photos}]}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 1, use_cpu: true, report_to: none}\n"
    )
    assert main(["train", "mine", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "data: photos, a folder" in printed and printed.endswith("nothing is missing\n")
    assert not (tmp_path / "out").exists()
    trained = re.search(r"\(([\d,]+) parameters train\)", printed)[1]
    trainer = load_recipe(recipe).trainer()
    assert (
        f"all: {sum(p.numel() for p in trainer.model.parameters()):,} parameters, {trained} train"
        in trainer.what_trains
    )


def test_what_open_stage_would_refuse_is_in_the_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("tiny/encoder", ["model.visoin=1", f"output_dir={tmp_path}"])
    assert "Unknown key 'visoin'" in str(plan(recipe)) and plan(recipe).missing
