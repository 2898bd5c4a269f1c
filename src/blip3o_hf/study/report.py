"""The report of a study: verdicts, measures, budgets, searches and curves, as Markdown with pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..evaluation.sheets import bands
from ..files import written_whole
from ..hub.results import write_measured
from .results import Results, results_of
from .studies import Comparison, Plot, Study
from .verdicts import Verdict, decided

Values = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]


def write_report(study: Study, path: Path, results: Results | None = None) -> list[Verdict]:
    """
    Write the report, its pictures and its manifest.

    Args:
        study: what was asked.
        path: of the report, such as `docs/study.md`; pictures are written beside it, as `NAME_PLOT.png`, and the
            manifest as `NAME.json`.
        results: of the study; by default those of its runs, which are finished.

    Returns:
        The verdicts of all comparisons.

    Raises:
        FileNotFoundError: when runs are not finished.
        ValueError: when a comparison or a plot names what was not measured.
    """
    results = results_of(study) if results is None else results
    verdicts = [verdict_of(comparison, results["values"]) for comparison in study.comparisons]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [_draw(study, plot, results, path.with_name(f"{path.stem}_{plot.name}.png")) for plot in study.plots]
    sections = [
        f"# {study.title}",
        _verdicts(verdicts),
        *(f"![{plot.name}]({picture.name})" for plot, picture in zip(study.plots, pictures, strict=True)),
        _measures(study, results["values"]),
        _budgets(study, results),
        _searches(study, results),
    ]
    with written_whole(path) as temporary:
        temporary.write_text("\n\n".join(section for section in sections if section) + "\n")
    told = [{"comparison": v.comparison.name, "verdict": v.word, "change": asdict(v.change)} for v in verdicts]
    write_measured(path.with_suffix(".json"), {**results, "verdicts": told})
    return verdicts


def verdict_of(comparison: Comparison, values: Values) -> Verdict:
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


def _measures(study: Study, values: Values) -> str:
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


def _budgets(study: Study, results: Results) -> str:
    rows = []
    for arm in study.arms:
        budget = results["budgets"][arm.name]
        rows.append(
            [
                arm.name,
                arm.title,
                f"`{arm.recipe}`",
                f"{budget['examples']:,}",
                f"{budget['steps']:,}",
                f"{budget['cpu_seconds']:,.0f}",
                f"{budget['flops']:.3g}",
            ]
        )
    head = ["arm", "", "recipe", "training examples, those it starts from included", "steps", "CPU s", "FLOPs"]
    about = f"All trainings, those of parts and searches included, took {results['cpu_seconds'] / 3600:.1f} CPU hours."
    return f"## Budgets\n\n{about}\n\n{_table(head, rows)}"


def _searches(study: Study, results: Results) -> str:
    rows = [
        [arm.name, f"`{arm.search.key}`", str(trial["value"]), f"{trial['score']:.3f}"]
        for arm in (*study.parts, *study.arms)
        if arm.search is not None
        for trial in results["searches"][arm.name]
    ]
    return "## Searches\n\n" + _table(["arm", "key", "value", "score"], rows) if rows else ""


# Curves


def _draw(study: Study, plot: Plot, results: Results, path: Path) -> Path:
    """Lines of means over seeds, with bands from the least to the most."""
    curves = results["curves"][plot.name]
    lines = {study.arm(name).title or name: [dict(run) for run in runs] for name, runs in curves.items()}
    title = f"{plot.name.replace('_', ' ')}, {len(study.seeds)} seeds"
    bands(lines, plot.score.replace("_", " "), title, path)
    return path


__all__ = ["verdict_of", "write_report"]
