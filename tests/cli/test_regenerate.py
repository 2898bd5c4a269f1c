"""`regenerate` makes a result again from its manifest, and says whether it is the same."""

import json

import pytest

from blip3o_hf.cli import main
from blip3o_hf.evaluation.manifests import Manifest

REPORT = ["evaluate", "--per-family", "1", "--per-kind", "1", "--pictures", "0", "--per-edit", "0", "--attempts", "1"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "results.json"
    assert main([*REPORT, "--steps", "2", "--no-plan", "--output", str(path)]) == 0
    return path


def test_a_report_is_made_again_and_equal(report, capsys):
    assert main(["regenerate", str(report)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("equal: 0 pictures and ")
    assert "blip3o-hf evaluate --model blip3o-tiny --per-family 1" in printed.err


def changed(report, folder, **changes):
    """A manifest that another machine wrote."""
    manifest = Manifest.read(report)
    content = {name: getattr(manifest, name) for name in ("evaluation", "words", "inputs", "environment", "started")}
    path = folder / "manifest.json"
    Manifest(**{**content, **changes}).write(path)
    return path


def test_what_differs_is_said_with_what_else_is_not_the_same(report, tmp_path, capsys):
    words = list(Manifest.read(report).words)
    words[words.index("--steps") + 1] = "1"
    path = changed(report, tmp_path, words=tuple(words), inputs={"model": "0" * 64})
    code = main(["regenerate", str(path), "--output", str(tmp_path / "again.json")])
    lines = capsys.readouterr().out.splitlines()
    is_equal = lines[-1].startswith("equal")  # one step may draw as well as two
    assert code == (not is_equal) and "not the same here: settings: steps was 2, and is 1" in lines
    assert any(line.startswith(f"not the same here: inputs: model was {'0' * 64}, and is ") for line in lines)
    assert Manifest.read(tmp_path / "again.json").evaluation.settings["steps"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "A manifest holds the words of an evaluation. That of "),
        (("push", "a"), "begins with 'push a'. Measure it again."),
        (("evaluate", "--nonsense"), "A manifest holds a command of this version. 'evaluate --nonsense' is none."),
        (("evaluate", "os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (("evaluate", "--limit", "1", "os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (("evaluate", "own", "--scorer", "os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (("evaluate", "own", "--scorer=os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (("evaluate", "own", "--scor", "os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (("distance", "a", "b", "--extractor=os:system"), "names 'os:system'. Add --own-code if you trust it."),
        (
            ("evaluate", "own", "--prompts", "none.jsonl"),
            "There is none at none.jsonl for prompts. Add --prompts PATH.",
        ),
    ],
)
def test_a_manifest_runs_no_command_and_no_code_of_its_choice(report, tmp_path, capsys, words, message):
    path = changed(report, tmp_path, words=words)
    assert main(["regenerate", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_bad_arguments_are_named(report, tmp_path, capsys):
    for words, message in (
        ([str(report), "--tolerance", "-1"], "--tolerance must be a finite number of at least 0. Got -1.0."),
        ([str(report), "--prompts", "x"], "The manifest's command has no prompts. Got 'x'. Leave it out."),
        ([str(report), "--output", str(tmp_path)], f"--output must be a new folder. {tmp_path} is there."),
        ([str(tmp_path / "none")], "There is no file"),
    ):
        assert main(["regenerate", *words]) == 2
        assert message in capsys.readouterr().err
    content = json.loads(report.read_text())
    content["scores"][0]["figure"]["value"] = 0.5
    (tmp_path / "edited.json").write_text(json.dumps(content))
    assert main(["regenerate", str(tmp_path / "edited.json")]) == 2
    assert "was changed afterwards: its digest is not that of its content." in capsys.readouterr().err
