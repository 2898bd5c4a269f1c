"""Answers survive a kill at any byte, and files that do not belong to the study are refused by their line."""

import json
import logging
from dataclasses import asdict, replace

import pytest

from blip3o_hf.evaluation.human_study.answer_files import AnswerFiles
from blip3o_hf.evaluation.human_study.answers import answers_of, check_rater
from blip3o_hf.evaluation.human_study.order import questions_of, sides_of


def row_of(study, rater, question, choice="left", ms=1500):
    left, right = sides_of(study, rater, question)
    return {"study": study.id, "rater": rater, **asdict(question), "left": left, "right": right} | {
        "choice": choice,
        "ms": ms,
    }


@pytest.fixture
def rows(study):
    """The first five answers of one rater."""
    choices = ("left", "right", "right", "left", "right")
    return [
        row_of(study, "ann", question, choice)
        for question, choice in zip(questions_of(study, "ann"), choices, strict=False)
    ]


def told(answers):
    return [(answer.question, answer.choice) for answer in answers]


def test_answers_and_undo_are_replayed(study, rows):
    files = AnswerFiles(study)
    assert [files.append(row) for row in rows] == [1, 2, 3, 4, 5]
    assert files.append({**rows[4], "choice": "undo"}) == 4
    assert files.append({**rows[3], "choice": "undo"}) == 3
    assert files.append({**rows[3], "choice": "right"}) == 4
    after = files.of("ann")
    assert [answer.choice for answer in after] == ["left", "right", "right", "right"]
    assert AnswerFiles(study).of("ann") == after == sorted(answers_of(study, [])[0], key=after.index)
    assert len(files.path("ann").read_text().splitlines()) == 8


def test_an_answer_sent_twice_is_written_once(study, rows):
    files = AnswerFiles(study)
    assert files.append(rows[0]) == files.append({**rows[0], "ms": 9}) == 1
    undo = {**rows[0], "choice": "undo"}
    with pytest.raises(ValueError, match=r"This one has another answer\. Load the page again"):
        files.append({**rows[0], "choice": "right"})
    assert files.append(undo) == files.append(undo) == 0
    assert len(files.path("ann").read_text().splitlines()) == 2


def test_a_torn_line_that_could_not_be_cut_off_takes_no_answer_with_it(study, rows, monkeypatch):
    files = AnswerFiles(study)
    for row in rows[:2]:
        files.append(row)
    path = files.path("ann")
    path.write_bytes(path.read_bytes()[:-20])

    def fail(path, torn):
        raise OSError("no space left")

    again = AnswerFiles(study)
    with monkeypatch.context() as patched:
        patched.setattr("blip3o_hf.evaluation.human_study.answer_files._mend", fail)
        with pytest.raises(OSError, match="no space left"):
            again.of("ann")
    assert again.append(rows[1]) == 2
    assert [answer.choice for answer in AnswerFiles(study).of("ann")] == [row["choice"] for row in rows[:2]]


def test_names_that_are_only_asked_for_are_not_kept(study):
    files = AnswerFiles(study)
    for number in range(100):
        assert files.of(f"rater-{number}") == []
    assert not files._stand


