"""`blip3o-hf export`: a pipeline with its weights rounded for shipping, still computed in full precision."""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from .models import encoder_beside

EXAMPLES = """examples:
  blip3o-hf export runs/tiny/generation/pipeline packaged --dtype bfloat16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of a saved pipeline")
    parser.add_argument("target", help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")


def run(arguments: argparse.Namespace) -> int:
    source, target = Path(arguments.source), Path(arguments.target)
    if not (source / "model_index.json").is_file():
        raise FileNotFoundError(f"The source must be a saved pipeline. {source} has no model_index.json.")
    if target.exists():
        raise FileExistsError(f"The target must not exist yet. {target} does. Choose another, or remove it.")

    import torch

    from ..hub.cards import CARD, Origin, write_card
    from ..hub.provenance import public_name
    from ..models.target_encoder import load_target_encoder
    from ..pipelines.pipeline_blip3o import Blip3oPipeline

    dtype = getattr(torch, arguments.dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        Blip3oPipeline.from_pretrained(source).to(dtype).save_pretrained(work)
        if encoder_beside(str(source)):
            encoder, image_processor = load_target_encoder(encoder_beside(str(source)))
            encoder.to(dtype).save_pretrained(work / "target_encoder")
            image_processor.save_pretrained(work / "target_encoder")
        for config_file in (work / "config.json", work / "model/config.json", work / "target_encoder/config.json"):
            if config_file.is_file():
                _compute_in_full_precision(config_file)
        summary = (
            f"The weights of the folder `{public_name(str(source))}`, rounded to {arguments.dtype} by `blip3o-hf "
            f"export`."
        )
        write_card(work, replace(Origin.of_card(source / CARD), summary=summary), name=target.name)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(target.absolute())
    return 0


def _compute_in_full_precision(config_file: Path) -> None:
    """The dtype of a transformers config, at any depth, is the one it is loaded in, whatever the file stores."""

    def widen(config: dict) -> dict:
        return {
            key: "float32" if key == "dtype" else widen(value) if isinstance(value, dict) else value
            for key, value in config.items()
        }

    config = widen({"dtype": None, **json.loads(config_file.read_text())})
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
