"""Stages as data: what each one builds, what trains and what is frozen, which loss applies, what it leaves behind."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME as PEFT_WEIGHT_NAME
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..data.shapes import IMAGE_SIZE
from ..data.shapes_dataset import ShapesDataset, ShapesRecord
from ..models.adapters import lora_config, read_lora, write_lora
from ..models.configuration_blip3o import Blip3oConfig
from ..models.decoder_patch import Blip3oPatchDecoder
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import extract_features, load_target_encoder, normalize, stack_images
from .conversations import DESCRIBE_FULLY, Conversations
from .distributed import whole_weights
from .recipes import Recipe, check_keys
from .tokenizers import train_tokenizer

VALIDATION_RECORDS = 64
VALIDATION_NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


class Stage:
    """
    Base of all stages.

    A stage reads a recipe, builds the module to train (`build`), turns records into batches (`collate`), computes
    the loss (`loss`), and writes the trained part (`save`). Parameters with `requires_grad` train; nothing else does.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    model_keys: ClassVar[tuple[str, ...]] = ()
    data_keys: ClassVar[tuple[str, ...]] = ("length", "seed", "long_caption_rate", "family_weights")
    evaluation_keys: ClassVar[tuple[str, ...]] = ()
    num_questions: ClassVar[int] = 0
    encoder: PreTrainedModel | None = None
    """The frozen target encoder, where a stage has one; the Trainer puts it on the training device."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        where = recipe.source or "the recipe"
        check_keys(recipe.inputs, (*self.inputs, *self.optional_inputs), f"section 'inputs' of {where}")
        check_keys(recipe.model, self.model_keys, f"section 'model' of {where}")
        check_keys(recipe.data, self.data_keys, f"section 'data' of {where}")
        check_keys(recipe.evaluation, self.evaluation_keys, f"section 'evaluation' of {where}")
        for name in self.inputs:
            if name not in recipe.inputs:
                raise ValueError(
                    f"Stage '{self.name}' starts from the folder '{name}'. {where} names none. Add it to 'inputs'."
                )
        for name, folder in recipe.inputs.items():
            if not Path(folder).is_dir():
                raise FileNotFoundError(
                    f"Stage '{self.name}' starts from '{name}' in {folder}. There is no such folder. "
                    f"Run the stage that writes it first."
                )
        self.arguments = recipe.training_arguments()

    def _check_config(self, given: dict[str, Any], config_class: type, section: str) -> None:
        """Settings of a library's config class are checked here: the class itself would take any key."""
        known = {field.name for field in fields(config_class)}
        check_keys(given, known, f"section '{section}' of {self.recipe.source or 'the recipe'}")

    def build(self) -> nn.Module:
        raise NotImplementedError

    def dataset(self) -> ShapesDataset:
        return ShapesDataset(**self.recipe.data, num_questions=self.num_questions)

    def collate(self, records: Sequence[ShapesRecord]) -> dict[str, Any]:
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


class EncoderStage(Stage):
    """A CLIP-style encoder from nothing: image and caption towers, contrastive loss. Leaves the image tower."""

    name = "encoder"
    model_keys = ("vision", "text", "projection_dim")

    def build(self) -> nn.Module:
        vision, text = self.recipe.model["vision"], self.recipe.model["text"]
        self._check_config(vision, CLIPVisionConfig, "model.vision")
        self._check_config(text, CLIPTextConfig, "model.text")
        corpus = ShapesDataset(length=2000, seed=1, long_caption_rate=0.5)
        captions = (corpus[index].caption for index in range(len(corpus)))
        self.tokenizer = train_tokenizer(captions, 400, text["max_position_embeddings"])
        config = CLIPConfig(
            vision_config=vision,
            text_config={
                **text,
                "vocab_size": len(self.tokenizer),
                "bos_token_id": self.tokenizer.pad_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            },
            projection_dim=self.recipe.model["projection_dim"],
        )
        size = vision["image_size"]
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        return CLIPModel._from_config(config, attn_implementation="eager")

    def collate(self, records):
        texts = [record.caption + self.tokenizer.eos_token for record in records]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": normalize(self.image_processor, stack_images([record.image for record in records])),
        }

    def loss(self, model, batch, generators):
        return model(**batch, return_loss=True).loss

    def save(self, model, folder, weights=None):
        weights = model.state_dict() if weights is None else weights
        prefix = "vision_model."
        tower = CLIPVisionModel(model.config.vision_config)
        tower.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        tower.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def recolor(images: torch.Tensor, rate: float) -> torch.Tensor:
    """
    Mix the channels of a share `rate` in [0, 1] of the images `[B, 3, H, W]` at random; greys stay as they are.

    The mix is a convex combination of two permutations of the channels, so values keep their range.
    """
    count, device = images.shape[0], images.device
    identity = torch.eye(3, device=device)
    first, second = identity[torch.rand(2, count, 3, device=device).argsort(dim=-1)]
    blend = torch.rand(count, 1, 1, device=device)
    is_mixed = torch.rand(count, 1, 1, device=device) < rate
    mixing = torch.where(is_mixed, blend * first + (1 - blend) * second, identity)
    return torch.einsum("boc,bchw->bohw", mixing, images)


