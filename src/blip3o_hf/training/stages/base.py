"""What every stage has in common."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedModel

from ...assets import resolve_model
from ...data.mixture import MIXTURE_KEYS, open_mixture
from ...data.records import Record
from ...models.processing_blip3o import Blip3oProcessor
from ...names import check_keys
from ...shapes.dataset import ShapesDataset
from ...shapes.tasks import ShapesPictures
from ..recipes import Recipe


class Stage:
    """
    Base of all stages.

    A stage reads a recipe, builds the module to train (`build`), turns records into batches (`collate`), computes
    the loss (`loss`), and writes the trained part (`save`). Parameters with `requires_grad` train; nothing else does.

    Its records are those of `data.sources`, as `data.mixture.open_mixture` reads them, or else of the tiny world.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    model_keys: ClassVar[tuple[str, ...]] = ()
    size_keys: ClassVar[tuple[str, ...]] = ()
    """Those of `model_keys` that a model has from its start."""
    world_keys: ClassVar[tuple[str, ...]] = ("length", "seed", "long_caption_rate", "natural_rate", "family_weights")
    source_keys: ClassVar[tuple[str, ...]] = MIXTURE_KEYS
    evaluation_keys: ClassVar[tuple[str, ...]] = ()
    num_questions: ClassVar[int] = 0
    encoder: PreTrainedModel | AutoencoderKL | None = None
    """The frozen target encoder, where a stage has one."""
    processor: Blip3oProcessor | None = None
    """What prepares prompts for the model, where it reads any; every checkpoint holds it."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.where = recipe.source or "the recipe"
        check_keys(recipe.inputs, (*self.inputs, *self.optional_inputs), f"section 'inputs' of {self.where}")
        check_keys(recipe.model, self.model_keys, f"section 'model' of {self.where}")
        data_keys = self.world_keys if self.is_world else self.source_keys
        check_keys(recipe.data, data_keys, f"section 'data' of {self.where}")
        check_keys(recipe.evaluation, self.evaluation_keys, f"section 'evaluation' of {self.where}")
        for name in self.inputs:
            if name not in recipe.inputs:
                raise ValueError(
                    f"Stage '{self.name}' starts from the folder '{name}'. {self.where} names none. Add it to "
                    f"'inputs'."
                )
        self.folders = {name: self._find(name, given) for name, given in recipe.inputs.items()}
        self.arguments = recipe.training_arguments()

    def _find(self, name: str, given: str) -> str:
        try:
            return resolve_model(given)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Stage '{self.name}' starts from '{name}' in {given}. There is no such folder. Run the stage that "
                f"writes it first, or name a Hub repository."
            ) from error

    def _dtype(self, name: str) -> torch.dtype:
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        check_keys([name], dtypes, f"key 'model.frozen_dtype' of {self.where}")
        return dtypes[name]

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """Models outside the one that trains; the Trainer puts them on the training device."""
        return [] if self.encoder is None else [self.encoder]

    @property
    def is_world(self) -> bool:
        """Whether the records are the tiny world's."""
        return "sources" not in self.recipe.data

    def _check_sizes_kept(self, part: str, start: str) -> None:
        """What goes on from `inputs.model` has its sizes; only one that begins on `inputs.<start>` chooses them."""
        for key in self.recipe.model:
            if "model" in self.recipe.inputs and key in self.size_keys:
                raise ValueError(
                    f"A {part} that is trained further keeps its sizes. {self.where} sets 'model.{key}' and "
                    f"'inputs.model'. Leave it out, or start from 'inputs.{start}'."
                )

    def _check_config(self, given: dict[str, Any], config_class: type, section: str) -> None:
        """Settings of a library's config class are checked here: the class itself would take any key."""
        known = {field.name for field in fields(config_class)}
        check_keys(given, known, f"section '{section}' of {self.where}")

    def build(self) -> nn.Module:
        raise NotImplementedError

    def scenes(self) -> ShapesDataset:
        """The tiny world that the recipe describes."""
        known = (*Stage.world_keys, "question_weights", "num_questions")
        settings = {key: value for key, value in self.recipe.data.items() if key in known}
        return ShapesDataset(**{"num_questions": self.num_questions, **settings})

    def dataset(self) -> Dataset | IterableDataset:
        """The records to learn from: captions and images, unless a stage says otherwise."""
        return ShapesPictures(self.scenes()) if self.is_world else open_mixture(self.recipe.data)

    def collate(self, records: Sequence[Record]) -> dict[str, Any]:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: dict[str, Any], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """
        The loss of a batch.

        Args:
            model: what `build` returned, wrapped for several processes where there are.
            batch: what `collate` returned.
            generators: at least one for each record, to draw what is random about it.
        """
        raise NotImplementedError

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Losses on held-out records, the same ones and without chance at every call; none by default."""
        return {}

    def save(self, model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """
        Write the trained part.

        Args:
            model: what `build` returned.
            folder: where to.
            weights: the model's state dict; its own by default, which may hold partitions of them only.
        """
        raise NotImplementedError
