"""Conversations about pictures and texts as inputs and labels: only answers are learned."""

from collections.abc import Sequence

import torch

from ..data.shapes import IMAGE_SIZE
from ..data.shapes_dataset import ShapesRecord
from ..models.processing_blip3o import Blip3oProcessor

IGNORED = -100
DESCRIBE = "describe the image"
DESCRIBE_FULLY = "describe the image in detail"


class Conversations:
    """
    Turns records into conversations, and these into batches.

    Args:
        processor: of the backbone that answers.
        max_length: longest conversation in tokens; the end of a longer one is cut.
        text_rate: share in [0, 1] of a batch's records that are spoken of without showing the picture.
    """

    def __init__(self, processor: Blip3oProcessor, max_length: int, text_rate: float):
        self.processor = processor
        self.max_length = max_length
        self.text_rate = text_rate

    def collate(self, records: Sequence[ShapesRecord]) -> dict[str, torch.Tensor]:
        """A batch for the backbone, with labels; the first records are those about text."""
        num_text = round(self.text_rate * len(records))
        conversations = [self.about_text(record) for record in records[:num_text]]
        conversations += [self.about_image(record) for record in records[num_text:]]
        encoded = [self.encode(turns) for turns in conversations]
        longest = max(len(ids) for ids, _ in encoded)
        pad = self.processor.tokenizer.pad_token_id
        input_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in encoded])
        labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in encoded])
        lengths = torch.tensor([len(ids) for ids, _ in encoded])
        images = [record.image for record in records[num_text:]]
        pixels = self.processor.image_processor(images, return_tensors="pt") if images else {}
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "labels": labels,
            "mm_token_type_ids": (input_ids == self.processor.image_token_id).int(),
            **pixels,
        }

    def about_image(self, record: ShapesRecord) -> list[tuple[str, str]]:
        """The record's questions about its picture, then both descriptions of it."""
        placeholder = "<|vision_start|>" + self._image_slots + "<|vision_end|>"
        turns = [(question.text, question.answer) for question in record.questions]
        turns += [(DESCRIBE, record.description), (DESCRIBE_FULLY, record.long_caption)]
        return [(placeholder + turns[0][0], turns[0][1]), *turns[1:]]

    def about_text(self, record: ShapesRecord) -> list[tuple[str, str]]:
        """
        A generation request answered with a plan of the picture, then questions about that picture.

        A short prompt is answered with the full description, so that its words come to mean a whole arrangement: which
        colour goes with which shape, who stands where. A full description is answered with the plain one.
        """
        plan = record.description if record.caption == record.long_caption else record.plan
        request = self.processor.instruction.replace("{caption}", record.caption)
        return [(request, plan), *((question.text, question.answer) for question in record.questions)]

    def encode(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and labels for the assistant's words and the token that ends its turn."""
        messages = [{"role": "user", "content": turns[0][0]}]
        opening = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        parts = [opening, turns[0][1] + "<|im_end|>"]
        for question, answer in turns[1:]:
            parts += [f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", answer + "<|im_end|>"]
        ids: list[int] = []
        labels: list[int] = []
        tokenized = self.processor.tokenizer(parts, add_special_tokens=False)["input_ids"]
        for index, part_ids in enumerate(tokenized):
            ids += part_ids
            labels += part_ids if index % 2 else [IGNORED] * len(part_ids)
        return ids[: self.max_length], labels[: self.max_length]

    @property
    def _image_slots(self) -> str:
        image_processor = self.processor.image_processor
        side = IMAGE_SIZE // (image_processor.patch_size * image_processor.merge_size)
        return self.processor.image_token * side**2
