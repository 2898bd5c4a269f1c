"""The script that measures what our import costs runs, and what it prints is what it measured."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def import_cost(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("import_cost")


def test_import_cost_reports_every_case_with_its_settings(import_cost, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(import_cost.CASES, "nothing", "import time; time.sleep(0.2)")
    report = tmp_path / "report.json"
    options = ["--repeats", "1", "--cases", "nothing", "--output", str(report)]
    monkeypatch.setattr(sys, "argv", [import_cost.__file__, *options])
    import_cost.main()
    results = json.loads(report.read_text())
    assert results["repeats"] == 1 and set(results["versions"]) == {"python", "torch", "transformers", "diffusers"}
    ((without,), (with_ours,), (statement,)) = results["milliseconds"]["nothing"].values()
    assert without > 200 and with_ours > 200 + statement, "what was imported before is in both processes"
    assert 0 < statement < with_ours - 200, "and not in the time of our statement"
    printed = capsys.readouterr().out
    row = rf"^\| nothing \| {without:,.0f} \(.*\) \| {with_ours:,.0f} \(.*\) \| {statement:,.0f} \(.*\) \|$"
    assert re.search(row, printed, re.MULTILINE), printed
    assert re.search(rf"^goal of 50 ms after nothing: (reached|missed), {statement:.1f} ms$", printed, re.MULTILINE)


def test_a_process_that_fails_ends_the_measurement(import_cost):
    with pytest.raises(SystemExit, match=r"`import no_module` must run\. It ended with 1: (?s:.*)No module named"):
        import_cost.run("import no_module")
