"""The study of minutes, from start to end by its command, killed at random moments."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests.processes import ROOT

SMOKE = ROOT / "recipes" / "study" / "smoke.yaml"
NUM_KILLS = 3


def start(study: Path, log) -> subprocess.Popen:
    """The command, in a session of its own, so that it ends with whatever it started."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "blip3o_hf.cli", "study", str(study), "--threads", "1"]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def end(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code of a study that ends within so many seconds; else it is killed with all that it started."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def copy(folder: Path) -> Path:
    """The study with its runs in a folder of its own; files beside it are named in full."""
    content = yaml.safe_load(SMOKE.read_text())
    content["folder"] = str(folder / "runs")
    for section in ("parts", "arms"):
        for arm in content[section].values():
            arm["recipe"] = str(SMOKE.parent / arm["recipe"])
    folder.mkdir()
    (folder / "smoke.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "smoke.yaml"


def results(folder: Path):
    """The report without the CPU's seconds, and the manifest without what is of its time and place."""
    text = (folder / "runs" / "report.md").read_text()
    budgets = re.compile(r"^(\| \w+ \|.* \| [\d,]+ \| [\d,]+) \| [\d,]+ \| ([\de.+]+ \|)$", re.MULTILINE)
    text, number = budgets.subn(r"\1 | \2", text)
    assert number == 2
    manifest = json.loads((folder / "runs" / "report.json").read_text())
    return text, {key: manifest[key] for key in ("values", "searches", "verdicts", "seeds")}


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_reports_the_same(tmp_path):
    whole, killed = copy(tmp_path / "whole"), copy(tmp_path / "killed")
    with (tmp_path / "log").open("w+") as log:
        began = time.monotonic()
        assert end(start(whole, log), 3000) == 0, (tmp_path / "log").read_text()[-6000:]
        took = time.monotonic() - began
        moments = random.Random(0)
        for _ in range(NUM_KILLS):
            assert end(start(killed, log), moments.uniform(0.05, 0.3) * took) is None
        left = sorted((tmp_path / "killed" / "runs").rglob("summary.json"))
        assert left  # something was done, and not done again
        times = [path.stat().st_mtime_ns for path in left]
        assert end(start(killed, log), 3000) == 0, (tmp_path / "log").read_text()[-6000:]
        assert [path.stat().st_mtime_ns for path in left] == times
    assert results(tmp_path / "killed") == results(tmp_path / "whole")

    def files(folder):
        return sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith(".partial-")
        )

    assert files(tmp_path / "killed") == files(tmp_path / "whole")
