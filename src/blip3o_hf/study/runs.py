"""The runs of a study, one after another, each by the command that trains a recipe: what is done stays done."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import written_whole
from ..training.chain import Summary, train_alone
from .measuring import measured
from .study_file import Arm, Study

FOUND = "found.json"
ASKED = "asked.sha256"


class RunFailed(RuntimeError):
    """A run ended with an error; the study goes on from there when it is started again."""


@dataclass(frozen=True)
class Trial:
    """
    Attributes:
        value: that was tried.
        score: of its last evaluation.
    """

    value: object
    score: float


class StudyRuns:
    """
    Trains what a study names. Started again after any interruption, it goes on where it was.

    Args:
        study: to run.
        threads: of the CPU, for each run; all by default.
        say: gets a line for each run that starts.
    """

    def __init__(self, study: Study, threads: int | None = None, say: Callable[[str], object] = print):
        self.study, self.threads, self.say = study, threads, say

    def all(self) -> None:
        """
        Train parts, search, and train every arm with every seed; measure each result.

        Raises:
            RunFailed: when a run ends with an error.
        """
        study = self.study
        for arm in study.ordered():
            if study.is_part(arm.name):
                self._train(arm, study.seeds[0])
        for seed in study.seeds:
            for arm in study.ordered():
                if not study.is_part(arm.name):
                    self._train(arm, seed)
                    self._measure(arm, seed)

    def _measure(self, arm: Arm, seed: int) -> None:
        for measure in self.study.measures:
            if measure.is_of(arm):
                measured(measure, self.study.run_folder(arm.name, seed))

    def _train(self, arm: Arm, seed: int) -> None:
        folder = self.study.run_folder(arm.name, seed)
        self._run(arm, seed, self._searched(arm), folder)
        _forget_checkpoints(folder)

    def _searched(self, arm: Arm) -> list[str]:
        """
        The override with the best value of the arm's search; it was found once, with the first seed.

        Raises:
            ValueError: when it was found among others than the study's file has now.
        """
        search = arm.search
        if search is None:
            return []
        folder = self.study.folder / "search" / arm.name
        path = folder / FOUND
        if not path.is_file():
            trials = []
            for index, value in enumerate(search.values):
                run = folder / str(index)
                self._run(arm, self.study.seeds[0], [search.override(value), *search.overrides], run)
                _forget_checkpoints(run)
                trials.append(Trial(value, _score(run, search.by)))
            best = max(trials, key=lambda trial: trial.score if math.isfinite(trial.score) else -math.inf)
            content = {"key": search.key, "best": best.value, "trials": [trial.__dict__ for trial in trials]}
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
        found = json.loads(path.read_text())
        if found["key"] != search.key or [trial["value"] for trial in found["trials"]] != list(search.values):
            raise ValueError(
                f"A search is made once. That in {folder} was of other values of {found['key']} than `{arm.name}` has "
                f"now. Write these again, or delete that folder."
            )
        return [search.override(found["best"])]

    def _run(self, arm: Arm, seed: int, more: Sequence[str], folder: Path) -> None:
        """
        Raises:
            ValueError: when the folder holds a run of other settings.
            RunFailed: when the run ends with an error.
        """
        path, overrides = self.study.recipe(arm, seed, more, folder)
        _check_asked(folder, hashlib.sha256(path.read_bytes() + json.dumps(overrides).encode()).hexdigest())
        if Summary.read(folder) is not None:
            return
        self.say(f"{folder.relative_to(self.study.folder)}: {path}")
        code = train_alone(path, overrides, folder, self.threads)
        if code:
            raise RunFailed(f"The run {folder} ended with exit code {code}. Give the same command again to go on.")


def _check_asked(folder: Path, asked: str) -> None:
    """What a run was asked for is written beside it before it starts."""
    path = folder / ASKED
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(asked)
    elif path.read_text() != asked:
        raise ValueError(
            f"A run is of the settings that its study has. {folder} was started with others. Write these back, or "
            f"delete that folder to train anew."
        )


def trials_of(study: Study, arm: Arm) -> list[Trial]:
    """What the search of an arm tried; nothing where it has none, or has not ended."""
    path = study.folder / "search" / arm.name / FOUND
    return [Trial(**trial) for trial in json.loads(path.read_text())["trials"]] if path.is_file() else []


def _score(folder: Path, name: str) -> float:
    summary = Summary.read(folder)
    assert summary is not None  # the run has ended
    if name not in summary.scores:
        raise ValueError(
            f"A search is decided by a score of its runs. {folder} has no '{name}', but {', '.join(summary.scores)}. "
            f"Correct `search.by`."
        )
    return summary.scores[name]


def _forget_checkpoints(folder: Path) -> None:
    """A finished run needs none, and a study has many runs."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


__all__ = ["RunFailed", "StudyRuns", "Trial", "trials_of"]
