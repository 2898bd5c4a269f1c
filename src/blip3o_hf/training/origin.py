"""What a training run knows of the weights that it leaves, and `precompute` of its features, for their cards."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ..assets import packaged_models
from ..hub.cards import Origin, base_of, is_hub_id
from ..hub.provenance import code_version, public_name
from .stages import Stage

_MADE = {False: "Trained", True: "Adapters, trained"}
STARTS = ("model", "backbone")
"""Inputs of which the result is a further trained form; the others are used or packed beside it."""


def origin_of(stage: Stage, num_steps: int, what_trains: str) -> Origin:
    """
    Args:
        stage: that has trained.
        num_steps: so far.
        what_trains: from [`~training.trainer.trainable_summary`].
    """
    recipe = stage.recipe
    is_adapter = bool(recipe.model.get("lora"))
    starts = [recipe.inputs[name] for name in STARTS if name in recipe.inputs]
    bases = [base_of(place) for place in starts]
    is_further = any(found or not is_known for found, is_known in bases)
    prompts = recipe.evaluation.get("prompts") or (["two red circles"] if stage.is_world else [])
    return Origin(
        summary=f"{_MADE[is_adapter]} by the training stage `{recipe.stage}` of `blip3o_hf`.",
        training=_training(stage, num_steps, what_trains),
        data=_data(stage),
        made_from={name: _source(place) for name, place in recipe.inputs.items()},
        base_model=tuple(dict.fromkeys(name for found, _ in bases for name in found)),
        relation="adapter" if is_adapter else "finetune" if is_further else None,
        datasets=_datasets(stage),
        language=("en",) if stage.is_world else (),
        is_trained=True,
        **({"prompt": prompts[0]} if prompts else {}),
    )


def origin_of_features(stage: Stage) -> Origin:
    """
    Args:
        stage: whose frozen parts have computed them.
    """
    command = f"By blip3o_hf {code_version()} from this recipe (`blip3o-hf precompute`):"
    return Origin(
        summary="Computed by `blip3o-hf precompute` of `blip3o_hf`.",
        training="\n".join((command, "", *_written(stage))),
        data=_data(stage),
        made_from={name: _source(place) for name, place in stage.recipe.inputs.items()},
        datasets=_datasets(stage),
        language=("en",) if stage.is_world else (),
    )


def _datasets(stage: Stage) -> tuple[str, ...]:
    """Hub ids among the sources."""
    return tuple(dict.fromkeys(place for place in _sources(stage.recipe.data) if is_hub_id(place)))


def _source(place: str) -> str:
    if place in packaged_models():
        return f"`{place}`, which ships with `blip3o_hf`"
    return f"[{place}](https://huggingface.co/{place})" if is_hub_id(place) else f"the folder `{public_name(place)}`"


def _training(stage: Stage, num_steps: int, what_trains: str) -> str:
    arguments = stage.arguments
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return "\n".join(
        (
            f"{num_steps:,} {'step' if num_steps == 1 else 'steps'} of {size} records on {arguments.world_size} "
            f"{'process' if arguments.world_size == 1 else 'processes'} ({arguments.device.type}), with blip3o_hf "
            f"{code_version()} and this recipe (`blip3o-hf train`):",
            "",
            *_written(stage),
            "",
            "What trained:",
            "",
            "```text",
            what_trains,
            "```",
        )
    )


def _written(stage: Stage) -> tuple[str, str, str]:
    """The recipe as a block of Markdown."""
    recipe = {name: value for name, value in asdict(stage.recipe).items() if name != "source" and value}
    return "```yaml", yaml.safe_dump(_without_machine(recipe), sort_keys=False, width=100).strip(), "```"


def _data(stage: Stage) -> str:
    if stage.is_world:
        return (
            "Pictures, captions and questions of the tiny world of coloured shapes, drawn by a program "
            "(`blip3o_hf.shapes`): no photograph, no text from the web, no output of another model."
        )
    places = dict.fromkeys(_sources(stage.recipe.data))
    lines = [f"- {_source(place)}" for place in places]
    return "\n".join(("The licences of these data were not looked up:", "", *lines))


def _sources(data: Any) -> Iterator[str]:
    """Places of all sources of a recipe's data, whatever they are nested in."""
    if isinstance(data, Mapping):
        path = data.get("path", ())
        yield from [path] if isinstance(path, str) else path
        for value in data.values():
            yield from _sources(value)
    elif isinstance(data, list):
        for value in data:
            yield from _sources(value)


def _without_machine(value: Any) -> Any:
    """A recipe without absolute paths, which tell about the machine that ran it."""
    if isinstance(value, Mapping):
        return {key: _without_machine(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_without_machine(own) for own in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


__all__ = ["origin_of", "origin_of_features"]
