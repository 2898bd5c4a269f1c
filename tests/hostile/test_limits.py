"""Files from elsewhere are read within limits: of bytes, of depth, and never from a pipe or a device."""

import os
import time

import pytest
import yaml

from blip3o_hf.data import paths
from blip3o_hf.data.paths import expand_paths
from blip3o_hf.data.rows import SourceSettings
from blip3o_hf.data.tar_files import WebDatasetSource
from blip3o_hf.hub.card_check import card_file_problems
from blip3o_hf.reading import read_bytes, read_json, read_text
from blip3o_hf.yaml_text import parse_yaml


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_bytes(path, 8) == b'{"a": 1}' and read_json(path) == {"a": 1}
    with pytest.raises(ValueError, match=r"A file of this kind holds at most 7 bytes\. .*a\.json holds more\."):
        read_bytes(path, 7)
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert read_text(path) == "grün"


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"There is no file {path}. Check the path."):
            read_bytes(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "Expecting property name"), ("[" * 100_000, "too many nested brackets"), ("\xff", "")],
)
def test_what_is_no_json_is_named(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=f"{path} must hold JSON. It does not: .*{reason}.*Save or download it again."
    ):
        read_json(path)


def test_yaml_is_read_within_limits():
    assert parse_yaml("a: [1, {b: 2}]") == {"a": [1, {"b": 2}]}
    for deep in ("[" * 50_000, "{a: " * 50_000, "- " * 50_000, "? " * 50_000):
        with pytest.raises(ValueError, match=r"YAML is read up to 64 levels. This is nested deeper."):
            parse_yaml(deep)
    with pytest.raises(ValueError, match=r"YAML is read up to 1,000,000 characters. This has 1,200,000."):
        parse_yaml("a: b\n" * 240_000)
    laughs = "\n".join(
        f"{name}: &{name} [*{before}, *{before}]" for name, before in zip("bcdef", "abcde", strict=True)
    )
    with pytest.raises(ValueError, match=r"YAML is read without references \(`\*a`\)"):
        parse_yaml(f"a: &a [1]\n{laughs}")
    assert parse_yaml("a: &a [1]\nb: *a", takes_references=True) == {"a": [1], "b": [1]}
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: [")
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: !!python/object/apply:os.system [echo]")


def test_the_front_matter_of_a_card_is_read_within_limits(tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"---\na: {'[' * 50_000}\n---\ntext")
    assert "The front matter cannot be read: YAML is read up to 64 levels" in " ".join(card_file_problems(card))
    card.write_text("x [" * 1_700_000)
    with pytest.raises(ValueError, match="holds at most 300,000 bytes"):
        card_file_problems(card)
    with pytest.raises(FileNotFoundError, match="There is no file /dev/zero"):
        card_file_problems("/dev/zero")


def test_braces_stand_for_a_million_files_at_most():
    for pattern in ("none/{0..999999999}.tar", "none/{0..99999}{0..99999}.tar", f"none/{'{a,b}' * 30}.jsonl"):
        with pytest.raises(ValueError, match=r"A pattern stands for at most 1,000,000 files\. .* stands for more\."):
            expand_paths(pattern)
    with pytest.raises(ValueError, match=r"Braces count up, as in \{0\.\.9\}\. Got none/\{9\.\.0\}\.tar\."):
        expand_paths("none/{9..0}.tar")


def test_globs_stand_for_a_million_files_at_most(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.tar").touch()
    monkeypatch.setattr(paths, "MAX_FILES", 2)
    with pytest.raises(ValueError, match=r"A pattern stands for at most 2 files\. .*\.tar stands for more\."):
        expand_paths(f"{tmp_path}/*.tar")
    assert [path.name for path in expand_paths(f"{tmp_path}/[ab].tar")] == ["a.tar", "b.tar"]


def test_no_source_is_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    for path in (tmp_path / "rows.jsonl", "/dev/zero"):
        with pytest.raises(ValueError, match=f"A source must be files or folders. {path} is a pipe or a device."):
            expand_paths(str(path))
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(ValueError, match=f"{tmp_path}/0.tar is a pipe or a device"):
        WebDatasetSource(SourceSettings(path=str(tmp_path)))


@pytest.mark.parametrize("text", ["x [", "[", "![", "<img ", "x ](a ", "```\n", "# \n", "`", "|", "("])
def test_no_text_of_a_card_takes_long(tmp_path, text):
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\n" + text * (250_000 // len(text)))
    start = time.process_time()
    assert card_file_problems(card)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("code", ["(" * 100_000, "a\0", "x = " + "-" * 200_000 + "1"])
def test_code_of_a_card_that_cannot_be_read_is_a_problem(tmp_path, code):
    card = tmp_path / "card.md"
    card.write_text(f"---\nlicense: mit\n---\n# A\n```python\n{code}\n```\n")
    assert "Python block 1 of the card does not parse" in " ".join(card_file_problems(card))
