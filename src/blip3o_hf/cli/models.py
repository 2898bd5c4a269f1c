"""Loading a pipeline for the commands."""

import argparse
from pathlib import Path

from ..assets import resolve_model

DEFAULT_MODEL = "blip3o-tiny"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="packaged name, folder or Hub id (default: %(default)s)"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale (default: the model's)")


def load_pipeline(name_or_path: str):
    """A pipeline from a packaged name, a folder or a Hub id, on the accelerator where there is one."""
    path = resolve_model(name_or_path)

    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..pipelines.pipeline_blip3o import Blip3oPipeline

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    pipe = Blip3oPipeline.from_pretrained(path)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return pipe if accelerator is None else pipe.to(accelerator)


def encoder_beside(name_or_path: str) -> str | None:
    """The target encoder saved beside a pipeline in its folder, if there is one."""
    folder = Path(resolve_model(name_or_path)) / "target_encoder"
    return str(folder) if folder.is_dir() else None
