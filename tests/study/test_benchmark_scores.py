"""A run is measured by a benchmark as the command `evaluate` measures it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blip3o_hf.evaluation.manifests import Manifest
from blip3o_hf.hub.results import Evaluation, Figure, Score
from blip3o_hf.study.benchmark_scores import BenchmarkScores
from blip3o_hf.study.measuring import RunFailed

SCORES = (
    Score("text-to-image", "GenEval rules, detector a/b: counting", Figure(0.25, (0.1, 0.4)), 80),
    Score("text-to-image", "GenEval rules, detector a/b: overall", Figure(0.5), 553),
)
EVALUATION = Evaluation("GenEval", "About.", "blip3o-hf evaluate", "2026-01-31T12:00:00Z", {}, {}, SCORES)
SETTINGS = {"benchmark": "geneval", "options": {"prompts": "a.jsonl", "limit": 3}}


@pytest.fixture
def commands(monkeypatch):
    """What was run; each leaves a manifest of `commands.evaluation`, or ends with `commands.code`."""

    class Commands(list):
        evaluation, code = EVALUATION, 0

        def __call__(self, command):
            self.append(command)
            if not self.code:
                folder = Path(command[command.index("--output") + 1])
                folder.mkdir(parents=True, exist_ok=True)
                Manifest(self.evaluation, (), {}, {}, "2026-01-31T11:00:00Z").write(folder / "manifest.json")
            return self.code

    made = Commands()
    monkeypatch.setattr("blip3o_hf.study.benchmark_scores.run_command", made)
    return made


def test_the_scores_of_a_manifest_are_values_of_the_run(commands, tmp_path):
    assert BenchmarkScores(SETTINGS)(tmp_path) == {"counting": [0.25], "overall": [0.5]}
    ((python, *words),) = commands
    assert python == sys.executable
    assert words[:6] == ["-m", "blip3o_hf.cli", "evaluate", "geneval", "--prompts=a.jsonl", "--limit=3"]
    assert words[6:] == [
        "--model",
        str(tmp_path / "pipeline"),
        "--output",
        words[-1],
    ]
    assert Path(words[-1]).parent == tmp_path / "benchmarks" and Path(words[-1]).name.startswith("geneval-")


def test_each_choice_of_options_has_a_folder_and_flags_are_given_as_flags(commands, tmp_path):
    for options in ({"limit": 3}, {"limit": 4}, {"limit": 4, "truncate": True, "seed_rule": "prompt", "plan": False}):
        BenchmarkScores({"benchmark": "geneval", "options": options})(tmp_path)
    assert len({words[-1] for words in commands}) == 3
    assert commands[-1][5:8] == ["--limit=4", "--truncate", "--seed-rule=prompt"]


def test_a_benchmark_that_fails_or_scores_nothing_is_told_of(commands, tmp_path):
    commands.code = 2
    with pytest.raises(RunFailed, match=r"The benchmark geneval of .* ended with exit code 2\. Give the same"):
        BenchmarkScores(SETTINGS)(tmp_path)
    commands.code, commands.evaluation = 0, replace(EVALUATION, scores=())
    with pytest.raises(ValueError, match=r"A study compares scores\. geneval gave none of .*docs/evaluation\.md"):
        BenchmarkScores(SETTINGS)(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"Its settings have no `benchmark`\. Name it, such as geneval2\."),
        ({"benchmark": "genevil"}, "Unknown key 'genevil' in the benchmark's name. Did you mean 'geneval'"),
        ({"benchmark": "geneval", "option": {}}, "Unknown key 'option' in the settings of BenchmarkScores"),
    ],
)
def test_settings_that_name_no_benchmark_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkScores(settings)
