"""What a study measures is measured once, kept whole, and refused where it is no number."""

import json

import numpy as np
import pytest
from tests.study.stand_ins import Result

from blip3o_hf.study.measuring import MEASURED, measured
from blip3o_hf.study.studies import Measure

RESULT = "tests.study.stand_ins:Result"
GIVEN = "tests.study.stand_ins:Given"


@pytest.fixture
def run(tmp_path, runs):
    (tmp_path / "result.json").write_text("[0.5, 2]")
    return tmp_path


def given(values, name="given"):
    return Measure(name, GIVEN, {"values": values})


def test_a_result_is_measured_once_and_again_with_other_settings(run):
    measure = Measure("a", RESULT)
    first = measured(measure, run)
    assert first == {"a.rate": [0.5, 0.5, 2.5], "a.whole": [2.5]}
    assert measured(measure, run) == first and len(Result.asked) == 1
    assert measured(Measure("a", RESULT, {"times": 2}), run)["a.whole"] == [4.5]
    assert measured(Measure("b", RESULT, {"times": 2}), run) == {"b.rate": [0.5, 0.5, 2.5], "b.whole": [4.5]}
    assert len(Result.asked) == 3
    assert measured(given({"x": [1]}, "a"), run) == {"a.x": [1.0]}  # of another class
    assert measured(Measure("b", RESULT, {"times": 2}), run)["b.whole"] == [4.5] and len(Result.asked) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": []}, r"A measure gives finite numbers, a row of at least one .*`given` gave \[\] for `x`\. Correct"),
        ({"y": [1], "x": [float("nan")]}, r"`given` gave \[nan\] for `x`"),
        ({"x": [1, float("inf")]}, r"gave \[1, inf\] for `x`"),
        ({"x": 0.5}, r"gave 0\.5 for `x`"),
        ({"x": ["1"]}, r"gave \['1'\] for `x`"),
        ({"x": [[1], [2]]}, r"gave \[\[1\], \[2\]\] for `x`"),
        ({}, r"A measure gives at least one value\. `given` gave none\. Correct tests\.study\.stand_ins:Given"),
    ],
)
def test_what_is_no_row_of_numbers_is_refused_and_not_kept(run, values, message):
    kept = measured(Measure("a", RESULT), run)
    before = (run / MEASURED).read_bytes()
    with pytest.raises(ValueError, match=message):
        measured(given(values), run)
    assert (run / MEASURED).read_bytes() == before
    assert measured(Measure("a", RESULT), run) == kept and len(Result.asked) == 1


def test_truth_values_and_arrays_are_numbers(run):
    values = {"x": (True, False), "y": [1, 2]}
    assert measured(given(values), run) == {"given.x": [1.0, 0.0], "given.y": [1.0, 2.0]}
    assert json.loads((run / MEASURED).read_text())["given"]["values"] == {"x": [1.0, 0.0], "y": [1.0, 2.0]}
    assert np.float32 not in {type(value) for value in measured(given(values), run)["given.y"]}


def test_a_file_that_cannot_be_written_leaves_the_one_before(run, monkeypatch):
    measured(Measure("a", RESULT), run)
    before = (run / MEASURED).read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        measured(Measure("b", RESULT), run)
    assert (run / MEASURED).read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == [MEASURED, "result.json"]
