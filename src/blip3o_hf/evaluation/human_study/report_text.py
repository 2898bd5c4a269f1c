"""The report in words: tables in Markdown, and how each number was computed."""

from collections.abc import Sequence

from ... import __version__
from ..statistics import Rate
from .analysis import Analysis, Comparison
from .screens import RaterScreen
from .statistics import binomial_p

METHOD = """\
- **Share**: judgments for the first system of all judgments; a tie is half a judgment for each. Control pairs do not
  count.
- **Interval**: 95 %, percentile bootstrap of 10,000 samples that draw whole prompts, since judgments of one prompt are
  not independent.
- **p**: two-sided sign-flip permutation test on the sums of prompts, over all flips. It is exact if both systems are
  equally good. **p, Holm** is adjusted for all comparisons of this report; these are the p-values to report.
- **As in the paper**: ties left out, each judgment taken as independent, exact two-sided binomial test at one half,
  and Wilson's interval. With several judgments a prompt this p-value is often too small; it stands here to be compared
  with published ones.
- **alpha**: Krippendorff's, nominal, over pairs that several raters judged in one round. 1 is agreement, 0 that of
  chance. Pictures of systems of similar quality give low values: where about 54 % of judgments prefer one system, an
  alpha of about 0.1 is normal. It does not say that raters were careless.
- **Repeated pairs**: where two pictures are equally good, honest raters also answer differently the second time;
  compare raters with each other.
- All of it takes the raters as given: it says what these raters prefer on further prompts of the same kind."""

PAPER = """\
The paper ([arXiv 2505.09568](https://arxiv.org/abs/2505.09568), section 5.4) reports p = 5.05e-06 for visual quality
and 1.16e-05 for prompt alignment, of roughly 3,000 judgments each. It names no test. These p-values are consistent
with 54.2 % and 54.0 % of 3,000 judgments under a plain binomial test."""


def markdown(analysis: Analysis, plot: str) -> str:
    """
    A report in Markdown.

    Args:
        analysis: what to report.
        plot: name of the picture beside it.
    """
    parts = [
        "# Human study",
        _overview(analysis),
        "## Preferences",
        _preferences(analysis),
        f"![Shares with intervals]({plot})",
        "## As in the paper",
        _as_in_the_paper(analysis),
        PAPER,
    ]
    if analysis.strengths:
        parts += ["## Strengths of the systems", _strengths(analysis)]
    parts += ["## Left and right", _sides(analysis), "## Raters", _raters(analysis)]
    if analysis.notes:
        parts += ["## Notes", "\n".join(f"- {_cell(note)}" for note in analysis.notes)]
    return "\n\n".join([*parts, "## How this was computed", METHOD]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def p_text(p: float) -> str:
    """
    A p-value as reports write it.

    Example:
        >>> p_text(0.04321), p_text(0.0000116)
        ('0.043', '1.16e-05')
    """
    return f"{p:.3f}" if p >= 0.001 else f"{p:.2e}"


def share_text(share: float, interval: tuple[float, float]) -> str:
    """
    Example:
        >>> share_text(0.5417, (0.524, 0.559))
        '54.2 % [52.4, 55.9]'
    """
    return f"{100 * share:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _overview(analysis: Analysis) -> str:
    study, key = analysis.study, analysis.key
    prompts = len({pair.prompt_id for pair in study.pairs})
    lines = [
        f"- study {study.id}, {prompts} prompts, {len(study.pairs) - len(key.controls)} pairs and {len(key.controls)} "
        f"control pairs, {study.rounds} rounds, ties {'allowed' if study.ties else 'not allowed'}",
        f"- systems: {', '.join(_cell(name) for name in key.systems)}",
        f"- {len(analysis.raters)} raters; left out: {', '.join(analysis.excluded) or 'none'}",
    ]
    if key.left_out:
        lines.append(f"- {len(key.left_out)} prompts were left out, since a system had no picture of them")
    lines += [f"- {criterion.name}: “{_cell(criterion.instruction)}”" for criterion in study.criteria]
    return "\n".join([*lines, f"- analysed with blip3o_hf {__version__}, bootstrap seed {analysis.seed}"])


def _name(analysis: Analysis, criterion: str) -> str:
    return next(c.name for c in analysis.study.criteria if c.id == criterion)


def _against(comparison: Comparison) -> str:
    return f"{comparison.systems[0]} against {comparison.systems[1]}"


def _preferences(analysis: Analysis) -> str:
    head = ["criterion", "systems", "share of the first", "p", "p, Holm", "first / second / tie", "prompts", "alpha"]
    rows = [
        [
            _name(analysis, row.criterion),
            _against(row),
            share_text(row.share, row.interval),
            p_text(row.p),
            p_text(row.p_holm),
            " / ".join(map(str, row.wins)),
            str(row.prompts),
            "none" if row.alpha != row.alpha else f"{row.alpha:.2f}",
        ]
        for row in analysis.comparisons
    ]
    return table(head, rows)


def _as_in_the_paper(analysis: Analysis) -> str:
    head = ["criterion", "systems", "share of the first, Wilson", "of", "p, binomial"]
    rows = [
        [
            _name(analysis, row.criterion),
            _against(row),
            _rate(row.decided, with_interval=True),
            str(row.decided.total),
            p_text(row.binomial_p),
        ]
        for row in analysis.comparisons
    ]
    return table(head, rows)


def _strengths(analysis: Analysis) -> str:
    rows = []
    for criterion, strengths in analysis.strengths.items():
        for system in analysis.key.systems:
            value = "not finite" if strengths is None else f"{strengths[system]:.3f}"
            rows.append([_name(analysis, criterion), system, value])
    return (
        table(["criterion", "system", "strength"], rows)
        + "\n\nBradley-Terry: a system of strength a is preferred to one of strength b in a / (a + b) of judgments; "
        "the product of all strengths is 1. They are not finite where some systems never lost to the others."
    )


def _sides(analysis: Analysis) -> str:
    rows = [
        [_name(analysis, criterion), _rate(rate, with_interval=True), str(rate.total), p_text(_half(rate))]
        for criterion, rate in analysis.left.items()
    ]
    return (
        table(["criterion", "left picture chosen", "of", "p"], rows)
        + "\n\nSides are drawn at random, so a preference for one side favours no system; it adds noise."
    )


def _raters(analysis: Analysis) -> str:
    head = ["rater", "answers", "median time", "left", "ties"]
    head += ["identical pairs: ties", "else left", "repeated pairs: same", "rounds: same", "look at"]
    return table(head, [_rater(screen, analysis) for screen in analysis.raters])


def _rater(screen: RaterScreen, analysis: Analysis) -> list[str]:
    left_out = ["left out of this analysis"] if screen.rater in analysis.excluded else []
    return [
        screen.rater,
        f"{screen.answers} of {screen.asked}",
        f"{screen.median_ms / 1000:.1f} s",
        _rate(screen.left),
        str(screen.ties),
        f"{screen.identical_ties.passed} of {screen.identical_ties.total}",
        f"{screen.identical_left.passed} of {screen.identical_left.total}",
        f"{screen.repeated.passed} of {screen.repeated.total}",
        f"{screen.rounds.passed} of {screen.rounds.total}",
        "; ".join(left_out + screen.notes),
    ]


def _rate(rate: Rate, with_interval: bool = False) -> str:
    if not rate.total:
        return "none"
    return share_text(rate.value, rate.interval) if with_interval else f"{100 * rate.value:.0f} %"


def _half(rate: Rate) -> float:
    return binomial_p(rate.passed, rate.total)
