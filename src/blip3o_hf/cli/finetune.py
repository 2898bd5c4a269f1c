"""`blip3o-hf finetune`: a model's decoder, queries and transformer on your own images with captions."""

import argparse
import shlex
from pathlib import Path

EXAMPLES = """examples:
  blip3o-hf finetune --data my_images/ --output runs/mine
  blip3o-hf finetune --data my_images/ --output runs/mine --prompts "a red kite" "two red kites"
  blip3o-hf finetune --data my_images/ --output runs/mine --steps 3000 data.prompt_template="a photo of {folder}"
  blip3o-hf finetune --data my_images/ --output runs/mine --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="images with captions: folder, file or Hub name (docs/data.md)")
    parser.add_argument("--output", required=True, help="folder for the result; generation/pipeline/ is the model")
    parser.add_argument("--model", default="blip3o-tiny", help="packaged name, folder or Hub id to start from")
    parser.add_argument("--steps", type=int, default=1500, help="steps of queries and transformer (default: 1500)")
    parser.add_argument(
        "--decoder-steps",
        type=int,
        default=600,
        help="steps of a patch decoder before that (default: 600)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument(
        "--prompts",
        nargs="*",
        default=(),
        help="prompts to draw on samples-STEP.png, while it trains and after it (default: the first captions)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.KEY of the source, model.KEY or training.KEY"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..training.recipes import check_sections, override

    sections = ("data", "model", "training")
    settings: dict = {section: {} for section in sections}
    for text in arguments.overrides:
        check_sections([text.partition("=")[0].partition(".")[0]], sections, "the overrides of finetune")
        override(settings, text)
    for section in sections:
        if not isinstance(settings[section], dict):
            raise ValueError(
                f"An override must name a key, as {section}.KEY=value. Got {section}={settings[section]!r}."
            )

    import torch
    from accelerate import PartialState

    from ..training.finetune import finetune

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    folder = finetune(
        arguments.data,
        arguments.output,
        arguments.model,
        steps=arguments.steps,
        decoder_steps=arguments.decoder_steps,
        batch_size=arguments.batch_size,
        prompts=arguments.prompts,
        resume=arguments.resume,
        data_settings=settings["data"],
        model_settings=settings["model"],
        training_settings=settings["training"],
    )
    if PartialState().is_main_process:
        print_result(folder)
    return 0


def print_result(folder: Path) -> None:
    """Say where the new model is, and what to type next."""
    from ..training.recipes import load_recipe

    is_pipeline = folder.name == "pipeline"
    run_folder = folder.parent if is_pipeline else folder
    prompts = load_recipe(run_folder.parent / "generation.yaml").evaluation.get("prompts") or ["a prompt"]
    samples = sorted(run_folder.glob("samples-*.png"), key=lambda path: path.stat().st_mtime)
    if samples:
        print(f"pictures of {', '.join(map(repr, prompts))}: {samples[-1]}")
    if not is_pipeline:
        print(f"the adapters: {folder}")
        print(f"use them: pipe.load_lora_weights({str(folder)!r}) (docs/lora.md)")
        return
    print(f"the new model: {folder}")
    print(
        f"draw with it: {shlex.join(['blip3o-hf', 'generate', prompts[0], '--model', str(folder), '-o', 'out.png'])}"
    )
    print(f"in the browser: {shlex.join(['blip3o-hf', 'app', '--model', str(folder)])}")
