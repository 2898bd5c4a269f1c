"""Fine-tuning in one call: a model's decoder, queries and transformer on your own images with captions."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..assets import resolve_model
from ..checks import check_keys
from ..data.images import decoded
from ..data.mixture import open_mixture
from ..data.rows import SourceSettings
from ..files import check_can_write, expanded, written_whole
from ..hub.reach import check_reachable
from ..models.configuration_blip3o import Blip3oConfig
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.record_check import RecordCheck, check_for_model
from .chain import Summary
from .checkpoints import has_complete_checkpoint
from .recipe_values import write_yaml
from .recipes import load_recipe, recipe_of
from .results import fitted_prompts
from .runs import check_not_finished, run_recipe
from .stages import GenerationStage

# Small models learn at larger rates, and by Muon. A small backbone knows only its training words, so it trains, too.
SMALL_MODEL = 50_000_000
SMALL_SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "muon_learning_rate": 1e-2, "lr_scheduler_type": "linear"}
SMALL_MODEL_KEYS: dict[str, Any] = {"train": ["queries", "transformer", "backbone"], "caption_weight": 0.2}
MACHINE_KEYS = ("seed", "disable_tqdm", "dataloader_num_workers", "fp16", "tf32")
"""Training settings that both stages have, beside those that `finetune` chooses for both."""
LARGE_SETTINGS: dict[str, Any] = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine"}


def finetune(
    data: str | os.PathLike,
    output: str | os.PathLike,
    model: str | os.PathLike = "blip3o-tiny",
    *,
    steps: int = 1500,
    decoder_steps: int = 600,
    batch_size: int = 32,
    prompts: Sequence[str] = (),
    resume: bool = False,
    data_settings: Mapping[str, Any] | None = None,
    model_settings: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
) -> Path:
    """
    Train a model on images with captions; what `blip3o-hf finetune` does. A patch decoder learns the images first.

    Args:
        data: folder, file or Hub name of images with captions (docs/data.md).
        output: folder for the recipes and all that they leave.
        model: packaged name, folder or Hub id to start from.
        steps: of queries and transformer.
        decoder_steps: of a patch decoder before that; 0 leaves it as it is.
        batch_size: images in a step.
        prompts: to draw while it trains and after it, on `samples-STEP.png`; by default the first captions.
        resume: go on from the last complete checkpoint, also of a run that is finished.
        data_settings: of the source, such as `{"prompt_template": "a photo of {folder}"}`.
        model_settings: of the recipe's section `model`, such as `{"lora": {"rank": 8}}`.
        training_settings: training arguments of queries and transformer; those about machine, precision, batches and
            checkpoints are the decoder's, too.

    Returns:
        `Path`: of the new pipeline, or with LoRA of the adapters.

    Raises:
        ValueError, FileNotFoundError: when the data or the model cannot be read; nothing is written then.
        OSError: when `output` cannot be written.
        FileExistsError: when `output` holds a finished run, and `resume` is not set.
        TrainingInterrupted: after Ctrl-C, when a whole checkpoint was written.

    Example:

    ```python
    >>> from blip3o_hf import Blip3oPipeline, finetune

    >>> folder = finetune("my_images", "runs/mine")  # doctest: +SKIP
    >>> Blip3oPipeline.from_pretrained(folder)("a red kite").images[0]  # doctest: +SKIP

    ```
    """
    output = check_can_write(output, "`output`")
    recipes = finetune_recipes(
        data,
        output,
        model,
        steps=steps,
        decoder_steps=decoder_steps,
        batch_size=batch_size,
        data_settings=data_settings,
        model_settings=model_settings,
        training_settings=training_settings,
    )
    _check_settings(data_settings, model_settings)
    for content in recipes.values():
        recipe_of(content, "the settings of the fine-tuning").checked().training_arguments()
    check = check_for_model(resolve_model(os.fspath(model)), recipes["generation"]["model"].get("max_length"))
    captions = _first_captions(recipes["generation"]["data"], check)  # what is wrong with the data is said first
    drawn = fitted_prompts(check.processor, list(prompts) or captions)
    recipes["generation"]["evaluation"] = {"prompts": drawn} if drawn else {}
    for name in recipes if not resume else ():
        check_not_finished(output / name)
    for name, content in recipes.items():
        path = _write(content, output / f"{name}.yaml")
        can_resume = resume and has_complete_checkpoint(output / name / "checkpoints")
        if resume and not can_resume and Summary.read(output / name) is not None:
            continue  # it is done, and kept no checkpoint to go on from
        run_recipe(load_recipe(path), resume=can_resume)
    folder = output / "generation"
    return folder / "pipeline" if (folder / "pipeline").is_dir() else folder


def finetune_recipes(
    data: str | os.PathLike,
    output: str | os.PathLike,
    model: str | os.PathLike = "blip3o-tiny",
    *,
    steps: int = 1500,
    decoder_steps: int = 600,
    batch_size: int = 32,
    data_settings: Mapping[str, Any] | None = None,
    model_settings: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """
    The recipes that [`finetune`] runs, by the folder below `output` that each one writes; it adds what they draw.

    Args:
        data, output, model, steps, decoder_steps, batch_size, data_settings, model_settings, training_settings: as in
            [`finetune`].
    """
    model, output, folder = os.fspath(model), expanded(output), resolve_model(os.fspath(model))
    if not os.path.isdir(folder):
        check_reachable(folder)
    given_training = dict(training_settings or {})
    mixture = {"seed": 0, "sources": [{"path": os.fspath(data), **(data_settings or {})}]}
    shared = {
        "per_device_train_batch_size": batch_size,
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
    shared |= {key: value for key, value in given_training.items() if key in (*shared, *MACHINE_KEYS)}
    given, is_small = dict(model_settings or {}), _is_small(folder)
    model_keys = {**(SMALL_MODEL_KEYS if is_small and "lora" not in given else {}), **given}
    rates = {**SMALL_SETTINGS, "noise_draws": 2} if is_small else LARGE_SETTINGS
    if is_small and "backbone" in model_keys.get("train", ()):
        rates["learning_rates"] = {"backbone": 3e-3}
    generation = {
        "stage": "generation",
        "output_dir": str(output / "generation"),
        "inputs": {"model": model},
        "model": model_keys,
        "data": mixture,
        "training": {**shared, **rates, "evaluation_steps": 250, "max_steps": steps, **given_training},
    }
    if decoder_steps == 0 or not _has_patch_decoder(folder):
        return {"generation": generation}
    decoder = {
        "stage": "decoder",
        "output_dir": str(output / "decoder"),
        "inputs": {"model": model},
        "model": {"feature_noise": 0.2},
        "data": mixture,
        "training": {**shared, **SMALL_SETTINGS, "max_steps": decoder_steps},
    }
    generation["inputs"]["decoder"] = decoder["output_dir"]
    return {"decoder": decoder, "generation": generation}


def _first_captions(data: Mapping[str, Any], check: RecordCheck) -> list[str]:
    """
    Up to four different prompts of the first records that are drawn from words alone: of those that the model can read
    to their end, where there are any.
    """
    captions: dict[str, bool] = {}
    for record in islice(iter(open_mixture(data, lambda identity, record: check(decoded(record)))), 16):
        if record.prompt and not record.images:
            captions[record.prompt] = check.processor.fitted_prompt(record.prompt) == record.prompt
        if sum(captions.values()) == 4:
            break
    return ([caption for caption, is_whole in captions.items() if is_whole] or list(captions))[:4]


def _check_settings(data: Mapping[str, Any] | None, model: Mapping[str, Any] | None) -> None:
    """Raise a `ValueError` for a key that is no setting of a source, or of the stage `generation`."""
    check_keys(data or {}, (f.name for f in fields(SourceSettings) if f.name != "path"), "the settings of the data")
    known = [key for key in GenerationStage.model_keys if key not in GenerationStage.size_keys]
    check_keys(model or {}, known, "the settings of the model")


def _has_patch_decoder(model: str) -> bool:
    config = Path(model, "decoder", "config.json")
    return config.is_file() and json.loads(config.read_bytes())["_class_name"] == "Blip3oPatchDecoder"


def _is_small(model: str) -> bool:
    with torch.device("meta"):
        parts = Blip3oForConditionalGeneration(Blip3oConfig.from_pretrained(model))
    return sum(parameter.numel() for parameter in parts.transformer.parameters()) < SMALL_MODEL


def _write(recipe: dict, path: Path) -> Path:
    """Write a recipe that `blip3o-hf train` takes, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        write_yaml(recipe, temporary)
    return path
