"""The runs of a study, each by the command that trains a recipe, some at once: what is done stays done."""

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checks import check_sizes
from ..files import written_whole
from ..training.chain import Summary, train_alone
from .measuring import RunFailed, measured
from .studies import Arm, Search, Study

FOUND = "found.json"
ASKED = "asked.sha256"


@dataclass(frozen=True)
class Trial:
    """
    Attributes:
        value: that was tried.
        score: of its last evaluation.
    """

    value: object
    score: float


@dataclass(frozen=True)
class _Job:
    """
    Attributes:
        name: of it.
        needs: names of the jobs that must have ended before.
        do: what it is.
    """

    name: str
    needs: frozenset[str]
    do: Callable[[], object]


class StudyRuns:
    """
    Trains what a study names. Started again after any interruption, it goes on where it was.

    Args:
        study: to run.
        threads: of the CPU, for each run and for what measures it; by default all, shared out among the workers.
        workers: how many runs at once, of those that do not wait for one another. The results do not depend on it.
        say: gets a line for each run that starts.
        launcher: words that start each run on several processes, such as `torchrun --nproc_per_node 8`.

    Raises:
        ValueError: when `workers` is less than 1, or more with a launcher, whose processes would meet.
    """

    def __init__(
        self,
        study: Study,
        threads: int | None = None,
        say: Callable[[str], object] = print,
        workers: int = 1,
        launcher: Sequence[str] = (),
    ):
        check_sizes(workers=workers)
        if launcher and workers > 1:
            raise ValueError(
                f"A launcher spreads one run over the devices. Got {workers} workers with {' '.join(launcher)!r}. "
                f"Leave one of both out."
            )
        if threads is None and workers > 1:
            threads = max(1, torch.get_num_threads() // workers)
        self.study, self.threads, self.say, self.workers = study, threads, say, workers
        self.launcher = tuple(launcher)
        self._is_ending = threading.Event()
        self._measuring = threading.Lock()

    def all(self) -> None:
        """
        Train parts, search, and train every arm with every seed; measure each result. After a run that failed, none
        is started any more, and those that were at work come to their end.

        Raises:
            RunFailed: when a run ends with an error.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or threads)
        try:
            self._do(list(self._jobs()))
        finally:
            torch.set_num_threads(threads)

    def _do(self, waiting: list[_Job]) -> None:
        """All jobs, each when what it needs is done."""
        done: set[str] = set()
        working: dict[Future, str] = {}
        failures: list[BaseException] = []
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while working or (waiting and not failures):
                    free = 0 if failures else self.workers - len(working)
                    ready = [job for job in waiting if job.needs <= done][:free]
                    working |= {pool.submit(job.do): job.name for job in ready}
                    waiting = [job for job in waiting if job not in ready]
                    for future in wait(working, return_when=FIRST_COMPLETED).done:
                        name, failure = working.pop(future), future.exception()
                        done.add(name)
                        if failure is not None:
                            self._end_after(failure, failures, len(working))
            except KeyboardInterrupt:
                self._is_ending.set()
                self.say("interrupted: waiting for the checkpoints of the runs that are at work")
                raise
        if failures:
            raise failures[0]

    def _end_after(self, failure: BaseException, failures: list[BaseException], number: int) -> None:
        """Note a failure, after which nothing new begins."""
        self._is_ending.set()
        failures.append(failure)
        if number:
            self.say(f"{failure} Waiting for {number} more.")

    def _jobs(self) -> Iterator[_Job]:
        """All that is to do, each after what it needs."""
        study = self.study
        parts = [arm for arm in study.ordered() if study.is_part(arm.name)]
        for part in parts:
            yield from self._job_of(part, study.seeds[0])
        for seed in study.seeds:
            for arm in study.ordered():
                if arm not in parts:
                    yield from self._job_of(arm, seed)

    def _job_of(self, arm: Arm, seed: int) -> Iterator[_Job]:
        """The job of a run, and those of the trials of its search before the first of its seeds."""
        found = f"{arm.name}: {FOUND}"
        needs = frozenset(self._job_name(name, seed) for name in arm.needs)
        if arm.search is not None and seed == self.study.seeds[0]:
            trials = {f"{arm.name}: trial {index}": index for index in range(len(arm.search.values))}
            for name, index in trials.items():
                yield _Job(name, needs, partial(self._try, arm, arm.search, index))
            yield _Job(found, frozenset(trials), partial(self._decide, arm, arm.search))
        if arm.search is not None:
            needs |= {found}
        yield _Job(self._job_name(arm.name, seed), needs, partial(self._finish, arm, seed))

    def _job_name(self, name: str, seed: int) -> str:
        return name if self.study.is_part(name) else f"{name}: seed {seed}"

    def _finish(self, arm: Arm, seed: int) -> None:
        """Train an arm, or a part, and measure it."""
        folder = self.study.run_folder(arm.name, seed)
        self._run(arm, seed, self._found(arm), folder)
        _forget_checkpoints(folder)
        if not self.study.is_part(arm.name):
            for measure in self.study.measures:
                if measure.is_of(arm):
                    with self._measuring:  # libraries change what all threads share while they load a model
                        if not self._is_ending.is_set():
                            measured(measure, folder)

    def _search_folder(self, arm: Arm) -> Path:
        return self.study.folder / "search" / arm.name

    def _try(self, arm: Arm, search: Search, index: int) -> None:
        """One trial of a search, unless it has been decided."""
        if not (self._search_folder(arm) / FOUND).is_file():
            run = self._search_folder(arm) / str(index)
            self._run(arm, self.study.seeds[0], [search.override(search.values[index]), *search.overrides], run)
            _forget_checkpoints(run)

    def _decide(self, arm: Arm, search: Search) -> None:
        """Write the best value of a search down, once."""
        path = self._search_folder(arm) / FOUND
        if path.is_file():
            return
        trials = [
            Trial(value, _score(self._search_folder(arm) / str(index), search.by))
            for index, value in enumerate(search.values)
        ]
        sign = 1 if search.direction == "higher" else -1
        finite = [trial for trial in trials if math.isfinite(trial.score)]
        if not finite:
            raise ValueError(
                f"A search needs a trial that ends well. None of `{arm.name}` has a finite '{search.by}'. Change the "
                f"values of its search."
            )
        best = max(finite, key=lambda trial: sign * trial.score)
        content = {"search": _asked_of(search), "best": best.value, "trials": [asdict(trial) for trial in trials]}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def _found(self, arm: Arm) -> list[str]:
        """
        The override with the best value of the arm's search; nothing where it has none.

        Raises:
            ValueError: when it was found among others than the study's file has now.
        """
        search = arm.search
        if search is None:
            return []
        folder = self._search_folder(arm)
        found = json.loads((folder / FOUND).read_text())
        if found.get("search") != _asked_of(search):
            raise ValueError(
                f"A search is made once. That in {folder} was another one than `{arm.name}` has now. Write it back as "
                f"it was, or delete that folder."
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
        code = train_alone(path, overrides, folder, self.threads, self.launcher)
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


def _asked_of(search: Search) -> dict[str, Any]:
    """A search as JSON."""
    return json.loads(json.dumps(asdict(search)))


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
