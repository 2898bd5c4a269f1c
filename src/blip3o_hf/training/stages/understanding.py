"""The stage `understanding`: the backbone learns to answer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import TargetEncoder
from ..recipe_values import hints_of
from ..tasks.understanding import UnderstandingTask
from ..tokenizers import train_tokenizer
from .base import Stage

STATISTICS_IMAGES = 512


class UnderstandingStage(Stage):
    """
    The backbone: questions about images, captioning, plans, and text. Leaves a vision-language model.

    It goes on from the backbone in `inputs`, or starts with only the target encoder there, which becomes its vision
    tower and stays as it is: the features that the model reads and the features that it learns to generate are then
    the same (paper section 3.1).
    """

    name = "understanding"
    optional_inputs = ("backbone", "encoder")
    model_keys = ("text", "vocab_size", "max_length")
    types = {"model": {"text": dict, "vocab_size": int}, "model.text": hints_of(Qwen3Config)}
    use = "conversations"
    scores = ("answers",)

    def __init__(self, recipe):
        super().__init__(recipe)
        if len(recipe.inputs) != 1 or ("encoder" in recipe.inputs) != ("text" in recipe.model):
            raise ValueError(
                f"Stage 'understanding' goes on from a backbone, or builds one on a target encoder. "
                f"{self.recipe_name} has the inputs {', '.join(recipe.inputs) or 'none'} and "
                f"{'' if 'text' in recipe.model else 'no '}"
                f"'model.text'. Name 'inputs.backbone' alone, or 'inputs.encoder' with the sizes under 'model.text'."
            )

    def task(self):
        return UnderstandingTask()

    def datasets(self, task, processor):
        return self.data.conversations(processor), self.data.held_out_conversations(processor)

    def score(self, trainer):
        assert self.benchmark is not None  # else the Trainer asks for no scores
        return self.benchmark.answers(trainer.unwrapped_model, trainer.processing_class)

    def build(self):
        if "backbone" in self.folders:
            return UnderstandingTask().load(self.folders["backbone"], self.arguments)
        encoder = TargetEncoder.load(self.folders["encoder"])
        processor = self._new_processor(encoder)
        assert processor.num_image_tokens is not None  # `_new_processor` sets it
        assert isinstance(processor.image_token_id, int)  # one token marks an image
        tokenizer = processor.tokenizer
        config = LlavaConfig(
            vision_config=encoder.model.config,
            text_config=self._text_config(tokenizer),
            image_token_index=processor.image_token_id,
            image_seq_length=processor.num_image_tokens,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
        model.model.vision_tower.load_state_dict(encoder.model.state_dict())
        self._standardize(model.model.multi_modal_projector.linear_1, encoder)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.max_new_tokens = 40
        return model, processor

    def _text_config(self, tokenizer) -> Any:
        sizes = self.recipe.model["text"]
        self._check_config(sizes, Qwen3Config, "model.text")
        return AutoConfig.for_model(
            "qwen3",
            **sizes,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )

    @torch.no_grad()
    def _standardize(self, linear: nn.Linear, encoder: TargetEncoder) -> None:
        """Let a layer begin as one that reads the tower's features at zero mean and unit variance."""
        images = list(self.data.images(STATISTICS_IMAGES))
        features = encoder.features(encoder.pixel_values(images)).flatten(2)
        mean, std = features.mean(dim=(0, 2)), features.std(dim=(0, 2))
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        linear.weight /= std
        linear.bias.copy_(-linear.weight @ mean)

    def _new_processor(self, encoder: TargetEncoder) -> Blip3oProcessor:
        """With a tokenizer that learns all words of the data, and those of the processor's own texts."""
        max_length = self.arguments.max_length or 512
        bytes_alone = train_tokenizer([], vocab_size=0, max_length=max_length)
        template = Blip3oProcessor(encoder.image_processor, bytes_alone)
        tokenizer = train_tokenizer(self._corpus(template), self.recipe.model["vocab_size"], max_length)
        num_image_tokens = (encoder.model.config.image_size // encoder.model.config.patch_size) ** 2
        return Blip3oProcessor(
            encoder.image_processor, tokenizer, num_image_tokens=num_image_tokens, has_whole_words=True
        )

    def _corpus(self, template: Blip3oProcessor) -> Iterator[str]:
        yield template.render_prompt("")
        yield from (template.plan_instruction, template.check_instruction)
        yield from self.data.texts()
