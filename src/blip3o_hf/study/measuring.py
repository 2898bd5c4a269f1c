"""What is measured of the result of a run, kept beside it, so that nothing is measured twice."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_keys, check_sizes, find_class
from ..files import written_whole
from .studies import Measure

MEASURED = "measured.json"
Values = Mapping[str, Sequence[float]]
"""By the name of the value: a number for each item, the same items for all runs; or one for the whole run."""


class RunFailed(RuntimeError):
    """A run, or what measures it, ended with an error; the study goes on from there when it is started again."""


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


def check_sized(settings: Mapping[str, Any], sizes: Mapping[str, int], keys: Iterable[str], name: str) -> None:
    """
    Args:
        settings: of a measure.
        sizes: those that are whole numbers, and what each must be at least.
        keys: the others.
        name: of the measure.

    Raises:
        ValueError: for a setting that is unknown, or too small.
    """
    check_keys(settings, (*sizes, *keys), f"the settings of {name}")
    for key, least in sizes.items():
        if key in settings:
            check_sizes(least, **{key: settings[key]})


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
        known[measure.name] = {"asked": asked, "values": _checked(measure, values)}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(known))
    return {f"{measure.name}.{name}": each for name, each in known[measure.name]["values"].items()}


def _checked(measure: Measure, values: Values) -> dict[str, list[float]]:
    found = {name: np.asarray(numbers) for name, numbers in values.items()}
    for name, numbers in found.items():
        if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "biuf" or not np.isfinite(numbers).all():
            raise ValueError(
                f"A measure gives finite numbers, a row of at least one for each value. `{measure.name}` gave "
                f"{values[name]!r:.60} for `{name}`. Correct {measure.kind}, or its settings."
            )
    if not found:
        raise ValueError(
            f"A measure gives at least one value. `{measure.name}` gave none. Correct {measure.kind}, or its settings."
        )
    return {name: numbers.astype(np.float64).tolist() for name, numbers in found.items()}


__all__ = ["MEASURED", "RunFailed", "RunMeasure", "Values", "check_sized", "measured"]
