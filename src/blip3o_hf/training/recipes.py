"""
Recipes: one YAML per stage of one model; unknown keys are errors, so that a typing mistake never silently becomes a
    default.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers.training_args import OptimizerNames

from ..checks import check_keys, find_class
from ..data.mixture import MIXTURE_TYPES
from ..data.rows import SourceSettings
from ..files import expanded
from .arguments import Blip3oTrainingArguments
from .recipe_files import find_recipe
from .recipe_values import hints_of, read_value, read_yaml, typed, typed_values

if TYPE_CHECKING:
    from .stages.base import Stage
    from .trainer import Blip3oTrainer

STAGES = {
    "encoder": "blip3o_hf.shapes.stages.encoder:EncoderStage",
    "vae": "blip3o_hf.shapes.stages.vae:VaeStage",
    "decoder": "blip3o_hf.training.stages.decoder:DecoderStage",
    "diffusion_decoder": "blip3o_hf.training.stages.diffusion_decoder:DiffusionDecoderStage",
    "understanding": "blip3o_hf.training.stages.understanding:UnderstandingStage",
    "few_step_decoder": "blip3o_hf.training.stages.few_step_decoder:FewStepDecoderStage",
    "alignment": "blip3o_hf.shapes.stages.alignment:AlignmentStage",
    "generation": "blip3o_hf.training.stages.generation:GenerationStage",
    "joint": "blip3o_hf.training.stages.joint:JointStage",
    "flow_map": "blip3o_hf.training.stages.flow_map:FlowMapStage",
    "nft": "blip3o_hf.preference.stages:NFTStage",
    "grpo": "blip3o_hf.preference.stages:GRPOStage",
    "dpo": "blip3o_hf.preference.stages:DPOStage",
}
"""Stages by the names that recipes give them."""
DATA_TYPES = {**MIXTURE_TYPES, "cache": str | None, "dataset": str | None}
"""Types of keys of the section `data` that no stage has for itself."""
REWARDS = "rewards"
"""Key of the section `preference` with the names of reward functions."""
ARGUMENT_KEYS = ("train", "frozen_dtype", "caption_weight", "max_length", "max_input_pixels")
"""Training arguments that a recipe has in its section `model`."""


@dataclass
class Recipe:
    """
    One training stage.

    Args:
        stage: a key of [`STAGES`], or `module:Class` for your own.
        output_dir: folder for the trained part, its checkpoints under `checkpoints/` and its curves.
        inputs: folders written by earlier stages, by the name the stage gives them.
        model: settings of the part that this stage builds.
        data: settings of the data.
        training: fields of [`Blip3oTrainingArguments`].
        preference: of stages that learn from rewards or preferences, the fields that their arguments add; and
            `rewards`.
        evaluation: settings of the stage's own evaluation.
        source: where the recipe was read from.
    """

    stage: str
    output_dir: str
    inputs: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    preference: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self):
        self.output_dir = str(expanded(self.output_dir))

    def training_arguments(self, kind: type[Blip3oTrainingArguments] = Blip3oTrainingArguments) -> Any:
        """
        The resolved training arguments; checkpoints go under `output_dir`/checkpoints.

        Args:
            kind: of the stage; one with fields of its own takes these from the section `preference`.
        """
        moved = {key: self.model[key] for key in ARGUMENT_KEYS if key in self.model}
        settings: dict[str, Any] = {"feature_cache": self.data.get("cache"), **moved, **self.training}
        if kind is not Blip3oTrainingArguments:
            settings |= {key: value for key, value in self.preference.items() if key != REWARDS}
        return kind(output_dir=str(Path(self.output_dir) / "checkpoints"), **settings)

    def open_stage(self) -> "Stage":
        """
        The stage, with all that the recipe says of it checked.

        Raises:
            ValueError: on an unknown stage or key, a value that is not of its key's type, and when parts do not belong
                together.
            FileNotFoundError: when the folder of an input is missing.
        """
        return self._stage_class()(self)

    def checked(self) -> "Recipe":
        """
        The recipe with its values as its stage takes them; no folder is looked at.

        Raises:
            ValueError: on an unknown stage or key, and a value that is not of its key's type.
        """
        return self._stage_class().checked(self)

    def _stage_class(self) -> Any:
        return find_class(self.stage, STAGES, f"key 'stage' of {self.source or 'the recipe'}")

    def trainer(self) -> "Blip3oTrainer":
        """The [`~training.trainer.Blip3oTrainer`] that this recipe describes; raises as `open_stage` does."""
        return self.open_stage().trainer()


def override(content: dict[str, Any], text: str) -> None:
    """
    Replace one value of a recipe's content.

    Args:
        text: `key=value` or `section.key=value`; a number as the place in a list, as in `data.sources.0.path`. The
            value is read by the type of the key: a text as it is, everything else as YAML.

    Raises:
        ValueError: when there is no `=`, the key leads nowhere, or the value does not have the type of its key.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"An override must be written key=value. Got {text!r}. Example: training.seed=1.")
    *sections, name = key.split(".")
    for index, section in enumerate(sections):
        content = _entry(content, section, ".".join(sections[:index]))
    value = read_value(value, key_type(key), key)
    if isinstance(content, list):
        _entry(content, name, ".".join(sections))
        content[int(name)] = value
    elif isinstance(content, dict):
        content[name] = value
    else:
        raise ValueError(_leads_nowhere(key, ".".join(sections), content))


