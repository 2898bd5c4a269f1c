"""Recipes: one YAML per stage of one model, strict, so that a typo is an error and never a silent default."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..names import check_keys, find_class
from .arguments import Blip3oTrainingArguments

if TYPE_CHECKING:
    from .stages.base import Stage
    from .trainer import Blip3oTrainer

STAGES = {
    "encoder": "blip3o_hf.shapes.stages.encoder:EncoderStage",
    "vae": "blip3o_hf.shapes.stages.vae:VaeStage",
    "decoder": "blip3o_hf.training.stages.decoder:DecoderStage",
    "diffusion_decoder": "blip3o_hf.training.stages.diffusion_decoder:DiffusionDecoderStage",
    "understanding": "blip3o_hf.training.stages.understanding:UnderstandingStage",
    "alignment": "blip3o_hf.shapes.stages.alignment:AlignmentStage",
    "generation": "blip3o_hf.training.stages.generation:GenerationStage",
    "joint": "blip3o_hf.training.stages.joint:JointStage",
}
"""Stages by the names that recipes give them."""
ARGUMENT_KEYS = ("train", "frozen_dtype", "caption_weight", "max_length", "max_input_pixels")
"""Training arguments that a recipe has in its section `model`."""


@dataclass
class Recipe:
    """
    One training stage.

    Args:
        stage: a key of [`STAGES`], or `module:Class` of one's own.
        output_dir: folder for the trained part, its checkpoints under `checkpoints/` and its curves.
        inputs: folders written by earlier stages, by the name the stage gives them.
        model: settings of the part that this stage builds.
        data: settings of the data.
        training: fields of [`Blip3oTrainingArguments`].
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
    source: str = ""

    def training_arguments(self) -> Blip3oTrainingArguments:
        """The resolved training arguments; checkpoints go under `output_dir`/checkpoints."""
        moved = {key: self.model[key] for key in ARGUMENT_KEYS if key in self.model}
        return Blip3oTrainingArguments(
            output_dir=str(Path(self.output_dir) / "checkpoints"),
            **{"feature_cache": self.data.get("cache"), **moved, **self.training},
        )

    def open_stage(self) -> "Stage":
        """
        The stage, with all that the recipe says of it checked.

        Raises:
            ValueError: on an unknown stage or key, and when parts do not belong together.
            FileNotFoundError: when the folder of an input is missing.
        """
        return find_class(self.stage, STAGES, f"key 'stage' of {self.source or 'the recipe'}")(self)

    def trainer(self) -> "Blip3oTrainer":
        """The [`~training.trainer.Blip3oTrainer`] that this recipe describes; raises as `open_stage` does."""
        return self.open_stage().trainer()


def override(content: dict[str, Any], text: str) -> None:
    """
    Replace one value of a recipe's content.

    Args:
        text: `key=value` or `section.key=value`; the value is YAML.

    Raises:
        ValueError: when there is no `=`.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"An override must be written key=value. Got {text!r}. Example: training.seed=1.")
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = yaml.safe_load(value)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """
    Read a recipe.

    Args:
        path: a YAML file.
        overrides: `key=value` or `section.key=value` strings that replace values of the file; values are YAML.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: on invalid YAML, an unknown key or a missing one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"A recipe is a YAML file. There is none at {path}. See the folder recipes/.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"A recipe must be valid YAML. {path} is not: {error}. Correct that line.") from error
    if not isinstance(content, dict):
        raise ValueError(f"A recipe must be a mapping of keys. {path} holds {type(content).__name__}. See recipes/.")
    for text in overrides or []:
        override(content, text)
    known = {f.name for f in fields(Recipe)} - {"source"}
    check_keys(content, known, str(path))
    for key in ("stage", "output_dir"):
        if key not in content:
            raise ValueError(f"A recipe must have the key '{key}'. {path} has not. Add it.")
    elsewhere = {"output_dir", "feature_cache", *ARGUMENT_KEYS}  # have a place of their own in a recipe
    training_keys = {f.name for f in fields(Blip3oTrainingArguments)} - elsewhere
    check_keys(content.get("training", {}), training_keys, f"section 'training' of {path}")
    return Recipe(**content, source=str(path))
