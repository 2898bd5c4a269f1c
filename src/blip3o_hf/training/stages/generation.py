"""The stage `generation`: queries and transformer learn to generate the target encoder's features."""

from functools import cached_property
from itertools import islice

import torch
from transformers import AutoConfig

from ...checks import check_keys
from ...models.adapters import lora_config
from ...models.configuration_blip3o import Blip3oConfig, backbone_config_of
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import TargetEncoder, feature_channels
from ...models.transformer_next_dit import Blip3oTransformer2DModel
from ..caching import CachedInputs
from ..inputs import load_encoder
from ..recipe_values import hints_of
from ..recipes import ARGUMENT_KEYS
from ..tasks.generation import GenerationTask, attention
from .base import Stage

STATISTICS_IMAGES = 2048


class GenerationStage(Stage):
    """
    Queries and transformer with flow matching, backbone frozen (paper sections 4 and 5.2). Leaves a BLIP3-o.

    It puts new ones on the backbone in `inputs`, or goes on from the whole BLIP3-o in `inputs.model`. What they learn
    is the task's ([`~training.tasks.GenerationTask`]): `model.objective` makes it the paper's other designs (section
    3.3), `model.train` chooses the parts that train, `model.caption_weight` lets a small backbone learn new words.

    With `model.lora` the whole BLIP3-o stays as it is, adapters train on it ([`~models.adapters.lora_config`]), and
    adapters are what is left: in PEFT's form, and as the one file that a pipeline's `load_lora_weights` reads.

    With `data.cache`, target features come from there, and conditions too where nothing of theirs trains.
    """

    name = "generation"
    optional_inputs = ("model", "backbone", "encoder", "decoder")
    size_keys = (
        "transformer",
        "num_queries",
        "objective",
        "feature_size",
        "standardize_features",
        "initializer_range",
    )
    setting_keys = ("condition_dropout", "noise_distribution", "noise_shift", "image_positions")
    model_keys = (*size_keys, *setting_keys, *ARGUMENT_KEYS, "lora")
    lora_keys = ("parts", "rank", "alpha", "dropout", "train_queries")
    data_keys = ("cache",)
    use = "pictures"
    scores = ("drawing",)
    sampling_keys = ("num_inference_steps", "guidance_scale", "plan", "num_attempts", "plan_top_p")
    """What is saved with the pipeline, as its defaults."""
    evaluation_keys = sampling_keys
    types = {
        "model": {
            **hints_of(Blip3oConfig, *size_keys, *setting_keys),
            "transformer": dict,
            "standardize_features": bool,
            "lora": dict | None,
        },
        "model.transformer": hints_of(Blip3oTransformer2DModel.__init__),
        "model.lora": hints_of(lora_config, *lora_keys),
        "data": {"cache": str | None},
        "evaluation": {
            "num_inference_steps": int,
            "guidance_scale": float,
            "plan": bool,
            "num_attempts": int,
            "plan_top_p": float | None,
        },
    }

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("model" in recipe.inputs) == ("backbone" in recipe.inputs):
            raise ValueError(
                f"Stage '{self.name}' starts from a whole model or from a backbone. {self.recipe_name} names "
                f"{'both' if 'model' in recipe.inputs else 'neither'}. Put a BLIP3-o under 'inputs.model' to train "
                f"it further, or a vision-language model under 'inputs.backbone' to build on it."
            )
        if "backbone" in recipe.inputs and "encoder" not in recipe.inputs:
            raise ValueError(
                f"Stage '{self.name}' on a new backbone needs a target encoder. {self.recipe_name} names none. Put "
                f"its folder under 'inputs.encoder'."
            )
        self._check_sizes_kept("model", "backbone")
        self.lora = recipe.model.get("lora")
        check_keys(self.lora or {}, self.lora_keys, f"section 'model.lora' of {self.recipe_name}")
        if self.lora is not None and ("backbone" in recipe.inputs or "train" in recipe.model):
            raise ValueError(
                f"LoRA adapts a whole trained model, and `model.lora` says what trains. {self.recipe_name} has "
                f"'model.lora' with {'inputs.backbone' if 'backbone' in recipe.inputs else 'model.train'}. Name a "
                f"BLIP3-o under 'inputs.model', and leave 'model.train' out."
            )

    # The parts

    @cached_property
    def encoder(self) -> TargetEncoder:
        """The frozen target encoder; training from a cache does without it."""
        return load_encoder(self.folders.get("encoder"), self.source, self.feature_size, self.arguments)

    @property
    def source(self) -> str:
        """Where the model, or its backbone, is read from."""
        return self.folders.get("model") or self.folders["backbone"]

    @cached_property
    def feature_size(self) -> int:
        """Height and width of the grid of target features."""
        if "model" in self.folders:
            return Blip3oConfig.from_pretrained(self.folders["model"]).feature_size
        return self.recipe.model.get("feature_size", 8)

    @cached_property
    def cached(self) -> CachedInputs:
        """What training takes from a cache."""
        return self.task().cached_inputs(self.arguments, has_adapters=self.lora is not None)

    def target_encoder(self):
        return self.folders.get("encoder") if "targets" in self.cached.kinds else self.encoder

    def task(self):
        return GenerationTask()

    def build(self):
        return self._load_model() if "model" in self.folders else self._new_model()

    def _load_model(self) -> tuple[Blip3oForConditionalGeneration, Blip3oProcessor]:
        model, processor = self.task().load(self.folders["model"], self.arguments)
        for key, value in self._given(self.setting_keys).items():
            setattr(model.config, key, value)
        model.config.check_settings()
        return model, processor

    def _new_model(self) -> tuple[Blip3oForConditionalGeneration, Blip3oProcessor]:
        folder = self.folders["backbone"]
        processor = Blip3oProcessor.from_backbone(folder)
        settings = self._given((*self.size_keys, *self.setting_keys))
        statistics = self.feature_statistics if settings.pop("standardize_features", False) else {}
        config = Blip3oConfig(
            backbone_config=backbone_config_of(AutoConfig.from_pretrained(folder)),
            transformer_config=settings.pop("transformer", None),
            feature_dim=self._feature_dim,
            **settings,
            **statistics,
        )
        model = Blip3oForConditionalGeneration.from_backbone(
            folder, config, processor, attn_implementation=attention(self.arguments)
        )
        return model, processor

    @property
    def _feature_dim(self) -> int:
        if "targets" in self.cached.kinds:
            assert self.cached.cache is not None  # `kinds` are those of a cache
            return self.cached.cache.shape("targets")[0]
        return feature_channels(self.encoder.model)

    @cached_property
    def feature_statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of the target features over training images."""
        if "targets" in self.cached.kinds:
            return self.cached.statistics
        features = []
        images = self.data.images(STATISTICS_IMAGES)
        while batch := list(islice(images, 64)):
            features.append(self.encoder.features(self.encoder.pixel_values(batch)))
        features = torch.cat(features)
        return {
            "feature_mean": features.mean(dim=(0, 2, 3)).tolist(),
            "feature_std": features.std(dim=(0, 2, 3)).tolist(),
        }

    def peft_config(self, model):
        return None if self.lora is None else lora_config(model, **self.lora)

    def pipeline_settings(self):
        settings = self.recipe.evaluation
        names = {name: name if name == "plan_top_p" else f"default_{name}" for name in self.sampling_keys}
        return {names[name]: settings[name] for name in names if name in settings}

    # Data and scores

    def datasets(self, task, processor):
        complete = self.cached.checked_complete(processor, self.arguments.max_length)
        return self.data.pictures(complete, processor), self.data.held_out_pictures(complete, processor)

    def score(self, trainer):
        assert self.benchmark is not None  # else the Trainer asks for no scores
        return self.benchmark.drawing(trainer.pipeline())
