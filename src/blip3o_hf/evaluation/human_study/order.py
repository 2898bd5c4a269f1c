"""In which order a rater is asked, and which picture stands left: the same on every machine and in the page."""

from collections.abc import Iterable

from .study import Question, Study

_MASK = 0xFFFFFFFF


def mixed(*words: object) -> int:
    """
    A number from 0 to 2**32 - 1 that looks random and depends on the words alone: FNV-1a, then the last mixing steps
    of MurmurHash3. `page.html` has the same in JavaScript.

    Example:
        >>> mixed("a", 1)
        2535666527
    """
    value = 0x811C9DC5
    for sign in "|".join(map(str, words)):
        value = ((value ^ ord(sign)) * 0x01000193) & _MASK
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK
    return value ^ (value >> 16)


def questions_of(study: Study, rater: str) -> list[Question]:
    """
    All questions of one rater, in order: round by round, one criterion after another, all pairs in an order of their
    own each time. Whoever stops early has judged pairs at random.
    """
    asked = []
    for number in range(1, study.rounds + 1):
        for criterion in _sorted([c.id for c in study.criteria], study.seed, rater, number, "criteria"):
            pairs = _sorted(list(study.by_id), study.seed, rater, number, criterion)
            asked += [Question(pair, criterion, number) for pair in pairs]
    return asked


def sides_of(study: Study, rater: str, question: Question) -> tuple[str, str]:
    """The pictures that a rater sees left and right, by a hash of seed, rater, pair, criterion and round."""
    first, second = study.by_id[question.pair].images
    words = (study.seed, rater, question.pair, question.criterion, question.round, "sides")
    return (second, first) if mixed(*words) % 2 else (first, second)


def _sorted(names: Iterable[str], *words: object) -> list[str]:
    return sorted(names, key=lambda name: (mixed(*words, name), name))
