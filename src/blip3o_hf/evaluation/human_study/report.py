"""The analysis on paper: report.json for programs, report.md and shares.png for people."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import check_can_write, written_whole
from ..statistics import Rate
from .analysis import Analysis, Comparison
from .report_text import markdown
from .screens import RaterScreen
from .statistics import binomial_p
from .study import write_json

REPORT, TEXT, PLOT = "report.json", "report.md", "shares.png"


def write_report(analysis: Analysis, folder: str | os.PathLike) -> list[Path]:
    """
    Write the three files of a report, each whole or not at all.

    Args:
        analysis: what to report.
        folder: made where there is none; files of an earlier report are replaced.

    Raises:
        OSError: when it cannot be written.
    """
    folder = check_can_write(folder, "The report's folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in (REPORT, TEXT, PLOT)]
    write_json(paths[0], as_json(analysis))
    with written_whole(paths[1]) as temporary:
        temporary.write_text(markdown(analysis, PLOT), encoding="utf-8")
    _plot(analysis, paths[2])
    return paths


def as_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis as JSON holds it; what is not defined is null."""
    study = analysis.study
    return {
        "study": study.id,
        "version": __version__,
        "systems": list(analysis.key.systems),
        "rounds": study.rounds,
        "ties": study.ties,
        "pairs": len(study.pairs),
        "control_pairs": len(analysis.key.controls),
        "left_out_prompts": list(analysis.key.left_out),
        "bootstrap_seed": analysis.seed,
        "excluded": list(analysis.excluded),
        "comparisons": [_comparison(comparison) for comparison in analysis.comparisons],
        "left": {criterion: _rate(rate) for criterion, rate in analysis.left.items()},
        "strengths": analysis.strengths,
        "raters": [_screen(screen) for screen in analysis.raters],
        "notes": list(analysis.notes),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    first, second, ties = comparison.wins
    return {
        "criterion": comparison.criterion,
        "systems": list(comparison.systems),
        "prompts": comparison.prompts,
        "judgments": comparison.judgments,
        "wins": [first, second],
        "ties": ties,
        "share": comparison.share,
        "interval": list(comparison.interval),
        "p": comparison.p,
        "p_holm": comparison.p_holm,
        "without_ties": _rate(comparison.decided),
        "krippendorff_alpha": _number(comparison.alpha),
    }


def _screen(screen: RaterScreen) -> dict[str, Any]:
    rates = {name: _rate(value) for name, value in vars(screen).items() if isinstance(value, Rate)}
    return {**asdict(screen), **rates, "notes": screen.notes}


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    return {
        "passed": rate.passed,
        "total": rate.total,
        "value": _number(rate.value),
        "wilson": [_number(low), _number(high)],
        "binomial_p": binomial_p(rate.passed, rate.total),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plot(analysis: Analysis, path: Path) -> None:
    from matplotlib.figure import Figure

    names = {criterion.id: criterion.name for criterion in analysis.study.criteria}
    rows = list(reversed(analysis.comparisons))
    figure = Figure(figsize=(8, 1.4 + 0.62 * len(rows)))
    axes = figure.subplots()
    axes.axvline(50, color="0.5", linestyle="--", linewidth=1)
    for height, row in enumerate(rows):
        low, high = (100 * bound for bound in row.interval)
        axes.plot([low, high], [height, height], color="#2453b3", linewidth=2.5, solid_capstyle="butt")
        axes.plot([100 * row.share], [height], "o", color="#2453b3", markersize=7)
        axes.annotate(
            f"{100 * row.share:.1f} %", (100 * row.share, height), (0, 8), textcoords="offset points", ha="center"
        )
    labels = [f"{names[row.criterion]}\n{_short(row.systems[0])} against {_short(row.systems[1])}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    bounds = [100 * bound for row in rows for bound in row.interval]
    axes.set_xlim(
        max(0, min(bounds) - 8) if min(bounds) < 40 else 32, min(100, max(bounds) + 8) if max(bounds) > 60 else 68
    )
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel("judgments for the first system, % (95 % interval over prompts)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
