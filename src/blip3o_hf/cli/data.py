"""`blip3o-hf data check`: what is in a data source, and what is wrong with it, before a training run finds out."""

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..files import written_whole
from .files import check_picture_path

if TYPE_CHECKING:
    from ..models.record_check import RecordCheck

EXAMPLES = """examples:
  blip3o-hf data check photos/
  blip3o-hf data check "shards/{000..127}.tar" --limit 5000 --histogram captions.png
  blip3o-hf data check captions.jsonl caption=long short_caption=short
  blip3o-hf data check talks.jsonl --model Qwen/Qwen2.5-VL-3B-Instruct --max-length 1024
"""
SHOWN = 3
"""So many addresses of bad items with one reason are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], help="read every item and report")
    parser.add_argument("path", help="a folder, file, glob, {000..127} range or Hub dataset")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of the source")
    parser.add_argument("--format", default="auto", help="auto, imagefolder, json, webdataset or hub (default: auto)")
    parser.add_argument("--limit", type=int, default=None, help="read so many items only, spread evenly")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="exit with 1 if the share of bad items is larger (default: %(default)s)",
    )
    parser.add_argument("--model", default=None, help="packaged name, folder or Hub id that is to train on the data")
    parser.add_argument(
        "--max-length", type=int, default=None, help="`max_length` of the recipe, in tokens of --model"
    )
    parser.add_argument("--all", action="store_true", help="name every bad item, not only the first of each reason")
    parser.add_argument("--histogram", default=None, help="write caption lengths as a picture to this file")


def run(arguments: argparse.Namespace) -> int:
    target = check_picture_path(arguments.histogram) if arguments.histogram else None
    for name, value in (("limit", arguments.limit), ("max-length", arguments.max_length)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1. Got {value}.")
    if not 0 <= arguments.max_bad_share <= 1:
        raise ValueError(f"--max-bad-share must be in [0, 1]. Got {arguments.max_bad_share}.")
    if arguments.max_length is not None and arguments.model is None:
        raise ValueError("--max-length counts the tokens of a model. There is no --model. Name it.")
    from ..data.sources import open_source
    from ..data.survey import survey

    settings = source_settings(arguments.path, arguments.format, arguments.overrides)
    source = open_source(settings)
    check = None if arguments.model is None else _model_check(arguments.model, arguments.max_length)
    num_cut = {"answers": 0, "captions": 0}

    def look(record) -> None:
        if check is not None and check.is_cut(check(record)):
            num_cut["answers" if record.turns else "captions"] += 1

    result = survey(source, arguments.limit, look)
    print(f"{result.num_read} of {len(source)} items read")
    for kind, count in sorted(result.kinds.items()):
        _print_count(kind, count)
    _print_count("bad", len(result.bad))
    _print_count("duplicates", len(result.duplicates))
    if check is not None:
        _print_count("no answer left", sum("no room for the first answer" in item.reason for item in result.bad))
        for name, number in num_cut.items():
            _print_count(f"{name} cut", number)
    print(f"\n{'':<16}{'min':>8}{'median':>8}{'max':>8}")
    _print_range("image width", [width for width, _ in result.sizes])
    _print_range("image height", [height for _, height in result.sizes])
    _print_range("caption words", result.lengths)
    for note in source.notes:
        print(f"note: {_printable(note)}")
    for items in [[item] for item in result.bad] if arguments.all else result.bad_by_reason():
        print(_printable(_bad_line(items)))
    for key, first in result.duplicates:
        print(_printable(f"duplicate: {key} is {first}"))
    is_good = len(result.bad) <= arguments.max_bad_share * result.num_read
    if line := _next_command(arguments, settings, result, is_good):
        print(_printable(line))
    if target:
        _write_histogram(result.lengths, target)
        print(target)
    return 0 if is_good else 1


def source_settings(path: str, format: str, overrides: Iterable[str]) -> dict[str, Any]:
    """
    The settings of a source from words of a command line, `key=value`.

    Raises:
        ValueError: when one is written otherwise, or its value is not of the key's type.
    """
    from ..data.rows import SourceSettings
    from ..training.recipe_values import read_value

    hints = get_type_hints(SourceSettings)
    settings: dict[str, Any] = {"path": path, "format": format}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"A setting must be written key=value. Got {override!r}. Example: caption=text.")
        settings[key] = read_value(value, hints.get(key), key)
    return settings


def _model_check(model: str, max_length: int | None) -> "RecordCheck":
    """What a model that is to learn from the data refuses."""
    from ..assets import resolve_model
    from ..models.record_check import check_for_model

    return check_for_model(resolve_model(model), max_length)


def _bad_line(items: list) -> str:
    first, *others = items
    if not others:
        return f"bad: {first}"
    shown = ", ".join(item.key for item in others[: SHOWN - 1])
    more = f" and {len(others) - SHOWN + 1} more" if len(others) >= SHOWN else ""
    return f"bad: {len(items)} items for one reason, such as {first} (also {shown}{more})"


def _next_command(arguments: argparse.Namespace, settings: dict[str, Any], result, is_good: bool) -> str | None:
    """A command line to go on with: the check under settings that fit better, or a training run."""
    path = shlex.quote(arguments.path)
    given = {
        key: "null" if value is None else value
        for key, value in settings.items()
        if key != "path" and (key, value) != ("format", "auto")
    }
    if result.proposals:
        words = [f"{key}={value}" for key, value in {**given, **result.proposals}.items() if key != "format"]
        words += ["--format", given["format"]] if "format" in given else []
        return f"try: blip3o-hf data check {path} {shlex.join(words)}"
    if not is_good or set(result.kinds) - {"generation", "editing", "reconstruction"} or not result.kinds:
        return None
    words = [f"data.{key}={value}" for key, value in given.items()]
    model = ["--model", arguments.model] if arguments.model else []
    return f"next: blip3o-hf finetune --data {path} --output runs/mine {shlex.join([*model, *words])}".rstrip()


def _printable(text: str) -> str:
    """A text in which names of files that are no Unicode are written with their bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _print_count(name: str, count: int) -> None:
    print(f"{name:<16}{count:>8}")


def _print_range(name: str, values: list[int]) -> None:
    values = sorted(values)
    shown = (values[0], values[len(values) // 2], values[-1]) if values else ("-", "-", "-")
    print(f"{name:<16}" + "".join(f"{value:>8}" for value in shown))


def _write_histogram(lengths: list[int], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    axes.hist(lengths, bins=min(60, max([*lengths, 1])), color="#4477aa")
    axes.set_xlabel("words in a caption")
    axes.set_ylabel("captions")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
