"""The stage `understanding`: the backbone learns to answer."""

from collections.abc import Iterator

from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ...data.shapes import IMAGE_SIZE
from ...data.shapes_dataset import DESCRIBE_FULLY, ShapesConversations, ShapesDataset
from ...models.processing_blip3o import Blip3oProcessor
from ..conversations import Conversations
from ..tokenizers import train_tokenizer
from .base import Stage

VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


class UnderstandingStage(Stage):
    """
    The backbone: questions about images, captioning, and text. Leaves a vision-language model.

    It starts from nothing, or goes on from the backbone in `inputs`.
    """

    name = "understanding"
    optional_inputs = ("backbone",)
    model_keys = ("backbone", "vocab_size", "max_length")
    conversation_keys = ("text_rate", "comparison_rate", "request_rate")
    world_keys = (*Stage.world_keys, *conversation_keys, "question_weights")
    evaluation_keys = ("per_kind",)
    num_questions = 4

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("backbone" in recipe.inputs) == ("backbone" in recipe.model):
            raise ValueError(
                f"Stage 'understanding' needs one backbone. {self.where} gives "
                f"{'two' if 'backbone' in recipe.model else 'none'}. Put its sizes under 'model.backbone' to start "
                f"from nothing, or its folder under 'inputs.backbone' to go on from it."
            )

    def build(self):
        self.max_length = self.recipe.model["max_length"]
        if "backbone" in self.folders:
            return self._load(self.folders["backbone"])
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
            yield template.plan_instruction.replace("{caption}", record.caption)
            yield from (question.text for question in record.questions)
            yield from (question.answer for question in record.questions)
            yield record.description
            yield record.long_caption
            yield DESCRIBE_FULLY

    def dataset(self):
        if not self.is_world:
            return super().dataset()
        rates = {key: self.recipe.data[key] for key in self.conversation_keys if key in self.recipe.data}
        return ShapesConversations(self.scenes(), self.processor.plan_instruction, **rates)

    def collate(self, records):
        return Conversations(self.processor, self.max_length).collate(records)

    def loss(self, model, batch, generators):
        return model(**batch).loss

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)
