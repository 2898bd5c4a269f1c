"""The stage `encoder`: a target encoder for the tiny world, where a published one would be out of place."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ...data.records import targets
from ...models.target_encoder import crop, normalize
from ...training.recipe_values import hints_of
from ...training.stages.base import Stage
from ...training.tasks.base import Task
from ...training.tokenizers import train_tokenizer
from ..dataset import ShapesDataset

# Small, so that places do not take all the room in the features.
PLACE_WEIGHT = 0.1
PLACE_SMOOTHING = 0.1


class PatchCLIPModel(CLIPModel):
    """A CLIP with a linear head on each patch feature for the pixels of its patch, and one for its place."""

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        vision: Any = config.vision_config
        self.pixel_head = nn.Linear(vision.hidden_size, 3 * vision.patch_size**2)
        self.place_head = nn.Linear(vision.hidden_size, (vision.image_size // vision.patch_size) ** 2)
        self.post_init()

    def patch_loss(self, patch_features: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        How far the features are from telling, through the heads, what their patches show and where these are.

        Args:
            patch_features (`[B, N, C]`): the last hidden states, without the class token.
            pixel_values (`[B, 3, H, W]`): what the tower saw.
        """
        vision: Any = self.config.vision_config
        size = vision.patch_size
        patches = F.unfold(pixel_values, size, stride=size).transpose(1, 2)
        places = torch.arange(patch_features.shape[1], device=patch_features.device).expand(len(patch_features), -1)
        pixel_loss = F.mse_loss(self.pixel_head(patch_features).float(), patches)
        logits = self.place_head(patch_features).float().flatten(0, 1)
        return pixel_loss + PLACE_WEIGHT * F.cross_entropy(logits, places.flatten(), label_smoothing=PLACE_SMOOTHING)


class EncoderTask(Task):
    """
    Contrastive loss of images and captions, and what each patch feature keeps of its patch.

    Args:
        tokenizer: of the captions.
        image_processor: of the images.
        patch_weight: of the second loss.
    """

    name = "encoder"
    reads_prompts = False

    def __init__(self, tokenizer, image_processor, patch_weight: float = 0.0):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.patch_weight = patch_weight

    def collate(self, records):
        texts = [record.prompt + self.tokenizer.eos_token for record in records]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": normalize(self.image_processor, crop(self.image_processor, targets(records))),
        }

    def loss(self, model, batch, generators):
        output = model(**batch, return_loss=True)
        features = output.vision_model_output.last_hidden_state[:, 1:]
        return output.loss + self.patch_weight * model.patch_loss(features, batch["pixel_values"])

    def save(self, model, folder, weights=None):
        weights = model.state_dict() if weights is None else weights
        prefix = "vision_model."
        tower = CLIPVisionModel(model.config.vision_config)
        tower.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        tower.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


class EncoderStage(Stage):
    """
    A CLIP-style encoder from nothing: image and caption towers, contrastive loss. Leaves the image tower.

    Captions ask little of the patch features, which are what the model learns to generate and the backbone to read: a
    small CLIP forgets where a patch stands, and what exactly it shows. `model.patch_weight` weighs a loss by which
    each feature keeps the pixels and the place of its patch.
    """

    name = "encoder"
    model_keys = ("vision", "text", "projection_dim", "patch_weight")
    types = {
        "model": {"vision": dict, "text": dict, "projection_dim": int, "patch_weight": float},
        "model.vision": hints_of(CLIPVisionConfig),
        "model.text": hints_of(CLIPTextConfig),
    }

    def build(self):
        vision, text = self.recipe.model["vision"], self.recipe.model["text"]
        self._check_config(vision, CLIPVisionConfig, "model.vision")
        self._check_config(text, CLIPTextConfig, "model.text")
        config = CLIPConfig(
            vision_config=vision,
            text_config={
                **text,
                "vocab_size": len(self._tokenizer),
                "bos_token_id": self._tokenizer.pad_token_id,
                "eos_token_id": self._tokenizer.eos_token_id,
                "pad_token_id": self._tokenizer.pad_token_id,
            },
            projection_dim=self.recipe.model["projection_dim"],
        )
        return PatchCLIPModel._from_config(config, attn_implementation="eager"), None

    @cached_property
    def _tokenizer(self):
        corpus = ShapesDataset(length=2000, seed=1, long_caption_rate=0.5)
        captions = (corpus[index].caption for index in range(len(corpus)))
        return train_tokenizer(captions, 400, self.recipe.model["text"]["max_position_embeddings"])

    def task(self):
        size = self.recipe.model["vision"]["image_size"]
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        return EncoderTask(self._tokenizer, image_processor, self.recipe.model.get("patch_weight", 0.0))
