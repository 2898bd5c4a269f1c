"""From judgments to what may be claimed: shares with intervals, tests, agreement, sides, and strengths of systems."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ...checks import check_name
from ..statistics import Rate
from .answers import Answer
from .judgments import Judgment, unblinded
from .screens import RaterScreen, screen
from .statistics import binomial_p, bradley_terry, cluster_interval, holm, krippendorff_alpha, sign_flip_p
from .study import Key, Study


@dataclass(frozen=True)
class Comparison:
    """
    Two systems by one criterion. Control pairs do not count.

    Args:
        criterion: id of the criterion.
        systems: the first, whose share is given, and the second.
        prompts: number of prompts with a judgment.
        wins: judgments for the first, for the second, and without a difference.
        share: of the first, a tie being half a judgment for each.
        interval: of the share, 95 %, by a bootstrap over prompts.
        p: of the sign-flip test over prompts, two-sided.
        p_holm: the same, adjusted for the number of comparisons in the analysis.
        alpha: Krippendorff's, of raters who judged one pair in one round; NaN where there is none.
    """

    criterion: str
    systems: tuple[str, str]
    prompts: int
    wins: tuple[int, int, int]
    share: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    alpha: float

    @property
    def judgments(self) -> int:
        return sum(self.wins)

    @property
    def decided(self) -> Rate:
        """The share of the first among judgments without ties, as if all were independent."""
        return Rate(self.wins[0], self.wins[0] + self.wins[1])

    @property
    def binomial_p(self) -> float:
        """Of the exact binomial test on `decided`, two-sided."""
        return binomial_p(self.decided.passed, self.decided.total)


@dataclass(frozen=True)
class Analysis:
    """
    All that is reported.

    Args:
        study, key: what was asked, and whose pictures they were.
        comparisons: by criterion, then by pair of systems.
        left: by criterion, how often the left picture was chosen, ties left out, controls included.
        strengths: by criterion, of three systems or more: Bradley-Terry strengths; `None` where none are finite.
        raters: one screen for each, also of those left out.
        excluded: raters whose judgments do not count.
        seed: of the bootstrap.
        notes: on what is missing or was left out.
    """

    study: Study
    key: Key
    comparisons: tuple[Comparison, ...]
    left: dict[str, Rate]
    strengths: dict[str, dict[str, float] | None]
    raters: tuple[RaterScreen, ...]
    excluded: tuple[str, ...]
    seed: int
    notes: tuple[str, ...]


def analyse(
    study: Study,
    key: Key,
    answers: Sequence[Answer],
    exclude: Sequence[str] = (),
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Analysis:
    """
    Analyse the standing answers of a study. The same answers give the same analysis, in whatever order they came.

    Args:
        study, key: both parts of the study.
        answers: as [`answers_of`] gives them.
        exclude: raters whose judgments do not count.
        seed: of the bootstrap.
        notes: to report, as on torn lines.

    Raises:
        ValueError: when a rater to exclude gave no answer, or no judgment is left.
    """
    judgments = unblinded(study, key, sorted(answers, key=lambda a: (a.rater, a.round, a.criterion, a.pair)))
    by_rater: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_rater[judgment.rater].append(judgment)
    for rater in exclude:
        check_name("rater", rater, by_rater)
    counted = [judgment for judgment in judgments if judgment.rater not in exclude]
    main = [judgment for judgment in counted if not judgment.is_control]
    if not main:
        raise ValueError(
            f"An analysis needs judgments that are no controls. There are none of {len(by_rater) - len(set(exclude))} "
            f"raters. Collect some."
        )
    comparisons, unjudged = [], []
    criteria = [criterion.id for criterion in study.criteria]
    for criterion in criteria:
        for pair in combinations(key.systems, 2):
            chosen = [j for j in main if j.question.criterion == criterion and j.systems == pair]
            if chosen:
                comparisons.append(_compare(criterion, pair, chosen, seed))
            else:
                unjudged.append(f"{criterion}: nobody has judged {pair[0]} against {pair[1]}")
    adjusted = holm([comparison.p for comparison in comparisons])
    return Analysis(
        study=study,
        key=key,
        comparisons=tuple(replace(c, p_holm=p) for c, p in zip(comparisons, adjusted, strict=True)),
        left={criterion: _left(criterion, counted) for criterion in criteria},
        strengths={c: _strengths(c, main, key.systems) for c in criteria} if len(key.systems) > 2 else {},
        raters=tuple(screen(rater, mine, study.questions_per_rater) for rater, mine in sorted(by_rater.items())),
        excluded=tuple(sorted(set(exclude))),
        seed=seed,
        notes=(*notes, *unjudged),
    )


def _compare(criterion: str, systems: tuple[str, str], judgments: Sequence[Judgment], seed: int) -> Comparison:
    by_prompt: dict[str, list[str | None]] = defaultdict(list)
    by_unit: dict[tuple[str, int], list[str | None]] = defaultdict(list)
    for judgment in judgments:
        by_prompt[judgment.prompt_id].append(judgment.winner)
        by_unit[judgment.question.pair, judgment.question.round].append(judgment.winner)
    first, second = systems
    winners = [by_prompt[prompt] for prompt in sorted(by_prompt)]
    wins = tuple(sum(w.count(winner) for w in winners) for winner in (first, second, None))
    points = [w.count(first) + w.count(None) / 2 for w in winners]
    return Comparison(
        criterion=criterion,
        systems=systems,
        prompts=len(winners),
        wins=(wins[0], wins[1], wins[2]),
        share=sum(points) / len(judgments),
        interval=cluster_interval(points, [len(w) for w in winners], seed),
        p=(p := sign_flip_p(w.count(first) - w.count(second) for w in winners)),
        p_holm=p,
        alpha=krippendorff_alpha(by_unit[unit] for unit in sorted(by_unit)),
    )


def _left(criterion: str, judgments: Sequence[Judgment]) -> Rate:
    sides = [judgment.side for judgment in judgments if judgment.question.criterion == criterion and judgment.side]
    return Rate(sides.count("left"), len(sides))


def _strengths(criterion: str, judgments: Sequence[Judgment], systems: Sequence[str]) -> dict[str, float] | None:
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for judgment in judgments:
        if judgment.question.criterion == criterion:
            first, second = judgment.systems
            wins[first, second] += 0.5 if judgment.winner is None else float(judgment.winner == first)
            wins[second, first] += 0.5 if judgment.winner is None else float(judgment.winner == second)
    return bradley_terry(wins, systems)
