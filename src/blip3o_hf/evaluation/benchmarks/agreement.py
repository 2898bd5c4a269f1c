"""How far a detector's verdicts agree with those of people, without which its scores mean little."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...checks import check_name
from ..statistics import Rate
from .base import prompt_text

RIGHT = frozenset(("1", "true", "yes", "correct"))
WRONG = frozenset(("0", "false", "no", "incorrect"))


@dataclass(frozen=True)
class Agreement:
    """
    Verdicts of rules and of people on the same pictures.

    Args:
        both_right: pictures that both find right.
        only_rules: pictures that only the rules find right.
        only_people: pictures that only people find right.
        both_wrong: pictures that both find wrong.
        ties: pictures on which as many people said one as the other; they are in no other number.
    """

    both_right: int
    only_rules: int
    only_people: int
    both_wrong: int
    ties: int = 0

    @property
    def total(self) -> int:
        return self.both_right + self.only_rules + self.only_people + self.both_wrong

    @property
    def rate(self) -> Rate:
        """Share of pictures with the same verdict."""
        return Rate(self.both_right + self.both_wrong, self.total)

    @property
    def rules(self) -> Rate:
        """Share that the rules find right."""
        return Rate(self.both_right + self.only_rules, self.total)

    @property
    def people(self) -> Rate:
        """Share that people find right."""
        return Rate(self.both_right + self.only_people, self.total)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: 0 for agreement by chance, 1 for full agreement; 1 where both always say the same one."""
        rules, people = self.rules.value, self.people.value
        by_chance = rules * people + (1 - rules) * (1 - people)
        return 1.0 if by_chance == 1 else (self.rate.value - by_chance) / (1 - by_chance)


def agreement_with_people(
    verdicts: Mapping[str, bool], annotations: str | os.PathLike, picture: str, verdict: str
) -> Agreement:
    """
    Agreement of verdicts with annotations by people, such as those in GenEval's repository.

    Args:
        verdicts: whether the rules find a picture right, by its name in the annotations.
        annotations: CSV with a head, one row for each picture and person.
        picture: the column with the picture's name.
        verdict: the column with what the person said: true or false, yes or no, 1 or 0.

    Raises:
        ValueError: when a column or a verdict is missing, or a word is none of these.
        FileNotFoundError: when there is no such file.
    """
    reader = csv.DictReader(io.StringIO(prompt_text(annotations)))
    for column in (picture, verdict):
        check_name(f"column of {annotations}", column, tuple(reader.fieldnames or ()))
    votes: dict[str, int] = {}
    for row in reader:
        name = row[picture]
        votes[name] = votes.get(name, 0) + _vote(row[verdict], f"{annotations}, line {reader.line_num}")
    missing = [name for name in votes if name not in verdicts]
    if missing or not votes:
        raise ValueError(
            f"Each annotated picture must have a verdict. {len(missing)} of {len(votes)} have none: "
            f"{', '.join(missing[:3])}. Judge them, too."
        )
    counts = {(rules, people): 0 for rules in (True, False) for people in (True, False)}
    for name, balance in votes.items():
        if balance:
            counts[bool(verdicts[name]), balance > 0] += 1
    ties = sum(balance == 0 for balance in votes.values())
    return Agreement(counts[True, True], counts[True, False], counts[False, True], counts[False, False], ties)


def _vote(word: str | None, where: str) -> int:
    said = (word or "").strip().lower()
    if said not in RIGHT | WRONG:
        raise ValueError(
            f"A verdict must be one of {', '.join(sorted(RIGHT | WRONG))}. {where} has {word!r:.40}. Correct it."
        )
    return 1 if said in RIGHT else -1
