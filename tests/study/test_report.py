"""The report says what was asked and measured, at which budget, and what it decides; its manifest, from what."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from blip3o_hf.cli import main
from blip3o_hf.hub.results import digest_of
from blip3o_hf.study.report import verdict_of, write_report
from blip3o_hf.study.results import values_of
from blip3o_hf.study.runs import StudyRuns


@pytest.fixture
def finished(content, make_study, runs):
    """A study whose runs are there, the rates 0.003 of `plain` and 0 of `further`."""
    runs.scores |= {"0": 0.2, "1": 0.6, "2": 0.4}
    content["measures"]["alone"] = {"kind": "tests.study.stand_ins:Result", "arms": ["plain"]}
    content["comparisons"]["whole"] = content["comparisons"]["rates"] | {
        "value": "result.whole",
        "direction": "lower",
        "hypothesis": "A hypothesis\nof two lines.",
    }
    content["comparisons"]["whole"].pop("paper")
    study = make_study(content)
    StudyRuns(study, say=lambda line: None).all()
    return study


def test_tables_hold_what_was_measured(finished, tmp_path):
    verdicts = write_report(finished, tmp_path / "docs" / "two.md")
    assert [verdict.word for verdict in verdicts] == ["supported", "refuted"]
    lines = (tmp_path / "docs" / "two.md").read_text().splitlines()
    assert lines[0] == "# Two ways" and "![curves](two_curves.png)" in lines
    rows = [line for line in lines if line.startswith("| ")]
    assert (
        r"| A rate \| is above none. (section 0) | `result.rate`, higher | plain: 1.170 | further: 1.167 | "
        "+0.003 [+0.003, +0.003] | 3 x 2 | **supported** |"
    ) in rows
    assert (
        "| A hypothesis of two lines. | `result.whole`, lower | plain: 3.503 | further: 3.500 | "
        "+0.003 [+0.003, +0.003] | 1 x 2 | **refuted** |"
    ) in rows
    assert "Means over 2 seeds, the least and the most of these in brackets." in lines
    assert "| value | further | plain |" in rows
    assert "| `result.whole` | 3.500 (0.000 to 7.000) | 3.503 (0.003 to 7.003) |" in rows
    assert "| `alone.whole` |  | 3.503 (0.003 to 7.003) |" in rows
    assert "| further | trained further | `decoder.yaml` | 48 | 4 | 3 | 8e+09 |" in rows
    assert "| plain |  | `decoder.yaml` | 24 | 4 | 3 | 8e+09 |" in rows
    assert "| plain | `training.learning_rate` | 0.003 | 0.600 |" in rows
    assert "All trainings, those of parts and searches included, took 0.0 CPU hours." in lines
    with Image.open(tmp_path / "docs" / "two_curves.png") as picture:
        assert picture.size[0] > 400 and len(picture.convert("L").getcolors()) > 10
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["two.json", "two.md", "two_curves.png"]


def test_the_manifest_says_from_what(finished, tmp_path):
    write_report(finished, tmp_path / "report.md")
    manifest = json.loads((tmp_path / "report.json").read_text())
    digest = manifest.pop("digest")
    assert digest == digest_of(manifest)
    assert set(manifest["inputs"]) == {"study.yaml", "encoder.yaml", "decoder.yaml"}
    for name, found in manifest["inputs"].items():
        assert found.endswith(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert manifest["values"]["result.whole"]["plain"] == [[0.003], [7.003]]
    assert manifest["searches"]["plain"][1] == {"value": 0.003, "score": 0.6}
    assert [each["verdict"] for each in manifest["verdicts"]] == ["supported", "refuted"]
    assert (manifest["seeds"], manifest["overrides"]) == ([0, 7], [])
    assert manifest["budgets"]["further"] == {"examples": 48, "steps": 4, "cpu_seconds": 3.0, "flops": 8e9}
    assert manifest["cpu_seconds"] == 3.0 * (1 + 3 + 4)  # a part, three trials, two arms with two seeds
    assert manifest["curves"]["curves"]["plain"] == [[[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]]] * 2
    manifest["values"]["result.whole"]["plain"][0][0] = 0.004
    assert digest != digest_of(manifest)


def test_the_manifest_makes_the_report_again_without_the_runs(finished, tmp_path, capsys):
    write_report(finished, tmp_path / "docs" / "two.md")
    shutil.rmtree(finished.folder)
    capsys.readouterr()
    assert main(["study", "study.yaml", "--from", "docs/two.json", "--report", "again/two.md"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "again/two.md"
    for name in ("two.md", "two.json", "two_curves.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "docs" / name).read_bytes()
    assert not finished.folder.exists()


def test_a_manifest_of_something_else_makes_no_report(finished, content, make_study, tmp_path, capsys):
    write_report(finished, tmp_path / "two.md")
    command = ["study", "study.yaml", "--from", "two.json", "--report", "again.md"]
    content["comparisons"]["rates"]["hypothesis"] = "Nothing is above none."
    make_study(content)
    assert main(command) == 2
    assert "two.json was made with another study.yaml than" in capsys.readouterr().err
    (tmp_path / "two.json").write_text((tmp_path / "two.json").read_text().replace("0.003", "0.004"))
    assert main(command) == 2
    assert "two.json was changed afterwards" in capsys.readouterr().err
    (tmp_path / "two.json").write_text("{}")
    assert main(command) == 2
    assert "A report is made again from the manifest that was written beside it. two.json is none." in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "again.md").exists()


def test_a_report_is_of_finished_runs(finished, tmp_path):
    (finished.run_folder("plain", 7) / "summary.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 are not, runs/runs/plain-7 among them\. Run blip3o-hf study .*ya?ml"
    ):
        write_report(finished, tmp_path / "report.md")
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("section", "name", "change", "message"),
    [
        ("plots", "curves", {"score": "counting"}, r"`curves` shows 'counting', which plain has not\. Correct it, or"),
        ("comparisons", "rates", {"value": "result.rat"}, r"`rates` compares result\.rat of plain, and measured are"),
        ("comparisons", "rates", {"value": "alone.rate"}, r"`rates` compares alone\.rate of further"),
    ],
)
def test_what_no_run_has_is_said_and_no_report_is_written(
    finished, content, make_study, tmp_path, section, name, change, message
):
    content[section][name] |= change
    with pytest.raises(ValueError, match=message):
        write_report(make_study(content), tmp_path / "report.md")
    assert not (tmp_path / "report.md").exists() and not (tmp_path / "report.json").exists()


def test_a_study_without_questions_has_measures_alone(content, make_study, runs, tmp_path):
    for section in ("comparisons", "plots"):
        del content[section]
    del content["arms"]["plain"]["search"]
    study = make_study(content)
    StudyRuns(study, say=lambda line: None).all()
    assert write_report(study, tmp_path / "report.md") == []
    headings = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("#")]
    assert headings == ["# Two ways", "## Measures", "## Budgets"]


def test_values_are_rows_of_seeds(finished):
    values = values_of(finished)
    assert values["result.rate"] == {
        "plain": [[0.003, 0.003, 0.003], [0.003, 0.003, 7.003]],
        "further": [[0, 0, 0], [0, 0, 7]],
    }
    assert verdict_of(finished.comparisons[0], values).num_items == 3


def test_the_command_tells_the_plan_and_writes_where_it_is_asked_to(finished, tmp_path, capsys):
    capsys.readouterr()
    assert main(["study", "study.yaml", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "part eye: encoder.yaml, 6 examples, 1 runs, 1 done",
        "arm plain: decoder.yaml, 24 examples, 2 runs, 3 trials of training.learning_rate, 2 done",
        "arm further: decoder.yaml, 48 examples, 2 runs, 2 done",
    ]
    assert lines[3] == "rates: A rate | is above none. (result.rate of plain higher than of further)"
    assert main(["study", "study.yaml", "--report", "else/where.md"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "else/where.md"
    assert (tmp_path / "else/where.md").is_file() and (tmp_path / "else/where.json").is_file()
    assert not (tmp_path / "runs/report.md").exists()
    assert main(["study", "none.yaml"]) == 2
    assert "A study is a YAML file. There is none at" in capsys.readouterr().err


def test_one_arm_may_be_measured_in_two_ways(finished):
    values = values_of(finished)
    plain = finished.comparisons[0]
    values["other.way"] = {plain.of: [[number + 1 for number in row] for row in values[plain.value][plain.of]]}
    ways = replace(plain, against=plain.of, against_value="other.way")
    assert verdict_of(ways, values).change.value == pytest.approx(-1)
    with pytest.raises(ValueError, match=f"compares no.thing of {plain.of}, and measured are"):
        verdict_of(replace(ways, against_value="no.thing"), values)
