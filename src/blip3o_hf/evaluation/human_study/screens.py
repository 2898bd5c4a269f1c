"""What the answers of one rater say about the rater: speed, sides, and control pairs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..statistics import Rate
from .judgments import Judgment
from .statistics import binomial_p
from .study import Question

FAST_MS = 1000
ONE_SIDED_P = 0.001
MIN_CONTROLS = 5


@dataclass(frozen=True)
class RaterScreen:
    """
    One rater.

    Args:
        rater: name of the rater.
        answers: number of standing answers, controls included.
        asked: number of questions.
        median_ms: of the times to an answer.
        left: how often the left picture was chosen, ties left out.
        left_p: two-sided, of the exact binomial test at one half.
        ties: how often there was no difference.
        identical_ties: of pairs that showed one picture twice, how many were ties.
        identical_left: of the others of these pairs, how often the left one was chosen.
        repeated: of repeated pairs, how often the answer was the same.
        rounds: of pairs that were asked in two rounds, how often the answer was the same as in the round before.
    """

    rater: str
    answers: int
    asked: int
    median_ms: float
    left: Rate
    left_p: float
    ties: int
    identical_ties: Rate
    identical_left: Rate
    repeated: Rate
    rounds: Rate

    @property
    def notes(self) -> list[str]:
        """What to look at before this rater's answers are used. Nobody is left out without your word."""
        notes = []
        if self.median_ms < FAST_MS:
            notes.append(f"half of the answers took less than {FAST_MS / 1000:.0f} second")
        if self.left_p < ONE_SIDED_P:
            notes.append("one side is chosen more often than chance allows")
        if self.repeated.total >= MIN_CONTROLS and self.repeated.value <= 0.5:
            notes.append("no more than half of the repeated pairs got the same answer")
        return notes


def screen(rater: str, judgments: Sequence[Judgment], asked: int) -> RaterScreen:
    """
    The screen of one rater.

    Args:
        rater: name of the rater.
        judgments: all of this rater, at least one.
        asked: number of questions of the study.
    """
    left = _left(judgments)
    identical = [judgment for judgment in judgments if judgment.is_identical]
    by_question = {judgment.question: judgment for judgment in judgments}
    repeated, rounds = [], []
    for judgment in judgments:
        pair, criterion, number = judgment.question.pair, judgment.question.criterion, judgment.question.round
        first = by_question.get(Question(judgment.repeats or "", criterion, number))
        before = by_question.get(Question(pair, criterion, number - 1))
        if first is not None:
            repeated.append(judgment.winner == first.winner)
        if before is not None and not judgment.is_control:
            rounds.append(judgment.winner == before.winner)
    return RaterScreen(
        rater=rater,
        answers=len(judgments),
        asked=asked,
        median_ms=statistics.median(judgment.ms for judgment in judgments),
        left=left,
        left_p=binomial_p(left.passed, left.total),
        ties=sum(judgment.side is None for judgment in judgments),
        identical_ties=Rate(sum(judgment.side is None for judgment in identical), len(identical)),
        identical_left=_left(identical),
        repeated=Rate(sum(repeated), len(repeated)),
        rounds=Rate(sum(rounds), len(rounds)),
    )


def _left(judgments: Sequence[Judgment]) -> Rate:
    sides = [judgment.side for judgment in judgments if judgment.side]
    return Rate(sides.count("left"), len(sides))
