"""Editing, redrawing and talking on the command line: files appear, words are printed, bad input is one clear line."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.shapes import Scene, SceneObject, render


@pytest.fixture
def scene_file(tmp_path):
    scene = Scene((SceneObject("circle", "red", "large", 1, 1),), "white")
    path = tmp_path / "scene.png"
    Image.fromarray(render(scene)).save(path)
    return path


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys):
    """`talk(lines, *options)`: the exit status, and what was printed."""

    def run(lines, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        status = main(["chat", "--pictures", str(tmp_path), "--steps", "3", *map(str, options)])
        return status, capsys.readouterr()

    return run


def fails(capsys, arguments, *texts):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"blip3o-hf {arguments[0]}: ") and error.count("\n") == 1
    for text in texts:
        assert text in error


def test_edit_writes_a_picture_and_a_sheet(scene_file, tmp_path, capsys):
    out, sheet = tmp_path / "out.png", tmp_path / "sheet.png"
    call = ["edit", "make the circle blue", str(scene_file), "-o", str(out), "--sheet", str(sheet), "--steps", "3"]
    assert main(call) == 0
    assert capsys.readouterr().out.split() == [str(out), str(sheet)]
    assert Image.open(out).size == (64, 64)
    assert Image.open(sheet).width > 2 * 192
    first = np.asarray(Image.open(out))
    assert main([*call[:3], "-o", str(out), "--steps", "3", "--seed", "1"]) == 0
    assert (np.asarray(Image.open(out)) != first).any()


def test_edit_refuses_bad_input_and_writes_nothing(scene_file, tmp_path, capsys):
    out = tmp_path / "out.png"
    fails(capsys, ["edit", "make it blue", tmp_path / "none.png", "-o", out], "The image must be a file")
    fails(capsys, ["edit", " ", scene_file, "-o", out], "A prompt must say something")
    fails(capsys, ["edit", "make it blue", scene_file, "-o", tmp_path / "no" / "out.png"], "folder must exist")
    assert not out.exists()


def test_reconstruct_shows_images_side_by_side_with_their_distance(scene_file, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(scene_file), str(scene_file), "-o", str(out), "--steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines[:-1]] == ["autoencoder", "unified"] * 2 and lines[-1] == str(out)
    assert "cosine 0.99" in lines[0] or "cosine 1.00" in lines[0]
    sheet = Image.open(out)
    assert sheet.width > 3 * 192 and sheet.height > 2 * 192
    assert main(["reconstruct", str(scene_file), "-o", str(out), "--mode", "autoencoder"]) == 0
    assert Image.open(out).width < sheet.width


def test_reconstruct_needs_the_target_encoder(scene_file, tmp_path, capsys):
    call = ["reconstruct", scene_file, "-o", tmp_path / "out.png", "--encoder", tmp_path / "nothing"]
    fails(capsys, call, "A reconstruction needs the target encoder of the model", "nothing has none")


def test_chat_draws_answers_and_edits(talk, tmp_path):
    status, printed = talk(["/draw a red circle", "/ask what color is the circle?", "", "/edit make the circle blue"])
    assert status == 0
    planned, first, answer, planned_again, second = printed.out.splitlines()
    assert planned.startswith("plan: a ") and "blue circle" in planned_again
    assert [first, second] == [str(tmp_path / f"picture-{number}.png") for number in (1, 2)]
    assert answer == "red"
    assert Image.open(first).size == Image.open(second).size == (64, 64)


def test_chat_is_shown_pictures_and_goes_on_where_it_was_saved(talk, scene_file, tmp_path):
    folder = tmp_path / "saved"
    status, printed = talk([f"/image {scene_file}", "/ask what color is the circle?"], "--save", folder)
    assert status == 0 and printed.out == "red\n"
    status, printed = talk(
        ["/ask what shape is the red object?", "/quit", "/nothing"], "--open", folder, "--save", folder
    )
    assert status == 0 and printed.out == "circle\n"
    assert len(json.loads((folder / "conversation.json").read_text())["messages"]) == 4
    status, _ = talk(["/forget 1"], "--open", folder, "--save", folder)
    assert status == 0 and len(json.loads((folder / "conversation.json").read_text())["messages"]) == 2


def test_chat_names_what_it_does_not_know(talk, tmp_path):
    for lines, text in (
        (["/paint a circle"], "There is no /paint. Available: /ask, /draw"),
        (["/edit make it blue"], "An edit needs a picture. This conversation has none."),
        (["/draw"], "A turn must say something"),
        (["/image none.png"], "The image must be a file"),
        (["/forget all"], "/forget takes a number of turns. Got 'all'."),
    ):
        status, printed = talk(lines)
        assert status == 2 and text in printed.err
    status, printed = talk([], "--open", tmp_path)
    assert status == 2 and "A saved conversation is a folder with conversation.json" in printed.err
    status, printed = talk([], "--pictures", tmp_path / "none")
    assert status == 2 and "--pictures must be a folder" in printed.err
