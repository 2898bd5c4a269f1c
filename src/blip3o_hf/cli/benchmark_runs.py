"""The options of `blip3o-hf evaluate BENCHMARK`, and what it does with them."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .models import load_pipeline, sampling_of

MADE_OF = ("prompts", "limit", "per_family")
"""Options that are arguments of a benchmark's class, where it takes them."""
MODELS = ("detector", "colors", "judge")
"""Options that are models for its scores."""
SAMPLING = ("steps", "guidance", "attempts")
OF_RUNS = (*MADE_OF, "batch_size", "seed_rule", "truncate", *MODELS, "verdicts", "scorer")
OF_THE_WORLD = ("per_kind", "pictures", "per_edit", "encoder", "wordings", "checker", "skip_understanding")
"""Options of runs of benchmarks alone, and of the whole evaluation of the tiny world alone."""


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run of a benchmark."""
    group = parser.add_argument_group("a benchmark by its name")
    group.add_argument("--prompts", default=None, help="prompt file or folder of the benchmark")
    group.add_argument("--limit", type=int, default=None, help="take only the first so many prompts")
    group.add_argument("--batch-size", type=int, default=8, help="pictures at once (default: %(default)s)")
    group.add_argument(
        "--seed-rule",
        choices=("picture", "prompt"),
        default="picture",
        help="picture i has the seed + i, or each prompt begins at the seed again (default: %(default)s)",
    )
    group.add_argument("--truncate", action="store_true", help="cut prompts that are too long for the model")
    group.add_argument("--detector", default=None, help="geneval: model that finds objects, folder or Hub id")
    group.add_argument("--colors", default=None, help="geneval: a CLIP that names colours, folder or Hub id")
    group.add_argument(
        "--judge", default=None, help="geneval2: chat model that answers questions about pictures, folder or Hub id"
    )
    group.add_argument("--verdicts", default=None, help="wise: JSON with `judge`, `verdicts` and perhaps `categories`")
    group.add_argument("--scorer", default=None, help="own: function of pictures and rows, as module:function")


def check_options(arguments: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for an option that is given and would do nothing.
    """
    unread = OF_RUNS if arguments.benchmark is None else OF_THE_WORLD
    for name in unread:
        if name != "per_family" and getattr(arguments, name) != defaults[name]:
            what = (
                "a benchmark that is named" if arguments.benchmark is None else "all of the tiny world, without a name"
            )
            raise ValueError(
                f"--{name.replace('_', '-')} is for {what}. Got {getattr(arguments, name)!r:.60}. Leave it out."
            )


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Draw, lay out and score."""
    from ..assets import resolve_model
    from ..evaluation.benchmarks import find_benchmark
    from ..evaluation.manifests import file_hash, model_hash

    if arguments.output is None:
        raise ValueError(
            f"A run of a benchmark leaves pictures, so it needs a folder. Got no --output. Add --output "
            f"runs/{arguments.benchmark.rpartition(':')[2].lower()}."
        )
    kind = find_benchmark(arguments.benchmark)
    made_of = _settings(arguments, kind)
    benchmark = kind(**made_of)
    judged_by = {name: getattr(arguments, name) for name in JUDGED_BY if getattr(arguments, name) is not None}
    for name in judged_by:
        if name not in benchmark.judged_by:
            raise ValueError(f"--{name} is not for {arguments.benchmark}. Got {judged_by[name]!r:.60}. Leave it out.")
    read = _verdicts(arguments.verdicts) if arguments.verdicts is not None else {}
    benchmark.check_judges(**{**judged_by, **read})  # before hours of drawing
    hashes = {name: model_hash(resolve_model(judged_by[name])) for name in MODELS if name in judged_by}
    pipe = load_pipeline(arguments.model)

    from accelerate import PartialState

    from ..evaluation.runs import DrawingRun, DrawingSettings

    PartialState(cpu=pipe.device.type == "cpu")
    settings = DrawingSettings(
        arguments.seed, arguments.seed_rule, arguments.batch_size, sampling_of(arguments), arguments.truncate
    )
    inputs = {"model": model_hash(resolve_model(arguments.model))}
    inputs |= hashes
    if arguments.verdicts is not None:
        inputs["verdicts"] = file_hash(arguments.verdicts)
    run = DrawingRun(benchmark, pipe, arguments.output, settings, inputs)

    def judges() -> dict[str, Any]:
        made = dict(read)
        for name in judged_by.keys() - {"verdicts"}:
            made |= JUDGED_BY[name](judged_by[name], pipe.device)
        return made

    manifest = run.run(_words(arguments, {**made_of, **judged_by}), judges)
    if manifest is not None:
        _print(manifest, Path(arguments.output), benchmark.official)
    return 0


def _print(manifest: Any, folder: Path, official: str) -> None:
    for head, rows in manifest.evaluation.tables().values():
        widths = [max(len(str(row[column])) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(manifest.pictures)} pictures, and the manifest: {folder / 'manifest.json'}")
    if not manifest.evaluation.scores:
        print("note: no score; docs/evaluation.md says what scores it here", file=sys.stderr)
    if (folder / "layout").is_dir():
        print(f"for the official scorer: {folder / 'layout'}")
        print(official.replace("FOLDER", str(folder / "layout")))


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
    """The options that a benchmark's class takes; the seed of its prompts is that of the noise."""
    taken = inspect.signature(kind).parameters
    given = {name: getattr(arguments, name) for name in MADE_OF}
    given = {name: value for name, value in given.items() if value is not None}
    if "per_family" not in taken:
        del given["per_family"]
    if "seed" in taken:
        given["seed"] = arguments.seed
    return given


def _detector(name: str, device: Any) -> dict[str, Any]:
    from transformers import AutoConfig

    from ..assets import resolve_model
    from ..evaluation.benchmarks.detectors import SegmentationDetector, ZeroShotDetector

    folder = resolve_model(name)
    has_masks = "former" in AutoConfig.from_pretrained(folder).model_type
    return {"detector": (SegmentationDetector if has_masks else ZeroShotDetector).from_pretrained(folder, device)}


def _colors(name: str, device: Any) -> dict[str, Any]:
    from ..assets import resolve_model
    from ..evaluation.benchmarks.detectors import ClipColors

    return {"colors": ClipColors.from_pretrained(resolve_model(name), device)}


def _judge(name: str, device: Any) -> dict[str, Any]:
    from ..assets import resolve_model
    from ..evaluation.benchmarks.judges import VlmJudge

    return {"judge": VlmJudge.from_pretrained(resolve_model(name), device)}


def _verdicts(path: str) -> dict[str, Any]:
    from ..checks import check_keys
    from ..reading import read_json

    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("verdicts"), dict):
        raise ValueError(
            f"Verdicts are a JSON mapping with `judge`, its name, and `verdicts`, by prompt id. {path} is none. Write "
            f"one."
        )
    check_keys(content, ("judge", "verdicts", "categories"), str(path))
    return content


JUDGED_BY: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "detector": _detector,
    "colors": _colors,
    "judge": _judge,
    "verdicts": lambda path, device: _verdicts(path),
    "scorer": lambda name, device: {"scorer": name},
}
"""Options that scores are made with, and how each becomes what a benchmark takes, on a device."""


__all__ = ["add_benchmark_arguments", "run_benchmark"]
