"""A study goes to Label Studio and its answers come back as ours."""

import json
from xml.etree import ElementTree

import pytest

from blip3o_hf.evaluation.human_study.analysis import analyse
from blip3o_hf.evaluation.human_study.answers import answers_of
from blip3o_hf.evaluation.human_study.label_studio import export, import_answers


def annotated(rows, users=(1,), choice="left"):
    """Tasks as Label Studio exports them, each annotated by all users."""
    done = []
    for number, row in enumerate(rows, start=1):
        annotations = [
            {
                "id": 10 * number + user,
                "completed_by": user,
                "was_cancelled": False,
                "lead_time": 8.0,
                "created_at": "2026-01-31T12:00:00.000000Z",
                "result": [
                    {"from_name": name, "to_name": "left", "type": "choices", "value": {"choices": [choice]}}
                    for name in ("visual_quality", "prompt_alignment")
                ],
            }
            for user in users
        ]
        done.append({"id": number, **row, "annotations": annotations, "predictions": []})
    return done


@pytest.fixture
def rows(study, tmp_path):
    export(study, tmp_path / "ls", "http://pictures/")
    return json.loads((tmp_path / "ls" / "tasks.json").read_text())


def test_the_interface_has_two_pictures_and_a_choice_for_each_criterion(study, tmp_path, rows):
    view = ElementTree.fromstring((tmp_path / "ls" / "labeling_config.xml").read_text())
    assert [image.get("value") for image in view.iter("Image")] == ["$left", "$right"]
    assert [choices.get("name") for choices in view.iter("Choices")] == [c.id for c in study.criteria]
    assert [header.get("value") for header in view.iter("Header")] == [c.instruction for c in study.criteria]
    assert all([c.get("value") for c in choices] == ["left", "right"] for choices in view.iter("Choices"))


def test_tasks_are_all_pairs_and_rounds_and_name_no_system(study, rows):
    asked = [(row["data"]["pair"], row["data"]["round"]) for row in rows]
    assert len(set(asked)) == len(asked) == len(study.pairs) * study.rounds
    assert all(row["data"]["left"] == "http://pictures/" + row["data"]["left_name"] for row in rows)
    assert "secret" not in json.dumps(rows)


def test_answers_come_back(make, study, rows, tmp_path):
    key = make("again")[1]
    done = annotated(rows, users=(1, 2))
    done[0]["annotations"][0]["was_cancelled"] = True
    done[1]["annotations"][0]["completed_by"] = {"id": 1, "email": "ann@example.org"}
    (tmp_path / "export.json").write_text(json.dumps(done))
    paths, notes = import_answers(study, tmp_path / "export.json")
    assert [path.name for path in paths] == ["label-studio-1.jsonl", "label-studio-2.jsonl"]
    assert notes == ["1 skipped tasks are left out"]
    answers, _ = answers_of(study, [])
    assert len(answers) == 2 * (2 * len(rows) - 1) and {answer.ms for answer in answers} == {4000}
    result = analyse(study, key, answers)
    assert {screen.left.value for screen in result.raters} == {1.0}
    with pytest.raises(FileExistsError, match=r"label-studio-1\.jsonl is there already"):
        import_answers(study, tmp_path / "export.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row["data"].update(study="0" * 16), "task 1: Answers must be of this study"),
        (lambda row: row["data"].update(pair="0" * 16), "task 1: .*a pair of this study"),
        (lambda row: row["data"].pop("round"), r"Task 1 .* \(KeyError: 'round'\)"),
        (lambda row: row["annotations"][0]["result"].pop(), r"task 1: Each criterion must have one choice.*\[\]"),
        (
            lambda row: row["data"].update(left_name=row["data"]["right_name"], right_name=row["data"]["left_name"]),
            "task 1: The pictures must stand as they were exported",
        ),
        (lambda row: row["annotations"].append(row["annotations"][0]), "has two of label-studio-1"),
    ],
)
def test_exports_that_do_not_fit_are_refused_and_nothing_is_written(study, rows, tmp_path, change, told):
    done = annotated(rows)
    change(done[0])
    (tmp_path / "export.json").write_text(json.dumps(done))
    with pytest.raises(ValueError, match=told):
        import_answers(study, tmp_path / "export.json")
    assert not list((study.folder / "answers").iterdir())


def test_another_format_is_refused(study, tmp_path):
    (tmp_path / "export.json").write_text('{"tasks": []}')
    with pytest.raises(ValueError, match="An export of Label Studio is a JSON list of tasks"):
        import_answers(study, tmp_path / "export.json")
