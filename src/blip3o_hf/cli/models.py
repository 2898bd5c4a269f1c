"""Loading a pipeline for the commands."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..assets import find_pipeline, resolve_model

DEFAULT_MODEL = "blip3o-tiny"


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="packaged name, folder or Hub id (default: %(default)s)"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale (default: the model's)")
    parser.add_argument(
        "--plan",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the model write what it will draw, then draw that (default: as the model was saved)",
    )
    parser.add_argument(
        "--attempts",
        type=int,
        default=None,
        help="largest number of attempts until the model finds its picture right (default: the model's)",
    )


def sampling_of(arguments: argparse.Namespace) -> dict:
    """Arguments of a pipeline from those that `add_sampling_arguments` added."""
    return {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "plan": arguments.plan,
        "num_attempts": arguments.attempts,
    }


def note_unknown_words(pipe, text: str) -> None:
    """Say on the error output which words of a text the model never read, if any."""
    note_words(pipe.processor.unknown_words(text) if pipe.processor is not None else ())


def note_words(words: Sequence[str]) -> None:
    """Say on the error output which words the model never read, if any."""
    if words:
        print(f"note: the model never read {', '.join(map(repr, words))}; it uses the other words", file=sys.stderr)


def note_rejected(output, names) -> None:
    """Say on the error output which pictures the model itself did not find right, if any."""
    for name, accepted, attempts in zip(names, output.accepted or (), output.attempts or (), strict=False):
        if not accepted:
            print(
                f"note: {name} may not show what was asked for; it is the best of {attempts} attempts", file=sys.stderr
            )


def load_pipeline(name_or_path: str):
    """A pipeline from a packaged name, a folder or a Hub id, on the accelerator where there is one."""
    path = _pipeline_path(name_or_path)

    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..pipelines.pipeline_blip3o import Blip3oPipeline

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    pipe = Blip3oPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(desc="drawing")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return pipe if accelerator is None else pipe.to(accelerator)


def _pipeline_path(name_or_path: str) -> str:
    """
    What `Blip3oPipeline.from_pretrained` takes.

    Raises:
        FileNotFoundError: when it is a folder without a model.
    """
    path = resolve_model(name_or_path)
    if not Path(path).is_dir():
        from ..hub.reach import check_reachable

        check_reachable(path)
        return path
    folder = find_pipeline(Path(path)) or Path(path)
    if not any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        adapters = [file.parent for file in sorted(folder.glob("**/adapter_config.json"))[:1]]
        hint = f" {adapters[0]} holds adapters: load them with `load_lora_weights` (docs/lora.md)." if adapters else ""
        raise FileNotFoundError(
            f"A model is the folder of a saved pipeline, or of a training run. {folder} has no model_index.json, "
            f"neither itself nor in pipeline/ or generation/pipeline/.{hint} Name the folder that has."
        )
    return str(folder)


def encoder_beside(name_or_path: str) -> str | None:
    """The target encoder saved beside a pipeline in its folder, if there is one."""
    folder = Path(_pipeline_path(name_or_path)) / "target_encoder"
    return str(folder) if folder.is_dir() else None