def test_a_torn_last_line_is_dropped_and_said_at_every_byte(study, rows, caplog):
    files = AnswerFiles(study)
    for row in rows[:3]:
        files.append(row)
    path = files.path("ann")
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in [start + 1, start + 40, len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        is_complete = cut == len(whole) - 1  # all but the end of the line
        caplog.clear()
        answers, notes = answers_of(study, [])
        assert len(answers) == (3 if is_complete else 2)
        assert (
            [note.split(": ")[1] for note in notes] == [] if is_complete else ["its last line was cut off" in notes[0]]
        )
        assert path.read_bytes() == whole[:cut], "an analysis changes no answers"
        with caplog.at_level(logging.WARNING):
            assert len(AnswerFiles(study).of("ann")) == len(answers)
        assert is_complete == ("cut off" not in caplog.text)
        assert AnswerFiles(study).append(rows[2]) == 3
        assert [json.loads(line)["pair"] for line in path.read_text().splitlines()] == [r["pair"] for r in rows[:3]]


def test_restarts_and_kills_leave_the_same_answers(study, rows):
    files = AnswerFiles(study)
    for row in rows:
        files.append(row)
    expected = told(files.of("ann"))
    path = files.path("ann")
    path.unlink()
    for row in rows:
        AnswerFiles(study).append(row)
        with path.open("ab") as file:
            file.write(b'{"study": "')  # killed in the middle of the next line
    assert told(AnswerFiles(study).of("ann")) == expected


def test_a_full_disk_leaves_the_file_as_it_was(study, rows, monkeypatch):
    files = AnswerFiles(study)
    files.append(rows[0])
    before = files.path("ann").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.append(rows[1])
    monkeypatch.undo()
    assert files.path("ann").read_bytes() == before and len(files.of("ann")) == 1
    assert files.append(rows[1]) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"study": "0" * 16}, "Answers must be of this study, .* This one is of '0000000000000000'"),
        ({"pair": "f" * 16}, "about a pair of this study. It has none 'ffffffffffffffff'"),
        ({"criterion": "visual_qualty"}, "Unknown criterion 'visual_qualty'. Did you mean 'visual_quality'"),
        ({"choice": "tie"}, "Unknown choice 'tie'.* Available: left, right, undo"),
        ({"round": 3}, "A round must be from 1 to 2, .* Got round 3"),
        ({"round": True}, "no valid 'round'"),
        ({"ms": -1}, "-1 ms"),
        ({"left": "x.png"}, "must have both pictures of its pair. Got 'x.png'"),
        ({"rater": "../ann"}, "A rater's name must be"),
        ({"extra": 1}, "Unknown key 'extra' in an answer"),
        ({"time": None}, "no valid 'time'"),
    ],
)
def test_lines_that_do_not_fit_are_refused_with_their_number(study, rows, change, reason):
    files = AnswerFiles(study)
    for row in rows[:3]:
        files.append(row)
    path = files.path("ann")
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"ann\.jsonl, line 2: .*{reason}"):
        answers_of(study, [path])
    with pytest.raises(ValueError, match="line 2"):
        AnswerFiles(study).of("ann")


def test_a_damaged_line_in_the_middle_is_refused(study, rows):
    files = AnswerFiles(study)
    for row in rows[:3]:
        files.append(row)
    path = files.path("ann")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"one JSON a line\. Line 2 is none"):
        answers_of(study, [path])
    path.write_text("\n".join([lines[0], lines[0]]) + "\n")
    with pytest.raises(ValueError, match="has two of ann for"):
        answers_of(study, [path])
    path.write_text(lines[0].replace('"left", "ms"', '"undo", "ms"') + "\n")
    with pytest.raises(ValueError, match=r"takes back .* without one"):
        answers_of(study, [path])


def test_files_of_several_machines_are_put_together(study, answer_all, tmp_path):
    answers = answer_all(study, "ann", lambda question, left, right: "left")
    others = answer_all(study, "bob", lambda question, left, right: "right")
    half, whole, both = (tmp_path / name for name in ("half.jsonl", "whole.jsonl", "both.jsonl"))
    half.write_text("".join(answer.as_line() for answer in answers[:7]))
    whole.write_text("".join(answer.as_line() for answer in answers))
    both.write_text("".join(answer.as_line() for answer in others))
    first, notes = answers_of(study, [half, whole, both])
    assert notes == ["7 answers are in two files; they count once"]
    assert answers_of(study, [both, whole]) == (first, []) and len(first) == 80
    half.write_text(replace(answers[0], choice="right").as_line())
    with pytest.raises(ValueError, match=r"half\.jsonl and .*whole\.jsonl have two of ann .* Leave one"):
        answers_of(study, [half, whole])
    with pytest.raises(FileNotFoundError, match="An analysis needs answers"):
        answers_of(study, [])


def test_a_file_of_another_rater_is_no_place_to_go_on(study, rows):
    files = AnswerFiles(study)
    files.append(rows[0])
    files.path("ann").rename(files.path("bob"))
    with pytest.raises(ValueError, match=r"bob\.jsonl must hold the answers of bob"):
        AnswerFiles(study).of("bob")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Ann", "a.b", "-a", "a" * 41, "é", "a\n", None])
def test_names_that_are_no_safe_files_are_refused(name):
    with pytest.raises(ValueError, match="A rater's name must be 1 to 40 small letters"):
        check_rater(name)
    assert check_rater("ann_2-b") == "ann_2-b"
