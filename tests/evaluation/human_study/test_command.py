"""`blip3o-hf human-study` from folders of pictures to a report, and its one-line errors."""

import json

import pytest
from tests.evaluation.human_study.conftest import SYSTEMS

from blip3o_hf.cli import main
from blip3o_hf.evaluation.human_study.study import Study


@pytest.fixture
def study_folder(sources, tmp_path, capsys):
    folders, prompts = sources
    systems = [f"--system={name}={folder}" for name, folder in folders.items()]
    folder = tmp_path / "study"
    call = ["human-study", "make", str(folder), *systems, "--prompts", str(prompts), "--control", "2", "--seed", "5"]
    assert main(call) == 0
    assert "6 pairs and 2 control pairs, 32 questions for each rater" in capsys.readouterr().out
    return folder


def test_from_pictures_to_a_report(study_folder, answer_all, tmp_path, capsys):
    study = Study.read(study_folder)
    assert study.seed == 5 and study.rounds == 2
    assert main(["human-study", "page", str(study_folder), str(tmp_path / "study.html")]) == 0
    saved = tmp_path / "ann.jsonl"
    answers = answer_all(study, "ann", lambda question, left, right: "left")
    saved.write_text("".join(answer.as_line() for answer in answers) + '{"torn')
    report = tmp_path / "report"
    capsys.readouterr()
    assert main(["human-study", "analyse", str(study_folder), str(saved), "--output", str(report)]) == 0
    out = capsys.readouterr().out
    assert f"visual_quality: {SYSTEMS[0]} against {SYSTEMS[1]} " in out and "12 judgments of 6 prompts" in out
    assert "look at ann: one side is chosen more often than chance allows" in out
    assert "its last line was cut off while it was written" in out
    assert json.loads((report / "report.json").read_text())["raters"][0]["rater"] == "ann"


def test_label_studio(study_folder, tmp_path, capsys):
    assert main(["human-study", "label-studio", "export", str(study_folder), str(tmp_path / "ls")]) == 0
    printed = capsys.readouterr().out.split()
    assert [path.rsplit("/", 1)[1] for path in printed] == ["tasks.json", "labeling_config.xml"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["make", "out", "--system", "a", "--prompts", "p"], "A system is written NAME=FOLDER. Got 'a'"),
        (["make", "out", "--system=a=x", "--system=a=y", "--prompts", "p"], "'a' is there twice. Rename one."),
        (["analyse", "nothing"], "A study is a folder with study.json"),
        (["page", "nothing", "no/where.html"], "The output's folder must exist"),
        (["serve", "nothing"], "A study is a folder with study.json"),
    ],
)
def test_errors_are_one_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["human-study", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("blip3o-hf human-study: ") and told in error and error.count("\n") == 1
