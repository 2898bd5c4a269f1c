"""`blip3o-hf export`: a pipeline for shipping, with weights rounded, or with the code that it needs to open alone."""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from ..files import check_can_write
from ..hub.standalone import add_code, check_pipeline
from .models import encoder_beside

EXAMPLES = """examples:
  blip3o-hf export runs/tiny/generation/pipeline packaged --dtype bfloat16
  blip3o-hf export runs/tiny/generation/pipeline standalone --remote-code
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of a saved pipeline")
    parser.add_argument("target", help="folder to write; it must not exist")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="what weights are rounded to (default: bfloat16; with --remote-code they stay as they are)",
    )
    parser.add_argument(
        "--remote-code",
        action="store_true",
        help="add this package's code, so that transformers and diffusers open the target without the package, with "
        "trust_remote_code=True",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..pipelines.repository import forget_folders

    source, target = Path(arguments.source), Path(arguments.target)
    if not (source / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The source must be a saved pipeline. {source} has no model_index.json.{_hint(source)}"
        )
    if target.exists():
        raise FileExistsError(f"The target must not exist yet. {target} does. Choose another, or remove it.")
    if arguments.remote_code:
        check_pipeline(source)
    check_can_write(target, "The target")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        if arguments.remote_code and arguments.dtype is None:
            hidden = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(source, work, ignore=hidden, copy_function=shutil.copyfile, dirs_exist_ok=True)
        else:
            _round(source, work, arguments.dtype or "bfloat16")
            _write_card(source, work, arguments.dtype or "bfloat16", target.name)
        forget_folders(work)
        if arguments.remote_code:
            add_code(work)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(target.absolute())
    return 0


def _hint(source: Path) -> str:
    """What to do with a folder that is no saved pipeline."""
    from ..checkpoints.published_config import is_published

    if not source.is_dir() or not is_published(source):
        return ""
    return " It is a published checkpoint. Run `blip3o-hf convert` first, and export what that writes."


def _round(source: Path, folder: Path, name: str) -> None:
    """
    Save the pipeline of one folder in another, and the target encoder beside it, with weights of another type that are
    still computed with in full precision.
    """
    import torch

    from ..models.target_encoder import load_target_encoder
    from ..pipelines.pipeline_blip3o import Blip3oPipeline

    dtype = getattr(torch, name)
    Blip3oPipeline.from_pretrained(source).to(dtype).save_pretrained(folder)
    if beside := encoder_beside(str(source)):
        encoder, image_processor = load_target_encoder(beside)
        encoder.to(dtype).save_pretrained(folder / "target_encoder")
        image_processor.save_pretrained(folder / "target_encoder")
    for config_file in (folder / "config.json", folder / "model/config.json", folder / "target_encoder/config.json"):
        if config_file.is_file():
            _compute_in_full_precision(config_file)


def _write_card(source: Path, folder: Path, dtype: str, name: str) -> None:
    """The card of the source, for weights that were rounded."""
    from ..hub.cards import CARD, Origin, write_card
    from ..hub.provenance import public_name

    summary = f"The weights of the folder `{public_name(str(source))}`, rounded to {dtype} by `blip3o-hf export`."
    write_card(folder, replace(Origin.of_card(source / CARD), summary=summary), name=name)


def _compute_in_full_precision(config_file: Path) -> None:
    """The dtype of a transformers config, at any depth, is the one it is loaded in, whatever the file stores."""

    def widen(config: dict) -> dict:
        return {
            key: "float32" if key == "dtype" else widen(value) if isinstance(value, dict) else value
            for key, value in config.items()
        }

    config = widen({"dtype": None, **json.loads(config_file.read_bytes())})
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
