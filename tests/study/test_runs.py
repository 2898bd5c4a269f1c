"""A study trains what it names once each, goes on after any interruption, and ends the same."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.study.stand_ins import Killed, Result

from blip3o_hf.cli import main
from blip3o_hf.study.report import write_report
from blip3o_hf.study.runs import RunFailed, StudyRuns, trials_of
from blip3o_hf.training.chain import Summary

ORDER = ["eye", "0", "1", "2", "plain-0", "further-0", "plain-7", "further-7"]
MEASURED = ["plain-0", "further-0", "plain-7", "further-7"]


def names(runs):
    return [Path(folder).name for folder in runs.finished]


def overrides(runs, name):
    (words,) = [words for words in runs.given if words[-1].endswith(f"/{name}")]
    return words[1:]


def test_parts_run_once_and_searches_and_arms_with_every_seed_after_what_they_read(content, make_study, runs):
    said = []
    runs.scores |= {"0": 0.2, "1": 0.6, "2": 0.4}
    study = make_study(content)
    StudyRuns(study, say=said.append).all()
    assert names(runs) == ORDER and Result.asked == MEASURED
    assert [line.partition(":")[0] for line in said[:3]] == ["parts/eye", "search/plain/0", "search/plain/1"]
    trial = overrides(runs, "plain/0")
    assert trial[1:] == [
        "training.seed=0",
        "data.seed=1000",
        "training.learning_rate=0.001",
        "training.max_steps=1",
        "output_dir=runs/search/plain/0",
    ]
    for name in ("plain-0", "plain-7"):  # the best value, of all seeds, and nothing else of the trials
        assert "training.learning_rate=0.003" in overrides(runs, name)
        assert not any(word.startswith("training.max_steps") for word in overrides(runs, name))
    assert "inputs.model=runs/runs/plain-7/model" in overrides(runs, "further-7")
    assert [trial.score for trial in trials_of(study, study.arm("plain"))] == [0.2, 0.6, 0.4]
    assert not list(study.folder.rglob("checkpoints"))
    given = len(runs.given)
    StudyRuns(study).all()
    assert len(runs.given) == given and Result.asked == MEASURED


def test_a_trial_without_a_finite_score_loses(content, make_study, runs):
    runs.scores |= {"0": float("nan"), "1": float("inf"), "2": 0.1}
    StudyRuns(make_study(content)).all()
    assert "training.learning_rate=0.002" in overrides(runs, "plain-0")


def test_a_search_may_look_for_the_lowest_score(content, make_study, runs):
    content["arms"]["plain"]["search"]["direction"] = "lower"
    runs.scores |= {"0": 0.2, "1": 0.1, "2": float("nan")}
    StudyRuns(make_study(content)).all()
    assert "training.learning_rate=0.003" in overrides(runs, "plain-0")


def test_a_search_without_a_finite_score_decides_nothing(content, make_study, runs):
    runs.scores |= dict.fromkeys("012", float("nan"))
    with pytest.raises(
        ValueError, match=r"A search needs a trial that ends well\. None of `plain` has a finite 'over"
    ):
        StudyRuns(make_study(content)).all()


def test_a_search_is_decided_by_a_score_that_its_runs_have(content, make_study, runs):
    content["arms"]["plain"]["search"]["by"] = "overal"
    message = r"A search is decided by a score of its runs\. .*plain/0 has no 'overal', but overall\. Correct"
    with pytest.raises(ValueError, match=message):
        StudyRuns(make_study(content)).all()


@pytest.mark.parametrize(
    "change", [{"values": [0.1]}, {"key": "training.muon_learning_rate"}, {"by": "loss"}, {"direction": "lower"}]
)
def test_a_search_of_other_values_is_not_taken(content, make_study, runs, change):
    runs.codes["plain-7"] = 1
    with pytest.raises(RunFailed):
        StudyRuns(make_study(content)).all()
    content["arms"]["plain"]["search"] |= change
    message = r"A search is made once\. That in runs/search/plain was another one than `plain` has now\. Write it back"
    with pytest.raises(ValueError, match=message):
        StudyRuns(make_study(content)).all()


def test_a_failing_run_stops_the_study_which_goes_on_there(content, make_study, runs, capsys, tmp_path):
    make_study(content)
    runs.codes["further-0"] = 137
    assert main(["study", "study.yaml", "--threads", "2", "training.weight_decay=0.5"]) == 1
    text = "The run runs/runs/further-0 ended with exit code 137. Give the same command again to go on."
    assert capsys.readouterr().out.splitlines()[-1] == text
    assert not (tmp_path / "runs/report.md").exists()
    assert names(runs) == ORDER[:5]
    assert all(words[-2:] == ["--threads", "2"] and "training.weight_decay=0.5" in words for words in runs.given)
    assert main(["study", "study.yaml", "training.weight_decay=0.5"]) == 0
    assert runs.given[6][-1] == "--resume" and "output_dir=runs/runs/further-0" in runs.given[6]
    assert names(runs) == ORDER and sum("--resume" in words for words in runs.given) == 1
    last = capsys.readouterr().out.splitlines()
    assert last[-1] == "runs/report.md" and last[-2].startswith("rates: ")


def test_workers_train_at_once_what_does_not_wait_for_one_another(content, make_study, runs, monkeypatch, capsys):
    make_study(content)
    at_once, meet = set(), threading.Barrier(2, timeout=20)

    def both(command):
        folder = next(word for word in command if word.startswith("output_dir="))
        name = Path(folder).name
        if name in ("0", "1"):  # two trials of one search
            at_once.add(name)
            meet.wait()
        return runs(command)

    monkeypatch.setattr("blip3o_hf.training.chain.run_command", both)
    assert main(["study", "study.yaml", "--workers", "2"]) == 0
    assert at_once == {"0", "1"} and sorted(names(runs)) == sorted(ORDER)
    order = names(runs)
    assert order[0] == "eye" and all(order.index(f"plain-{seed}") < order.index(f"further-{seed}") for seed in (0, 7))
    assert max(order.index(name) for name in ("0", "1", "2")) < order.index("plain-0")
    threads = max(1, torch.get_num_threads() // 2)
    assert all(words[words.index("--threads") + 1] == str(threads) for words in runs.given)
    reported = capsys.readouterr().out.splitlines()[-2]
    assert main(["study", "study.yaml"]) == 0 and sorted(names(runs)) == sorted(ORDER)
    assert capsys.readouterr().out.splitlines()[-2] == reported


def test_a_failure_starts_no_further_run_of_any_worker(content, make_study, runs):
    runs.codes["0"] = 1
    with pytest.raises(RunFailed, match="search/plain/0 ended with exit code 1"):
        StudyRuns(make_study(content), workers=2).all()
    assert set(names(runs)) <= {"eye", "1"}


def test_a_failure_is_said_while_others_work_and_measures_wait_for_one_another(content, make_study, monkeypatch):
    del content["arms"]["plain"]["search"]
    content["arms"]["further"] |= {"overrides": []}
    study, said, waits = make_study(content), [], threading.Event()

    def trained(path, overrides, folder, threads, launcher):
        if folder.name == "plain-0":
            return 9
        if folder.name == "further-0":
            assert waits.wait(20)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text("[1.0, 0]")
        Summary("decoder", "decoder.yaml", 1, 2, 1.0, 3.0, 1, {"overall": 0.5}).write(folder)
        return 0

    def say(line):
        said.append(line)
        if "Waiting for 1 more" in line:
            waits.set()

    monkeypatch.setattr("blip3o_hf.study.runs.train_alone", trained)
    with pytest.raises(RunFailed, match="plain-0 ended with exit code 9"):
        StudyRuns(study, workers=2, say=say).all()
    assert waits.is_set() and sum(": " in line for line in said) <= 4


def test_workers_are_counted(content, make_study):
    with pytest.raises(ValueError, match=r"Got 2 workers with 'torchrun --standalone'\. Leave one of both out\."):
        StudyRuns(make_study(content), workers=2, launcher=["torchrun", "--standalone"])
    with pytest.raises(ValueError, match=r"`workers` must be a whole number of at least 1\. Got 0"):
        StudyRuns(make_study(content), workers=0)


def test_a_run_of_other_settings_is_not_taken(content, make_study, runs, capsys):
    make_study(content)
    assert main(["study", "study.yaml"]) == 0
    assert main(["study", "study.yaml", "training.weight_decay=0.5"]) == 2
    assert "runs/parts/eye was started with others. Write these back, or delete" in capsys.readouterr().err
    assert main(["study", "study.yaml"]) == 0 and names(runs) == ORDER


def test_a_run_is_started_by_this_python(content, make_study, monkeypatch):
    seen = []
    monkeypatch.setattr("blip3o_hf.training.chain.run_command", lambda command: seen.append(command) or 1)
    with pytest.raises(RunFailed):
        StudyRuns(make_study(content)).all()
    assert seen[0][:4] == [sys.executable, "-m", "blip3o_hf.cli", "train"]
    assert main(["study", "study.yaml", "--launcher", "torchrun --nproc_per_node 2"]) == 1
    assert seen[1][:6] == ["torchrun", "--nproc_per_node", "2", "-m", "blip3o_hf.cli", "train"]


def test_a_study_that_is_killed_at_any_moment_ends_as_if_nothing_had_happened(
    content, make_study, runs, monkeypatch, tmp_path
):
    content["plots"] = {}
    content["comparisons"]["rates"]["value"] = "result.whole"
    study = make_study(content)
    moves = Path.replace

    def move(self, target):
        runs.clock.tick()
        moved = moves(self, target)
        runs.clock.tick()
        return moved

    monkeypatch.setattr(Path, "replace", move)

    def all_of(folder):
        StudyRuns(replace(study, folder=folder), say=lambda line: None).all()
        write_report(replace(study, folder=folder), folder / "report.md")

    def results(folder):
        manifest = json.loads((folder / "report.json").read_text())
        del manifest["date"], manifest["digest"]
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".partial-" not in path.name)
        return (folder / "report.md").read_text(), manifest, left

    all_of(tmp_path / "whole")
    expected, last = results(tmp_path / "whole"), runs.clock.now
    assert last > 50
    for moment in range(1, last + 1):
        folder = tmp_path / f"killed-{moment}"
        runs.clock.now, runs.clock.end = 0, moment
        runs.finished.clear()
        runs.given.clear()
        with pytest.raises(Killed):
            all_of(folder)
        runs.clock.end = None
        all_of(folder)
        assert results(folder) == expected, moment
        started = [next(word for word in words if word.startswith("output_dir=")) for words in runs.given]
        once = [name for index, name in enumerate(started) if name not in started[:index]]
        assert [Path(name).name for name in once] == ORDER and len(started) <= len(ORDER) + 1, moment
