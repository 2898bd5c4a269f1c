"""The task `generation`: queries and transformer learn to generate the target encoder's features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME as PEFT_WEIGHT_NAME
from PIL import Image

from ...data.records import RECONSTRUCT, Record, targets
from ...models.adapters import read_lora, write_lora
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.processing_blip3o import Blip3oProcessor
from ...objectives.phrases import phrase_loss
from ..arguments import FROZEN_DTYPES, Blip3oTrainingArguments
from ..caching import CachedInputs, conditions_fingerprint
from ..conversations import IGNORED
from ..feature_cache import CachedRecord
from .base import Task, drawn_noise

VALIDATION_NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
# So many tokens of a phrase, or of a caption, the queries learn to say.
PHRASE_TOKENS = 64


class GenerationTask(Task):
    """
    Queries and transformer with flow matching, backbone frozen (paper sections 4 and 5.2).

    The config's `objective` makes it the paper's other designs (section 3.3): under `feature_regression` a linear head
    trains in the transformer's place, under `latent_flow` the target encoder is a VAE. `arguments.train` chooses the
    parts that train: `transformer` (or that head), `queries`, and `backbone`, its text stack without the output layer.

    A backbone that trains too can learn from the captions themselves: with `arguments.caption_weight` every query also
    learns to say all words of its caption through the backbone's output layer. A small one needs it for words that it
    never read: at first their conditions are almost equal, and the flow alone needs long to learn the difference.
    """

    name = "generation"
    draws = True
    default_parts: tuple[str, ...] = ("queries", "transformer")
    makes_flow_maps = False
    """Whether what it trains goes from one noise level to another at once."""
    cached: CachedInputs

    def load(self, name, arguments):
        processor = Blip3oProcessor.from_pretrained(name)
        with torch.random.fork_rng(devices=()):  # what is drawn later is the same, however the model is loaded
            model = Blip3oForConditionalGeneration.from_pretrained(
                name, dtype=torch.float32, attn_implementation=attention(arguments)
            )
        return model, processor

    def needs_encoder(self, arguments):
        return "targets" not in CachedInputs.of(arguments.feature_cache).kinds

    def parts(self, arguments: Blip3oTrainingArguments) -> tuple[str, ...]:
        """The parts that train, without adapters."""
        return self.default_parts if arguments.train is None else tuple(arguments.train)

    def has_frozen_conditions(self, arguments: Blip3oTrainingArguments, has_adapters: bool = False) -> bool:
        """Whether nothing trains between a prompt and its condition."""
        return not has_adapters and not {"queries", "backbone"} & set(self.parts(arguments))

    def cached_inputs(self, arguments: Blip3oTrainingArguments, has_adapters: bool = False) -> CachedInputs:
        """What is taken from `arguments.feature_cache`; conditions of frozen queries alone."""
        return CachedInputs.of(arguments.feature_cache, self.has_frozen_conditions(arguments, has_adapters))

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        self.cached = self.cached_inputs(arguments, has_adapters=peft_config is not None)
        if arguments.use_cpu and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(attention(arguments))
        max_length = arguments.max_length or processor.tokenizer.model_max_length
        processor.max_prompt_length = max_length - model.config.num_queries
        if arguments.caption_weight:
            processor.has_whole_words = False  # the backbone learns the words of these captions, too
        if arguments.max_input_pixels is not None:
            _limit_input_images(processor, arguments.max_input_pixels)
        model = super().setup(model, processor, target_encoder, arguments, peft_config)
        if arguments.deepspeed_plugin is None:  # DeepSpeed keeps fp32 copies of its own
            frozen_dtype = FROZEN_DTYPES[arguments.frozen_dtype]
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen_dtype)
        if "conditions" in self.cached.kinds:
            self.cached.check("conditions", conditions_fingerprint(self, model), "this run")
        return model

    @property
    def complete(self):
        if not self.cached.kinds:
            return super().complete
        return self.cached.checked_complete(self.processor, self.arguments.max_length)

    def check(self, model):
        assert self.processor is not None  # see `reads_prompts`
        processor, size = self.processor, model.get_input_embeddings().num_embeddings
        largest = max(processor.tokenizer.get_vocab().values())
        if largest >= size:
            raise ValueError(
                f"The processor must be that of the model. The tokenizer's largest id is {largest}, and the model has "
                f"{size} embeddings. Load both from one folder."
            )
        if model.config.is_flow_map and not self.makes_flow_maps:
            raise ValueError(
                "A flow map cannot learn what a flow learns: it would forget its steps. Got a model of few steps. "
                "Train the model that it was made of, and make the map anew: docs/speed.md."
            )
        if self.arguments.caption_weight and "backbone" not in self.parts(self.arguments):
            raise ValueError(
                f"Only a backbone that trains learns to say captions. `caption_weight` is "
                f"{self.arguments.caption_weight}, and {', '.join(self.parts(self.arguments))} train. Add 'backbone' "
                f"to `train`, or leave the weight out."
            )

    def choose(self, model):
        model.requires_grad_(False)
        for part in self.parts(self.arguments):
            if part == "transformer" and not model.config.uses_transformer:
                part = "feature_head"
            module = model.get_decoder() if part == "backbone" else getattr(model, part)
            module.requires_grad_(True)

    # Batches

    def collate(self, records: Sequence[Record | CachedRecord]) -> dict[str, Any]:
        batch = self.collate_prompts(records)
        if self.arguments.caption_weight:
            batch["phrase_ids"] = self.phrase_ids([[f" {record.prompt or RECONSTRUCT}"] for record in records])
        if "targets" in self.cached.kinds:
            batch["target_features"] = torch.stack([_cached_features(record) for record in records]).float()
        else:
            assert self.target_encoder is not None  # see `needs_encoder`
            batch["target_pixel_values"] = self.target_encoder.pixel_values(targets(records))
        return batch

    def collate_prompts(self, records: Sequence[Record | CachedRecord]) -> dict[str, Any]:
        """Prompts, or their conditions from a cache, without targets."""
        if "conditions" in self.cached.kinds:
            return {"condition": torch.stack([_cached_condition(record) for record in records]).float()}
        return self.encode_prompts(*zip(*((r.prompt, r.images, r.history) for r in records), strict=True))

    def encode_prompts(
        self,
        prompts: Sequence[str | None],
        images: Sequence[Sequence[Image.Image]],
        histories: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> dict[str, Any]:
        """Prompts with their input images for `encode_condition`; `None` asks for the image itself."""
        assert self.processor is not None  # see `reads_prompts`
        encoded = self.processor.encode_prompts(
            [prompt or RECONSTRUCT for prompt in prompts],
            images=[list(shown) for shown in images] if any(images) else None,
            training=True,
            truncation=True,
            histories=histories,
        )
        return dict(encoded)

    def phrase_ids(self, phrases: Sequence[list[str]]) -> torch.Tensor:
        """The same number of phrases for each record as tokens `[B, P, W]`, of each phrase the first ones."""
        assert self.processor is not None  # see `reads_prompts`
        encoded = [self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in phrases]
        kept = [[ids[:PHRASE_TOKENS] for ids in lists] for lists in encoded]
        longest = max(len(ids) for lists in kept for ids in lists)
        return torch.tensor([[ids + [IGNORED] * (longest - len(ids)) for ids in lists] for lists in kept])

    def with_features(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with target features in the place of pixels."""
        if "target_pixel_values" in batch:
            assert self.target_encoder is not None  # it made the pixel values
            batch["target_features"] = self.target_encoder.features(batch.pop("target_pixel_values"))
        return batch

    # Losses

    def counts(self, batch):
        names = [name for name in ("target_features", "target_pixel_values", "phrase_ids") if name in batch]
        return {"records": len(batch[names[0]])} if names else {}

    def loss(self, model, batch, generators):
        batch = self.with_features(batch)
        phrase_ids = batch.pop("phrase_ids", None)
        output = model(
            **batch,
            num_noise_draws=self.arguments.noise_draws,
            generator=generators[: len(batch["target_features"])],
            output_query_logits=phrase_ids is not None,
        )
        loss = output.loss
        if phrase_ids is not None:
            loss = loss + self.arguments.caption_weight * phrase_loss(output.query_logits, phrase_ids)
        return self.share("records") * loss

    def validate(self, model, dataset):
        """The loss on held-out records; of the flow objectives by noise level, on fixed noise, and their mean."""
        sums: dict[str, float] = {}
        number = 0
        for records in self.batches(dataset):
            batch = self.on_device(GenerationTask.collate(self, records), model)
            for name, losses in self._held_out_losses(model, batch, number).items():
                sums[name] = sums.get(name, 0.0) + losses * len(records)
            number += len(records)
        losses = {name: value / number for name, value in sums.items()}
        return {**losses, "loss": sum(losses.values()) / len(losses)} if losses else {}

    def _held_out_losses(self, model, batch: dict[str, Any], first: int) -> dict[str, float]:
        """Losses of a batch whose first record is that number of its dataset."""
        batch = self.with_features(batch)
        features = batch.pop("target_features")
        batch.pop("phrase_ids", None)
        condition = batch["condition"] if "condition" in batch else model.encode_condition(**batch)
        if not model.config.uses_transformer:
            return {"loss_of_features": model(condition=condition, target_features=features).loss.item()}
        generators = [torch.Generator().manual_seed(first + index) for index in range(len(features))]
        noise = drawn_noise(features.shape[1:], generators)
        losses = {}
        for sigma in VALIDATION_NOISE_LEVELS:
            levels = torch.full((len(features),), sigma, device=features.device)
            output = model(condition=condition, target_features=features, noise=noise.to(features), sigma=levels)
            losses[f"loss_at_noise_{sigma}"] = output.loss.item()
        return losses

    # Results

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        if isinstance(model, PeftModel):
            write_lora(*read_lora(folder, PEFT_WEIGHT_NAME), folder)
        assert self.processor is not None  # see `reads_prompts`
        self.processor.save_pretrained(Path(folder))


def attention(arguments: Blip3oTrainingArguments) -> str:
    """On a CPU plain matrix products train several times faster than the fused kernel."""
    return "eager" if arguments.use_cpu else "sdpa"


def _cached_condition(record: Record | CachedRecord) -> torch.Tensor:
    assert isinstance(record, CachedRecord) and record.condition is not None  # `complete` took it from the cache
    return record.condition


def _cached_features(record: Record | CachedRecord) -> torch.Tensor:
    assert isinstance(record, CachedRecord) and record.target_features is not None  # likewise
    return record.target_features


def _limit_input_images(processor: Blip3oProcessor, num_pixels: int) -> None:
    """Let the processor scale images in prompts down to so many pixels."""
    plain = processor.image_processor
    smallest = min(plain.size["shortest_edge"], num_pixels)
    size = {"shortest_edge": smallest, "longest_edge": num_pixels}
    processor.image_processor = type(plain).from_dict({**plain.to_dict(), "size": size})
