"""What every stage has in common."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedConfig, set_seed

from ...assets import resolve_model
from ...checks import check_keys, find_class
from ...evaluation.benchmark import Benchmark, Scores
from ...hub.reach import check_reachable
from ...models.processing_blip3o import Blip3oProcessor
from ..arguments import Blip3oTrainingArguments
from ..distributed import join_processes
from ..inputs import EncoderInput
from ..recipe_values import typed, typed_values
from ..recipes import Recipe
from ..tasks import Task
from ..trainer import Blip3oTrainer
from ..training_data import data_class, open_training_data

EVALUATION_TYPES = {"prompts": list[str], "sources": list, "benchmark": str | None}


def _check_prompts(prompts: Sequence[str] | None) -> None:
    """Raise a `ValueError` for prompts that a run could not draw, which it would find out in the middle."""
    if prompts is not None and not (prompts and all(prompt.strip() for prompt in prompts)):
        raise ValueError(
            f"`evaluation.prompts` must be at least one text, and each must say something. Got {prompts!r}. Describe "
            f"images to draw, or leave it out."
        )


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
    preference_keys: ClassVar[tuple[str, ...]] = ()
    arguments_class: ClassVar[type[Blip3oTrainingArguments]] = Blip3oTrainingArguments
    """What its Trainer takes."""

    types: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """
    Types of settings, by `model`, `data`, `evaluation`, `preference` and what is nested in them (`model.lora`), and
    then by their keys. A value of a key without one is taken as it is.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe = self.checked(recipe)
        self.recipe_name = recipe.source or "the recipe"
        held_out = recipe.evaluation.get("sources", ())
        self.data = open_training_data(self._data_settings(recipe), self.use, self.recipe_name, held_out)
        self.benchmark = self._benchmark()
        for name in self.inputs:
            if name not in recipe.inputs:
                raise ValueError(
                    f"Stage '{self.name}' starts from the folder '{name}'. {self.recipe_name} names none. Add it to "
                    f"'inputs'."
                )
        self.folders = {name: self._find(name, given) for name, given in recipe.inputs.items()}
        self.arguments = recipe.training_arguments(self.arguments_class)
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

    @classmethod
    def checked(cls, recipe: Recipe) -> Recipe:
        """
        A recipe with its values as this stage takes them; no folder is looked at.

        Raises:
            ValueError: on an unknown key or class, and a value that is not of its key's type.
        """
        name = recipe.source or "the recipe"
        check_keys(recipe.inputs, (*cls.inputs, *cls.optional_inputs), f"section 'inputs' of {name}")
        check_keys(recipe.model, cls.model_keys, f"section 'model' of {name}")
        data, settings = data_class(cls._data_settings(recipe), name)
        data.check(settings, cls.use, name)
        benchmark, keys = cls._benchmark_class(recipe, data)
        check_keys(
            recipe.evaluation, (*EVALUATION_TYPES, *cls.evaluation_keys, *keys), f"section 'evaluation' of {name}"
        )
        if recipe.preference and not cls.preference_keys:
            raise ValueError(
                f"Only stages that learn from rewards or preferences have a section 'preference': nft, grpo, dpo. "
                f"{name} is of the stage '{cls.name}'. Leave the section out, or change the stage."
            )
        check_keys(recipe.preference, cls.preference_keys, f"section 'preference' of {name}")
        types = {
            "model": cls.types.get("model", {}),
            "preference": cls.types.get("preference", {}),
            "data": {**cls.types.get("data", {}), **getattr(data, "types", {})},
            "evaluation": {
                **EVALUATION_TYPES,
                **cls.types.get("evaluation", {}),
                **getattr(benchmark, "types", {}),
            },
        }
        sections = {section: cls._typed(getattr(recipe, section), types[section], section) for section in types}
        _check_prompts(sections["evaluation"].get("prompts"))
        return replace(recipe, **sections)

    @classmethod
    def _typed(cls, section: Mapping[str, Any], types: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A section with what is nested in it."""
        values = typed_values(section, types, name)
        for key, value in values.items():
            nested = cls.types.get(f"{name}.{key}")
            if nested is not None and isinstance(value, Mapping):
                values[key] = cls._typed(value, nested, f"{name}.{key}")
        return values

    @classmethod
    def _data_settings(cls, recipe: Recipe) -> dict[str, Any]:
        """The section `data`, without what the stage itself reads of it."""
        return {key: value for key, value in recipe.data.items() if key not in cls.data_keys}

    @classmethod
    def _benchmark_class(cls, recipe: Recipe, data: type[Any]) -> tuple[type[Any] | None, tuple[str, ...]]:
        """
        That of the recipe, or else of its data, and those of its settings that this stage asks for. What a user names
        need not be a subclass of [`~evaluation.benchmark.Benchmark`]; it has `keys` and the methods of one.
        """
        given = recipe.evaluation.get("benchmark", data.benchmark if cls.scores else None)
        given = typed(given, EVALUATION_TYPES["benchmark"], "evaluation.benchmark")
        if not given:
            return None, ()
        kind: Any = find_class(given, {}, f"key 'evaluation.benchmark' of {recipe.source or 'the recipe'}")
        return kind, tuple(dict.fromkeys(key for score in cls.scores for key in kind.keys.get(score, ())))

    def _benchmark(self) -> Benchmark | None:
        kind, keys = self._benchmark_class(self.recipe, type(self.data))
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

    def make_trainer(self, model: nn.Module, task: Task, **parts: Any) -> Blip3oTrainer:
        """
        Args:
            model: what trains.
            task: what it learns.
            parts: further arguments of [`~training.trainer.Blip3oTrainer`].
        """
        return Blip3oTrainer(model, self.arguments, task=task, **parts)

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
        trainer = self.make_trainer(
            model,
            task,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            target_encoder=self.target_encoder(),
            decoder=self.folders.get("decoder"),
            peft_config=self.peft_config(model),
            pipeline_settings=self.pipeline_settings(),
        )
        trainer.recipe, trainer.data = self.recipe, self.data
        if "prompts" in self.recipe.evaluation:
            trainer.evaluate_with(lambda trainer: {"samples": trainer.sheet(self.recipe.evaluation["prompts"])})
        elif self.benchmark is not None:
            trainer.evaluate_with(self.score)
        return trainer
