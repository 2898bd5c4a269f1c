"""The stage `understanding`: the backbone learns to answer."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import extract_features, load_target_encoder, normalize, stack_images
from ...shapes import known_texts
from ...shapes.conversations import ShapesConversations
from ...shapes.dataset import ShapesDataset
from ...shapes.tasks import ShapesPictures
from ..conversations import Conversations
from ..tokenizers import train_tokenizer
from .base import Stage

STATISTICS_IMAGES = 512


class UnderstandingStage(Stage):
    """
    The backbone: questions about images, captioning, plans, and text. Leaves a vision-language model.

    It goes on from the backbone in `inputs`, or starts from nothing but the target encoder there, which becomes its
    eye and stays as it is: what the model reads of images and what it learns to generate are then the same features
    (paper section 3.1).
    """

    name = "understanding"
    optional_inputs = ("backbone", "encoder")
    model_keys = ("text", "vocab_size", "max_length")
    conversation_keys = (
        "text_rate",
        "image_plan_rate",
        "comparison_rate",
        "request_rate",
        "check_rate",
        "history_rate",
        "labels_images",
    )
    world_keys = (*Stage.world_keys, *conversation_keys, "question_weights", "num_questions")
    evaluation_keys = ("per_kind",)
    num_questions = 4

    def __init__(self, recipe):
        super().__init__(recipe)
        if len(recipe.inputs) != 1 or ("encoder" in recipe.inputs) != ("text" in recipe.model):
            raise ValueError(
                f"Stage 'understanding' goes on from a backbone, or builds one on a target encoder. {self.where} has "
                f"the inputs {', '.join(recipe.inputs) or 'none'} and {'' if 'text' in recipe.model else 'no '}"
                f"'model.text'. Name 'inputs.backbone' alone, or 'inputs.encoder' with the sizes under 'model.text'."
            )

    def build(self):
        self.max_length = self.recipe.model["max_length"]
        if "backbone" in self.folders:
            self.processor = Blip3oProcessor.from_pretrained(self.folders["backbone"])
            model = AutoModelForImageTextToText.from_pretrained(
                self.folders["backbone"], dtype="float32", attn_implementation="eager"
            )
            return self._with_frozen_eye(model)
        text = self.recipe.model["text"]
        self._check_config(text, Qwen3Config, "model.text")
        tower, self.image_processor = load_target_encoder(self.folders["encoder"])
        tokenizer = train_tokenizer(self._corpus(), self.recipe.model["vocab_size"], self.max_length)
        num_image_tokens = (tower.config.image_size // tower.config.patch_size) ** 2
        self.processor = Blip3oProcessor(
            self.image_processor, tokenizer, num_image_tokens=num_image_tokens, has_whole_words=True
        )
        config = LlavaConfig(
            vision_config=tower.config,
            text_config=AutoConfig.for_model(
                "qwen3",
                **text,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                tie_word_embeddings=True,
            ),
            image_token_index=self.processor.image_token_id,
            image_seq_length=num_image_tokens,
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
        model.model.vision_tower.load_state_dict(tower.state_dict())
        self._standardize(model.model.multi_modal_projector.linear_1, tower, self.image_processor)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.max_new_tokens = 40
        return self._with_frozen_eye(model)

    @staticmethod
    @torch.no_grad()
    def _standardize(linear: nn.Linear, tower: nn.Module, image_processor) -> None:
        """Let a layer begin as one that reads the tower's features at zero mean and unit variance."""
        scenes = ShapesDataset(STATISTICS_IMAGES, seed=2)
        images = stack_images([scenes[index].image for index in range(len(scenes))])
        features = extract_features(tower, normalize(image_processor, images)).flatten(2)
        mean, std = features.mean(dim=(0, 2)), features.std(dim=(0, 2))
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        linear.weight /= std
        linear.bias.copy_(-linear.weight @ mean)

    def _corpus(self) -> Iterator[str]:
        """What the tokenizer learns from: all words of the world, at the beginning of a text and within."""
        bytes_alone = train_tokenizer([], vocab_size=0, max_length=self.max_length)
        template = Blip3oProcessor(self.image_processor, bytes_alone)
        yield template.render_prompt("")
        yield from (template.plan_instruction, template.check_instruction)
        for text in known_texts():
            yield text
            yield from text.split()
            yield from (f" {word}" for word in text.split())
        records = ShapesPictures(ShapesDataset(length=2000, seed=1, long_caption_rate=0.3), plan_rate=0.5)
        yield from (records[index].prompt for index in range(len(records)))

    @staticmethod
    def _with_frozen_eye(model: nn.Module) -> nn.Module:
        """The model, of whose parts a target encoder that it sees with does not train."""
        tower = getattr(model.base_model, "vision_tower", None)
        if tower is not None:
            tower.requires_grad_(False)
        return model

    def dataset(self):
        if not self.is_world:
            return super().dataset()
        rates = {key: self.recipe.data[key] for key in self.conversation_keys if key in self.recipe.data}
        return ShapesConversations(self.scenes(), self.processor, **rates)

    def collate(self, records):
        return Conversations(self.processor, self.max_length).collate(records)

    def loss(self, model, batch, generators):
        return model(**batch).loss

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)
