"""`blip3o-hf finetune`: what it prints, where it writes, and how its result is found again."""

import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from blip3o_hf.assets import resolve_model
from blip3o_hf.cli import main
from blip3o_hf.training.checkpoints import has_complete_checkpoint

CAPTIONS = {"red": "a red sheet", "green": "a green sheet", "blue": "a blue: sheet"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with images in it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "photos").mkdir()
    for color, caption in CAPTIONS.items():
        Image.new("RGB", (64, 64), color).save(folder / "photos" / f"{color}.png")
        (folder / "photos" / f"{color}.txt").write_text(caption)
    return folder


COMMAND = ["finetune", "--data=~/photos", "--output=~/runs/mine", "--steps", "2", "--decoder-steps", "1"]
COMMAND += ["--batch-size", "2", "training.evaluation_steps=1", "training.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def printed(home):
    """What the command prints, and the home folder in which it ran."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        (home / "elsewhere").mkdir()
        patch.chdir(home / "elsewhere")
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert main(COMMAND) == 0
    return lines


@pytest.fixture
def in_home(home, printed, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "elsewhere")


def test_a_home_folder_is_the_same_for_checkpoints_and_result(home, printed):
    assert list((home / "elsewhere").iterdir()) == []
    folder = home / "runs" / "mine"
    assert (folder / "generation" / "pipeline" / "model_index.json").is_file()
    assert has_complete_checkpoint(folder / "generation" / "checkpoints")
    recipe = yaml.safe_load((folder / "generation.yaml").read_text(encoding="utf-8"))
    assert recipe["output_dir"] == str(folder / "generation") and recipe["training"]["learning_rate"] == 1e-3


def test_the_first_captions_are_drawn_while_it_trains(home, printed):
    folder = home / "runs" / "mine"
    recipe = yaml.safe_load((folder / "generation.yaml").read_text(encoding="utf-8"))
    assert set(recipe["evaluation"]["prompts"]) == set(CAPTIONS.values())
    names = sorted(path.name for path in (folder / "generation").glob("samples-*.png"))
    assert names == ["samples-1.png", "samples-2.png"]


def test_the_last_lines_say_where_the_model_is_and_what_to_type_next(home, printed, in_home):
    assert f"the new model: {home}/runs/mine/generation/pipeline" in printed
    (line,) = [line for line in printed if line.startswith("draw with it: ")]
    program, *words = shlex.split(line.removeprefix("draw with it: "))
    assert program == "blip3o-hf" and main([*words, "--steps", "1", "--attempts", "1"]) == 0
    assert (home / "elsewhere" / "out.png").is_file()
    (home / "elsewhere" / "out.png").unlink()


@pytest.mark.parametrize("name", ["~/runs/mine", "~/runs/mine/pipeline", "~/runs/mine/generation/pipeline"])
def test_a_model_is_found_below_the_folder_of_its_run(home, printed, in_home, name):
    assert resolve_model(name) == str(home / "runs" / "mine" / "generation" / "pipeline")


def test_the_commands_find_the_pipeline_of_a_stage(home, printed, in_home, tmp_path):
    for name in ("~/runs/mine/generation", "../runs/mine"):
        call = ["generate", "a", "--steps", "1", "--attempts", "1", "--model", name, f"-o={tmp_path / 'a.png'}"]
        assert main(call) == 0


def test_a_finished_folder_is_not_replaced_and_goes_on_with_resume(home, printed, in_home, capsys):
    weights = home / "runs" / "mine" / "generation" / "pipeline" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main(COMMAND) == 2
    assert "A run must not replace a finished one." in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before
    assert main([*COMMAND[:3], "--resume", *COMMAND[3:]]) == 0


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path, capsys):
    assert main(["generate", "a", "--model", str(tmp_path), "-o", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} has no model_index.json, neither itself nor in pipeline/ or generation/pipeline/." in error
    assert not Path(tmp_path, "a.png").exists()
