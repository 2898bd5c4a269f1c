"""Answers together with the key: which system won, which side was chosen, and which answers were controls."""

from collections.abc import Iterable
from dataclasses import dataclass

from .answers import Answer
from .study import IDENTICAL, Key, Question, Study


@dataclass(frozen=True)
class Judgment:
    """
    One answer, unblinded.

    Args:
        rater: name of the rater.
        question: pair, criterion and round.
        prompt_id: of the pair's prompt.
        systems: of the two pictures, in the order of the key; of a control pair of identical pictures, twice the same.
        side: `left` or `right`; `None` for a tie.
        winner: the system whose picture was chosen; `None` for a tie.
        repeats: of a repeated pair, the pair that it repeats.
        ms: milliseconds to the answer.
    """

    rater: str
    question: Question
    prompt_id: str
    systems: tuple[str, str]
    side: str | None
    winner: str | None
    repeats: str | None
    ms: int

    @property
    def is_identical(self) -> bool:
        """Whether both pictures were one."""
        return self.systems[0] == self.systems[1]

    @property
    def is_control(self) -> bool:
        return self.is_identical or self.repeats is not None


def unblinded(study: Study, key: Key, answers: Iterable[Answer]) -> list[Judgment]:
    """Judgments in the order of the answers."""
    return [_judgment(study, key, answer) for answer in answers]


def _judgment(study: Study, key: Key, answer: Answer) -> Judgment:
    owners = sorted((key.pictures[name] for name in (answer.left, answer.right)), key=key.systems.index)
    control = key.controls.get(answer.pair)
    return Judgment(
        rater=answer.rater,
        question=answer.question,
        prompt_id=study.by_id[answer.pair].prompt_id,
        systems=(owners[0], owners[1]),
        side=None if answer.chosen is None else answer.choice,
        winner=None if answer.chosen is None else key.pictures[answer.chosen],
        repeats=None if control == IDENTICAL else control,
        ms=answer.ms,
    )
