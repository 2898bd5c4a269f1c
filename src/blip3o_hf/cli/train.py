"""`blip3o-hf train`: one stage from a recipe, with resume, curves and sample sheets."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf train recipes/tiny/understanding.yaml
  blip3o-hf train recipes/tiny/generation.yaml training.max_steps=40000 output_dir=runs/longer
  blip3o-hf train recipes/tiny/generation.yaml --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace values of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint in output_dir")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")


def run(arguments: argparse.Namespace) -> int:
    from ..training.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)

    import torch

    from ..evaluation.sheets import curves
    from ..training.chain import summarize
    from ..training.checkpoints import last_complete_checkpoint
    from ..training.stages import build_stage
    from ..training.trainer import Blip3oTrainer
    from .stage_evaluation import evaluation_for, finish_result

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    stage = build_stage(recipe)
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Blip3oTrainer(stage)
    evaluate = evaluation_for(stage, folder)
    if evaluate is not None:
        trainer.evaluate_with(evaluate)
    trainer.on_log_history(lambda history: curves(history, folder / "curves.png"))

    checkpoint = last_complete_checkpoint(trainer.args.output_dir) if arguments.resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    spent = trainer.clock_of_run.spent
    if evaluate is not None:
        trainer.run_evaluation(evaluate)
    trainer.save_result()
    if not trainer.is_world_process_zero():
        return 0
    finish_result(stage, folder, trainer.origin)
    summary = summarize(trainer, spent, torch.get_num_threads())
    summary.write(folder)
    print(f"{recipe.stage}: {summary.steps} steps, {summary.times}")
    print(folder.absolute())
    return 0
