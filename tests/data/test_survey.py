"""The check refuses what training would; many bad items are one line; settings that fit are proposed."""

import json

import pytest
import yaml
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.data.rows import SourceSettings
from blip3o_hf.data.survey import propose


@pytest.fixture
def folder(tmp_path):
    for number in range(42):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def lines(folder, *names, **values):
    """42 items with these columns, their images under `names`."""
    rows = [
        dict.fromkeys(names, f"{n}.png") | {key: value.format(n) for key, value in values.items()} for n in range(42)
    ]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(path, *arguments):
    return main(["data", "check", str(path), *arguments])


def test_captions_under_the_one_usual_name_are_read_and_said(folder, capsys):
    for name in ("text", "prompt", "title"):
        path = lines(folder, "image", "file_name", **{name: "caption {}"})
        (folder / "metadata.jsonl").write_bytes(path.read_bytes())
        for source in (path, folder):
            assert check(source) == 0
            printed = capsys.readouterr().out
            assert f"note: captions are read from '{name}' where there is no 'caption'\n" in printed
            assert f"next: blip3o-hf finetune --data {source} --output runs/mine\n" in printed


def test_many_bad_items_of_one_reason_are_one_line_and_the_settings_are_proposed(folder, capsys):
    path = lines(folder, "picture", description="a dog {}", licence="CC")
    assert check(path) == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("bad: ")]
    assert line.startswith(
        f"bad: 42 items for one reason, such as {path}:1: no text under 'caption'; there is 'picture',"
    )
    assert line.endswith(f"(also {path}:2, {path}:3 and 39 more)")
    assert f"try: blip3o-hf data check {path} image=picture caption=description\n" in printed
    assert check(path, "--all") == 1
    assert capsys.readouterr().out.count("\nbad: ") == 42
    assert check(path, "image=picture", "caption=description", "--format", "json") == 0
    printed = capsys.readouterr().out
    words = "data.format=json data.image=picture data.caption=description"
    assert f"next: blip3o-hf finetune --data {path} --output runs/mine {words}\n" in printed


def test_of_two_usual_names_one_is_proposed(folder, capsys):
    path = lines(folder, "image", text="a text {}", title="a title {}")
    assert check(path) == 1
    printed = capsys.readouterr().out
    assert "there is 'image', 'text', 'title'; set caption=text" in printed
    assert f"try: blip3o-hf data check {path} caption=text\n" in printed


def test_paths_are_quoted_and_missing_files_are_one_line(folder, capsys):
    (folder / "my data [v2]").mkdir()
    path = lines(folder, "image", caption="a dog {}").rename(folder / "my data [v2]" / "a.jsonl")
    assert check(path) == 1
    assert "bad: 42 items for one reason, such as" in capsys.readouterr().out
    assert check(path, f"image_root={folder}") == 0
    assert f"finetune --data '{path}' --output runs/mine data.image_root={folder}\n" in capsys.readouterr().out


def test_proposals_are_made_only_where_most_items_are_bad(folder, capsys):
    path = lines(folder, "image", caption="a dog {}", note="a note {}")
    path.write_text(path.read_text() + '{"image": "1.png", "note": "a note"}\n')
    assert check(path) == 1
    assert "try: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        ({"img": "a.png", "alt_text": "a dog"}, {}, {"image": "img", "caption": "alt_text"}),
        (
            {"file": {"bytes": b"x", "path": None}, "Caption": "a dog", "url": "a dog"},
            {},
            {"image": "file", "caption": "Caption"},
        ),
        ({"image": b"x", "link": "https://a/b.html", "id": "7", "says": "a dog", "a": "x"}, {}, {"caption": "says"}),
        ({"image": "a.png", "score": 0.5}, {}, {}),
        ({"image": "a.png", "b.png": "b.png", "text": "a"}, {"caption": "long"}, {}),
        ({"image": "a.png", "text": "a", "title": "b"}, {"caption": "long"}, {"caption": "text"}),
        ({}, {}, {}),
    ],
)
def test_proposals_follow_from_what_columns_hold(content, settings, expected):
    assert propose([content, content], SourceSettings(path="a", **settings)) == expected


def test_names_of_files_that_are_no_unicode_are_printed(tmp_path, capsys):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    assert check(tmp_path) == 1
    assert "caf\\udce9.png: no text under 'caption'" in capsys.readouterr().out


