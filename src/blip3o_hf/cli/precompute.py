"""`blip3o-hf precompute`: target features and conditions of a recipe's data, once for all training runs."""

import argparse

EXAMPLES = """examples:
  blip3o-hf precompute recipes/tiny/dit_only.yaml
  blip3o-hf precompute recipes/tiny/generation.yaml data.length=20000 --output runs/tiny/features
  torchrun --nproc-per-node 8 -m blip3o_hf.cli precompute my.yaml training.use_cpu=false --dtype bfloat16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file of the stage generation, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the recipe")
    parser.add_argument("--output", default=None, help="folder of the cache (default: the recipe's data.cache)")
    parser.add_argument(
        "--what",
        nargs="+",
        choices=("targets", "conditions"),
        default=None,
        help="default: targets, and conditions where the recipe trains the transformer alone",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="on disk (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="images per process and step (default: %(default)s)"
    )
    parser.add_argument("--shard-size", type=int, default=1024, help="rows in a file (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from ..training.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)

    import torch
    from accelerate import PartialState

    from ..training.precompute import precompute

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    summary = precompute(
        recipe,
        arguments.output,
        arguments.what,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
    )
    if PartialState().is_main_process:
        for kind, number in summary.records.items():
            print(f"{kind}: {number} records, {summary.computed[kind]} rows computed now")
        print(f"bad items: {len(summary.bad)}")
        print(arguments.output or recipe.data["cache"])
    return 0
