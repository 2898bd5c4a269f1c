"""The report of a study: verdicts, measures, budgets, searches and curves, as Markdown with pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..evaluation.manifests import file_hash
from ..evaluation.sheets import bands
from ..files import written_whole
from ..hub.provenance import now, versions
from ..hub.results import write_measured
from ..training.chain import Summary
from ..training.runs import HISTORY
from .costs import flops_per_step
from .measuring import measured
from .runs import trials_of
from .studies import Comparison, Plot, Study
from .verdicts import Verdict, decided


def write_report(study: Study, path: Path) -> list[Verdict]:
    """
    Write the report, its pictures and its manifest.

    Args:
        study: whose runs are finished.
        path: of the report, such as `docs/study.md`; pictures are written beside it, as `NAME_PLOT.png`, and the
            manifest as `NAME.json`.

    Returns:
        The verdicts of all comparisons.

    Raises:
        FileNotFoundError: when runs are not finished.
    """
    _check_finished(study)
    values = values_of(study)
    verdicts = [verdict_of(comparison, values) for comparison in study.comparisons]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [_draw(study, plot, path.with_name(f"{path.stem}_{plot.name}.png")) for plot in study.plots]
    sections = [
        f"# {study.title}",
        _verdicts(verdicts),
        *(f"![{plot.name}]({picture.name})" for plot, picture in zip(study.plots, pictures, strict=True)),
        _measures(study, values),
        _budgets(study),
        _searches(study),
    ]
    with written_whole(path) as temporary:
        temporary.write_text("\n\n".join(section for section in sections if section) + "\n")
    _write_manifest(study, values, verdicts, path.with_suffix(".json"))
    return verdicts


def values_of(study: Study) -> dict[str, dict[str, list[list[float]]]]:
    """By the name of a value and of an arm: a row of numbers for each seed."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for measure in study.measures:
        for arm in filter(measure.is_of, study.arms):
            rows = [measured(measure, study.run_folder(arm.name, seed)) for seed in study.seeds]
            for name in rows[0]:
                found.setdefault(name, {})[arm.name] = [row[name] for row in rows]
    return found


def verdict_of(comparison: Comparison, values: dict[str, dict[str, list[list[float]]]]) -> Verdict:
    """
    Raises:
        ValueError: when the value is not measured of both arms.
    """
    rows = []
    for name, value in zip((comparison.of, comparison.against), comparison.values, strict=True):
        if name not in values.get(value, {}):
            raise ValueError(
                f"A comparison is of measured values. `{comparison.name}` compares {value} of {name}, and measured "
                f"are {', '.join(sorted(values)) or 'none'}. Correct it."
            )
        rows.append(values[value][name])
    return decided(comparison, *rows)


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


# Tables


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text on one line, whose bars are no borders of the table."""
    return " ".join(text.split()).replace("|", "\\|")


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    rows = [
        [
            verdict.comparison.hypothesis + (f" ({verdict.comparison.paper})" if verdict.comparison.paper else ""),
            f"`{'` against `'.join(dict.fromkeys(verdict.comparison.values))}`, {verdict.comparison.direction}",
            f"{verdict.comparison.of}: {verdict.change.after:.3f}",
            f"{verdict.comparison.against}: {verdict.change.before:.3f}",
            f"{verdict.change.value:+.3f} [{verdict.change.interval[0]:+.3f}, {verdict.change.interval[1]:+.3f}]",
            f"{verdict.num_items:,} x {verdict.num_seeds}",
            f"**{verdict.word}**",
        ]
        for verdict in verdicts
    ]
    head = ["hypothesis", "value", "of", "against", "difference, 95 %", "items x seeds", "verdict"]
    return "## Verdicts\n\n" + _table(head, rows)


def _measures(study: Study, values: dict[str, dict[str, list[list[float]]]]) -> str:
    """The mean of each value over its seeds, and the least and the most of these."""
    arms = [arm.name for arm in study.arms]
    rows = []
    for name, by_arm in values.items():
        cells = []
        for arm in arms:
            means = [float(np.mean(row)) for row in by_arm.get(arm, ())]
            cells.append(f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})" if means else "")
        rows.append([f"`{name}`", *cells])
    about = f"Means over {len(study.seeds)} seeds, the least and the most of these in brackets."
    return "## Measures\n\n" + about + "\n\n" + _table(["value", *arms], rows)


def _budgets(study: Study) -> str:
    rows = []
    for arm in study.arms:
        summaries = [Summary.read(study.run_folder(arm.name, seed)) for seed in study.seeds]
        seconds = float(np.mean([summary.cpu_seconds for summary in summaries if summary is not None]))
        steps = next(summary.steps for summary in summaries if summary is not None)
        flops = flops_per_step(study, arm)
        rows.append(
            [
                arm.name,
                arm.title,
                f"`{arm.recipe}`",
                f"{study.pictures(arm.name):,}",
                f"{steps:,}",
                f"{seconds:,.0f}",
                f"{flops * steps:.3g}",
            ]
        )
    head = ["arm", "", "recipe", "training examples, those it starts from included", "steps", "CPU s", "FLOPs"]
    return "## Budgets\n\n" + _table(head, rows)


def _searches(study: Study) -> str:
    rows = [
        [arm.name, f"`{arm.search.key}`", str(trial.value), f"{trial.score:.3f}"]
        for arm in (*study.parts, *study.arms)
        if arm.search is not None
        for trial in trials_of(study, arm)
    ]
    return "## Searches\n\n" + _table(["arm", "key", "value", "score"], rows) if rows else ""


# Curves


def _draw(study: Study, plot: Plot, path: Path) -> Path:
    """Lines of means over seeds, with bands from the least to the most."""
    key, lines = f"eval_{plot.score}", {}
    for name in plot.arms:
        histories = [json.loads((study.run_folder(name, seed) / HISTORY).read_text()) for seed in study.seeds]
        runs = [{each["step"]: each[key] for each in history if key in each} for history in histories]
        if not set.intersection(*map(set, runs)):
            raise ValueError(
                f"A plot shows a score of evaluations. `{plot.name}` shows '{plot.score}', which {name} has not. "
                f"Correct it, or set training.evaluation_steps."
            )
        lines[study.arm(name).title or name] = runs
    title = f"{plot.name.replace('_', ' ')}, {len(study.seeds)} seeds"
    bands(lines, plot.score.replace("_", " "), title, path)
    return path


def _write_manifest(
    study: Study, values: dict[str, dict[str, list[list[float]]]], verdicts: Sequence[Verdict], path: Path
) -> None:
    """All that the tables are made of, with hashes of what was read."""
    trained = (*study.parts, *study.arms)
    recipes = {arm.recipe: file_hash(study.recipe(arm, study.seeds[0])[0]) for arm in trained}
    content = {
        "study": study.source.name,
        "date": now(),
        "versions": versions(),
        "inputs": {study.source.name: file_hash(study.source), **recipes},
        "overrides": list(study.more),
        "seeds": list(study.seeds),
        "values": values,
        "searches": {arm.name: [asdict(trial) for trial in trials_of(study, arm)] for arm in trained},
        "verdicts": [
            {"comparison": v.comparison.name, "verdict": v.word, "change": asdict(v.change)} for v in verdicts
        ],
    }
    write_measured(path, content)


__all__ = ["values_of", "verdict_of", "write_report"]