class DecoderStage(Stage):
    """
    The decoder from frozen features to pixels: mean squared error, with noise on the features.

    Recolouring teaches it that any shape may have any colour, which training scenes do not show.
    """

    name = "decoder"
    inputs = ("encoder",)
    model_keys = ("patch_size", "dim", "num_layers", "num_attention_heads", "feature_noise", "recolor_rate")
    evaluation_keys = ("per_family",)

    def build(self):
        with whole_weights(self.arguments):
            self.encoder, self.image_processor = load_target_encoder(self.recipe.inputs["encoder"])
        settings = dict(self.recipe.model)
        self.feature_noise = settings.pop("feature_noise", 0.0)
        self.recolor_rate = settings.pop("recolor_rate", 0.0)
        return Blip3oPatchDecoder(in_channels=self.encoder.config.hidden_size, **settings)

    def collate(self, records):
        return {"images": stack_images([record.image for record in records])}

    def loss(self, model, batch, generators):
        images = recolor(batch["images"], self.recolor_rate)
        features = extract_features(self.encoder, normalize(self.image_processor, images))
        scale = features.std(dim=(0, 2, 3), keepdim=True) * self.feature_noise
        level = torch.rand(features.shape[0], 1, 1, 1, device=features.device)
        sample = model(features + level * scale * torch.randn_like(features)).sample
        return torch.nn.functional.mse_loss(sample.float(), 2 * images - 1)

    def save(self, model, folder, weights=None):
        decoder = Blip3oPatchDecoder.from_config(model.config)
        decoder.load_state_dict(model.state_dict() if weights is None else weights)
        decoder.save_pretrained(folder)


class UnderstandingStage(Stage):
    """
    The backbone: questions about images, captioning, and text. Leaves a vision-language model.

    It starts from nothing, or goes on from the backbone in `inputs`.
    """

    name = "understanding"
    optional_inputs = ("backbone",)
    model_keys = ("backbone", "vocab_size", "max_length")
    data_keys = (*Stage.data_keys, "text_rate", "question_weights")
    evaluation_keys = ("per_kind",)
    num_questions = 4

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("backbone" in recipe.inputs) == ("backbone" in recipe.model):
            raise ValueError(
                f"Stage 'understanding' needs one backbone. {recipe.source or 'the recipe'} gives "
                f"{'two' if 'backbone' in recipe.model else 'none'}. Put its sizes under 'model.backbone' to start "
                f"from nothing, or its folder under 'inputs.backbone' to go on from it."
            )

    def build(self):
        self.max_length = self.recipe.model["max_length"]
        if "backbone" in self.recipe.inputs:
            return self._load(self.recipe.inputs["backbone"])
        settings = self.recipe.model["backbone"]
        self._check_config(settings["text_config"], Qwen2_5_VLTextConfig, "model.backbone.text_config")
        self._check_config(settings["vision_config"], Qwen2_5_VLVisionConfig, "model.backbone.vision_config")
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=settings["vision_config"]["patch_size"],
            merge_size=settings["vision_config"]["spatial_merge_size"],
            temporal_patch_size=settings["vision_config"]["temporal_patch_size"],
            size={"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
        )
        tokenizer = train_tokenizer(self._corpus(), self.recipe.model["vocab_size"], self.max_length)
        self.processor = Blip3oProcessor(self.image_processor, tokenizer)
        config = AutoConfig.for_model(
            "qwen2_5_vl",
            text_config={
                **settings["text_config"],
                "vocab_size": len(tokenizer),
                "bos_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config=settings["vision_config"],
            tie_word_embeddings=True,
            **{name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION_TOKENS.items()},
        )
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.max_new_tokens = 40
        return model

    def _load(self, folder: str):
        self.processor = Blip3oProcessor.from_pretrained(folder)
        self.image_processor = self.processor.image_processor
        return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", attn_implementation="eager")

    def _corpus(self) -> Iterator[str]:
        """What the tokenizer learns from: generation prompts, questions, answers and descriptions."""
        bytes_alone = train_tokenizer([], vocab_size=0, max_length=self.max_length)
        template = Blip3oProcessor(self.image_processor, bytes_alone)
        data = ShapesDataset(length=4000, seed=1, num_questions=self.num_questions, long_caption_rate=0.5)
        for index in range(len(data)):
            record = data[index]
            yield template.render_prompt(record.caption)
            yield from (question.text for question in record.questions)
            yield from (question.answer for question in record.questions)
            yield record.description
            yield record.long_caption
            yield DESCRIBE_FULLY

    def dataset(self):
        data = {key: value for key, value in self.recipe.data.items() if key != "text_rate"}
        return ShapesDataset(**data, num_questions=self.num_questions)

    def collate(self, records):
        conversations = Conversations(self.processor, self.max_length, self.recipe.data.get("text_rate", 0.0))
        return conversations.collate(records)

    def loss(self, model, batch, generators):
        return model(**batch).loss

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)


