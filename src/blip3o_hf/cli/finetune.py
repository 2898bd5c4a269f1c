"""`blip3o-hf finetune`: a model's decoder, queries and transformer on one's own images with captions."""

import argparse
import json
from pathlib import Path

from ..files import written_whole

EXAMPLES = """examples:
  blip3o-hf finetune --data my_images/ --output runs/mine
  blip3o-hf finetune --data my_images/ --output runs/mine --prompts "a red kite" "two red kites"
  blip3o-hf finetune --data my_images/ --output runs/mine --steps 3000 data.prompt_template="a photo of {folder}"
  blip3o-hf finetune --data my_images/ --output runs/mine --resume
"""
# Small models learn at larger rates, and by Muon. A small backbone knows nothing but its own words, so it learns, too.
SMALL_MODEL = 50_000_000
SMALL_SETTINGS = {"learning_rate": 1e-3, "muon_learning_rate": 1e-2, "lr_scheduler_type": "linear"}
SMALL_MODEL_KEYS = {"train": ["queries", "transformer", "backbone"], "caption_weight": 0.2}
LARGE_SETTINGS = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="images with captions: folder, file or Hub name (docs/data.md)")
    parser.add_argument("--output", required=True, help="folder for the result; its pipeline/ is the new model")
    parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id to start from")
    parser.add_argument("--steps", type=int, default=1500, help="steps of queries and transformer (default: 1500)")
    parser.add_argument(
        "--decoder-steps",
        type=int,
        default=600,
        help="steps of a patch decoder before that (default: 600)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--prompts", nargs="*", default=(), help="prompts to draw after training, on samples-STEP.png")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.KEY of the source, model.KEY or training.KEY"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..assets import resolve_model
    from ..data.mixture import open_mixture
    from ..training.checkpoints import has_complete_checkpoint
    from .train import run as train

    output = Path(arguments.output)
    recipes = make_recipes(arguments, resolve_model(arguments.model), output)
    next(iter(open_mixture(recipes["generation"]["data"])))  # what is wrong with the data is said before all else
    for name, recipe in recipes.items():
        path = write_recipe(recipe, output / f"{name}.yaml")
        resume = arguments.resume and has_complete_checkpoint(output / name / "checkpoints")
        train(argparse.Namespace(recipe=str(path), overrides=[], resume=resume, threads=arguments.threads))
    return 0


def make_recipes(arguments: argparse.Namespace, model: str, output: Path) -> dict[str, dict]:
    """The recipes of the stages to run, by the folder below `output` that each one writes."""
    import torch

    from ..training.recipes import override

    own = {section: {} for section in ("data", "model", "training")}
    for text in arguments.overrides:
        override(own, text)
    data = {"seed": 0, "sources": [{"path": arguments.data, **own["data"]}]}
    shared = {
        "per_device_train_batch_size": arguments.batch_size,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": True,
        "ema_decay": 0.995,
        "warmup_steps": 50,
        "logging_steps": 50,
        "save_steps": 250,
        "save_total_limit": 1,
        "report_to": "none",
        "remove_unused_columns": False,
    }
    is_small = _is_small(model)
    model_keys = {**(SMALL_MODEL_KEYS if is_small and "lora" not in own["model"] else {}), **own["model"]}
    settings = {**SMALL_SETTINGS, "noise_draws": 2} if is_small else LARGE_SETTINGS
    if is_small and "backbone" in model_keys.get("train", ()):
        settings["learning_rates"] = {"backbone": 3e-3}
    decoder = {
        "stage": "decoder",
        "output_dir": str(output / "decoder"),
        "inputs": {"model": arguments.model},
        "model": {"feature_noise": 0.2},
        "data": data,
        "training": {**shared, **SMALL_SETTINGS, "max_steps": arguments.decoder_steps},
    }
    generation = {
        "stage": "generation",
        "output_dir": str(output / "generation"),
        "inputs": {"model": arguments.model},
        "model": model_keys,
        "data": data,
        "training": {**shared, **settings, "max_steps": arguments.steps, **own["training"]},
        "evaluation": {"prompts": list(arguments.prompts)} if arguments.prompts else {},
    }
    if arguments.decoder_steps == 0 or not _has_patch_decoder(model):
        return {"generation": generation}
    generation["inputs"]["decoder"] = decoder["output_dir"]
    return {"decoder": decoder, "generation": generation}


def _has_patch_decoder(model: str) -> bool:
    config = Path(model, "decoder", "config.json")
    return config.is_file() and json.loads(config.read_bytes())["_class_name"] == "Blip3oPatchDecoder"


def _is_small(model: str) -> bool:
    import torch

    from ..models.configuration_blip3o import Blip3oConfig
    from ..models.modeling_blip3o import Blip3oForConditionalGeneration

    with torch.device("meta"):
        parts = Blip3oForConditionalGeneration(Blip3oConfig.from_pretrained(model))
    return sum(parameter.numel() for parameter in parts.transformer.parameters()) < SMALL_MODEL


def write_recipe(recipe: dict, path: Path) -> Path:
    """Write a recipe that `blip3o-hf train` takes, whole or not at all."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
