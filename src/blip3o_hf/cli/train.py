"""`blip3o-hf train`: one stage from a recipe, with resume, curves and sample sheets."""

import argparse
import shlex
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf train recipes/tiny/understanding.yaml
  blip3o-hf train recipes/tiny/generation.yaml training.max_steps=40000 output_dir=runs/longer
  blip3o-hf train recipes/tiny/generation.yaml --resume
  blip3o-hf train blip3o-8b/pretrain --plan
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or the name of one in recipes/, such as tiny/understanding")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint in output_dir")
    parser.add_argument("--plan", action="store_true", help="say what the recipe needs and what is missing, and stop")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from ..training.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.plan:
        from ..training.plan import plan

        found = plan(recipe)
        print(found)
        return 1 if found.missing else 0

    import torch

    from ..training.runs import run_recipe

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    summary = run_recipe(recipe, resume=arguments.resume)
    if summary is not None:
        print(f"{recipe.stage}: {summary.steps} steps, {summary.times}")
        folder = Path(recipe.output_dir).absolute()
        print(folder)
        if (folder / "pipeline").is_dir():
            print(
                f"draw with it: {shlex.join(['blip3o-hf', 'generate', 'PROMPT', '--model', str(folder / 'pipeline')])}"
            )
    return 0
