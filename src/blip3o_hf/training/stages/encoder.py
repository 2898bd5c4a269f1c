"""The stage `encoder`: a target encoder for the tiny world, where a published one would be out of place."""

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ...data.records import targets
from ...data.shapes_dataset import ShapesDataset
from ...models.target_encoder import crop, normalize
from ..tokenizers import train_tokenizer
from .base import Stage


class EncoderStage(Stage):
    """A CLIP-style encoder from nothing: image and caption towers, contrastive loss. Leaves the image tower."""

    name = "encoder"
    model_keys = ("vision", "text", "projection_dim")

    def build(self):
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
        texts = [record.prompt + self.tokenizer.eos_token for record in records]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": normalize(self.image_processor, crop(self.image_processor, targets(records))),
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
