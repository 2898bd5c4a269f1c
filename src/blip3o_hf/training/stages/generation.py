"""The stage `generation`: queries and transformer learn to generate the target encoder's features."""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import torch
from peft import get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME as PEFT_WEIGHT_NAME
from transformers import AutoConfig

from ...data.mixture import StreamingMixture, open_mixture
from ...data.records import Record, targets
from ...data.shapes_dataset import ShapesDataset, ShapesPictures
from ...models.adapters import lora_config, read_lora, write_lora
from ...models.configuration_blip3o import Blip3oConfig
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import crop, extract_features, feature_channels, load_target_encoder, normalize
from ..distributed import whole_weights
from ..recipes import check_keys
from .base import Stage

VALIDATION_RECORDS = 64
VALIDATION_NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
STATISTICS_IMAGES = 2048
PARTS = ("queries", "transformer", "backbone")
# What the published reconstruction data asks for.
RECONSTRUCTION_PROMPT = "Please reconstruct the given image."


class GenerationStage(Stage):
    """
    Queries and transformer with flow matching, backbone frozen (paper sections 4 and 5.2). Leaves a BLIP3-o.

    It puts new ones on the backbone in `inputs`, or goes on from the whole BLIP3-o in `inputs.model`. Its
    `model.objective` makes it the paper's other designs (section 3.3): `feature_regression` trains a linear head in
    the transformer's place, `latent_flow` has a VAE as target encoder. What trains is `model.train`: `transformer` (or
    that head), `queries`, and `backbone`, which is its text stack without the output layer.

    With `model.lora` the whole BLIP3-o stays as it is, adapters train on it ([`~models.adapters.lora_config`]), and
    adapters are what is left: in PEFT's form, and as the one file that a pipeline's `load_lora_weights` reads.
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
    noise_keys = ("condition_dropout", "noise_distribution", "noise_shift")
    length_keys = ("max_length", "max_input_pixels")
    model_keys = (*size_keys, *noise_keys, *length_keys, "train", "frozen_dtype", "lora")
    lora_keys = ("parts", "rank", "alpha", "dropout", "train_queries")
    evaluation_keys = ("per_family", "prompts", "sources", "num_inference_steps", "guidance_scale")

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
        for key in recipe.model:
            if "model" in recipe.inputs and key in self.size_keys:
                raise ValueError(
                    f"A model that is trained further keeps its sizes. {self.where} sets 'model.{key}' and "
                    f"'inputs.model'. Leave it out, or start from 'inputs.backbone'."
                )
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
        self.frozen_dtype = self._dtype(recipe.model.get("frozen_dtype", "float32"))

    # The model

    def build(self):
        with whole_weights(self.arguments):
            self.encoder, self.image_processor = self._load_encoder()
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

    def _load_encoder(self):
        name = "encoder" if "encoder" in self.folders else "model"
        subfolder = "" if name == "encoder" else "target_encoder"
        return load_target_encoder(self.folders[name], subfolder, self.frozen_dtype, self._feature_size)

    @property
    def _attention(self) -> str:
        """On a CPU plain matrix products train several times faster than the fused kernel."""
        return "eager" if self.arguments.use_cpu else "sdpa"

    def _load_model(self) -> Blip3oForConditionalGeneration:
        folder = self.folders["model"]
        self.processor = Blip3oProcessor.from_pretrained(folder)
        model = Blip3oForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=self._attention
        )
        for key in self.noise_keys:
            if key in self.recipe.model:
                setattr(model.config, key, self.recipe.model[key])
        return model

    def _new_model(self) -> Blip3oForConditionalGeneration:
        folder = self.folders["backbone"]
        self.processor = Blip3oProcessor.from_backbone(folder)
        known = (*self.size_keys, *self.noise_keys)
        settings = {key: value for key, value in self.recipe.model.items() if key in known}
        statistics = self._feature_statistics() if settings.pop("standardize_features", False) else {}
        config = Blip3oConfig(
            backbone_config=AutoConfig.from_pretrained(folder),
            transformer_config=settings.pop("transformer", None),
            feature_dim=feature_channels(self.encoder),
            **settings,
            **statistics,
        )
        return Blip3oForConditionalGeneration.from_backbone(
            folder, config, self.processor, attn_implementation=self._attention
        )

    def _feature_statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of the target features over training images."""
        world = ShapesPictures(ShapesDataset(length=STATISTICS_IMAGES, seed=2))
        records = world if self.is_world else open_mixture(self.recipe.data.get("pictures", self.recipe.data))
        if isinstance(records, StreamingMixture):
            records.rank, records.world_size = 0, 1  # the same images in every process
        features = []
        images = (targets([record])[0] for record in islice(iter(records), STATISTICS_IMAGES))
        while batch := list(islice(images, 64)):
            features.append(self._features(normalize(self.image_processor, crop(self.image_processor, batch))))
        features = torch.cat(features)
        return {
            "feature_mean": features.mean(dim=(0, 2, 3)).tolist(),
            "feature_std": features.std(dim=(0, 2, 3)).tolist(),
        }

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return extract_features(self.encoder, pixel_values, self._feature_size)

    # Batches

    def collate(self, records: Sequence[Record]) -> dict[str, Any]:
        images = [list(record.images) for record in records]
        prompts = self.processor.encode_prompts(
            [record.prompt or RECONSTRUCTION_PROMPT for record in records],
            images=images if any(images) else None,
            training=True,
            truncation=True,
        )
        return {
            **prompts,
            "target_pixel_values": normalize(self.image_processor, crop(self.image_processor, targets(records))),
        }

    def loss(self, model, batch, generators):
        features = self._features(batch.pop("target_pixel_values"))
        settings = {"num_noise_draws": self.arguments.noise_draws, "generator": generators[: len(features)]}
        return model(**batch, target_features=features, **settings).loss

    def _validation_records(self) -> list[Record]:
        """The tiny world's held-out scenes, or what `evaluation.sources` holds."""
        if self.is_world:
            data = ShapesPictures(ShapesDataset(length=VALIDATION_RECORDS, seed=3, split="test"))
        elif "sources" in self.recipe.evaluation:
            data = open_mixture({"sources": self.recipe.evaluation["sources"]})
        else:
            return []
        return [data[index] for index in range(min(len(data), VALIDATION_RECORDS))]

    def validate(self, model):
        """The loss on held-out records; of the flow objectives by noise level, on fixed noise."""
        records = self._validation_records()
        if not records:
            return {}
        batch = GenerationStage.collate(self, records)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        features = self._features(batch.pop("target_pixel_values"))
        condition = model.encode_condition(**batch)
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
