"""All numbers of a study: gathered from its runs, or read again from the manifest of a report."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evaluation.manifests import file_hash
from ..hub.provenance import now, versions
from ..hub.results import read_measured
from ..training.chain import SUMMARY, Summary
from ..training.runs import HISTORY
from .costs import flops_per_step
from .measuring import measured
from .runs import trials_of
from .studies import Arm, Plot, Study

SCHEMA = 1
Results = Mapping[str, Any]


def results_of(study: Study) -> Results:
    """
    What a report is made of, as its manifest holds it: `values` by value and arm, a row for each seed; `budgets` of
    the arms; `curves` by plot and arm, `[step, value]` for each seed; `searches`; `cpu_seconds` of all trainings; and
    what it was made with.

    Args:
        study: whose runs are finished.

    Raises:
        FileNotFoundError: when runs are not finished.
        ValueError: when a plot shows a score that an arm has not.
    """
    _check_finished(study)
    trained = (*study.parts, *study.arms)
    recipes = {arm.recipe: file_hash(study.recipe(arm, study.seeds[0])[0]) for arm in trained}
    return {
        "schema": SCHEMA,
        "study": study.source.name,
        "date": now(),
        "versions": versions(),
        "inputs": {study.source.name: file_hash(study.source), **recipes},
        "overrides": list(study.more),
        "seeds": list(study.seeds),
        "values": values_of(study),
        "budgets": {arm.name: _budget(study, arm) for arm in study.arms},
        "cpu_seconds": sum(_summary(path.parent).cpu_seconds for path in sorted(study.folder.rglob(SUMMARY))),
        "searches": {arm.name: [asdict(trial) for trial in trials_of(study, arm)] for arm in trained},
        "curves": {plot.name: _curves(study, plot) for plot in study.plots},
    }


def read_results(study: Study, path: str | os.PathLike) -> Results:
    """
    The same of a manifest, whose runs need not be here.

    Args:
        study: as it was when the manifest was written.
        path: of the manifest.

    Raises:
        ValueError: when it is no manifest of a study, was changed, or is of another study or of another state of its
            file.
        OSError: when it cannot be read.
    """
    results = read_measured(path)
    if results.get("schema") != SCHEMA or "curves" not in results:
        raise ValueError(
            f"A report is made again from the manifest that was written beside it. {path} is none. Give the .json "
            f"file of a report of {study.source}."
        )
    if results["inputs"].get(study.source.name) != file_hash(study.source):
        raise ValueError(
            f"A manifest is of the study as it was asked. {path} was made with another {results['study']} than "
            f"{study.source}. Take the file of that time, or run the study again."
        )
    return results


def values_of(study: Study) -> dict[str, dict[str, list[list[float]]]]:
    """By the name of a value and of an arm: a row of numbers for each seed."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for measure in study.measures:
        for arm in filter(measure.is_of, study.arms):
            rows = [measured(measure, study.run_folder(arm.name, seed)) for seed in study.seeds]
            for name in rows[0]:
                found.setdefault(name, {})[arm.name] = [row[name] for row in rows]
    return found


def _check_finished(study: Study) -> None:
    missing = [
        folder
        for arm in study.arms
        for seed in study.seeds
        if Summary.read(folder := study.run_folder(arm.name, seed)) is None
    ]
    if missing:
        raise FileNotFoundError(
            f"A report is of finished runs. {len(missing)} are not, {missing[0]} among them. Run blip3o-hf study "
            f"{study.source}."
        )


def _summary(folder: Path) -> Summary:
    summary = Summary.read(folder)
    assert summary is not None  # the run has ended
    return summary


def _budget(study: Study, arm: Arm) -> dict[str, float]:
    summaries = [_summary(study.run_folder(arm.name, seed)) for seed in study.seeds]
    steps = summaries[0].steps
    return {
        "examples": study.pictures(arm.name),
        "steps": steps,
        "cpu_seconds": fmean(summary.cpu_seconds for summary in summaries),
        "flops": flops_per_step(study, arm) * steps,
    }


def _curves(study: Study, plot: Plot) -> dict[str, list[list[tuple[int, float]]]]:
    key, lines = f"eval_{plot.score}", {}
    for name in plot.arms:
        histories = [json.loads((study.run_folder(name, seed) / HISTORY).read_text()) for seed in study.seeds]
        runs = [{each["step"]: each[key] for each in history if key in each} for history in histories]
        if not set.intersection(*map(set, runs)):
            raise ValueError(
                f"A plot shows a score of evaluations. `{plot.name}` shows '{plot.score}', which {name} has not. "
                f"Correct it, or set training.evaluation_steps."
            )
        lines[name] = [sorted(run.items()) for run in runs]
    return lines


__all__ = ["Results", "read_results", "results_of", "values_of"]