def test_what_training_refuses_is_bad_with_its_address(folder, capsys):
    Image.new("RGB", (3000, 10)).save(folder / "long.png")
    rows = [
        {"image": "1.png", "caption": "two <|image_pad|> dogs"},
        {"images": ["long.png"], "target": "1.png", "prompt": "brighter"},
        {"image": "long.png", "caption": "a long image"},
        {"turns": [["a<|im_end|>", "b"]]},
        {"image": "1.png", "caption": "half a \ud83d dog"},
        {"image": "1.png", "caption": "a dog"},
    ]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path) == 1
    printed = capsys.readouterr().out
    for number, reason in enumerate(
        [
            "the text holds the special token <|image_pad|>; take it out",
            "image of 3000 x 10 pixels, one side more than 200 times the other",
            None,
            "the text holds the special token <|im_end|>; take it out",
            "not Unicode text (half a character, U+D83D); save it as UTF-8",
        ],
        start=1,
    ):
        assert reason is None or f"{path}:{number}: {reason}" in printed
    assert f"bad: 2 items for one reason, such as {path}:2: image of" in printed and f"(also {path}:3)" in printed
    assert "bad                    5\n" in printed


# With a model


def test_answers_beyond_the_longest_conversation_are_counted(folder, capsys):
    rows = [
        {"turns": [["how many circles are there?", "two"]]},
        {"turns": [["how many circles are there? " * 20, "two"]]},
        {"turns": [["how many circles are there?", "two " * 60]]},
        {"image": "1.png", "turns": [["how many circles are there?", "two"]]},
        {"image": "1.png", "caption": "two red circles <image>"},
    ]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path, "--model", "blip3o-tiny", "--max-length", "60") == 1
    printed = capsys.readouterr().out
    table = {line[:16].strip(): line[16:].split() for line in printed.splitlines()}
    assert (table["no answer left"], table["answers cut"], table["understanding"]) == (["2"], ["1"], ["2"])
    assert f"{path}:2: no room for the first answer: with everything before it, " in printed
    assert "tokens are needed, and there are 60; raise `max_length`" in printed
    assert check(path, "--model", "blip3o-tiny", "--max-length", "200") == 1
    printed = capsys.readouterr().out
    table = {line[:16].strip(): line[16:].split() for line in printed.splitlines()}
    assert (table["no answer left"], table["answers cut"], table["bad"]) == (["0"], ["0"], ["1"])
    assert f"bad: {path}:5: the text holds the special token <image>; take it out\n" in printed


def test_captions_that_training_cuts_are_counted(folder, capsys):
    path = folder / "a.jsonl"
    rows = [{"image": "1.png", "caption": caption} for caption in ("two red circles", "two red circles " * 200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path, "--model", "blip3o-tiny") == 0
    printed = capsys.readouterr().out
    assert "answers cut            0\ncaptions cut           1\n" in printed


def test_a_fine_tuning_draws_captions_that_the_model_can_read(folder, tmp_path_factory):
    path = folder / "a.jsonl"
    captions = ["two red circles", "two red circles " * 200, "two <image> circles"]
    path.write_text("".join(json.dumps({"image": "1.png", "caption": text}) + "\n" for text in captions))
    output = tmp_path_factory.mktemp("runs")
    arguments = ["--data", str(path), "--output", str(output), "--decoder-steps", "0", "--steps", "1"]
    assert main(["finetune", *arguments, "--batch-size", "1"]) == 0
    assert yaml.safe_load((output / "generation.yaml").read_text())["evaluation"]["prompts"] == ["two red circles"]
    path.write_text(json.dumps({"image": "1.png", "caption": captions[1]}))
    output = tmp_path_factory.mktemp("long")
    arguments = ["--data", str(path), "--output", str(output), "--decoder-steps", "0", "--steps", "1"]
    assert main(["finetune", *arguments, "--batch-size", "1"]) == 0
    (prompt,) = yaml.safe_load((output / "generation.yaml").read_text())["evaluation"]["prompts"]
    assert captions[1].startswith(prompt) and len(prompt) < len(captions[1])


def test_a_length_without_a_model_is_an_error(folder, capsys):
    assert check(folder, "--max-length", "60") == 2
    assert "--max-length counts the tokens of a model. There is no --model. Name it." in capsys.readouterr().err


def test_a_fine_tuning_on_data_without_captions_ends_in_one_line(folder, tmp_path_factory, capsys):
    path = lines(folder, "image", description="a dog {}")
    output = tmp_path_factory.mktemp("runs")
    arguments = ["--data", str(path), "--output", str(output), "--decoder-steps", "0", "--steps", "2"]
    assert main(["finetune", *arguments, "--batch-size", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(output.iterdir())
    assert error.startswith("blip3o-hf finetune: At most 1.00% of the items may be bad") and "a.jsonl:" in error
    assert "no text under 'caption'; there is 'image', 'description'" in error
