"""What a training run knows of the weights that it leaves, and `precompute` of its features, for their cards."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import yaml
from peft import PeftModel

from ..assets import packaged_model_path, packaged_models
from ..hub.cards import Origin, base_of
from ..hub.provenance import code_version
from .arguments import Blip3oTrainingArguments
from .recipes import Recipe
from .training_data import TrainingData, place_in_words

if TYPE_CHECKING:
    from .trainer import Blip3oTrainer

STARTS = ("model", "backbone")
"""Inputs of which the result is a further trained form; the others are used or packed beside it."""
MACHINE = ("output_dir", "logging_dir", "hub_token", "push_to_hub_token", "local_rank", "use_cpu", "run_name")
"""Arguments that tell about a machine or a user, and not about the weights."""


def origin_of(trainer: "Blip3oTrainer") -> Origin:
    """What the weights of a Trainer come from, with or without a recipe."""
    recipe, data = trainer.recipe, trainer.data
    is_adapter = isinstance(trainer.unwrapped_model, PeftModel)
    inputs = (
        {"model": trainer.source} if recipe is None and trainer.source else {} if recipe is None else recipe.inputs
    )
    bases = [base_of(inputs[name]) for name in STARTS if name in inputs]
    is_further = any(found or not is_known for found, is_known in bases)
    prompts = [] if recipe is None else recipe.evaluation.get("prompts", [])
    prompt = prompts[0] if prompts else None if data is None else data.prompt
    by = f"`Blip3oTrainer` (task `{trainer.task.name}`)" if recipe is None else f"the training stage `{recipe.stage}`"
    origin = Origin(
        summary=f"{'Adapters, trained' if is_adapter else 'Trained'} by {by} of `blip3o_hf`.",
        training=_training(trainer),
        data=_described(trainer.given_dataset) if data is None else data.describe(),
        made_from={name: _weights_in_words(source) for name, source in inputs.items()},
        base_model=tuple(dict.fromkeys(name for found, _ in bases for name in found)),
        relation="adapter" if is_adapter else "finetune" if is_further else None,
        datasets=() if data is None else data.hub_ids,
        language=() if data is None else data.language,
        is_trained=True,
    )
    return origin if prompt is None else replace(origin, prompt=prompt)


def origin_of_features(recipe: Recipe, data: TrainingData) -> Origin:
    """
    Args:
        recipe: whose frozen parts have computed them.
        data: of that recipe.
    """
    command = f"By blip3o_hf {code_version()} from this recipe (`blip3o-hf precompute`):"
    return Origin(
        summary="Computed by `blip3o-hf precompute` of `blip3o_hf`.",
        training="\n".join((command, "", *_recipe(recipe))),
        data=data.describe(),
        made_from={name: _weights_in_words(source) for name, source in recipe.inputs.items()},
        datasets=data.hub_ids,
        language=data.language,
    )


def _weights_in_words(source: str) -> str:
    packaged = next((name for name in packaged_models() if source in (name, packaged_model_path(name))), None)
    return f"`{packaged}`, which ships with `blip3o_hf`" if packaged else place_in_words(source)


def _training(trainer: "Blip3oTrainer") -> str:
    arguments, num_steps = trainer.args, trainer.state.global_step
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    settings = "these arguments" if trainer.recipe is None else "this recipe (`blip3o-hf train`)"
    return "\n".join(
        (
            f"{num_steps:,} {'step' if num_steps == 1 else 'steps'} of {size} records on {arguments.world_size} "
            f"{'process' if arguments.world_size == 1 else 'processes'} ({arguments.device.type}), with blip3o_hf "
            f"{code_version()} and {settings}:",
            "",
            *(_arguments(arguments) if trainer.recipe is None else _recipe(trainer.recipe)),
            "",
            *((trainer.task.details, "") if trainer.task.details else ()),
            "What trained:",
            "",
            "```text",
            trainer.what_trains,
            "```",
        )
    )


def _recipe(recipe: Recipe) -> tuple[str, str, str]:
    """The recipe as a block of Markdown."""
    return _yaml({name: value for name, value in asdict(recipe).items() if name != "source" and value})


def _arguments(arguments: Blip3oTrainingArguments) -> tuple[str, str, str]:
    """The arguments that differ from the defaults, as a block of Markdown."""
    changed = {}
    for item in fields(arguments):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = getattr(arguments, item.name)
        is_plain = isinstance(value, str | int | float | list | dict)
        if item.init and is_plain and value != default and item.name not in MACHINE and "token" not in item.name:
            changed[item.name] = value.value if hasattr(value, "value") else value
    return _yaml(changed)


def _yaml(settings: Mapping[str, Any]) -> tuple[str, str, str]:
    return "```yaml", yaml.safe_dump(_without_machine(settings), sort_keys=False, width=100).strip(), "```"


def _without_machine(value: Any) -> Any:
    """Settings without absolute paths, which tell about the machine that ran them."""
    if isinstance(value, Mapping):
        return {key: _without_machine(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_machine(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _described(dataset: Any) -> str:
    """What is known of a dataset that was passed to the Trainer."""
    if isinstance(dataset, str | os.PathLike):
        return f"The licence of these data was not looked up: {place_in_words(os.fspath(dataset))}."
    number = f"{len(dataset):,} records" if hasattr(dataset, "__len__") else "A stream of records"
    info = dataset.info if isinstance(dataset, datasets.Dataset | datasets.IterableDataset) else None
    name = f" of `{info.dataset_name}`" if info is not None and info.dataset_name else ""
    return f"{number}{name}. Their licence was not looked up."


__all__ = ["origin_of", "origin_of_features"]
