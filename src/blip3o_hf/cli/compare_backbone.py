"""`blip3o-hf compare-backbone`: whether a model answers as its bare backbone does, sample by sample."""

import argparse
import shlex

from .files import check_writable
from .models import add_model_argument

EXAMPLES = """examples:
  blip3o-hf compare-backbone --tasks mme mmmu_val --model BLIP3o/BLIP3o-Model-8B --dtype bfloat16 --batch-size 8
  blip3o-hf compare-backbone --tasks mme --model runs/mine --backbone Qwen/Qwen2.5-VL-3B-Instruct --limit 100
  blip3o-hf compare-backbone --tasks my_task --include-path my_tasks/ --output comparison.json

exit code: 0 when all answers are equal, 1 when some differ
"""
SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", required=True, help="tasks of lmms-eval")
    parser.add_argument("--include-path", default=None, help="folder with tasks of your own, YAML")
    parser.add_argument(
        "--backbone",
        default=None,
        help="folder or Hub id of the backbone as it was before (default: the one that is in the model)",
    )
    parser.add_argument("--limit", type=int, default=None, help="first samples of each task only (default: all)")
    parser.add_argument("--batch-size", type=int, default=1, help="conversations at once (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: that of the files)")
    parser.add_argument("--output", default=None, help="also write differences, scores and versions to this JSON file")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    target = check_writable(arguments.output) if arguments.output else None
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1. Got {arguments.limit}. Leave it out for all samples.")

    from ..evaluation.backbone_comparison import compare_backbone, write_comparison

    settings = {name: getattr(arguments, name) for name in ("backbone", "limit", "batch_size", "dtype")}
    comparisons = compare_backbone(arguments.model, arguments.tasks, include_path=arguments.include_path, **settings)
    for comparison in comparisons:
        _print(comparison)
    if target:
        write_comparison(target, comparisons, _command(arguments), {"model": arguments.model, **settings})
        print(target)
    return 1 if any(comparison.differences for comparison in comparisons) else 0


def _print(comparison) -> None:
    number = len(comparison.differences)
    print(f"{comparison.task}: {number} of {comparison.samples:,} samples differ")
    for name, score in comparison.model.items():
        print(f"  {name}: model {score:.4f}, backbone {comparison.backbone.get(name, float('nan')):.4f}")
    if number:
        print(f"  samples that differ: {', '.join(str(each.doc_id) for each in comparison.differences)}")
    for each in comparison.differences[:SHOWN]:
        print(f"  {each.doc_id}: model {each.model:.100}, backbone {each.backbone:.100}, right {each.target:.60}")


def _command(arguments: argparse.Namespace) -> str:
    from ..hub.provenance import public_name

    words = ["blip3o-hf", "compare-backbone", "--tasks", *arguments.tasks]
    for name in ("include_path", "model", "backbone", "limit", "batch_size", "dtype"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", public_name(value) if isinstance(value, str) else str(value)]
    return shlex.join(words)
