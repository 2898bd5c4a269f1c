"""What is measured of the result of a run, kept beside it, so that nothing is measured twice."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import find_class
from ..files import written_whole
from .study_file import Measure

MEASURED = "measured.json"
Values = Mapping[str, Sequence[float]]
"""By the name of the value: a number for each item, the same items for all runs; or one for the whole run."""


class RunMeasure:
    """
    Base of measures. In a study, name your own as `kind: module:Class`.

    Args:
        settings: of the study's file.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.settings = dict(settings)

    def __call__(self, run: Path) -> Values:
        """
        Args:
            run: the folder of a finished run, as `blip3o-hf train` leaves it.
        """
        raise NotImplementedError


def measured(measure: Measure, run: Path) -> dict[str, list[float]]:
    """
    The values of a measure of a run, by `MEASURE.VALUE`; from the file beside it where they are known.

    Args:
        measure: what is measured.
        run: the folder of a finished run.

    Raises:
        ValueError: when a measure gives something else than finite numbers.
    """
    path = run / MEASURED
    known = json.loads(path.read_text()) if path.is_file() else {}
    asked = hashlib.sha256(json.dumps([measure.kind, dict(measure.settings)], sort_keys=True).encode()).hexdigest()
    if known.get(measure.name, {}).get("asked") != asked:
        values = find_class(measure.kind, {}, f"the measure `{measure.name}`")(measure.settings)(run)
        known[measure.name] = {
            "asked": asked,
            "values": {name: _checked(measure, name, values[name]) for name in values},
        }
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(known))
    return {f"{measure.name}.{name}": each for name, each in known[measure.name]["values"].items()}


def _checked(measure: Measure, name: str, values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"A measure gives finite numbers, at least one for each value. `{measure.name}` gave "
            f"{numbers!r:.60} for `{name}`. Correct {measure.kind}."
        )
    return numbers


__all__ = ["MEASURED", "RunMeasure", "Values", "measured"]
