"""Answers to whole conversations, many at once: of a model, or of its backbone alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from ..assets import resolve_model
from ..checkpoints.loading import load_saved
from ..models.backbones import accepts, token_types, vision_or_text_model
from ..models.configuration_blip3o import Blip3oConfig, has_vision
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor, message_images


def _generation_config(path: str) -> GenerationConfig:
    """Of a BLIP3-o; where it has none, the one that its model makes of its config."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(Blip3oConfig.from_pretrained(path))


SETTINGS = frozenset(GenerationConfig().to_dict()) - {"transformers_version"}
MAX_NEW_TOKENS = 128


class ChatAnswerer:
    """
    Answers in words; a model may not start a picture instead.

    Args:
        model: a BLIP3-o, or a backbone alone.
        processor: of the BLIP3-o, also for its backbone.
    """

    def __init__(self, model: PreTrainedModel, processor: Blip3oProcessor):
        self.model = model.eval()
        self.backbone = model.backbone if isinstance(model, Blip3oForConditionalGeneration) else model
        self.sees = has_vision(self.backbone.config)
        self.processor = processor
        self.image_start = processor.tokenizer.convert_tokens_to_ids(processor.image_start_token)

    @classmethod
    def load(cls, pretrained: str, dtype: str | torch.dtype = "auto", device: Any = "cpu") -> "ChatAnswerer":
        """
        Args:
            pretrained: packaged name, folder or Hub id of a BLIP3-o.
            dtype: of the weights; `auto` is that of the files.
            device: where it computes.
        """
        path = resolve_model(pretrained)
        model = Blip3oForConditionalGeneration.from_pretrained(path, dtype=dtype)
        assert isinstance(model, Blip3oForConditionalGeneration)  # no loading report is asked for
        return cls(model.to(device), Blip3oProcessor.from_pretrained(path))

    @classmethod
    def load_backbone(
        cls, pretrained: str, weights: str | None = None, dtype: str | torch.dtype = "auto", device: Any = "cpu"
    ) -> "ChatAnswerer":
        """
        The backbone alone, as a model of transformers.

        Args:
            pretrained, dtype, device: as in `load`.
            weights: folder or Hub id of the backbone as it was before, such as `Qwen/Qwen2.5-VL-7B-Instruct`; by
                default the one in the BLIP3-o. It answers with the generation config of the BLIP3-o.

        Raises:
            ValueError: when the weights are incomplete or damaged.
        """
        if weights is None:
            whole = cls.load(pretrained, dtype, device)
            backbone = whole.model.backbone
            backbone.generation_config = whole.model.generation_config
            return cls(backbone, whole.processor)
        path = resolve_model(pretrained)
        model_class = vision_or_text_model(AutoConfig.from_pretrained(weights))
        backbone, _ = load_saved(model_class.from_pretrained, weights, dtype=dtype)
        backbone.generation_config = _generation_config(path)  # its own may have penalties, which are no weights
        return cls(backbone.to(device), Blip3oProcessor.from_pretrained(path))

    @torch.no_grad()
    def __call__(self, conversations: Sequence[Sequence[Mapping[str, Any]]], **settings: Any) -> list[str]:
        """
        The next answer in each conversation, as one batch.

        Args:
            conversations: chat messages, with images as `{"type": "image", "image": ...}`.
            settings: of `generate`, such as `max_new_tokens` and `do_sample`; greedy by default.

        Raises:
            ValueError: when a conversation is longer than the backbone's context, or shows images to a backbone that
                reads text only.
        """
        inputs = self._inputs(conversations)
        length = inputs["input_ids"].shape[1]
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, **settings}
        output = self.model.generate(**inputs, **settings, suppress_tokens=[self.image_start])
        return [text.strip() for text in self.processor.post_process_image_text_to_text(output[:, length:])]

    def _inputs(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, torch.Tensor]:
        images = [image for messages in conversations for image in message_images(messages)]
        if images and not self.sees:
            raise ValueError(
                f"Images need a backbone that reads them. {type(self.backbone).__name__} reads text only, and a "
                f"conversation shows an image. Use a model with a vision-language backbone."
            )
        template = self.processor.apply_chat_template
        inputs = self.processor(
            text=[template(messages, add_generation_prompt=True) for messages in conversations],
            **({"images": images} if images else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.model.device)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1]
        if limit is not None and length >= limit:
            raise ValueError(
                f"A conversation must fit the backbone's context, {limit} tokens. The longest of these has {length}. "
                f"Show fewer or smaller images."
            )
        inputs.pop("token_type_ids", None)
        if self.model is not self.backbone:
            return dict(inputs)
        given = {name: value for name, value in inputs.items() if accepts(self.model, name)}
        return {**(token_types(self.model, inputs["input_ids"]) if images else {}), **given}
