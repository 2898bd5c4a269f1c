"""Rewards of CLIP models: how near the embeddings of a picture and of its prompt are."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from ..checks import check_sizes
from .ready import ReadyReward, find_weights, licence_of, load_judge

CLIP = "openai/clip-vit-large-patch14"
PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
LICENCES = {
    CLIP: "MIT, the licence of the code",
    PICKSCORE: "not stated on the card; MIT for the CLIP whose processor it uses",
}


class ClipReward(ReadyReward):
    r"""
    \(e^s \cos(\text{picture}, \text{prompt}) / d\), with the temperature \(s\) of a CLIP model and a divisor \(d\).

    Args:
        name: in logs.
        model: folder or Hub id of a `CLIPModel`; it is loaded at the first call.
        processor: folder or Hub id of its image processor and tokenizer. Prompts are cut at the length of the model's
            context, 77 tokens.
        divisor: divides the logits.
        licence (*optional*): of the weights.
        device: where it computes; by default this process's accelerator, where there is one.
        dtype: of the weights.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        name: str,
        model: str,
        processor: str,
        divisor: float,
        *,
        licence: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        batch_size: int = 32,
    ):
        check_sizes(batch_size=batch_size)
        super().__init__(name, licence or licence_of(model, LICENCES))
        self.source, self.processor_source, self.divisor = model, processor, divisor
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self._model: CLIPModel | None = None

    @property
    def model(self) -> CLIPModel:
        """
        Raises:
            OSError: when its weights are neither here nor on the Hub.
        """
        if self._model is None:
            source, processor = find_weights(self.source), find_weights(self.processor_source)
            self._image_processor = AutoImageProcessor.from_pretrained(processor, backend="pil")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(processor)
            self._model = load_judge(CLIPModel, source, self.dtype, self.device)
        return self._model

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Image.Image], **columns: Any
    ) -> list[float | None]:
        """
        Args:
            prompts: texts.
            completions: a picture for each.
            columns: not read.

        Raises:
            OSError: as `model`.
        """
        scores = []
        for start in range(0, len(prompts), self.batch_size):
            batch = slice(start, start + self.batch_size)
            scores += self._scores(prompts[batch], completions[batch]).tolist()
        return scores

    @torch.no_grad()
    def _scores(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Tensor:
        """`[B]`, float32: of each picture and its own prompt."""
        model = self.model
        texts = list(dict.fromkeys(prompts))  # the pictures of a group have one prompt
        with torch.autocast(model.device.type, enabled=False):  # differences within a group are small
            directions = self._of_texts(model, texts)[[texts.index(prompt) for prompt in prompts]]
            cosines = (self._of_images(model, images) * directions).sum(dim=-1)
            return (model.logit_scale.float().exp() * cosines / self.divisor).cpu()

    def _of_texts(self, model: CLIPModel, texts: list[str]) -> Tensor:
        """`[T, D]` of length 1, float32."""
        config: Any = model.config.text_config
        limit = config.max_position_embeddings
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        found: Any = model.get_text_features(**{name: inputs[name].to(model.device) for name in names})
        return normalize(found.pooler_output.float(), dim=-1)

    def _of_images(self, model: CLIPModel, images: Sequence[Image.Image]) -> Tensor:
        """`[B, D]` of length 1, float32."""
        pixels = self._image_processor([image.convert("RGB") for image in images], return_tensors="pt")
        found: Any = model.get_image_features(pixel_values=pixels["pixel_values"].to(model.device, model.dtype))
        return normalize(found.pooler_output.float(), dim=-1)


class ClipScore(ClipReward):
    """
    CLIPScore: `logits_per_image / 100`, which is the cosine for OpenAI's models. From about 0.1 to 0.4 in practice.

    Args:
        model: folder or Hub id of a CLIP with its processor.
        settings: `name`, `licence`, `device`, `dtype`, `batch_size`, as of [`ClipReward`].
    """

    def __init__(self, model: str = CLIP, *, name: str = "clip_score", **settings: Any):
        super().__init__(name, model, model, 100.0, **settings)


class PickScore(ClipReward):
    """
    PickScore (Kirstain et al., 2023), a CLIP trained on which picture people chose: the logit / 26, from about 0.65
    to 1.

    Args:
        model: folder or Hub id of the CLIP.
        processor: folder or Hub id of its processor.
        settings: `name`, `licence`, `device`, `dtype`, `batch_size`, as of [`ClipReward`].
    """

    def __init__(
        self,
        model: str = PICKSCORE,
        processor: str = PICKSCORE_PROCESSOR,
        *,
        name: str = "pick_score",
        **settings: Any,
    ):
        super().__init__(name, model, processor, 26.0, **settings)


clip_score = ClipScore()
"""For recipes: `blip3o_hf.rewards.clip:clip_score`."""
pick_score = PickScore()
"""For recipes: `blip3o_hf.rewards.clip:pick_score`."""

__all__ = ["ClipReward", "ClipScore", "PickScore", "clip_score", "pick_score"]
