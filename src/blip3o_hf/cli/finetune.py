"""`blip3o-hf finetune`: a model's decoder, queries and transformer on one's own images with captions."""

import argparse

EXAMPLES = """examples:
  blip3o-hf finetune --data my_images/ --output runs/mine
  blip3o-hf finetune --data my_images/ --output runs/mine --prompts "a red kite" "two red kites"
  blip3o-hf finetune --data my_images/ --output runs/mine --steps 3000 data.prompt_template="a photo of {folder}"
  blip3o-hf finetune --data my_images/ --output runs/mine --resume
"""


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

    from ..training.finetune import finetune

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    finetune(
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
    return 0
