"""`blip3o-hf data check`: what is in a data source, and what is wrong with it, before a training run finds out."""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

from ..files import written_whole
from .files import check_picture_path

EXAMPLES = """examples:
  blip3o-hf data check photos/
  blip3o-hf data check "shards/{000..127}.tar" --limit 5000 --histogram captions.png
  blip3o-hf data check captions.jsonl caption=long short_caption=short
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"], help="read every item and report")
    parser.add_argument("path", help="a folder, file, glob, {000..127} range or Hub dataset")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of the source")
    parser.add_argument("--format", default="auto", help="auto, imagefolder, json, webdataset or hub (default: auto)")
    parser.add_argument("--limit", type=int, default=None, help="read so many items only, spread evenly")
    parser.add_argument("--max-bad-share", type=float, default=0.01, help="exit with 1 above (default: %(default)s)")
    parser.add_argument("--histogram", default=None, help="write caption lengths as a picture to this file")


def run(arguments: argparse.Namespace) -> int:
    target = check_picture_path(arguments.histogram) if arguments.histogram else None
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1. Got {arguments.limit}.")
    if not 0 <= arguments.max_bad_share <= 1:
        raise ValueError(f"--max-bad-share must be in [0, 1]. Got {arguments.max_bad_share}.")
    import yaml

    from ..data.records import BadItem
    from ..data.sources import open_source

    settings = {"path": arguments.path, "format": arguments.format}
    for override in arguments.overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"A setting must be written key=value. Got {override!r}. Example: caption=text.")
        settings[key] = yaml.safe_load(value)
    source = open_source(settings)
    number = min(len(source), arguments.limit or len(source))

    kinds, sizes, lengths, bad = Counter(), [], [], []
    first_with, duplicates = {}, []
    for step in range(number):
        try:
            record = source[step * len(source) // number]
        except BadItem as item:
            bad.append(item)
            continue
        kinds[record.kind] += 1
        if record.prompt is not None:
            lengths.append(len(record.prompt.split()))
        images = {id(image): image for image in (record.target, *record.images) if image is not None}.values()
        sizes += [image.size for image in images]
        digest = hashlib.blake2b(repr((record.prompt, record.turns)).encode(), digest_size=16)
        for image in images:
            digest.update(repr(image.size).encode() + image.tobytes())
        if first_with.setdefault(digest.digest(), record.key) != record.key:
            duplicates.append((record.key, first_with[digest.digest()]))

    print(f"{number} of {len(source)} items read")
    for kind, count in sorted(kinds.items()):
        print(f"{kind:<16}{count:>8}")
    print(f"{'bad':<16}{len(bad):>8}")
    print(f"{'duplicates':<16}{len(duplicates):>8}")
    print(f"\n{'':<16}{'min':>8}{'median':>8}{'max':>8}")
    _print_range("image width", [width for width, _ in sizes])
    _print_range("image height", [height for _, height in sizes])
    _print_range("caption words", lengths)
    for item in bad:
        print(f"bad: {item}")
    for key, first in duplicates:
        print(f"duplicate: {key} is {first}")
    if target:
        _write_histogram(lengths, target)
        print(target)
    return 1 if len(bad) > arguments.max_bad_share * number else 0


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
