"""`blip3o-hf convert`: a published checkpoint in our layout."""

import argparse
import re

from ..files import check_can_write

EXAMPLES = """examples:
  blip3o-hf convert BLIP3o/BLIP3o-Model-8B blip3o-8b
  blip3o-hf convert ./BLIP3o-Model-4B blip3o-4b --with-target-encoder --max-shard-size 2GB

Interrupted, the same command goes on after the last finished file.
"""

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder or Hub id of a published checkpoint")
    parser.add_argument("target", help="folder to write; it must not exist")
    parser.add_argument(
        "--with-target-encoder", action="store_true", help="also write the EVA-CLIP tower, to target_encoder/"
    )
    parser.add_argument(
        "--target-encoder-heads",
        type=int,
        help="attention heads of a target encoder that is not EVA-CLIP-E-14-plus",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", help="largest file, such as 500MB or 5GB (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB)", arguments.max_shard_size)
    if size is None or float(size[1]) == 0:
        raise ValueError(
            f"--max-shard-size must be a number with KB, MB or GB. Got {arguments.max_shard_size!r}. Example: 5GB."
        )
    check_can_write(arguments.target, "The target")

    from ..conversion.published import convert_published

    report = convert_published(
        arguments.source,
        arguments.target,
        with_target_encoder=arguments.with_target_encoder,
        target_encoder_heads=arguments.target_encoder_heads,
        max_shard_size=int(float(size[1]) * _UNITS[size[2]]),
    )
    print(report)
    print(arguments.target)
    return 0
