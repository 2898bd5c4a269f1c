"""`blip3o-hf data check` says what is in a source, what is wrong with it, and fails past the tolerance."""

import json
import shlex

import pytest
from PIL import Image

from blip3o_hf.cli import main


@pytest.fixture
def captions(tmp_path):
    for number, size in enumerate([(8, 8), (20, 10), (30, 40)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [
        {"image": "0.png", "caption": "a dog"},
        {"image": "1.png", "caption": "a cat on a mat"},
        {"image": "2.png", "caption": "one two three four five six"},
        {"image": "1.png", "caption": "a cat on a mat"},
        {"image": "1.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]},
        {"image": "none.png", "caption": "gone"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(printed):
    return {line[:16].strip(): line[16:].split() for line in printed.splitlines()}


def test_check_reports_counts_sizes_lengths_bad_items_and_duplicates(captions, tmp_path, capsys):
    histogram = tmp_path / "captions.png"
    assert main(["data", "check", str(captions), "--histogram", str(histogram)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("6 of 6 items read\n")
    table = rows(printed)
    assert table["generation"] == ["4"] and table["understanding"] == ["1"]
    assert table["bad"] == ["1"] and table["duplicates"] == ["1"]
    assert table["image width"] == ["8", "20", "30"] and table["image height"] == ["8", "10", "40"]
    assert table["caption words"] == ["2", "5", "6"]
    assert f"bad: {captions}:6: no image file at" in printed
    assert f"duplicate: {captions}:4 is {captions}:2" in printed
    assert printed.endswith(f"{histogram}\n") and Image.open(histogram).size[0] > 300


def test_check_succeeds_within_the_tolerance_and_reads_no_more_than_asked(captions, capsys):
    assert main(["data", "check", str(captions), "--max-bad-share", "0.2"]) == 0
    assert main(["data", "check", str(captions), "--limit", "2"]) == 0
    assert "2 of 6 items read" in capsys.readouterr().out
    assert main(["data", "check", str(captions), "reconstruct=true", "--limit", "3"]) == 0
    assert rows(capsys.readouterr().out)["caption words"] == ["-", "-", "-"]


@pytest.mark.parametrize(
    "setting", ["prompt_template=a photo: {caption}", "prompt_template={caption}, oil", "min_size=1e1"]
)
def test_check_reads_values_by_the_type_of_their_key(tmp_path, setting, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a sheet")
    assert main(["data", "check", str(tmp_path), setting]) == 0
    assert shlex.quote(f"data.{setting}".replace("1e1", "10")) in capsys.readouterr().out


def test_check_refuses_wrong_settings_in_one_line(captions, tmp_path, capsys):
    for arguments, text in [
        ([captions, "min_size=abc"], "`min_size` must be a whole number. Got 'abc'."),
        ([captions, "captoin=a"], "Unknown key 'captoin' in a data source. Did you mean 'caption'?"),
        ([captions, "caption"], "A setting must be written key=value. Got 'caption'"),
        ([captions, "--format", "jsn"], "Did you mean 'json'?"),
        ([tmp_path / "none.tar"], "There is none at"),
        ([captions, "--limit", "0"], "--limit must be at least 1. Got 0."),
        ([captions, "--max-bad-share", "2"], "--max-bad-share must be in [0, 1]. Got 2.0."),
        ([captions, "--histogram", tmp_path / "none" / "a.png"], "The output's folder must exist"),
    ]:
        assert main(["data", "check", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("blip3o-hf data: ") and error.count("\n") == 1 and text in error
