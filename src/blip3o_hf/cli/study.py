"""`blip3o-hf study`: train the arms of a study, measure them, and write what their comparison decides."""

import argparse
import shlex
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf study recipes/study/smoke.yaml
  blip3o-hf study recipes/study/laptop.yaml --plan
  blip3o-hf study recipes/study/laptop.yaml --workers 2 --report docs/study_laptop.md
  blip3o-hf study recipes/study/laptop.yaml --from docs/study_laptop.json --report report.md
  blip3o-hf study recipes/study/paper.yaml --launcher "torchrun --nproc_per_node 8"

A finished run is not run again, and an interrupted one goes on from its last checkpoint: after any interruption, give
the same command again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study_file", metavar="study", help="YAML file, or the name of one in recipes/, such as study/smoke"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of every recipe")
    parser.add_argument("--plan", action="store_true", help="say what would run, and stop")
    parser.add_argument(
        "--report", default=None, metavar="FILE", help="where to (default: report.md in the study's folder)"
    )
    parser.add_argument(
        "--from",
        dest="manifest",
        default=None,
        metavar="MANIFEST",
        help="train nothing: write the report again from the .json file beside an earlier one",
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of each run (default: all, shared out)")
    parser.add_argument("--workers", type=int, default=1, help="how many runs at once (default: 1)")
    parser.add_argument(
        "--launcher",
        default="",
        metavar="WORDS",
        help='what starts each run on several processes, such as "torchrun --nproc_per_node 8" (default: one process)',
    )


def run(arguments: argparse.Namespace) -> int:
    from ..study.runs import RunFailed, StudyRuns
    from ..study.study_file import load_study

    study = load_study(arguments.study_file, arguments.overrides)
    if arguments.plan:
        _say_plan(study)
        return 0
    from ..study.results import read_results, results_of

    path = Path(arguments.report) if arguments.report else study.folder / "report.md"
    if arguments.manifest is not None:
        return _write(study, path, read_results(study, arguments.manifest))
    try:
        StudyRuns(
            study,
            arguments.threads,
            lambda line: print(line, flush=True),
            arguments.workers,
            shlex.split(arguments.launcher),
        ).all()
    except RunFailed as failure:
        print(failure)
        return 1
    return _write(study, path, results_of(study))


def _write(study, path: Path, results) -> int:
    from ..study.report import write_report

    for verdict in write_report(study, path, results):
        print(f"{verdict.comparison.name}: {verdict.word}; {verdict.comparison.value} {verdict.change}")
    print(path)
    return 0


def _say_plan(study) -> None:
    from ..training.chain import Summary

    for arm in study.ordered():
        is_part = study.is_part(arm.name)
        seeds = study.seeds[:1] if is_part else study.seeds
        finished = sum(Summary.read(study.run_folder(arm.name, seed)) is not None for seed in seeds)
        trials = f", {len(arm.search.values)} trials of {arm.search.key}" if arm.search else ""
        kind = "part" if is_part else "arm"
        recipe = study.source.parent / arm.recipe
        number = f"{study.pictures(arm.name):,} examples, {len(seeds)} runs{trials}, {finished} done"
        print(f"{kind} {arm.name}: {recipe}, {number}")
    for comparison in study.comparisons:
        asked = f"{comparison.value} of {comparison.of} {comparison.direction} than of {comparison.against}"
        print(f"{comparison.name}: {comparison.hypothesis} ({asked})")