class GenerationStage(Stage):
    """
    Queries and transformer with flow matching, backbone frozen (paper sections 4 and 5.2). Leaves a BLIP3-o.

    It starts on a trained `backbone`, or goes on from a whole `model`. With `model.lora` that model stays as it is,
    adapters train on it ([`~models.adapters.lora_config`]), and adapters are what is left: in PEFT's form, and as the
    one file that a pipeline's `load_lora_weights` reads.
    """

    name = "generation"
    inputs = ("encoder", "decoder")
    optional_inputs = ("backbone", "model")
    model_keys = (
        "transformer",
        "num_queries",
        "objective",
        "feature_size",
        "condition_dropout",
        "noise_distribution",
        "noise_shift",
        "standardize_features",
        "initializer_range",
        "lora",
    )
    lora_keys = ("parts", "rank", "alpha", "dropout", "train_queries")
    evaluation_keys = ("per_family", "num_inference_steps", "guidance_scale")

    def __init__(self, recipe):
        super().__init__(recipe)
        where = recipe.source or "the recipe"
        if ("backbone" in recipe.inputs) == ("model" in recipe.inputs):
            raise ValueError(
                f"Stage '{self.name}' starts from one model. {where} names "
                f"{'two' if 'model' in recipe.inputs else 'none'}. Name a trained backbone under 'inputs.backbone', "
                f"or a whole BLIP3-o to go on from under 'inputs.model'."
            )
        if "model" in recipe.inputs:
            check_keys(recipe.model, ("lora",), f"section 'model' of {where}, which goes on from 'inputs.model'")
        elif "lora" in recipe.model:
            raise ValueError(
                f"LoRA adapts a trained model. {where} has 'model.lora', and starts from a backbone. Name a whole "
                f"BLIP3-o under 'inputs.model' in the place of 'inputs.backbone'."
            )
        self.lora = recipe.model.get("lora")
        check_keys(self.lora or {}, self.lora_keys, f"section 'model.lora' of {where}")

    def build(self):
        model = self._build(dict(self.recipe.model))
        if self.lora is not None:
            model = get_peft_model(model, lora_config(model, **self.lora))
        if self.arguments.deepspeed_plugin is None:  # DeepSpeed keeps fp32 copies of its own
            for parameter in model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        return model

    def _build(self, settings: dict[str, Any]) -> Blip3oForConditionalGeneration:
        with whole_weights(self.arguments):
            self.encoder, self.image_processor = load_target_encoder(self.recipe.inputs["encoder"])
        folder = self.recipe.inputs.get("model") or self.recipe.inputs["backbone"]
        self.processor = Blip3oProcessor.from_pretrained(folder)
        if "model" in self.recipe.inputs:
            model = Blip3oForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
        else:
            self.feature_size = settings.get("feature_size", 8)
            statistics = self._feature_statistics() if settings.pop("standardize_features", False) else {}
            config = Blip3oConfig(
                backbone_config=AutoConfig.from_pretrained(folder),
                transformer_config=settings.pop("transformer", None),
                feature_dim=self.encoder.config.hidden_size,
                **settings,
                **statistics,
            )
            model = Blip3oForConditionalGeneration.from_backbone(folder, config, attn_implementation="eager")
        self.feature_size = model.config.feature_size
        model.backbone.requires_grad_(False)
        self.processor.max_prompt_length = self.processor.tokenizer.model_max_length - model.config.num_queries
        return model

    def _feature_statistics(self, num_images: int = 2048) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of the target features over training images."""
        data = ShapesDataset(length=num_images, seed=2)
        images = stack_images([data[index].image for index in range(num_images)])
        features = torch.cat([self._features(normalize(self.image_processor, batch)) for batch in images.split(256)])
        return {
            "feature_mean": features.mean(dim=(0, 2, 3)).tolist(),
            "feature_std": features.std(dim=(0, 2, 3)).tolist(),
        }

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return extract_features(self.encoder, pixel_values, self.feature_size)

    def collate(self, records):
        prompts = self.processor.encode_prompts([record.caption for record in records], training=True)
        return {
            **prompts,
            "target_pixel_values": normalize(self.image_processor, stack_images([record.image for record in records])),
        }

    def loss(self, model, batch, generators):
        features = self._features(batch.pop("target_pixel_values"))
        settings = {"num_noise_draws": self.arguments.noise_draws, "generator": generators[: len(features)]}
        return model(**batch, target_features=features, **settings).loss

    def validate(self, model):
        """The flow-matching loss by noise level, on held-out records and fixed noise."""
        if not model.config.uses_transformer:
            return {}
        data = ShapesDataset(length=VALIDATION_RECORDS, seed=3, split="test")
        batch = GenerationStage.collate(self, [data[index] for index in range(len(data))])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        features = self._features(batch.pop("target_pixel_values"))
        condition = model.encode_condition(**batch)
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


class JointStage(GenerationStage):
    """
    Both tasks at once (paper section 4.1): each batch holds conversations and prompts with images, and the losses of
    both add up. The backbone's text stack trains with queries and transformer; its vision tower is frozen.
    """

    name = "joint"
    inputs = ("backbone", "encoder", "decoder")
    optional_inputs = ()
    model_keys = (
        *(key for key in GenerationStage.model_keys if key != "lora"),
        "max_length",
        "understanding_weight",
        "generation_weight",
    )
    data_keys = (*GenerationStage.data_keys, "text_rate", "question_weights", "understanding_rate")
    evaluation_keys = (*GenerationStage.evaluation_keys, "per_kind")
    num_questions = UnderstandingStage.num_questions

    def __init__(self, recipe):
        super().__init__(recipe)
        rate = recipe.data.get("understanding_rate", 0.5)
        self.num_conversations = round(rate * self.arguments.per_device_train_batch_size)
        if not 0 < self.num_conversations < self.arguments.per_device_train_batch_size:
            raise ValueError(
                f"Joint training needs conversations and pictures in every batch. `data.understanding_rate` {rate} of "
                f"{self.arguments.per_device_train_batch_size} records leaves none of one kind. Choose a share "
                f"between 0 and 1, or a larger `training.per_device_train_batch_size`."
            )

    def build(self):
        settings = self.recipe.model
        self.weights = settings.get("understanding_weight", 1.0), settings.get("generation_weight", 1.0)
        model = self._build({key: settings[key] for key in settings if key in GenerationStage.model_keys})
        for part in (model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)
        self.conversations = Conversations(
            self.processor, settings["max_length"], self.recipe.data.get("text_rate", 0.0)
        )
        return model

    def dataset(self):
        rates = ("text_rate", "understanding_rate")
        data = {key: value for key, value in self.recipe.data.items() if key not in rates}
        return ShapesDataset(**data, num_questions=self.num_questions)

    def collate(self, records):
        conversations = self.conversations.collate(records[: self.num_conversations])
        return {**super().collate(records[self.num_conversations :]), "conversations": conversations}

    def loss(self, model, batch, generators):
        features = self._features(batch.pop("target_pixel_values"))
        settings = {"num_noise_draws": self.arguments.noise_draws, "generator": generators[: len(features)]}
        output = model(**batch, target_features=features, **settings)
        return self.weights[0] * output.text_loss + self.weights[1] * output.loss

    def validate(self, model):
        data = ShapesDataset(length=VALIDATION_RECORDS, seed=3, split="test", num_questions=self.num_questions)
        conversations = self.conversations.collate([data[index] for index in range(len(data))])
        output = model(**{name: tensor.to(model.device) for name, tensor in conversations.items()})
        return {**super().validate(model), "loss_of_answers": output.loss.item()}


STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (EncoderStage, DecoderStage, UnderstandingStage, GenerationStage, JointStage)
}


def build_stage(recipe: Recipe) -> Stage:
    """
    Raises:
        ValueError: when the recipe names an unknown stage.
    """
    check_keys([recipe.stage], STAGES, f"key 'stage' of {recipe.source or 'the recipe'}")
    return STAGES[recipe.stage](recipe)
