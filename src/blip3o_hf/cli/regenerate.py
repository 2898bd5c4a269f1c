"""`blip3o-hf regenerate`: make a result again from its manifest, and say whether it is the same."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf regenerate runs/geneval/manifest.json
  blip3o-hf regenerate results.json --tolerance 0.01
  blip3o-hf regenerate runs/dpg/manifest.json --model ~/models/blip3o-4b --prompts ~/ELLA/dpg_bench/prompts
"""

AGAIN = ("model", "prompts", "encoder", "detector", "colors", "judge", "verdicts", "folder", "reference")
"""Arguments of the command in a manifest whose folders may lie elsewhere here."""
FILES = ("prompts", "verdicts", "encoder", "folder", "reference")
"""Those that name files, and never a repository of the Hub."""
CODE = ("benchmark", "scorer", "extractor")
"""Those that may name code outside of this package."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="file that `evaluate --output` wrote, or the folder of a run")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest difference of a score that is tolerated; pictures may then differ, too (default: %(default)s)",
    )
    parser.add_argument("--output", default=None, help="keep what is made in this folder, which must not exist")
    parser.add_argument(
        "--own-code", action="store_true", help="run classes and functions outside of this package that it names"
    )
    for name in AGAIN:
        parser.add_argument(f"--{name}", default=None, help=f"where the {name} of the manifest is here")


def run(arguments: argparse.Namespace) -> int:
    from ..evaluation.manifests import MANIFEST, Manifest, compare

    if not 0 <= arguments.tolerance < float("inf"):
        raise ValueError(f"--tolerance must be a finite number of at least 0. Got {arguments.tolerance}. Try 0.01.")
    path = Path(arguments.manifest)
    before = Manifest.read(path / MANIFEST if path.is_dir() else path)
    again = _parsed(before.words, arguments)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and output.exists():
        raise FileExistsError(f"--output must be a new folder. {output} is there. Name another one.")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary, "again")
        if not before.pictures:  # of a report, which is one file
            made = made.with_suffix(".json")
        print(before.evaluation.command, file=sys.stderr)
        again.output = str(made)
        if code := again.run(again):
            raise ValueError(
                f"A manifest holds a command that works. That of {path} ended with {code}. Measure again."
            )
        after = Manifest.read(made / MANIFEST if made.is_dir() else made)
        if output is not None:
            shutil.move(made, output)
    found = compare(before, after, arguments.tolerance)
    for text in (*found.differences, *found.tolerated):
        print(text)
    for text in found.causes:
        print(f"not the same here: {text}")
    numbers = f"{len(after.pictures)} pictures and {len(after.evaluation.scores)} scores"
    print(f"{found.verdict}: {numbers}")
    return int(found.verdict == "differs")


def _parsed(words: tuple[str, ...], arguments: argparse.Namespace) -> argparse.Namespace:
    """The command of a manifest, with folders as they are here; it is parsed first, since options have many forms."""
    from . import build_parser, expand_home

    if not words or words[0] not in ("evaluate", "distance"):
        raise ValueError(
            f"A manifest holds the words of an evaluation. That of {arguments.manifest} begins with "
            f"{' '.join(words[:2]) or 'none'!r:.40}. Measure it again."
        )
    try:
        again = build_parser().parse_args(words)
    except SystemExit as error:
        raise ValueError(
            f"A manifest holds a command of this version. {' '.join(words)!r:.200} is none. Measure it again."
        ) from error
    for name in AGAIN:
        given = getattr(arguments, name)
        if given is not None and getattr(again, name, None) is None:
            raise ValueError(f"The manifest's command has no {name}. Got {given!r:.60}. Leave it out.")
        if given is not None:
            setattr(again, name, given)
    expand_home(again)
    code = [value for name in CODE if ":" in (value := getattr(again, name, None) or "")]
    if code and not arguments.own_code:
        raise ValueError(
            f"A manifest from elsewhere runs no code of its own choice. That of {arguments.manifest} names "
            f"{code[0]!r:.80}. Add --own-code if you trust it."
        )
    for name in FILES:
        value = getattr(again, name, None)
        if value is not None and not Path(value).exists():
            raise FileNotFoundError(
                f"A manifest does not say where files lie on this machine. There is none at {value} for {name}. Add "
                f"--{name} PATH."
            )
    return again
