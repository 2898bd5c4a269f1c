"""The stage `generation`: queries and transformer learn to generate the target encoder's features."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, ClassVar

import torch
from peft import get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME as PEFT_WEIGHT_NAME
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoConfig

from ...data.images import decoded
from ...data.mixture import StreamingMixture, open_mixture
from ...data.records import RECONSTRUCT, Record, targets
from ...models.adapters import lora_config, read_lora, write_lora
from ...models.configuration_blip3o import Blip3oConfig
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import crop, extract_features, feature_channels, load_target_encoder, normalize
from ...names import check_keys
from ...objectives.phrases import phrase_loss
from ...shapes.dataset import ShapesDataset
from ...shapes.tasks import ShapesPictures
from ..conversations import IGNORED
from ..distributed import whole_weights
from ..feature_cache import CachedRecord, FeatureCache, differences
from ..fingerprints import condition_fingerprint, encoder_fingerprint
from .base import Stage

VALIDATION_RECORDS = 64
VALIDATION_NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
STATISTICS_IMAGES = 2048
PARTS = ("queries", "transformer", "backbone")
# So many tokens of a phrase, or of a caption, the queries learn to say.
PHRASE_TOKENS = 64


def _decode(identity: str, record: Record) -> Record:
    return decoded(record)


class GenerationStage(Stage):
    """
    Queries and transformer with flow matching, backbone frozen (paper sections 4 and 5.2). Leaves a BLIP3-o.

    It puts new ones on the backbone in `inputs`, or goes on from the whole BLIP3-o in `inputs.model`. Its
    `model.objective` makes it the paper's other designs (section 3.3): `feature_regression` trains a linear head in
    the transformer's place, `latent_flow` has a VAE as target encoder. What trains is `model.train`: `transformer` (or
    that head), `queries`, and `backbone`, which is its text stack without the output layer.

    A backbone that trains too can learn from the captions themselves: with `model.caption_weight` every query also
    learns to say all words of its caption through the backbone's output layer. A small one needs it for words that it
    never read: their conditions are all alike at first, and the flow alone takes long to tell them apart.

    With `model.lora` the whole BLIP3-o stays as it is, adapters train on it ([`~models.adapters.lora_config`]), and
    adapters are what is left: in PEFT's form, and as the one file that a pipeline's `load_lora_weights` reads.

    With `data.cache`, target features come from there, and conditions too where nothing of theirs trains.
    """

    name = "generation"
    draws: ClassVar[bool] = True
    """Whether what the stage leaves can draw."""
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
    length_keys = ("max_length", "max_input_pixels")
    model_keys = (*size_keys, *setting_keys, *length_keys, "train", "frozen_dtype", "lora", "caption_weight")
    lora_keys = ("parts", "rank", "alpha", "dropout", "train_queries")
    task_keys = ("edit_rate", "reconstruction_rate", "history_rate", "plan_rate")
    world_keys = (*Stage.world_keys, *task_keys, "cache")
    source_keys = (*Stage.source_keys, "cache")
    sampling_keys = ("num_inference_steps", "guidance_scale", "plan", "num_attempts", "plan_top_p")
    """What is saved with the pipeline, as its defaults."""
    evaluation_keys = ("per_family", "prompts", "sources", *sampling_keys)

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("model" in recipe.inputs) == ("backbone" in recipe.inputs):
            raise ValueError(
                f"Stage '{self.name}' starts from a whole model or from a backbone. {self.where} names "
                f"{'both' if 'model' in recipe.inputs else 'neither'}. Put a BLIP3-o under 'inputs.model' to train "
                f"it further, or a vision-language model under 'inputs.backbone' to build on it."
            )
        if "backbone" in recipe.inputs and "encoder" not in recipe.inputs:
            raise ValueError(
                f"Stage '{self.name}' on a new backbone needs a target encoder. {self.where} names none. Put its "
                f"folder under 'inputs.encoder'."
            )
        self._check_sizes_kept("model", "backbone")
        self.lora = recipe.model.get("lora")
        check_keys(self.lora or {}, self.lora_keys, f"section 'model.lora' of {self.where}")
        if self.lora is not None and ("backbone" in recipe.inputs or "train" in recipe.model):
            raise ValueError(
                f"LoRA adapts a whole trained model, and `model.lora` says what trains. {self.where} has 'model.lora' "
                f"with {'inputs.backbone' if 'backbone' in recipe.inputs else 'model.train'}. Name a BLIP3-o under "
                f"'inputs.model', and leave 'model.train' out."
            )
        self.trained_parts = tuple(recipe.model.get("train", ("queries", "transformer")))
        check_keys(self.trained_parts, PARTS, f"key 'model.train' of {self.where}")
        self.caption_weight = recipe.model.get("caption_weight", 0.0)
        if self.caption_weight and "backbone" not in self.trained_parts:
            raise ValueError(
                f"Only a backbone that trains learns to say captions. {self.where} sets 'model.caption_weight' "
                f"{self.caption_weight} and trains {', '.join(self.trained_parts)}. Add 'backbone' to 'model.train', "
                f"or leave the weight out."
            )
        self.frozen_dtype = self._dtype(recipe.model.get("frozen_dtype", "float32"))

    # The model

    def build(self):
        if "targets" in self.cached_kinds:
            self._check_cache("targets", self.target_fingerprint())
        else:
            self.load_encoder()
        model = self._load_model() if "model" in self.folders else self._new_model()
        max_length = self.recipe.model.get("max_length", self.processor.tokenizer.model_max_length)
        self.processor.max_prompt_length = max_length - model.config.num_queries
        if "max_input_pixels" in self.recipe.model:
            self._limit_input_images(self.recipe.model["max_input_pixels"])
        model.requires_grad_(False)
        if self.lora is not None:
            model = get_peft_model(model, lora_config(model, **self.lora))
        else:
            self._unfreeze(model)
        if self.arguments.deepspeed_plugin is None:  # DeepSpeed keeps fp32 copies of its own
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else self.frozen_dtype)
        if "conditions" in self.cached_kinds:
            self._check_cache("conditions", self.condition_fingerprint(model))
        return model

    def _limit_input_images(self, num_pixels: int) -> None:
        """Let the processor scale images in prompts down to so many pixels."""
        plain = self.processor.image_processor
        smallest = min(plain.size["shortest_edge"], num_pixels)
        size = {"shortest_edge": smallest, "longest_edge": num_pixels}
        self.processor.image_processor = type(plain).from_dict({**plain.to_dict(), "size": size})

    def _unfreeze(self, model: Blip3oForConditionalGeneration) -> None:
        for part in self.trained_parts:
            if part == "transformer" and not model.config.uses_transformer:
                part = "feature_head"
            module = model.get_decoder() if part == "backbone" else getattr(model, part)
            module.requires_grad_(True)

    @cached_property
    def _feature_size(self) -> int:
        if "model" in self.folders:
            return Blip3oConfig.from_pretrained(self.folders["model"]).feature_size
        return self.recipe.model.get("feature_size", 8)

    @property
    def _encoder_place(self) -> tuple[str, str]:
        """Folder and subfolder of the target encoder."""
        if "encoder" in self.folders:
            return self.folders["encoder"], ""
        return self.folders["model"], "target_encoder"

    def load_encoder(self) -> None:
        """Load the frozen target encoder and its image processor, which training from a cache does without."""
        with whole_weights(self.arguments):
            loaded = load_target_encoder(*self._encoder_place, self.frozen_dtype, self._feature_size)
        self.encoder, self.image_processor = loaded

    @property
    def _attention(self) -> str:
        """On a CPU plain matrix products train several times faster than the fused kernel."""
        return "eager" if self.arguments.use_cpu else "sdpa"

    def _load_model(self) -> Blip3oForConditionalGeneration:
        folder = self.folders["model"]
        self.processor = Blip3oProcessor.from_pretrained(folder)
        with torch.random.fork_rng(devices=()):  # adapters are drawn the same, however the model is loaded
            model = Blip3oForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, attn_implementation=self._attention
            )
        for key in self.setting_keys:
            if key in self.recipe.model:
                setattr(model.config, key, self.recipe.model[key])
        model.config.check_settings()
        return model

    def _new_model(self) -> Blip3oForConditionalGeneration:
        folder = self.folders["backbone"]
        self.processor = Blip3oProcessor.from_backbone(folder)
        known = (*self.size_keys, *self.setting_keys)
        settings = {key: value for key, value in self.recipe.model.items() if key in known}
        statistics = self.feature_statistics if settings.pop("standardize_features", False) else {}
        config = Blip3oConfig(
            backbone_config=AutoConfig.from_pretrained(folder),
            transformer_config=settings.pop("transformer", None),
            feature_dim=self._feature_dim,
            **settings,
            **statistics,
        )
        return Blip3oForConditionalGeneration.from_backbone(
            folder, config, self.processor, attn_implementation=self._attention
        )

    @property
    def _feature_dim(self) -> int:
        if "targets" in self.cached_kinds:
            return self.cache.shape("targets")[0]
        return feature_channels(self.encoder)

    @cached_property
    def feature_statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of the target features over training images."""
        if "targets" in self.cached_kinds:
            return self._cached_statistics()
        world = ShapesPictures(ShapesDataset(length=STATISTICS_IMAGES, seed=2))
        records = world if self.is_world else self.records()
        if isinstance(records, StreamingMixture):
            records.rank, records.world_size = 0, 1  # the same images in every process
        features = []
        images = (targets([record])[0] for record in islice(iter(records), STATISTICS_IMAGES))
        while batch := list(islice(images, 64)):
            features.append(self.features(self.pixel_values(batch)))
        features = torch.cat(features)
        return {
            "feature_mean": features.mean(dim=(0, 2, 3)).tolist(),
            "feature_std": features.std(dim=(0, 2, 3)).tolist(),
        }

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of any size as the target encoder takes them, `[B, 3, H, W]`."""
        return normalize(self.image_processor, crop(self.image_processor, images))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Target features `[B, C, H, W]`."""
        return extract_features(self.encoder, pixel_values.to(self.encoder.device), self._feature_size)

    # The cache

    @property
    def has_frozen_conditions(self) -> bool:
        """Whether nothing trains between a prompt and its condition."""
        return self.lora is None and not {"queries", "backbone"} & set(self.trained_parts)

    @cached_property
    def cache(self) -> FeatureCache | None:
        return FeatureCache(self.recipe.data["cache"]) if "cache" in self.recipe.data else None

    @cached_property
    def cached_kinds(self) -> tuple[str, ...]:
        """What is taken from the cache. Conditions change while the queries train, and are then computed."""
        if self.cache is None:
            return ()
        kinds = tuple(kind for kind in self.cache.manifest if kind != "conditions" or self.has_frozen_conditions)
        if not kinds:
            raise ValueError(
                f"A cache of conditions alone is for frozen queries. {self.where} trains them, and "
                f"{self.cache.folder} holds nothing else. Set `model.train: [transformer]`, or run `blip3o-hf "
                f"precompute` on this recipe."
            )
        return kinds

    def target_fingerprint(self) -> dict[str, Any]:
        """All that target features depend on, beside the images."""
        own = {"feature_size": self._feature_size, "frozen_dtype": str(self.frozen_dtype)}
        return {**encoder_fingerprint(*self._encoder_place), **own}

    def condition_fingerprint(self, model: Blip3oForConditionalGeneration) -> dict[str, Any]:
        """All that conditions depend on, beside prompts and input images."""
        own = {"frozen_dtype": str(self.frozen_dtype), "mixed precision": self.arguments.mixed_precision}
        return {**condition_fingerprint(model, self.processor), **own}

    def _check_cache(self, kind: str, fingerprint: dict[str, Any]) -> None:
        if found := differences(self.cache.manifest[kind]["fingerprint"], fingerprint):
            raise ValueError(
                f"Cached {kind} must be those of the recipe. {self.cache.folder} does not fit {self.where}: {found}. "
                f"Set that back, or run `blip3o-hf precompute` on this recipe with another folder."
            )

    def _cached_statistics(self) -> dict[str, list[float]]:
        if "statistics" not in self.cache.manifest["targets"]:
            raise ValueError(
                f"With `model.standardize_features`, the cache must hold the statistics of the features. "
                f"{self.cache.folder} does not. Run `blip3o-hf precompute` on this recipe again."
            )
        return self.cache.manifest["targets"]["statistics"]

    # Batches

    def dataset(self):
        return self.records(self._complete)

    @property
    def _complete(self) -> Callable[[str, Record], Any]:
        return partial(self.cache.complete, self.cached_kinds) if self.cached_kinds else _decode

    def records(self, complete: Callable[[str, Record], Any] = _decode) -> Dataset | IterableDataset:
        """The records to learn from; `complete` is that of [`~data.mixture.open_mixture`]."""
        if self.is_world:
            return self.pictures(self.scenes(), complete)
        settings = self.recipe.data.get("pictures", self.recipe.data)
        return open_mixture({key: value for key, value in settings.items() if key != "cache"}, complete)

    def pictures(self, scenes: ShapesDataset, complete: Callable[[str, Record], Any] | None = None) -> ShapesPictures:
        """Scenes of the tiny world as the pictures to draw that the recipe describes."""
        settings = {key: self.recipe.data[key] for key in self.task_keys if key in self.recipe.data}
        if self.processor is not None:  # targets are precomputed without one, and need no words
            settings["instruction"] = self.processor.instruction
        return ShapesPictures(scenes, complete, **settings)

    def held_out_records(self, complete: Callable[[str, Record], Any]) -> list:
        """For validation: the tiny world's held-out scenes, or what `evaluation.sources` holds."""
        if self.is_world:
            data = self.pictures(ShapesDataset(length=VALIDATION_RECORDS, seed=3, split="test"), complete)
        elif "sources" in self.recipe.evaluation:
            data = open_mixture({"sources": self.recipe.evaluation["sources"]}, complete)
        else:
            return []
        return [data[index] for index in range(min(len(data), VALIDATION_RECORDS))]

    def collate(self, records: Sequence[Record | CachedRecord]) -> dict[str, Any]:
        batch = {}
        if "conditions" in self.cached_kinds:
            batch["condition"] = torch.stack([record.condition for record in records]).float()
        else:
            batch.update(self.encode_prompts(*zip(*((r.prompt, r.images, r.history) for r in records), strict=True)))
        if self.caption_weight:
            batch["phrase_ids"] = self._phrase_ids([[f" {record.prompt or RECONSTRUCT}"] for record in records])
        if "targets" in self.cached_kinds:
            batch["target_features"] = torch.stack([record.target_features for record in records]).float()
        else:
            batch["target_pixel_values"] = self.pixel_values(targets(records))
        return batch

    def encode_prompts(
        self,
        prompts: Sequence[str | None],
        images: Sequence[Sequence[Image.Image]],
        histories: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> dict[str, Any]:
        """Prompts with their input images for `encode_condition`; `None` asks for the image itself."""
        return self.processor.encode_prompts(
            [prompt or RECONSTRUCT for prompt in prompts],
            images=[list(own) for own in images] if any(images) else None,
            training=True,
            truncation=True,
            histories=histories,
        )

    def _phrase_ids(self, phrases: Sequence[list[str]]) -> torch.Tensor:
        """The same number of phrases for each record as tokens `[B, P, W]`, of each phrase the first ones."""
        encoded = [self.processor.tokenizer(own, add_special_tokens=False)["input_ids"] for own in phrases]
        kept = [[ids[:PHRASE_TOKENS] for ids in own] for own in encoded]
        longest = max(len(ids) for own in kept for ids in own)
        return torch.tensor([[ids + [IGNORED] * (longest - len(ids)) for ids in own] for own in kept])

    def _with_features(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with target features in the place of pixels."""
        if "target_pixel_values" in batch:
            batch["target_features"] = self.features(batch.pop("target_pixel_values"))
        return batch

    def loss(self, model, batch, generators):
        batch = self._with_features(batch)
        phrase_ids = batch.pop("phrase_ids", None)
        generator = generators[: len(batch["target_features"])]
        output = model(
            **batch,
            num_noise_draws=self.arguments.noise_draws,
            generator=generator,
            output_query_logits=phrase_ids is not None,
        )
        if phrase_ids is None:
            return output.loss
        return output.loss + self.caption_weight * phrase_loss(output.query_logits, phrase_ids)

    def validate(self, model):
        """The loss on held-out records; of the flow objectives by noise level, on fixed noise."""
        records = self.held_out_records(self._complete)
        if not records:
            return {}
        batch = GenerationStage.collate(self, records)
        batch = self._with_features({name: tensor.to(model.device) for name, tensor in batch.items()})
        features = batch.pop("target_features")
        batch.pop("phrase_ids", None)
        condition = batch["condition"] if "condition" in batch else model.encode_condition(**batch)
        if not model.config.uses_transformer:
            return {"loss_of_features": model(condition=condition, target_features=features).loss.item()}
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
        losses = {}
        for sigma in VALIDATION_NOISE_LEVELS:
            levels = torch.full((len(features),), sigma, device=features.device)
            output = model(condition=condition, target_features=features, noise=noise, sigma=levels)
            losses[f"loss_at_noise_{sigma}"] = output.loss.item()
        return losses

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        if self.lora is not None:
            write_lora(*read_lora(folder, PEFT_WEIGHT_NAME), folder)
        self.processor.save_pretrained(folder)
