"""The options of `blip3o-hf evaluate BENCHMARK`, and what it does with them."""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

from .models import load_pipeline, sampling_of

MADE_OF = ("prompts", "variant", "limit", "per_family", "scorer")
"""Options that are arguments of a benchmark's class, where it takes them."""
SAMPLING = ("steps", "guidance", "attempts")
JUDGED_BY = ("detector", "judge")
"""Options that are models for its scores."""


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run of a benchmark."""
    group = parser.add_argument_group("a benchmark by its name")
    group.add_argument("--prompts", default=None, help="prompt file or folder of the benchmark")
    group.add_argument("--variant", default=None, help="of a benchmark that has several, such as legacy or verified")
    group.add_argument("--limit", type=int, default=None, help="take only the first so many prompts")
    group.add_argument("--batch-size", type=int, default=8, help="pictures at once (default: %(default)s)")
    group.add_argument(
        "--seed-rule",
        choices=("picture", "prompt"),
        default="picture",
        help="picture i has the seed + i, or each prompt begins at the seed again (default: %(default)s)",
    )
    group.add_argument("--truncate", action="store_true", help="cut prompts that are too long for the model")
    group.add_argument("--detector", default=None, help="model that finds objects: folder or Hub id")
    group.add_argument("--judge", default=None, help="model that answers questions about pictures: folder or Hub id")
    group.add_argument("--scorer", default=None, help="your own function of pictures and rows, as module:function")


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Draw, lay out and score."""
    from ..evaluation.benchmarks import find_benchmark

    if arguments.output is None:
        raise ValueError(
            f"A run of a benchmark leaves pictures, so it needs a folder. Got no --output. Add --output "
            f"runs/{arguments.benchmark.rpartition(':')[2].lower()}."
        )
    kind = find_benchmark(arguments.benchmark)
    made_of = _settings(arguments, kind)
    benchmark = kind(**made_of)
    pipe = load_pipeline(arguments.model)

    from accelerate import PartialState

    from ..assets import resolve_model
    from ..evaluation.manifests import model_hash
    from ..evaluation.runs import DrawingRun, DrawingSettings

    state = PartialState(cpu=pipe.device.type == "cpu")
    settings = DrawingSettings(
        arguments.seed, arguments.seed_rule, arguments.batch_size, sampling_of(arguments), arguments.truncate
    )
    inputs = {"model": model_hash(resolve_model(arguments.model))}
    judges = {name: getattr(arguments, name) for name in JUDGED_BY if getattr(arguments, name) is not None}
    inputs |= {name: model_hash(resolve_model(judge)) for name, judge in judges.items()}
    run = DrawingRun(benchmark, pipe, arguments.output, settings, inputs)
    manifest = run.run(_words(arguments, {**made_of, **judges}), **judges)
    if manifest is None:
        return 0
    assert state.is_main_process
    for head, rows in manifest.evaluation.tables().values():
        widths = [max(len(str(row[column])) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(manifest.pictures)} pictures, and the manifest: {Path(arguments.output, 'manifest.json')}")
    if not manifest.evaluation.scores:
        print(f"no score is given here; the official scorer reads {Path(arguments.output, 'layout')}", file=sys.stderr)
    return 0


def _words(arguments: argparse.Namespace, given: dict[str, Any]) -> list[str]:
    """A command that does the same, without where it writes."""
    from ..hub.provenance import public_name

    options = {name: getattr(arguments, name) for name in ("seed", "seed_rule", "batch_size", *SAMPLING)}
    options = {**{name: public_name(str(value)) for name, value in given.items()}, **options}
    options["model"] = public_name(arguments.model)
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items() if value is not None]
    flags = [] if arguments.plan is None else ["--plan" if arguments.plan else "--no-plan"]
    flags += ["--truncate"] * arguments.truncate
    return ["evaluate", arguments.benchmark, *(word for pair in words for word in pair), *flags]


def _settings(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The options that a benchmark's class takes."""
    taken = inspect.signature(kind).parameters
    given = {name: getattr(arguments, name) for name in MADE_OF}
    given = {name: value for name, value in given.items() if value is not None}
    given = {name: value for name, value in given.items() if name in taken or name != "per_family"}
    unknown = [name for name in given if name not in taken]
    if unknown:
        option = f"--{unknown[0].replace('_', '-')}"
        raise ValueError(
            f"An option must be one of the benchmark. {arguments.benchmark} takes no {option}. Leave it out."
        )
    needed = [name for name, one in taken.items() if one.default is one.empty and name not in given]
    if needed:
        raise ValueError(
            f"{arguments.benchmark} needs --{needed[0].replace('_', '-')}. Got none. Name the benchmark's own "
            f"file (docs/evaluation.md)."
        )
    return given


__all__ = ["add_benchmark_arguments", "run_benchmark"]