def _entry(content: Any, name: str, before: str) -> Any:
    """What a part of a key stands for; a section that is missing is made."""
    if isinstance(content, dict):
        content[name] = {} if content.get(name) is None else content[name]
        return content[name]
    if isinstance(content, list) and name.isdigit() and int(name) < len(content):
        return content[int(name)]
    raise ValueError(_leads_nowhere(f"{before}.{name}", before, content))


def _leads_nowhere(key: str, before: str, content: Any) -> str:
    held = f"a list of {len(content)}, numbered from 0" if isinstance(content, list) else repr(content)
    return f"An override must name a value. `{before}` is {held}, and has no '{key.rpartition('.')[2]}'. Correct it."


def key_type(key: str) -> Any:
    """The type of the value under a key such as `training.seed`; `None` where it is not known here."""
    section, _, rest = key.partition(".")
    name = rest.rpartition(".")[2]
    if not rest:
        return str if section in ("stage", "output_dir") else None
    if section == "training" or (section == "model" and rest in ARGUMENT_KEYS):
        return _training_types().get(rest)
    if section == "inputs":
        return str
    if section != "data":
        return None
    in_mixture = rest.removeprefix("pictures.").removeprefix("conversations.")
    return DATA_TYPES.get(in_mixture) or _source_types().get(name)


@cache
def _training_types() -> dict[str, Any]:
    """Of the training arguments; those that are a text of few words there name the words."""
    return {**hints_of(Blip3oTrainingArguments), "optim": OptimizerNames | str}


@cache
def _source_types() -> dict[str, Any]:
    """Of the settings of a source in a mixture."""
    return {**hints_of(SourceSettings), "weight": float | None}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """
    Read a recipe.

    Args:
        path: a YAML file, or the name of a recipe of the repository, such as `tiny/understanding`.
        overrides: `key=value` or `section.key=value` strings that replace values of the file, as in [`override`].

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: on invalid YAML, an unknown key or a missing one, or a value that is not of its key's type.
    """
    path = find_recipe(path)
    try:
        content = read_yaml(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"A recipe must be valid YAML. {path} is not: {error}. Correct that line.") from error
    if not isinstance(content, dict):
        raise ValueError(f"A recipe must be a mapping of keys. {path} holds {type(content).__name__}. See recipes/.")
    for text in overrides or []:
        override(content, text)
    return recipe_of(content, str(path))


def recipe_of(content: Mapping[str, Any], source: str) -> Recipe:
    """
    A recipe of its content, checked.

    Args:
        content: as a file holds it.
        source: where it is from.

    Raises:
        ValueError: on an unknown key or a missing one, or a value that is not of its key's type.
    """
    check_sections(content, {f.name for f in fields(Recipe)} - {"source"}, source)
    for key in ("stage", "output_dir"):
        if key not in content:
            raise ValueError(f"A recipe must have the key '{key}'. {source} has not. Add it.")
    content = {**content, **{key: typed(content[key], str, key) for key in ("stage", "output_dir")}}
    content = {key: value for key, value in content.items() if value is not None}
    for name in ("inputs", "model", "data", "training", "evaluation", "preference"):
        if not isinstance(content.get(name, {}), Mapping):
            raise ValueError(
                f"Section '{name}' of a recipe must be a mapping of keys. {source} has {content[name]!r} there. Write "
                f"{name}: {{key: value}}."
            )
    check_keys(content.get("training", {}), training_keys(), f"section 'training' of {source}")
    types = _training_types()
    typed_sections: dict[str, dict[str, Any]] = {
        "inputs": dict.fromkeys(content.get("inputs", ()), str),
        "model": {name: types[name] for name in ARGUMENT_KEYS},
        "training": types,
    }
    for name, of_section in typed_sections.items():
        if name in content:
            content[name] = typed_values(content[name], of_section, name)
    for name in ("data", "evaluation"):
        if name in content:
            content[name] = _typed_sources(content[name], name)
    return Recipe(**content, source=source)


def _typed_sources(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A section with mixtures of sources, also nested ones, whose settings are of their types."""
    is_mixture = "sources" in section and not key.startswith("evaluation")
    typed_section = typed_values(section, DATA_TYPES if is_mixture else {}, key)
    for name, value in section.items():
        if name == "sources":
            sources = typed(value, list[dict[str, Any]], f"{key}.{name}")
            typed_section[name] = [
                typed_values(source, _source_types(), f"{key}.{name}.{index}") for index, source in enumerate(sources)
            ]
        elif name in ("pictures", "conversations") and isinstance(value, Mapping):
            typed_section[name] = _typed_sources(value, f"{key}.{name}")
    return typed_section


def training_keys() -> set[str]:
    """Keys of the section `training`: training arguments that have no other place in a recipe."""
    elsewhere = {"output_dir", "feature_cache", *ARGUMENT_KEYS}
    return {f.name for f in fields(Blip3oTrainingArguments)} - elsewhere


def check_sections(content: Iterable[str], known: Iterable[str], source: str) -> None:
    """
    Raises:
        ValueError: naming the first key that is no section, and the key that was meant.
    """
    known = sorted(known)
    for key in content:
        for section, keys in (("training", training_keys()), ("data", _source_types())):
            if key not in known and section in known and key in keys:
                raise ValueError(
                    f"Unknown key '{key}' in {source}. Did you mean '{section}.{key}'? Available: {', '.join(known)}."
                )
    check_keys(content, known, source)
