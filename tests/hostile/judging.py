"""What is wrong with the outcome of a case, and counts of many."""

import re
from collections import Counter
from dataclasses import dataclass, field

from .cases import COUNTED, REFUSED, RIGHT, Case
from .running import MAX_RESIDENT, MAX_SECONDS, Outcome

_NOTES = re.compile(r"(.*%\||note:|Bad item |WARNING)")
UNNAMED = "the error does not name the input"


@dataclass(frozen=True)
class Verdict:
    """What came of a case (`refused`, `counted` or `right`), and what is wrong with that."""

    result: str
    faults: tuple[str, ...] = ()


def judge(case: Case, outcome: Outcome) -> Verdict:
    """Compare an outcome with what a case expects, and with what is expected of all."""
    faults = []
    if outcome.end:
        faults.append(f"{outcome.end} after {outcome.seconds:.0f} s")
    if outcome.seconds > MAX_SECONDS:
        faults.append(f"it took {outcome.seconds:.0f} s")
    if outcome.resident > MAX_RESIDENT:
        faults.append(f"it took {outcome.resident / 1e9:.1f} GB of memory")
    faults += outcome.events
    result = _result(case, outcome)
    if result == REFUSED:
        faults += _faults_of_error(case, outcome)
    if "Traceback (most recent call last)" in outcome.errors and (outcome.is_caught or outcome.error is None):
        faults.append("a traceback was printed")
    if outcome.result == "not finite":
        faults.append("the result holds numbers that are not finite")
    allowed = case.writes if result == RIGHT else ()
    left = [path for path in outcome.new if not path.startswith(allowed or "/")]
    if left:
        faults.append(f"it left {', '.join(left[:5])}")
    if outcome.changed:
        faults.append(f"it changed {', '.join(outcome.changed[:5])}")
    if not outcome.end and result not in case.expected:
        faults.append(f"it was {result}, and not {' or '.join(case.expected)}")
    return Verdict(result, tuple(faults))


def _result(case: Case, outcome: Outcome) -> str:
    if outcome.error is not None or outcome.code == 2 or outcome.end:
        return REFUSED
    is_counting = case.arguments[:2] in (("data", "check"), ("card", "check")) or "--plan" in case.arguments
    if is_counting and (outcome.code == 1 or re.search(r"^bad +[1-9]", outcome.output, re.MULTILINE)):
        return COUNTED
    return RIGHT


def _faults_of_error(case: Case, outcome: Outcome) -> list[str]:
    if outcome.end:
        return []
    faults = []
    kind, text = outcome.error or ("", outcome.errors.rpartition("error: ")[2])
    if case.arguments and outcome.error and not outcome.is_caught:
        faults.append(f"a traceback of {kind}: {text:.300}")
    elif not outcome.is_clean:
        faults.append(f"an error of the kind {kind}: {text:.300}")
    if outcome.is_caught:
        lines = [line for line in outcome.errors.splitlines() if line.strip()]
        own = [line for line in lines if line.startswith(f"blip3o-hf {case.arguments[0]}: ")]
        others = [line for line in lines if line not in own and not _NOTES.match(line)]
        if len(own) != 1 or others:
            faults.append(f"beside one line about the error was printed {[*own[1:], *others][:1]!r:.300}")
        text = own[-1] if own else text
    if not text.strip() or "\n" in text.strip():
        faults.append(f"the error is no line: {text!r:.300}")
    if case.names and not any(name in text for name in case.names):
        origin = f"from {outcome.origin}, " if outcome.origin else ""
        faults.append(f"{UNNAMED} ({' or '.join(case.names)}): {origin}{kind}: {text:.300}")
    return faults


@dataclass
class Report:
    """
    What came of many cases.

    Attributes:
        counts: by kind and result.
        faults: of single cases, in words.
        unnamed: errors among these that only lack the name of the input.
    """

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)

    def add(self, kind: str, address: str, case: Case, outcome: Outcome) -> None:
        """Count a case."""
        verdict = judge(case, outcome)
        self.counts[kind, verdict.result] += 1
        self.seconds[kind] += outcome.seconds
        if verdict.faults:
            self.counts[kind, "fault"] += 1
            call = " ".join(map(repr, case.arguments)) or case.expression
            text = f"{address}: {case.what:.300}\n    {call:.600}\n    " + "\n    ".join(verdict.faults)
            is_unnamed = all(fault.startswith(UNNAMED) for fault in verdict.faults)
            (self.unnamed if is_unnamed else self.faults).append(text)

    @property
    def num_errors(self) -> int:
        """How many cases were refused."""
        return sum(count for (_, result), count in self.counts.items() if result == REFUSED)

    def table(self) -> str:
        """Counts by kind and outcome."""
        columns = (REFUSED, COUNTED, RIGHT, "fault")
        lines = [f"{'kind':<16}" + "".join(f"{name:>10}" for name in columns) + f"{'seconds':>10}"]
        for kind in dict.fromkeys(kind for kind, _ in self.counts):
            numbers = "".join(f"{self.counts[kind, name]:>10}" for name in columns)
            lines.append(f"{kind:<16}{numbers}{self.seconds[kind]:>10.1f}")
        return "\n".join(lines)
