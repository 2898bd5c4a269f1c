"""What every stage has in common."""

import os
from dataclasses import fields
from typing import Any, ClassVar

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedConfig, set_seed

from ...assets import resolve_model
from ...checks import check_keys, find_class
from ...evaluation.benchmark import Benchmark, Scores
from ...hub.reach import check_reachable
from ...models.processing_blip3o import Blip3oProcessor
from ..distributed import join_processes
from ..inputs import EncoderInput
from ..recipes import Recipe
from ..tasks import Task
from ..trainer import Blip3oTrainer
from ..training_data import open_training_data

EVALUATION_KEYS = ("prompts", "sources", "benchmark")


class Stage:
    """
    Base of all stages: a recipe, checked, and the [`~training.trainer.Blip3oTrainer`] that it describes.

    In a recipe, name your own stage as `stage: module:Class`. It has its keys, `build` and `task`, and more
    where it needs to.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    model_keys: ClassVar[tuple[str, ...]] = ()
    size_keys: ClassVar[tuple[str, ...]] = ()
    """Those of `model_keys` that a model has from its start."""
    data_keys: ClassVar[tuple[str, ...]] = ()
    """Of the section `data`, what the stage itself reads."""
    use: ClassVar[str] = "images"
    """What it learns from, as in [`~training.training_data.TrainingData.check`]."""
    scores: ClassVar[tuple[str, ...]] = ()
    """What it is scored by: names of methods of [`~evaluation.benchmark.Benchmark`]."""
    evaluation_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.recipe_name = recipe.source or "the recipe"
        check_keys(recipe.inputs, (*self.inputs, *self.optional_inputs), f"section 'inputs' of {self.recipe_name}")
        check_keys(recipe.model, self.model_keys, f"section 'model' of {self.recipe_name}")
        settings = {key: value for key, value in recipe.data.items() if key not in self.data_keys}
        held_out = recipe.evaluation.get("sources", ())
        self.data = open_training_data(settings, self.use, self.recipe_name, held_out)
        self.benchmark = self._benchmark()
        for name in self.inputs:
            if name not in recipe.inputs:
                raise ValueError(
                    f"Stage '{self.name}' starts from the folder '{name}'. {self.recipe_name} names none. Add it to "
                    f"'inputs'."
                )
        self.folders = {name: self._find(name, given) for name, given in recipe.inputs.items()}
        self.arguments = recipe.training_arguments()
        self.data.max_length = self.arguments.max_length

    def _find(self, name: str, given: str) -> str:
        try:
            folder = resolve_model(given)
            if not os.path.isdir(folder):
                check_reachable(folder)
            return folder
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Stage '{self.name}' starts from '{name}' in {given}. There is no such folder. Run the stage that "
                f"writes it first, or name a Hub repository."
            ) from error

    def _benchmark(self) -> Benchmark | None:
        """That of the recipe, or else of its data."""
        given = self.recipe.evaluation.get("benchmark", self.data.benchmark if self.scores else None)
        # What a user names need not be a subclass; it has `keys` and the methods of one.
        kind: type[Any] | None = (
            find_class(given, {}, f"key 'evaluation.benchmark' of {self.recipe_name}") if given else None
        )
        keys = tuple(dict.fromkeys(key for score in self.scores for key in kind.keys.get(score, ()))) if kind else ()
        known = (*EVALUATION_KEYS, *self.evaluation_keys, *keys)
        check_keys(self.recipe.evaluation, known, f"section 'evaluation' of {self.recipe_name}")
        return (
            kind({key: self.recipe.evaluation[key] for key in keys if key in self.recipe.evaluation}) if kind else None
        )

    def _check_sizes_kept(self, part: str, start: str) -> None:
        """What goes on from `inputs.model` has its sizes; only one that begins on `inputs.<start>` chooses them."""
        for key in self.recipe.model:
            if "model" in self.recipe.inputs and key in self.size_keys:
                raise ValueError(
                    f"A {part} that is trained further keeps its sizes. {self.recipe_name} sets 'model.{key}' and "
                    f"'inputs.model'. Leave it out, or start from 'inputs.{start}'."
                )

    def _check_config(self, given: dict[str, Any], config_class: type[PreTrainedConfig], section: str) -> None:
        """Settings of a library's config class are checked here: the class itself would take any key."""
        known = {field.name for field in fields(config_class)}
        check_keys(given, known, f"section '{section}' of {self.recipe_name}")

    def _given(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Of the section `model`, what it has of these keys."""
        return {key: self.recipe.model[key] for key in keys if key in self.recipe.model}

    # What the Trainer is made of

    def build(self) -> tuple[nn.Module, Blip3oProcessor | None]:
        """The model to train, and its processor where it reads prompts."""
        raise NotImplementedError

    def task(self) -> Task:
        """What is learned."""
        raise NotImplementedError

    def target_encoder(self) -> EncoderInput:
        """As the Trainer takes it; `None` for that of the model's repository."""
        return self.folders.get("encoder")

    def datasets(self, task: Task, processor: Blip3oProcessor | None) -> tuple[Any, Any]:
        """To train on, and to evaluate with or `None`."""
        return self.data.pictures(), self.data.held_out_pictures() if self.data.held_out else None

    def peft_config(self, model: nn.Module) -> PeftConfig | None:
        """Of adapters, where these train in the model's place."""
        return None

    def pipeline_settings(self) -> dict[str, Any]:
        """Defaults that are saved with the pipeline."""
        return {}

    def score(self, trainer: Blip3oTrainer) -> Scores:
        """What the benchmark says of the model as it is."""
        return {}

    def trainer(self) -> Blip3oTrainer:
        """
        The Trainer that the recipe describes.

        Raises:
            ValueError, FileNotFoundError: when parts do not belong together or are missing.
        """
        join_processes(self.arguments)
        set_seed(self.arguments.seed)
        model, processor = self.build()
        task = self.task()
        train_dataset, eval_dataset = self.datasets(task, processor)
        trainer = Blip3oTrainer(
            model,
            self.arguments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            target_encoder=self.target_encoder(),
            decoder=self.folders.get("decoder"),
            peft_config=self.peft_config(model),
            task=task,
            pipeline_settings=self.pipeline_settings(),
        )
        trainer.recipe, trainer.data = self.recipe, self.data
        if "prompts" in self.recipe.evaluation:
            trainer.evaluate_with(lambda trainer: {"samples": trainer.sheet(self.recipe.evaluation["prompts"])})
        elif self.benchmark is not None:
            trainer.evaluate_with(self.score)
        return trainer
