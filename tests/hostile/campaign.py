"""
Bad input of every kind, made from a seed and given to the commands and the pipeline, each in a process of its own.

`python -m tests.hostile.campaign --seed 7 --number 1000` prints what does not hold, and counts. `--kinds data
--only 12` runs one case again, and `--keep FOLDER` leaves what it printed there.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from . import call_cases, checkpoint_cases, command_cases, data_cases, image_cases, recipe_cases, share_cases
from .cases import Maker
from .judging import Report
from .running import Runner

KINDS: dict[str, tuple[Maker, ...]] = {
    "images": image_cases.MAKERS,
    "data": data_cases.MAKERS,
    "checkpoints": checkpoint_cases.MAKERS,
    "recipes": recipe_cases.MAKERS,
    "commands": command_cases.MAKERS,
    "calls": call_cases.MAKERS,
    "conversations": share_cases.CONVERSATIONS,
    "pushes": share_cases.PUSHES,
    "cards": share_cases.CARDS,
}


def run_cases(runner: Runner, kind: str, seed: int, numbers: Iterable[int], report: Report) -> None:
    """
    Make and run cases of a kind, each of which depends on the seed and its own number alone.

    Args:
        runner: runs them.
        kind: a key of `KINDS`.
        seed: of all cases.
        numbers: which of them.
        report: they are counted in it.
    """
    for number in numbers:
        rng = np.random.default_rng([seed, list(KINDS).index(kind), number])
        maker = KINDS[kind][number % len(KINDS[kind])]
        folder = runner.folder / f"{kind}-{seed}-{number}"
        folder.mkdir()
        case = maker(rng, folder)
        address = f"{kind}, seed {seed}, number {number} ({maker.__name__})"
        report.add(kind, address, case, runner.run(case, folder))
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=100, help="cases of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--only", type=int, help="run the case of this number alone")
    parser.add_argument("--keep", type=Path, help="folder for all files")
    arguments = parser.parse_args()
    report = Report()
    numbers = range(arguments.number) if arguments.only is None else [arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(arguments.keep or Path(folder))
        for kind in arguments.kinds:
            run_cases(runner, kind, arguments.seed, numbers, report)
    sys.stdout.write("\n\n".join([*report.faults, *report.unnamed, report.table()]) + "\n")
    return int(bool(report.faults) or len(report.unnamed) > 0.01 * report.num_errors)


if __name__ == "__main__":
    sys.exit(main())
